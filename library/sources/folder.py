"""A folder of pictures, on disk or in an object store: which files there are."""

from __future__ import annotations

import os
import stat
from urllib.parse import quote_from_bytes, unquote_to_bytes

from library import storage
from library.errors import StriateError
from library.sources.entries import Entries, why_skipped
from library.sources.index import printable


def scan(uri: str) -> Entries:
    """Every file below the folder `uri`, in the order of their paths.

    Hidden and system files are passed over. A link to a file inside the folder is read; a link that leads out of
    it, or to a folder, is not.

    Raises:
        StriateError: when the folder or one below it cannot be listed; names it.
    """
    return _scan_remote(uri) if storage.is_remote(uri) else _scan_local(uri)


def location(path: str) -> str:
    """The URI of a local file; a name that is not UTF-8 is written as file:// with percent signs."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))


def opened(uri: str) -> str:
    """What to open for a `location`."""
    return os.fsdecode(unquote_to_bytes(uri[len("file://") :])) if uri.startswith("file://") else uri


def _scan_remote(uri: str) -> Entries:
    entries = Entries()
    for file in storage.list_files(uri):
        if file.path.endswith("/"):  # a folder marker that some tools write
            continue
        reason = next(filter(None, map(why_skipped, file.path.split("/"))), None)
        if reason is not None:
            entries.skipped[reason] += 1
        else:
            entries.add(printable(file.path), file.uri, 0, file.size)
    return entries


def _scan_local(root: str) -> Entries:
    entries = Entries()
    resolved = os.path.realpath(root)
    folders = [root]
    while folders:
        folder = folders.pop()
        below: list[str] = []
        for entry in _listed(folder):
            reason = why_skipped(entry.name)
            if reason is not None:
                entries.skipped[reason] += 1
            elif entry.is_symlink():
                _add_link(entries, entry, root, resolved)
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            else:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    entries.add(_below(root, entry.path), location(entry.path), 0, status.st_size)
                else:
                    entries.skipped["special"] += 1
        folders += reversed(below)
    return entries


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise StriateError(
            f"cannot list the folder {printable(folder)}: {error.strerror}; "
            "make it readable (chmod u+rx), or move it out of the source"
        ) from error


def _add_link(entries: Entries, entry: os.DirEntry[str], root: str, resolved: str) -> None:
    target = os.path.realpath(entry.path)
    reason = _why_not_followed(target, resolved)
    if reason is not None:
        entries.skipped[reason] += 1
    else:
        # The target, not the link: a link that is turned elsewhere after this check is not followed.
        entries.add(_below(root, entry.path), location(target), 0, os.stat(target).st_size)


def _why_not_followed(target: str, resolved: str) -> str | None:
    if not os.path.exists(target):
        return "link_broken"
    if os.path.isdir(target):
        return "link_folder"
    if not target.startswith(resolved.rstrip("/") + "/"):
        return "link_outside"
    return None if os.path.isfile(target) else "special"


def _below(root: str, path: str) -> str:
    return printable(path[len(root.rstrip("/")) + 1 :])
