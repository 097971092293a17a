"""The working tree as a job takes it along: what is in it, whether it may be uploaded, and the archive.

Ray uploads a folder by itself, but weighs it only when it is packed, takes data for code, and goes through folders that
`.gitignore` names. So the files are listed here by Ray's own matcher, and Ray is given the archive: what was weighed is
what is sent, and the same tree is the same archive, which a cluster that has it is not sent again.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from library.errors import UsageError
from library.sources.entries import PICTURE_SUFFIXES, suffix_of

#: Of all files, before they are packed; Ray's dashboard takes 100 MiB.
MAX_BYTES = 64 * 2**20
MAX_FILES = 20_000
#: Pictures and shards below one folder: more than these belong in a bucket.
MAX_DATA_FILES = 200
MAX_DATA_BYTES = 16 * 2**20

_IGNORE_FILES = (".gitignore", ".rayignore")
#: Left out with or without an ignore file: history, environments, what jobs made, data.
_NEVER = (".git", ".venv", "venv", "__pycache__", "/out/", "/data/", ".*_cache/", "*.egg-info/")
#: Secrets, by the names that they usually have.
_SECRETS = (".env", ".env.*", ".envrc", ".netrc", ".aws", ".ssh", ".kube", "*.pem", "*.key", "*api-keys*", "*api_keys*")
_DATA_SUFFIXES = (PICTURE_SUFFIXES - {"svg", "ico"}) | {"parquet", "tar", "tgz", "gz", "zip", "arrow", "tfrecord"}
_NAMED_FOLDERS = 4


@dataclass(frozen=True)
class Tree:
    """Files below `root` that are sent, by their path with `/`, and their sizes in bytes."""

    root: str
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def holds(self, path: str) -> bool:
        """Whether a file or folder, by its path below `root`, is sent."""
        path = os.path.normpath(path)
        return path == "." or path in self.files or any(file.startswith(path + "/") for file in self.files)

    def pack(self, archive: str) -> None:
        """Write a zip file; equal trees make equal files."""
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(self.files):
                member = zipfile.ZipInfo(path)  # of a fixed date
                member.compress_type = zipfile.ZIP_DEFLATED
                mode = os.stat(os.path.join(self.root, path)).st_mode
                member.external_attr = (0o755 if mode & 0o100 else 0o644) << 16
                with open(os.path.join(self.root, path), "rb") as file:
                    packed.writestr(member, file.read())


def working_tree(root: str) -> Tree:
    """What of the folder `root` is sent: all that `.gitignore` and `.rayignore` leave in, at any depth.

    Links to folders are not followed.

    Raises:
        UsageError: when it is too large, or holds data, with the folders that make it so.
    """
    root = os.path.realpath(root)
    if root in (os.path.realpath(os.path.expanduser("~")), os.path.sep):
        raise UsageError(f"{root} is no project: the folder that you are in is uploaded; change to the project's first")
    files: dict[str, int] = {}
    for path, size in _walk(root, "", (_rules("", (*_NEVER, *_SECRETS)),)):
        files[path] = size
        if len(files) > MAX_FILES:
            break
    tree = Tree(root, files)
    _refuse_data(tree)
    if len(files) > MAX_FILES:
        raise UsageError(f"{root} has more than {MAX_FILES:,} files, too many to upload{_where(_by_folder(tree))}")
    if tree.bytes > MAX_BYTES:
        raise UsageError(
            f"{root} has {tree.bytes / 2**20:,.0f} MiB, and at most {MAX_BYTES >> 20} are uploaded"
            f"{_where(_by_folder(tree))}"
        )
    return tree


def _refuse_data(tree: Tree) -> None:
    data = {path: size for path, size in tree.files.items() if suffix_of(path) in _DATA_SUFFIXES}
    counts = Counter(_folder(path) for path in data)
    sizes = _by_folder(Tree(tree.root, data))
    for folder, count in counts.most_common():
        if count > MAX_DATA_FILES or sizes[folder] > MAX_DATA_BYTES:
            raise UsageError(
                f"{folder} holds {count:,} pictures and data files ({sizes[folder] / 2**20:,.1f} MiB), which are not "
                f"uploaded with a job: copy them to a bucket (aws s3 cp --recursive {folder} s3://BUCKET/...) and "
                f"name s3://BUCKET/... in the command; or write {folder} in .gitignore or .rayignore"
            )


def _by_folder(tree: Tree) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for path, size in tree.files.items():
        sizes[_folder(path)] += size
    return sizes


def _folder(path: str) -> str:
    first, slash, _ = path.partition("/")
    return f"{first}/" if slash else "./"


def _where(sizes: Counter[str]) -> str:
    named = ", ".join(f"{folder} {size / 2**20:,.1f} MiB" for folder, size in sizes.most_common(_NAMED_FOLDERS))
    return f" ({named}): write in .gitignore or .rayignore what the job does not need; data belongs in a bucket"


# Of a folder: where its paths begin in a path from the root, and what it leaves out.
_Rules = tuple[int, Any]


def _walk(root: str, below: str, rules: tuple[_Rules, ...]) -> Iterator[tuple[str, int]]:
    for name in _IGNORE_FILES:
        try:
            with open(os.path.join(root, below, name), encoding="utf-8", errors="replace") as file:
                rules = (*rules, _rules(below, tuple(file)))
        except (FileNotFoundError, IsADirectoryError):
            continue
    with os.scandir(os.path.join(root, below)) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = below + entry.name
        if entry.is_dir(follow_symlinks=False):
            # With its slash, as `out/` matches a folder only so.
            if not _left_out(path + "/", rules):
                yield from _walk(root, path + "/", rules)
        elif entry.is_file() and not _left_out(path, rules):
            yield path, entry.stat().st_size


def _rules(below: str, lines: tuple[str, ...]) -> _Rules:
    from ray._private.thirdparty.pathspec.pathspec import PathSpec

    return len(below), PathSpec.from_lines("gitwildmatch", lines)


def _left_out(path: str, rules: tuple[_Rules, ...]) -> bool:
    return any(spec.match_file(path[start:]) for start, spec in rules)
