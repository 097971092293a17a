"""Assigns groups of pictures to splits: no group straddles, every class is divided by the fractions as well as groups
allow, and pictures that were assigned before stay where they are.

The order of groups follows from a hash of each group's name. Their place in that order, among the groups of the same
class, decides the split: the first 80% of the pictures, and so on. So counts are as exact as groups allow, but where
data is added the bounds move a little, and groups beside a bound may move with them. No function of the data alone can
avoid this: a split that never moves must depend on a group's own hash and nothing else, and then its size is left to
chance. Both are offered (`stratify`). What `earlier` says overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from library.choosing.splits.grouping import Groups
from library.dataset.planning import hash64
from library.errors import UsageError

#: Number of a group that no split can take, as its earlier pictures are in several.
LEFT_OUT = -1

#: An assignment as it is stored: a row for each picture, in the order of the dataset. `split` is null where a picture
#: is left out.
ASSIGNMENT_SCHEMA = pa.schema(
    [pa.field("key", pa.string()), pa.field("group", pa.string()), pa.field("split", pa.string())]
)

#: After the first assignment, single groups are tried in another split: so many times over, so many groups each time,
#: and they are moved if that gains this many pictures.
_MOST_ROUNDS, _MOST_TRIED, _LEAST_GAIN = 20, 20_000, 2
#: A picture, where counts are compared with fractions of them.
_UNIT = 1_000_000
#: In place of a split: the group has no earlier picture.
_FREE = -2


def assign_groups(
    groups: Groups,
    labels: Sequence[str | None],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    stratify: bool = True,
    earlier: Sequence[str | None] | None = None,
) -> NDArray[np.int64]:
    """Assigns each group to a split.

    Args:
        groups: of N pictures.
        labels: of the N pictures; those without one are divided as a class of their own.
        fractions: fraction of each split by its name, summing to 1.
        seed: another seed gives another assignment. With 0, pictures that are groups of one are assigned as
            `striate ingest --split` does.
        stratify: divide every class by the fractions; else the hash of each group's name alone decides, so that groups
            never move.
        earlier: the split of each picture in an earlier assignment; None for a new picture. A group goes where its
            earlier pictures are, or is `LEFT_OUT` where they are in several splits.

    Returns:
        The split of each of the G groups: an index into the names of `fractions`, or `LEFT_OUT`.
    """
    names = list(fractions)
    shares, edges = np.array(list(fractions.values())), np.cumsum(list(fractions.values()))
    salt = ("split", seed) if seed else ("split",)
    hashes = np.array([hash64(*salt, name) for name in groups.names], np.uint64)
    fixed = _earlier_splits(groups, earlier, names)
    free = fixed == _FREE
    if not stratify:
        by_hash = np.minimum(np.searchsorted(edges, hashes / 2.0**64), len(names) - 1)
        return np.where(free, by_hash, fixed)
    counts = _class_counts(groups, labels)
    splits = np.where(free, 0, fixed)
    strata, sizes = _most_frequent(counts), np.asarray(counts.sum(1)).ravel()
    held = np.zeros((counts.shape[1], len(names)))
    np.add.at(held, (strata[fixed >= 0], fixed[fixed >= 0]), sizes[fixed >= 0])
    order = np.lexsort((hashes, strata))
    order = order[free[order]]
    for members in np.split(order, np.flatnonzero(np.diff(strata[order])) + 1) if len(order) else ():
        taken, ends = held[strata[members[0]]], np.cumsum(sizes[members])
        missing = np.maximum(shares * (taken.sum() + ends[-1]) - taken, 0)
        # The middle of each group: the only one of a class goes to the largest split, not always to the first.
        places = (ends - sizes[members] / 2) / ends[-1]
        bounds = np.cumsum(missing / missing.sum())
        splits[members] = np.minimum(np.searchsorted(bounds, places), len(names) - 1)
    return _balance(splits, counts, shares, free, hashes)


def _earlier_splits(groups: Groups, earlier: Sequence[str | None] | None, names: Sequence[str]) -> NDArray[np.int64]:
    """Returns the split of each group by its earlier pictures; `_FREE` where it has none."""
    fixed = np.full(len(groups.names), _FREE, np.int64)
    if earlier is None:
        return fixed
    index = {name: number for number, name in enumerate(names)}
    unknown = sorted({split for split in earlier if split is not None} - set(index))
    if unknown:
        raise UsageError(f"the earlier assignment has a split '{unknown[0]}'; the splits are {', '.join(names)}")
    for number, split in zip(groups.of_pictures.tolist(), earlier, strict=True):
        if split is not None:
            fixed[number] = index[split] if fixed[number] in (_FREE, index[split]) else LEFT_OUT
    return fixed


def _class_counts(groups: Groups, labels: Sequence[str | None]) -> Any:
    """Returns the number of pictures of each class in each group, G x classes, as a sparse matrix."""
    classes = {label: number for number, label in enumerate(sorted({label or "" for label in labels}))}
    columns = np.array([classes[label or ""] for label in labels], np.int64)
    ones = np.ones(len(columns), np.int64)
    return sparse.csr_matrix((ones, (groups.of_pictures, columns)), shape=(len(groups.names), len(classes)))


def _most_frequent(counts: Any) -> NDArray[np.int64]:
    """Returns the class of which each group has most pictures, the first of ties."""
    return np.asarray(counts.argmax(1)).ravel().astype(np.int64)


def _balance(
    splits: NDArray[np.int64],
    counts: Any,
    shares: NDArray[np.float64],
    free: NDArray[np.bool_],
    hashes: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Moves single groups while that brings the counts of classes nearer to the fractions by two pictures or more.

    Rounding alone cannot be improved by as much, so where every picture is a group of its own nothing moves. It is
    needed where groups are large or hold several classes. Counts are whole numbers of `_UNIT`, so that sums are exact.
    """
    movable = np.flatnonzero(free)
    if not len(movable):
        return splits
    movable = movable[np.argsort(hashes[movable], kind="stable")]
    splits, moving = splits.copy(), counts[movable]
    held = np.stack([np.asarray(counts[splits == split].sum(0)).ravel() for split in range(len(shares))])
    excess = held * _UNIT - np.rint(shares[:, None] * held.sum(0) * _UNIT).astype(np.int64)
    classes, sizes, starts = moving.indices, moving.data * _UNIT, moving.indptr
    for _ in range(_MOST_ROUNDS):
        own, before = np.repeat(splits[movable], np.diff(starts)), np.abs(excess)
        less = before[own, classes] - np.abs(excess[own, classes] - sizes)
        gains = np.empty((len(shares), len(movable)), np.int64)
        for split in range(len(shares)):
            more = np.abs(excess[split, classes] + sizes) - before[split, classes]
            gains[split] = np.add.reduceat(less - more, starts[:-1])
            gains[split, splits[movable] == split] = 0
        targets, gains = gains.argmax(0), gains.max(0)
        promising = np.flatnonzero(gains >= _LEAST_GAIN * _UNIT)
        promising = promising[np.argsort(-gains[promising], kind="stable")][:_MOST_TRIED]
        moved = 0
        for place in promising.tolist():
            # Moves before this one may have changed what it gains.
            part = slice(starts[place], starts[place + 1])
            from_, to = splits[movable[place]], targets[place]
            after = excess[from_, classes[part]] - sizes[part], excess[to, classes[part]] + sizes[part]
            gain = np.abs(excess[[[from_], [to]], classes[part]]).sum() - np.abs(after).sum()
            if gain >= _LEAST_GAIN * _UNIT:
                excess[from_, classes[part]], excess[to, classes[part]] = after
                splits[movable[place]] = to
                moved += 1
        if not moved:
            break
    return splits
