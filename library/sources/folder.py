"""Lists the files of a folder of pictures, on disk or in an object store."""

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
from library.sources.listing import printable

_HEAD_BYTES = 64
_FEW = 3


def scan(uri: str) -> Entries:
    """Lists every file below the folder `uri`, in the order of their paths.

    Hidden and system files are skipped. On disk, links to files are followed, and links to folders outside the source,
    each once: class folders may consist of links. Outside the source only files whose first bytes are a picture's are
    listed, and the texts beside the pictures of a linked folder.

    Raises:
        StriateError: the folder or one below it cannot be listed (names it).
    """
    return _scan_remote(uri) if storage.is_remote(uri) else _scan_local(uri)


def location(path: str) -> str:
    """The URI of a local file; a path that is not UTF-8 becomes a file:// URI with percent signs."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))


def local_path(uri: str) -> str:
    """The path to open for a URI from `location`."""
    return os.fsdecode(unquote_to_bytes(uri[len("file://") :])) if uri.startswith("file://") else uri


def _scan_remote(uri: str) -> Entries:
    entries = Entries()
    for file in storage.list_files(uri):
        if file.path.endswith("/"):  # some tools write such markers for folders
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
    """A folder to list: its path below the source, its real path, and whether a link led to it from the source."""

    path: str
    real: str
    outside: bool


class _Walk:
    """The files of the folders listed so far, and the folders that links led to."""

    def __init__(self, root: str) -> None:
        self.entries = Entries()
        self._root = root
        self._resolved = os.path.realpath(root)
        # Folders outside the source: so that none is listed twice, or without end.
        self._entered: set[str] = set()  # targets of links
        self._read_outside: set[str] = set()
        self._outside: list[str] = []

    def read(self, folder: _Folder) -> list[_Folder]:
        """Adds the files of one folder; returns the folders in it that are still to be listed."""
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
        """The entries of a folder; empty for one outside the source that was listed before or cannot be read."""
        if not folder.outside:
            return _listed(folder.real)
        real = os.path.realpath(folder.real)
        if real in self._read_outside:
            self.entries.skipped["link_folder"] += 1
            return []
        self._read_outside.add(real)
        try:
            return _listed(real)
        except StriateError:  # it may belong to someone else; the source can still be used
            self.entries.skipped["link_outside"] += 1
            return []

    def notes(self) -> Iterator[str]:
        if self._outside:
            more = f", and {len(self._outside) - _FEW:,} more" if len(self._outside) > _FEW else ""
            yield f"links that lead outside the folder are followed: {', '.join(self._outside[:_FEW])}{more}"

    def _follow(self, path: str, target: str) -> list[_Folder]:
        """Follows a link: adds a file, or returns the folder that is still to be listed."""
        inside = _lies_in(target, self._resolved)
        reason = None
        if not os.path.exists(target):
            reason = "link_broken"
        elif os.path.isdir(target):
            # A folder in the source is listed at its own place; one that contains the source would never end.
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
        # The target, not the link: the link may change after this check.
        self._add(path, target, os.stat(target).st_size)
        return []

    def _was_entered(self, folder: str) -> bool:
        return any(str(known) in self._entered for known in (folder, *Path(folder).parents))

    def _add(self, path: str, real: str, size: int) -> None:
        self.entries.add(_below(self._root, path), location(real), 0, size)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_picture(path: str) -> bool:
    """Whether the first bytes are a picture's: nothing else is read from outside the source, whatever its name."""
    try:
        with open(path, "rb") as file:
            return codec.sniff(file.read(_HEAD_BYTES)) is not None
    except OSError:
        return False


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise StriateError(
            f"cannot list the folder {printable(folder)}: {error.strerror}; "
            "make it readable (chmod u+rx), or remove it from the source"
        ) from error


def _below(root: str, path: str) -> str:
    return printable(path[len(root.rstrip("/")) + 1 :])
