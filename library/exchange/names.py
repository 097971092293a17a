"""Names of pictures outside a dataset: any key and label as a file name or as the key of a WebDataset sample.

A key may hold slashes, dots and any other character. What a file system or another tool would misread is written as
`%` and two hex digits, so that different keys always get different names.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

import numpy as np

from library.dataset.planning import hash64
from library.errors import UsageError
from library.sources.entries import is_other_name, suffix_of, why_skipped

#: How much of a key is in a name: `short` leaves out what the path says already, `long` nothing, and `caseless` adds a
#: digest to each that has capital letters or accents: some disks ignore those, or Unicode's normal form.
Naming: TypeAlias = Literal["short", "long", "caseless"]
NAMINGS: tuple[Naming, ...] = get_args(Naming)

#: Folder of the pictures without a label.
UNLABELLED = "_unlabelled"
#: File suffix of each format.
SUFFIXES = {
    "jpeg": "jpg",
    "png": "png",
    "webp": "webp",
    "gif": "gif",
    "bmp": "bmp",
    "tiff": "tiff",
    "avif": "avif",
    "heic": "heic",
    "jp2": "jp2",
    "npy": "npy",
}
_ALIASES = {"jpeg": ("jpg", "jpeg"), "tiff": ("tif", "tiff"), "heic": ("heic", "heif")}

# What starts an escape, and what Windows refuses in names.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f%\\:*?"<>|]')
_MOST_BYTES = 200  # file systems allow 255 for a name
_KEPT_CHARS = 40  # of a longer one, at most four bytes each


def suffix(format_: str, key: str) -> str:
    """Returns the file suffix of a picture's format.

    Raises:
        UsageError: the format is unknown; names the picture.
    """
    if format_ not in SUFFIXES:
        raise UsageError(f"the picture '{key}' has the unknown format '{format_}'")
    return SUFFIXES[format_]


def file_path(key: str, label: str | None, format_: str, naming: Naming) -> str:
    """Returns the path of a picture: the folder of its class, and its key as a name with the suffix of its format.

    Args:
        key: of the picture.
        label: its class.
        format_: its format.
        naming: `short` leaves out of the key the class in front and the format at the end; different keys may then get
            the same path.
    """
    if label is None:
        folder = UNLABELLED
    else:
        folder = _safe(label, "/", naming)
        folder = _first_escaped(folder) if folder == UNLABELLED else folder
        key = key.removeprefix(f"{label}/") if naming == "short" else key
    ending = "." + suffix(format_, key)
    if naming == "short" and suffix_of(key) in _ALIASES.get(format_, (ending[1:],)):
        name = _safe(key, "/", naming)
        return f"{folder}/{name if suffix_of(name) == suffix_of(key) else name + ending}"
    return f"{folder}/{_safe(key, '/', naming, ending)}{ending}"


def sample_key(key: str, format_: str, naming: Naming) -> str:
    """Returns the key of a WebDataset sample: slashes stay, and dots are escaped, as the key ends at the first dot.

    Args:
        key: of the picture.
        format_: its format.
        naming: `short` leaves out the suffix of the format; different keys may then get the same result.
    """
    if naming == "short" and suffix_of(key) in _ALIASES.get(format_, (suffix(format_, key),)):
        key = key[: -len(suffix_of(key)) - 1]
    return "/".join(_safe(part, ".", naming) for part in key.split("/"))


def are_unique(names: Iterable[str]) -> bool:
    """Whether all names differ, also on a disk that ignores capital letters and the normal form of Unicode."""
    hashes = np.fromiter((hash64(_caseless(name)) for name in names), np.uint64)
    return len(np.unique(hashes)) == len(hashes)


def _caseless(name: str) -> str:
    """Returns what two names share that are the same in the sense of Unicode's canonical caseless matching."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _safe(name: str, also: str, naming: Naming, ending: str = "") -> str:
    """Returns a name that file systems accept and `striate ingest` does not skip.

    Args:
        name: a key, a label or a part of one.
        also: a further character to escape.
        naming: `caseless` adds a digest to a name that another one may differ from only in capital letters.
        ending: what is appended afterwards.
    """
    if not name:
        return "%"  # no other name is, as `%` itself is escaped
    result = _UNSAFE.sub(_escape, name).replace(also, f"%{ord(also):02X}")
    if not ending and (result[-1:] == "." or result[-1:].isspace()):
        result = result[:-1] + _percent(result[-1])
    # A table's reader strips spaces from paths.
    if result and (result[0].isspace() or why_skipped(result + ending) or is_other_name(result + ending)):
        result = _first_escaped(result)
    if len((result + ending).encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        return f"{result[:_KEPT_CHARS]}-{_digest(name)}"
    return f"{result}-{_digest(name)[:12]}" if naming == "caseless" and _caseless(name) != name else result


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _escape(match: re.Match[str]) -> str:
    return _percent(match[0])


def _first_escaped(name: str) -> str:
    return _percent(name[0]) + name[1:]


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
