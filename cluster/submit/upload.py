"""The working tree that Ray uploads with a job: what is in it, and whether it may be uploaded.

Ray's packaging respects `.gitignore` and `.rayignore` and takes further excludes, but takes a folder of photos for
code: 130 MB of them end, after they are packed and sent, with "Maximum request body size 104857600 exceeded" under a
traceback, and less than that fills the head's memory. So it is asked what it would pack before it does.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from cluster.ray_internals import packed_files
from library.errors import UsageError

#: Of all files, before they are packed.
MAX_BYTES, MAX_FILES = 32 * 2**20, 5000

#: Left out with or without an ignore file: history, environments, what jobs made, data.
_NEVER = (".git", ".venv", "venv", "__pycache__", "/out", "/data", ".*_cache", "*.egg-info")
#: Secrets, by the names that they usually have.
_SECRETS = (
    *(".env", ".env.*", ".envrc", ".netrc", ".aws", ".ssh", ".kube", "credentials", "auth_token"),
    *("*.pem", "*.key", "id_rsa*", "id_ed25519*", "*api-keys*", "*api_keys*"),
)
_NAMED_FOLDERS = 4


@dataclass(frozen=True)
class Tree:
    """Files below the folder `root` that are sent: their sizes in bytes by their path with `/`."""

    root: str
    files: dict[str, int]
    #: What Ray must leave out to send exactly these files.
    excludes: tuple[str, ...] = (*_NEVER, *_SECRETS)

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def holds(self, path: str) -> bool:
        """Whether a file or folder, by its path below `root`, is sent."""
        path = os.path.normpath(path)
        return path == "." or path in self.files or any(file.startswith(path + "/") for file in self.files)


def working_tree(root: str) -> Tree:
    """Return what of the folder `root` is sent: all that `.gitignore` and `.rayignore` leave in, at any depth.

    Raises:
        UsageError: when it is too much, with the folders that make it so; when a folder in it cannot be read; when a
            link in it leads out of it.
    """
    root = os.path.realpath(root)
    if root in (os.path.realpath(os.path.expanduser("~")), os.path.sep):
        raise UsageError(f"{root} is not a project: the current folder is uploaded; change to the project's first")
    try:
        tree = Tree(root, packed_files(root, Tree.excludes, MAX_FILES + 1))
    except OSError as error:
        # Ray looks for an ignore file in a folder before it asks whether the folder is ignored.
        path = str(error.filename)
        raise UsageError(
            f"{path if os.path.lexists(path) else os.path.dirname(path)} cannot be read ({error.strerror}), and Ray "
            f"opens ignored folders too: make it readable, or move it out of {root}"
        ) from error
    _check_links(tree)
    if len(tree.files) > MAX_FILES or tree.bytes > MAX_BYTES:
        counts, sizes = Counter[str](), Counter[str]()
        for path, size in tree.files.items():
            folder = f"{path.partition('/')[0]}/" if "/" in path else "./"
            counts[folder] += 1
            sizes[folder] += size
        largest = (sizes if tree.bytes > MAX_BYTES else counts).most_common(_NAMED_FOLDERS)
        named = ", ".join(f"{each} {counts[each]:,} files of {sizes[each] / 2**20:,.1f} MiB" for each, _ in largest)
        raise UsageError(
            f"{root} has more than {MAX_BYTES >> 20} MiB or {MAX_FILES:,} files, which are not uploaded with a job "
            f"({named}): write in .gitignore or .rayignore what it does not need; data belongs in a bucket (aws s3 cp "
            "--recursive FOLDER s3://BUCKET/...), and the command names it there"
        )
    return tree


def _check_links(tree: Tree) -> None:
    """Refuse a link that leads out of the tree: Ray follows it, and a link to `~/.aws` would send what is there."""
    checked: set[str] = set()
    for file in tree.files:
        names = file.split("/")
        for path in ("/".join(names[: depth + 1]) for depth in range(len(names))):
            place = os.path.join(tree.root, path)
            if path in checked or checked.add(path) or not os.path.islink(place):
                continue
            target = os.path.realpath(place)
            if not f"{target}/".startswith(f"{tree.root}/"):
                raise UsageError(
                    f"{path} is a link out of {tree.root}, to {target}, which would be sent too: copy here what the "
                    "job needs, or name the link in .rayignore"
                )
