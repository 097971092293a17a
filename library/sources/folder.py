"""A folder of pictures, on disk or in an object store: which files there are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from library import storage
from library.errors import StriateError
from library.imaging import codec
from library.sources.entries import Entries, is_other_name, why_skipped
from library.sources.index import printable

_HEAD_BYTES = 64
_FEW = 3


def scan(uri: str) -> Entries:
    """Every file below the folder `uri`, in the order of their paths.

    Hidden and system files are passed over. Links are followed on disk: to files, and to folders outside the source,
    each once, so that class folders may be made of links. Outside the source only what begins as a picture is taken,
    and the texts beside the pictures of a linked folder.

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
    walk = _Walk(root)
    folders = [_Folder(root, root, False)]
    while folders:
        folder = folders.pop()
        folders += reversed(walk.read(folder))
    walk.entries.notes += walk.notes()
    return walk.entries


@dataclass(frozen=True)
class _Folder:
    """A folder to be read: its path below the source, where it really is, and whether a link led out to it."""

    path: str
    real: str
    outside: bool


class _Walk:
    """What the folders that were read so far hold, and where links have led."""

    def __init__(self, root: str) -> None:
        self.entries = Entries()
        self._root = root
        self._resolved = os.path.realpath(root)
        # Outside the source: so that no folder is read twice, or for ever.
        self._entered: set[str] = set()  # where links have led
        self._read_outside: set[str] = set()
        self._outside: list[str] = []

    def read(self, folder: _Folder) -> list[_Folder]:
        """Add the files of one folder; returns the folders in it that are to be read."""
        below: list[_Folder] = []
        for entry in self._listed_once(folder):
            path = os.path.join(folder.path, entry.name)
            reason = why_skipped(entry.name)
            if reason is not None:
                self.entries.skipped[reason] += 1
            elif entry.is_symlink():
                below += self._follow(path, os.path.realpath(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                below.append(_Folder(path, entry.path, folder.outside))
            else:
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    self.entries.skipped["special"] += 1
                elif folder.outside and not is_other_name(entry.name) and not _is_picture(entry.path):
                    self.entries.skipped["link_outside"] += 1
                else:
                    self._add(path, entry.path, status.st_size)
        return below

    def _listed_once(self, folder: _Folder) -> list[os.DirEntry[str]]:
        """What a folder holds; nothing of one outside the source that was read before, or may not be read."""
        if not folder.outside:
            return _listed(folder.real)
        real = os.path.realpath(folder.real)
        if real in self._read_outside:
            self.entries.skipped["link_folder"] += 1
            return []
        self._read_outside.add(real)
        try:
            return _listed(real)
        except StriateError:  # its owner is another: no reason to refuse the source
            self.entries.skipped["link_outside"] += 1
            return []

    def notes(self) -> Iterator[str]:
        if self._outside:
            more = f", and {len(self._outside) - _FEW:,} more" if len(self._outside) > _FEW else ""
            yield f"links that lead out of the folder are followed: {', '.join(self._outside[:_FEW])}{more}"

    def _follow(self, path: str, target: str) -> list[_Folder]:
        """Where a link leads: a folder that is still to be read, or a file, which is added."""
        inside = _lies_in(target, self._resolved)
        reason = None
        if not os.path.exists(target):
            reason = "link_broken"
        elif os.path.isdir(target):
            # What lies in the source is read where it lies; what holds it would be read without end.
            if inside or _lies_in(self._resolved, target) or self._was_entered(target):
                reason = "link_folder"
        elif not os.path.isfile(target):
            reason = "special"
        elif not inside and not _is_picture(target):
            reason = "link_outside"
        if reason is not None:
            self.entries.skipped[reason] += 1
            return []
        if not inside:
            self._outside.append(f"{_below(self._root, path)} -> {printable(target)}")
        if os.path.isdir(target):
            self._entered.add(target)
            return [_Folder(path, target, True)]
        # The target, not the link: a link that is turned elsewhere after this check is not followed.
        self._add(path, target, os.stat(target).st_size)
        return []

    def _was_entered(self, folder: str) -> bool:
        return any(str(known) in self._entered for known in (folder, *Path(folder).parents))

    def _add(self, path: str, real: str, size: int) -> None:
        self.entries.add(_below(self._root, path), location(real), 0, size)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_picture(path: str) -> bool:
    """Whether a file begins as a picture does: nothing else is taken from outside the source, whatever its name."""
    try:
        with open(path, "rb") as file:
            return codec.sniff(file.read(_HEAD_BYTES)) is not None
    except OSError:
        return False


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise StriateError(
            f"cannot list the folder {printable(folder)}: {error.strerror}; "
            "make it readable (chmod u+rx), or move it out of the source"
        ) from error


def _below(root: str, path: str) -> str:
    return printable(path[len(root.rstrip("/")) + 1 :])
