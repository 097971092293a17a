"""Finds labels and splits in the folders of pictures."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from library.errors import UsageError

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
# Names of folders that only divide pictures into parts: cat/images, cat/batch1, part-002/cat.
_PART = re.compile(
    r"(image|img|pic|picture|photo|jpg|jpeg|png|frame|data|raw|original|batch|part|chunk|shard|fold|set|subset|session|"
    r"run|disk|disc|volume|folder|dir|group|cam|camera)(e?s)?[-_ .]*\d*",
    re.IGNORECASE,
)
_MONTH_AND_DAY = r"[-_.]?(0[1-9]|1[0-2])([-_.]?([0-2]\d|3[01])([-_ T].*)?)?"
_DATE = re.compile(rf"(19|20)\d\d({_MONTH_AND_DAY})?")
_DATE_PART = re.compile(r"(0?[1-9]|[12]\d|3[01])([-_ .].*)?")
_MAX_EXAMPLES = 3  # names in a note
_FIRST_WORD = re.compile(r"([A-Za-z]+)(?:[-_.]|$)")


def split_of(name: str) -> str | None:
    """train, val or test for one of its usual names (`Validation`, `dev`, `eval` ...), else None."""
    return _SPLIT_OF.get(name.strip().lower())


def split_of_file(stem: str) -> str | None:
    """The split at the start of a file name such as `train-00000-of-00002`, `val_3` or `test`, else None."""
    match = _FIRST_WORD.match(stem)
    return split_of(match[1]) if match else None


def file_splits(stems: Iterable[str]) -> dict[str, str]:
    """The split of each file by its name; empty unless at least two different splits occur."""
    splits = {stem: split for stem in stems if (split := split_of_file(stem)) is not None}
    return splits if len(set(splits.values())) > 1 else {}


@dataclass(frozen=True)
class Folders:
    """Labels and splits by folder.

    Attributes:
        labels: label of the files directly in each folder; None if they have none.
        splits: split of the files directly in each folder; None if they have none.
        notes: sentences for the user about choices that may be surprising.
    """

    labels: Mapping[str, str | None]
    splits: Mapping[str, str | None]
    notes: tuple[str, ...] = ()


def from_folders(
    pictures: Collection[str],
    others: Iterable[str] = (),
    level: int | None = None,
    *,
    wanting: Collection[str] | None = None,
) -> Folders:
    """Finds the label and the split of the files directly in each folder.

    Levels are counted below the folders that all pictures share. The splits are names like train or test at the first
    level, or at a deeper level where every folder is a split, if at least two different splits occur:
    {train,test}/CLASS, CLASS/{train,test}.

    The label is the name at the first level, other than the splits', where pictures are in different folders. Levels of
    dates (2024/05) are skipped, and levels of parts (images, batch1) unless no other level is left. Pictures above the
    chosen level have no label; if no level can be chosen, no picture has one.

    Args:
        pictures: every folder with a picture, as a path below the source with `/`; "" is the source itself.
        others: folders with other files only; they get labels and splits, but do not affect the choice.
        level: level of the folder that is the label: 1 is the first below the source, -1 the folder of the picture,
            0 none. None to choose as above.
        wanting: the folders with a picture that has no label from elsewhere, to which the notes are limited; None for
            all.

    Raises:
        UsageError: no picture is in a folder of this level.
    """
    paths = {folder: _Path(part for part in folder.split("/") if part) for folder in (*pictures, *others)}
    deciding = [paths[folder] for folder in pictures]
    split_at = _split_level(deciding, level)
    splits = {folder: split_of(path.at(split_at) or "") for folder, path in paths.items()}
    notes: list[str] = []
    if level is None:
        chosen = _label_level(deciding, split_at)
        labels = {folder: path.at(chosen) for folder, path in paths.items()}
        unlabelled = [folder for folder in pictures if wanting is None or folder in wanting]
        unknown = _other_folders({(splits[folder], labels[folder]) for folder in unlabelled})
        labels = {folder: None if (splits[folder], label) in unknown else label for folder, label in labels.items()}
        classified = [paths[folder] for folder in unlabelled if labels[folder] is not None]
        notes += _notes_on_levels(classified or deciding, split_at, chosen)
        for split, name in sorted(unknown):
            notes.append(
                f"the split {split} has no classes: its only folder, '{name}', is not a class of the other splits; "
                f"--label-level {(chosen or 0) + 1} makes it a class"
            )
    else:
        labels = {folder: path.level(level) for folder, path in paths.items()}
        if level != 0 and not any(labels[folder] is not None for folder in pictures):
            deepest = max(deciding, key=len, default=())
            example = f", as in '{'/'.join(deepest)}'" if deepest else ""
            raise UsageError(
                f"--label-level {level} has no effect: pictures are at most {len(deepest)} folders deep{example}"
            )
    return Folders(labels, splits, tuple(notes))


def look_alikes(classes: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each group of class names that differ only by case, spaces or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_folded(name), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            each = " and ".join(f"'{name}' ({classes[name]:,})" for name in sorted(names))
            how = (
                "in their Unicode form"
                if len({unicodedata.normalize("NFC", name) for name in names}) == 1
                else "in case"
                if len({name.casefold() for name in names}) == 1
                else "in spaces or the like"
            )
            yield f"the classes {each} differ only {how}, but are different classes; rename them to merge them"


class _Path(tuple[str, ...]):
    """The folders of a path, from the source down."""

    def at(self, position: int | None) -> str | None:
        return self[position] if position is not None and position < len(self) else None

    def level(self, level: int) -> str | None:
        """The folder at a level: 1 is the first, -1 the last; None for 0 and for levels that do not exist."""
        position = level - 1 if level > 0 else len(self) + level
        return None if level == 0 or position < 0 else self.at(position)


def _split_level(paths: list[_Path], label_level: int | None) -> int | None:
    """The position in the paths of the folders that are splits, if there is one."""
    label_at = None if label_level is None else label_level - 1
    first = len(_shared(paths))
    for position in range(first, max(map(len, paths), default=0)):
        splits = [split_of(path.at(position) or "") for path in paths]
        # At the first level other folders may be beside the splits.
        if position != label_at and len({*splits} - {None}) > 1 and (position == first or None not in splits):
            return position
    return None


def _label_level(paths: list[_Path], split_at: int | None) -> int | None:
    """The position in the paths of the folders that are classes, if there is one."""
    positions = [position for position in _distinguishing(paths, split_at) if not _are_dates(paths, position)]
    return next((position for position in positions if not _are_parts(paths, position)), next(iter(positions), None))


def _distinguishing(paths: list[_Path], split_at: int | None) -> Iterator[int]:
    """The positions, other than that of the splits, at which pictures are in different folders."""
    for position in range(len(_shared(paths)), max(map(len, paths), default=0)):
        if position != split_at and len(_names(paths, position)) > 1:
            yield position


def _names(paths: Iterable[_Path], position: int) -> set[str]:
    return {path[position] for path in paths if position < len(path)}


def _are_parts(paths: list[_Path], position: int) -> bool:
    return all(_PART.fullmatch(name) for name in _names(paths, position))


def _are_dates(paths: list[_Path], position: int) -> bool:
    """Whether the folders at a position are years or dates, or months or days below those."""
    names = _names(paths, position)
    if all(_DATE.fullmatch(name) for name in names):
        return True
    return position > 0 and all(map(_DATE_PART.fullmatch, names)) and _are_dates(paths, position - 1)


def _other_folders(pairs: Collection[tuple[str | None, str | None]]) -> set[tuple[str, str]]:
    """The only folder of a split, if it is not a class of other splits with several: val/images beside train/CLASS.

    Args:
        pairs: each split with each of its labels.

    Returns:
        Split and name of each such folder.
    """
    of_split: dict[str | None, set[str]] = {}
    for split, label in pairs:
        if label is not None:
            of_split.setdefault(split, set()).add(label)
    known = set[str]().union(*(labels for labels in of_split.values() if len(labels) > 1))
    return {
        (split, label)
        for split, labels in of_split.items()
        for label in labels
        if split is not None and len(labels) == 1 and known and label not in known
    }


def _notes_on_levels(paths: list[_Path], split_at: int | None, chosen: int | None) -> Iterator[str]:
    positions = [*_distinguishing(paths, split_at)]
    dates = next((position for position in positions if _are_dates(paths, position)), None)
    if dates is not None and (chosen is None or dates < chosen):
        names = _examples(sorted(_names(paths, dates)))
        yield f"the folders {names} are dates and not used as classes; --label-level {dates + 1} makes them classes"
    if chosen is None:
        last = next((path for path in paths if path and len(path) - 1 != split_at), None)
        if dates is None and last is not None:
            each = "" if split_at is None else " of each split"
            yield (
                f"all pictures{each} are in one folder ('{'/'.join(last)}'), so there are no classes; "
                f"--label-level {len(last)} makes '{last[-1]}' their class"
            )
        return
    # Notes when a class has several folders, above (without splits) or below its level.
    above: dict[str, set[str]] = {}
    below: set[str] = set()
    for path in paths:
        if chosen < len(path):
            start = tuple(part for position, part in enumerate(path[:chosen]) if position != split_at)
            above.setdefault(path[chosen], set()).add("/".join((*start, path[chosen])))
            if any(position != split_at for position in range(chosen + 1, len(path))):
                below.add("/".join(path))
    merged = {name: folders for name, folders in above.items() if len(folders) > 1}
    if merged:
        name, folders = min(merged.items())
        more = f", and {len(merged) - 1:,} more classes do too" if len(merged) > 1 else ""
        yield f"the class '{name}' comes from {len(folders):,} folders ({_examples(sorted(folders))}){more}"
    if below:
        deeper = chosen + (3 if split_at == chosen + 1 else 2)
        yield (
            f"the classes are the folders of level {chosen + 1} ({_examples(sorted(above))}); the folders in them are "
            f"not classes ({_examples(sorted(below))}); --label-level {deeper} makes those the classes"
        )


def _examples(names: list[str]) -> str:
    return ", ".join(names[:_MAX_EXAMPLES]) + (", ..." if len(names) > _MAX_EXAMPLES else "")


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _shared(paths: list[_Path]) -> tuple[str, ...]:
    """The folders that all paths start with."""
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    length = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
