"""Lists and checks the working tree that Ray uploads with a job.

Ray's packaging respects `.gitignore` and `.rayignore` and accepts further excludes, but it packs a folder of photos
like code: 130 MB fail, after packing and sending, with "Maximum request body size 104857600 exceeded" under a
traceback, and less fills the head's memory. So the files that Ray would pack are listed and checked first.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from cluster.ray_internals import packed_files
from library.errors import UsageError

#: Limits of all files together, before they are packed.
MAX_BYTES, MAX_FILES = 32 * 2**20, 5000

#: Never uploaded, even without an ignore file: history, environments, results of jobs, data.
_NEVER = (".git", ".venv", "venv", "__pycache__", "/out", "/data", ".*_cache", "*.egg-info")
#: Never uploaded: usual names of files with secrets.
_SECRETS = (
    *(".env", ".env.*", ".envrc", ".netrc", ".aws", ".ssh", ".kube", "credentials", "auth_token"),
    *("*.pem", "*.key", "id_rsa*", "id_ed25519*", "*api-keys*", "*api_keys*"),
)
_NAMED_FOLDERS = 4


@dataclass(frozen=True)
class Tree:
    """The files below the folder `root` that are uploaded: sizes in bytes by path (with `/`)."""

    root: str
    files: dict[str, int]
    #: Patterns that make Ray upload exactly these files.
    excludes: tuple[str, ...] = (*_NEVER, *_SECRETS)

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def holds(self, path: str) -> bool:
        """Returns whether a file or folder, given by its path below `root`, is uploaded."""
        path = os.path.normpath(path)
        return path == "." or path in self.files or any(file.startswith(path + "/") for file in self.files)


def working_tree(root: str) -> Tree:
    """Returns the files below `root` that are uploaded: all that `.gitignore` and `.rayignore` do not exclude.

    Raises:
        UsageError: when they are too many or too large, with the largest folders; when a folder cannot be read; when a
            link leads out of `root`.
    """
    root = os.path.realpath(root)
    if root in (os.path.realpath(os.path.expanduser("~")), os.path.sep):
        raise UsageError(f"{root} is not a project: the current folder is uploaded; change to the project's first")
    try:
        tree = Tree(root, packed_files(root, Tree.excludes, MAX_FILES + 1))
    except OSError as error:
        # Ray looks for an ignore file in a folder before it checks whether the folder is ignored.
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
            f"({named}): name in .gitignore or .rayignore what the job does not need; data belongs in a bucket (aws s3 "
            "cp --recursive FOLDER s3://BUCKET/...), and the command names it there"
        )
    return tree


def _check_links(tree: Tree) -> None:
    """Refuses a link that leads out of the tree: Ray follows links, so one to `~/.aws` would upload its files."""
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
