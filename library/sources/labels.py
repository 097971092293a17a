"""Labels and splits from the folders that pictures lie in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_FIRST_WORD = re.compile(r"([A-Za-z]+)(?:[-_.]|$)")


def split_of(name: str) -> str | None:
    """train, val or test for the names they go by (`Validation`, `dev`, `eval` ...), or None."""
    return _SPLIT_OF.get(name.strip().lower())


def split_of_file(stem: str) -> str | None:
    """The split that a file name begins with: `train-00000-of-00002`, `val_3`, `test`."""
    match = _FIRST_WORD.match(stem)
    return split_of(match[1]) if match else None


def file_splits(stems: Iterable[str]) -> dict[str, str]:
    """The split of each file by its name; none at all when fewer than two different ones occur."""
    found = {stem: split for stem in stems if (split := split_of_file(stem)) is not None}
    return found if len(set(found.values())) > 1 else {}


def from_folders(pictures: Collection[str], others: Iterable[str] = ()) -> dict[str, tuple[str | None, str | None]]:
    """The label and the split of what lies directly in each folder.

    The label is the folder's own name. A picture at the root, or directly in a split's folder, has none; and nothing
    has one when all pictures lie in one folder. A split is the first name below the folders that all share, if at
    least two different ones occur there: data/{train,test}/CLASS/FILE.

    Args:
        pictures: every folder that holds a picture, below the source, with `/`; "" is the source itself.
        others: folders that hold something else; they get a label by the same rule, and do not change it.
    """
    parts = {folder: tuple(part for part in folder.split("/") if part) for folder in (*pictures, *others)}
    deciding = [parts[folder] for folder in pictures]
    depth = len(_shared(deciding))
    splits = {names: split_of(names[depth]) if len(names) > depth else None for names in parts.values()}
    if len({splits[names] for names in deciding} - {None}) < 2:
        splits = dict.fromkeys(parts.values())
    below = {names: names[depth + 1 :] if splits[names] else names[depth:] for names in splits}
    one_class = len({below[names] for names in deciding}) < 2  # one folder (of each split): nothing to tell apart
    return {
        folder: (None if one_class or not below[names] else below[names][-1], splits[names])
        for folder, names in parts.items()
    }


def _shared(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The longest beginning that all paths have in common."""
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    length = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
