"""The working tree that Ray uploads with a job: what is in it, and whether it may be uploaded.

Ray's packaging respects `.gitignore` and `.rayignore` and takes further excludes, but takes a folder of photos for
code. So the files are listed by the same rules before Ray packs them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.ray_internals import ignore_rules
from library.errors import UsageError
from library.sources.entries import PICTURE_SUFFIXES, suffix_of

#: Of all files, before they are packed; Ray's dashboard takes 100 MiB.
MAX_BYTES = 64 * 2**20
#: Pictures and shards below one folder: more than these belong in a bucket.
MAX_DATA_FILES = 200
MAX_DATA_BYTES = 16 * 2**20

_IGNORE_FILES = (".gitignore", ".rayignore")
#: Left out with or without an ignore file: history, environments, what jobs made, data.
_NEVER = (".git", ".venv", "venv", "__pycache__", "/out", "/data", ".*_cache", "*.egg-info")
#: Secrets, by the names that they usually have.
_SECRETS = (".env", ".env.*", ".envrc", ".netrc", ".aws", ".ssh", ".kube", "*.pem", "*.key", "*api-keys*", "*api_keys*")
_DATA_SUFFIXES = (PICTURE_SUFFIXES - {"svg", "ico"}) | {"parquet", "tar", "tgz", "gz", "zip", "arrow", "tfrecord"}
_NAMED_FOLDERS = 4


@dataclass(frozen=True)
class Tree:
    """Files below `root` that are sent, by their path with `/`, and their sizes in bytes.

    Attributes:
        root: absolute path of the folder.
        files: sizes by path.
        excludes: what Ray must be told to leave out to send exactly these files.
    """

    root: str
    files: dict[str, int]
    excludes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def holds(self, path: str) -> bool:
        """Whether a file or folder, by its path below `root`, is sent."""
        path = os.path.normpath(path)
        return path == "." or path in self.files or any(file.startswith(path + "/") for file in self.files)


def working_tree(root: str) -> Tree:
    """What of the folder `root` is sent: all that `.gitignore` and `.rayignore` leave in, at any depth.

    Links to folders are not followed.

    Raises:
        UsageError: when it is too large, or holds data, with the folders that make it so.
    """
    root = os.path.realpath(root)
    if root in (os.path.realpath(os.path.expanduser("~")), os.path.sep):
        raise UsageError(f"{root} is not a project: the current folder is uploaded; change to the project's first")
    links: list[str] = []
    files = {path[len(root) + 1 :]: os.path.getsize(path) for path in _walk(root, links)}
    # Ray would follow links to folders.
    linked = tuple("/" + re.sub(r"([*?\[\]!# ])", r"\\\1", path[len(root) + 1 :]) for path in links)
    tree = Tree(root, files, (*_NEVER, *_SECRETS, *linked))
    _refuse_data(tree)
    if tree.bytes > MAX_BYTES:
        sizes = _by_folder(tree.files).most_common(_NAMED_FOLDERS)
        named = ", ".join(f"{folder} {size / 2**20:,.1f} MiB" for folder, size in sizes)
        raise UsageError(
            f"{root} has {tree.bytes / 2**20:,.0f} MiB, and at most {MAX_BYTES >> 20} are uploaded ({named}): write in "
            ".gitignore or .rayignore what the job does not need; data belongs in a bucket"
        )
    return tree


def _refuse_data(tree: Tree) -> None:
    data = {path: size for path, size in tree.files.items() if suffix_of(path) in _DATA_SUFFIXES}
    sizes = _by_folder(data)
    for folder, count in _by_folder(dict.fromkeys(data, 1)).most_common():
        if count > MAX_DATA_FILES or sizes[folder] > MAX_DATA_BYTES:
            raise UsageError(
                f"{folder} holds {count:,} pictures and data files ({sizes[folder] / 2**20:,.1f} MiB), which are not "
                f"uploaded with a job: copy them to a bucket (aws s3 cp --recursive {folder} s3://BUCKET/...) and "
                f"name s3://BUCKET/... in the command; or write {folder} in .gitignore or .rayignore"
            )


def _by_folder(files: dict[str, int]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for path, number in files.items():
        first, slash, _ = path.partition("/")
        sums[f"{first}/" if slash else "./"] += number
    return sums


def _walk(root: str, links: list[str]) -> Iterator[str]:
    """Yield the files that are sent; collect the links to folders."""
    everywhere = (len(root) + 1, ignore_rules((*_NEVER, *_SECRETS)))
    rules: dict[str, tuple[tuple[int, Callable[[str], bool]], ...]] = {}
    for folder, folders, names in os.walk(root):
        valid = rules.get(os.path.dirname(folder), (everywhere,))
        for name in set(_IGNORE_FILES).intersection(names):
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                valid = (*valid, (len(folder) + 1, ignore_rules(file)))
        rules[folder] = valid

        def is_sent(path: str, valid: tuple[tuple[int, Callable[[str], bool]], ...] = valid) -> bool:
            return not any(ignored(path[start:]) for start, ignored in valid)

        links += [path for path in (os.path.join(folder, name) for name in folders) if os.path.islink(path)]
        # With its slash, as `runs/` matches a folder only so.
        folders[:] = [
            name for name in folders if os.path.join(folder, name) not in links and is_sent(f"{folder}/{name}/")
        ]
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path) and is_sent(path):
                yield path
