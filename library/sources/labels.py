"""Labels and splits from the folders that pictures lie in."""

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
# Folders that only cut a heap of pictures into parts: cat/images, cat/batch1, part-002/cat.
_PART = re.compile(
    r"(image|img|pic|picture|photo|jpg|jpeg|png|frame|data|raw|original|batch|part|chunk|shard|fold|set|subset|session|"
    r"run|disk|disc|volume|folder|dir|group|cam|camera)(e?s)?[-_ .]*\d*",
    re.IGNORECASE,
)
_MONTH_AND_DAY = r"[-_.]?(0[1-9]|1[0-2])([-_.]?([0-2]\d|3[01])([-_ T].*)?)?"
_DATE = re.compile(rf"(19|20)\d\d({_MONTH_AND_DAY})?")
_DATE_PART = re.compile(r"(0?[1-9]|[12]\d|3[01])([-_ .].*)?")
_FEW = 3  # names that a note gives as examples
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


@dataclass(frozen=True)
class Folders:
    """What folders say of the pictures in them.

    Attributes:
        labels: of what lies directly in each folder; None where the folder says nothing.
        splits: likewise.
        notes: sentences for the user: where the choice of the level may surprise.
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
    """The label and the split of what lies directly in each folder.

    A split is a name like train or test: at the first level below the folders that all pictures share, or at a deeper
    one where every folder is a split, if at least two different ones occur: {train,test}/CLASS, CLASS/{train,test}.

    The label is the name at the first level below what all share, splits left out, that tells pictures apart. Levels
    of dates (2024/05) and of parts (images, batch1) are passed over, parts only where another level tells pictures
    apart. A picture that lies above the level has no label, nor has any where no level tells pictures apart.

    Args:
        pictures: every folder that holds a picture, below the source, with `/`; "" is the source itself.
        others: folders that hold something else; they get a label by the same rule, and do not change it.
        level: which folder of a path is the label: 1 is the first below the source, -1 the one that a picture lies
            in, 0 none. None to choose as above.
        wanting: the folders in which a picture has no label from elsewhere; of the others nothing is noted. None for
            all.

    Raises:
        UsageError: no picture lies in a folder of this level.
    """
    paths = {folder: _Path(part for part in folder.split("/") if part) for folder in (*pictures, *others)}
    deciding = [paths[folder] for folder in pictures]
    split_at = _split_level(deciding, level)
    splits = {folder: split_of(path.at(split_at) or "") for folder, path in paths.items()}
    notes: list[str] = []
    if level is None:
        chosen = _label_level(deciding, split_at)
        labels = {folder: path.at(chosen) for folder, path in paths.items()}
        asked = [folder for folder in pictures if wanting is None or folder in wanting]
        unknown = _folders_that_are_no_class({(splits[folder], labels[folder]) for folder in asked})
        labels = {folder: None if (splits[folder], label) in unknown else label for folder, label in labels.items()}
        classified = [paths[folder] for folder in asked if labels[folder] is not None]
        notes += _notes_on_levels(classified or deciding, split_at, chosen)
        for split, name in sorted(unknown):
            notes.append(
                f"the split {split} has no classes: its one folder, '{name}', is no class of the other splits; "
                f"--label-level {(chosen or 0) + 1} takes it for one"
            )
    else:
        labels = {folder: path.level(level) for folder, path in paths.items()}
        if level != 0 and not any(labels[folder] is not None for folder in pictures):
            deepest = max(deciding, key=len, default=())
            example = f", as in '{'/'.join(deepest)}'" if deepest else ""
            raise UsageError(
                f"--label-level {level} has no effect: pictures lie at most {len(deepest)} folders deep{example}"
            )
    return Folders(labels, splits, tuple(notes))


def look_alikes(classes: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each group of class names that differ only by case, by spaces or by how Unicode writes them."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_folded(name), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            each = " and ".join(f"'{name}' ({classes[name]:,})" for name in sorted(names))
            how = (
                "by how Unicode writes them"
                if len({unicodedata.normalize("NFC", name) for name in names}) == 1
                else "by case"
                if len({name.casefold() for name in names}) == 1
                else "by spaces or the like"
            )
            yield f"the classes {each} differ only {how}, and stay classes of their own; rename them to join them"


class _Path(tuple[str, ...]):
    """The folders from the source down to a picture."""

    def at(self, position: int | None) -> str | None:
        return self[position] if position is not None and position < len(self) else None

    def level(self, level: int) -> str | None:
        """1 is the first folder, -1 the last, 0 none."""
        position = level - 1 if level > 0 else len(self) + level
        return None if level == 0 or position < 0 else self.at(position)


def _split_level(paths: list[_Path], label_level: int | None) -> int | None:
    """The position of the folders that are splits."""
    taken = None if label_level is None else label_level - 1
    first = len(_shared(paths))
    for position in range(first, max(map(len, paths), default=0)):
        found = [split_of(path.at(position) or "") for path in paths]
        # Right below what all share, folders that are no splits may lie beside the splits.
        if position != taken and len({*found} - {None}) > 1 and (position == first or None not in found):
            return position
    return None


def _label_level(paths: list[_Path], split_at: int | None) -> int | None:
    """The position of the folders that are classes; None where no level tells pictures apart."""
    telling = [position for position in _telling(paths, split_at) if not _are_dates(paths, position)]
    return next((position for position in telling if not _are_parts(paths, position)), next(iter(telling), None))


def _telling(paths: list[_Path], split_at: int | None) -> Iterator[int]:
    """The levels at which pictures have different folders, splits left out."""
    for position in range(len(_shared(paths)), max(map(len, paths), default=0)):
        if position != split_at and len(_names(paths, position)) > 1:
            yield position


def _names(paths: Iterable[_Path], position: int) -> set[str]:
    return {path[position] for path in paths if position < len(path)}


def _are_parts(paths: list[_Path], position: int) -> bool:
    return all(_PART.fullmatch(name) for name in _names(paths, position))


def _are_dates(paths: list[_Path], position: int) -> bool:
    """Whether the folders of a level are years or dates, or the months or days below them."""
    names = _names(paths, position)
    if all(_DATE.fullmatch(name) for name in names):
        return True
    return position > 0 and all(map(_DATE_PART.fullmatch, names)) and _are_dates(paths, position - 1)


def _folders_that_are_no_class(found: Collection[tuple[str | None, str | None]]) -> set[tuple[str, str]]:
    """The one folder of a split, where other splits have several and it is none of them: val/images beside train/CLASS.

    Args:
        found: each split with each label.
    """
    of_split: dict[str | None, set[str]] = {}
    for split, label in found:
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
    telling = [*_telling(paths, split_at)]
    dates = next((position for position in telling if _are_dates(paths, position)), None)
    if dates is not None and (chosen is None or dates < chosen):
        names = _examples(sorted(_names(paths, dates)))
        yield f"the folders {names} are dates, not classes; --label-level {dates + 1} makes them classes all the same"
    if chosen is None:
        last = next((path for path in paths if path and len(path) - 1 != split_at), None)
        if dates is None and last is not None:
            each = "" if split_at is None else " of each split"
            yield (
                f"all pictures{each} lie in one folder ('{'/'.join(last)}'), which tells no classes apart; "
                f"--label-level {len(last)} makes '{last[-1]}' their class"
            )
        return
    # One class out of several folders: those above it, splits left out, or those below.
    above: dict[str, set[str]] = {}
    below: set[str] = set()
    for path in paths:
        if chosen < len(path):
            start = tuple(part for position, part in enumerate(path[:chosen]) if position != split_at)
            above.setdefault(path[chosen], set()).add("/".join((*start, path[chosen])))
            if any(position != split_at for position in range(chosen + 1, len(path))):
                below.add("/".join(path))
    gathered = {name: folders for name, folders in above.items() if len(folders) > 1}
    if gathered:
        name, folders = min(gathered.items())
        more = f", and {len(gathered) - 1:,} more classes likewise" if len(gathered) > 1 else ""
        yield f"the class '{name}' comes from {len(folders):,} folders ({_examples(sorted(folders))}){more}"
    if below:
        deeper = chosen + (3 if split_at == chosen + 1 else 2)
        yield (
            f"the classes are the folders of level {chosen + 1} ({_examples(sorted(above))}); the folders in them are "
            f"not classes ({_examples(sorted(below))}); --label-level {deeper} makes those the classes"
        )


def _examples(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _shared(paths: list[_Path]) -> tuple[str, ...]:
    """The longest beginning that all paths have in common."""
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    length = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
