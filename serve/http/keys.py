"""API keys: a file of lines `NAME sha256:HEX`, which does not reveal the keys.

A key has 256 random bits, so a plain SHA-256 protects it as well as a slow hash would, and is cheap for each request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from library.errors import UsageError

#: Begins every key, so that scanners for leaked secrets recognize it.
PREFIX = "striate_"
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-f]{{64}})")

_log = logging.getLogger("striate.serve")


def new_key(name: str) -> tuple[str, str]:
    """Returns a new key, and its line for the file.

    Raises:
        UsageError: for a name that is not valid.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a valid name for a key: use up to 64 letters, digits and . _ @ -")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name} sha256:{_digest(key)}"


def parse_keys(text: str, where: str) -> dict[str, str]:
    """Returns digests by name from key lines, which newlines or commas separate; `#` begins a comment.

    Args:
        text: the lines.
        where: their source, for errors: a path, a variable.

    Raises:
        UsageError: for the first line that is not valid (without its text), or a name that occurs twice.
    """
    keys: dict[str, str] = {}
    for number, line in _lines(text):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(
                f"{where}, line {number}: should be 'NAME sha256:HEX'; `striate keys NAME` writes such lines"
            )
        name, digest = match.groups()
        if name in keys:
            raise UsageError(f"{where}, line {number}: there are two keys named '{name}'")
        keys[name] = digest
    return keys


class Keys:
    """Finds the name of a key.

    Args:
        lines: fixed keys.
        file: path of a file with more; read again when it changes. While it cannot be read, none of its keys is valid.

    Raises:
        UsageError: when a line is wrong, or the file is missing.
    """

    def __init__(self, lines: Iterable[str] = (), file: str | None = None) -> None:
        self._fixed = parse_keys("\n".join(lines), "the keys")
        self._file = None if file is None else Path(file)
        self._stamp: tuple[int, ...] = ()
        self._read: dict[str, str] = {}
        if self._file is not None:
            self._stamp = _stamp_of(self._file)
            self._read = read_keys(self._file)

    def owner(self, key: str) -> str | None:
        """Returns the name of a key, or None for an unknown key, in the same time."""
        self._refresh()
        digest = _digest(key)
        owner = None
        for name, known in (*self._fixed.items(), *self._read.items()):
            if hmac.compare_digest(digest, known):
                owner = name
        return owner

    def _refresh(self) -> None:
        if self._file is None:
            return
        stamp = _stamp_of(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read = read_keys(self._file)
        except UsageError as error:
            # A mistake in the file must not keep a revoked key valid.
            self._read = {}
            _log.error("no key of %s is accepted until the file is corrected: %s", self._file, error)
        else:
            _log.info("read %d keys from %s", len(self._read), self._file)


def read_keys(path: Path) -> dict[str, str]:
    """Returns digests by name from a key file; raises UsageError when it cannot be read or has a wrong line."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key file {path} cannot be read: {error}") from None
    return parse_keys(text, str(path))


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(re.split(r"[\n,]", text), 1):
        stripped = line.partition("#")[0].strip()
        if stripped:
            yield number, stripped


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp_of(path: Path) -> tuple[int, ...]:
    """Returns a value that changes with the file; a changed Kubernetes secret has another inode."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
