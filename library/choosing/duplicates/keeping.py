"""Which picture of a group of duplicates stays, and why each of the others is dropped.

The best picture of a group stays: the one with the most pixels, of those the most bytes, then a lossless format before
a lossy one, then the label that most of the group have, then the first key. The pictures that are its duplicates are
dropped; of what remains of the group the best stays again. So each dropped picture has a duplicate that stays, also in
a chain of which the ends do not look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.fingerprints import DISAGREE, REASONS, Fingerprints
from library.choosing.duplicates.neighbours import Indices
from library.choosing.duplicates.similarity import Progress

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: What is done with a group whose labels disagree: keep all of it, keep the best as elsewhere, drop all of it.
Disagreeing = Literal["keep", "best", "drop"]
DISAGREEING: tuple[Disagreeing, ...] = ("keep", "best", "drop")

#: Is called with how many pictures of large groups are decided, and how many there are.
Decided: TypeAlias = Callable[[int, int], None]

#: Groups of which more pictures stay than this are decided block by block.
_PASSES = 32
#: Pictures of a block, and of the others that are compared with it at a time.
_BLOCK, _OTHERS = 512, 2**13

#: Formats from the one to keep first.
_FORMATS = ("npy", "tiff", "png", "webp", "jpeg")


@dataclass(frozen=True)
class Duplicates:
    """N pictures, their groups and which of them stay.

    Attributes:
        groups: group number of each picture.
        sizes: number of pictures in the group of each picture.
        disagreeing: whether the picture's group has two or more labels.
        reasons: why the picture is dropped, as an index into `REASONS`; 0 for one that stays.
        partners: index of the picture that stays in its place; -1 for one that stays, and where the group is dropped.
        distances: bits between the two, 255 where there is no partner or it has no hash.
        cosines: of the embeddings of the two, NaN where there is no partner or embeddings are not compared.
    """

    groups: NDArray[np.int64]
    sizes: NDArray[np.int64]
    disagreeing: NDArray[np.bool_]
    reasons: NDArray[np.int8]
    partners: NDArray[np.int64]
    distances: NDArray[np.uint8]
    cosines: NDArray[np.float32]

    def counts(self) -> dict[str, int]:
        """Returns the number of dropped pictures by reason."""
        numbers = np.bincount(self.reasons, minlength=len(REASONS))
        return {reason: int(number) for reason, number in zip(REASONS, numbers, strict=True) if reason and number}


def choose(
    pictures: pa.Table,
    prints: Fingerprints,
    disagreeing: Disagreeing = "keep",
    reference: int = 0,
    progress: Progress = lambda share: None,
    decided: Decided = lambda done, total: None,
) -> Duplicates:
    """Chooses which pictures stay.

    Args:
        pictures: N rows with the columns key, label, format, width, height and num_bytes.
        prints: of the same pictures.
        disagreeing: what is done with groups whose labels disagree; a picture without a label disagrees with none.
        reference: the last `reference` pictures are of another dataset: they stay, and others are dropped for them.
        progress: of the comparison of embeddings.
        decided: of the choice in groups of which many pictures stay.

    Returns:
        The choice; it does not depend on the order of the pictures.
    """
    groups = prints.groups(progress)
    sizes = np.bincount(groups, minlength=1)[groups] if len(groups) else groups
    labels = _codes(pictures["label"])
    disagree = _disagreeing(groups, labels)
    total = pictures.num_rows
    is_reference = np.arange(total) >= total - reference
    reasons, partners = np.zeros(total, np.int8), np.full(total, -1)
    if disagreeing == "drop":
        reasons[disagree & ~is_reference] = DISAGREE
    concerned = (sizes > 1) if disagreeing == "best" else (sizes > 1) & ~disagree
    order = _by_rank(pictures, groups, labels, is_reference, np.flatnonzero(concerned))
    # One pass decides about the duplicates of the best picture of every group.
    for _ in range(_PASSES):
        if not len(order):
            break
        first = np.append(True, groups[order[1:]] != groups[order[:-1]])
        best = order[first][np.cumsum(first) - 1]
        reason = prints.reason(order, best)
        dropped = (reason > 0) & ~is_reference[order] & ~first
        reasons[order[dropped]], partners[order[dropped]] = reason[dropped], best[dropped]
        # What is near one of many equal references is near the first of them: one pass is enough for all of these.
        same = is_reference[order] & (prints.pixels[order] == prints.pixels[best])
        order = order[~first & ~dropped & ~same]
    total_left = left = len(order)
    starts = np.flatnonzero(np.append(True, groups[order[1:]] != groups[order[:-1]])) if left else order
    for ranked in np.split(order, starts[1:]):
        for undecided in _decide_group(prints, ranked, is_reference, reasons, partners):
            decided(total_left - left + len(ranked) - undecided, total_left)
        left -= len(ranked)
    distance = np.where(partners >= 0, prints.distance(np.arange(total), np.maximum(partners, 0)), np.uint8(255))
    cosine = np.full(total, np.nan, np.float32)
    matched = np.flatnonzero(partners >= 0)
    cosine[matched] = prints.cosine(matched, partners[matched])
    return Duplicates(groups, sizes, disagree, reasons, partners, distance, cosine)


def _decide_group(
    prints: Fingerprints,
    ranked: Indices,
    is_reference: NDArray[np.bool_],
    reasons: NDArray[np.int8],
    partners: NDArray[np.int64],
) -> Iterator[int]:
    """Chooses in one group as the passes do, many pictures at a time; yields how many are not yet decided.

    Args:
        prints: of all pictures.
        ranked: the pictures of the group, the best first.
        is_reference: of every picture.
        reasons: of every picture; is written to.
        partners: of every picture; is written to.
    """
    references = np.flatnonzero(is_reference[ranked])
    equal = np.ones(len(references), np.bool_)  # to one before it, near which the same pictures are
    equal[np.unique(prints.pixels[ranked[references]], return_index=True)[1]] = False
    rest = np.delete(ranked, references[equal])
    while len(rest):
        block, rest = rest[:_BLOCK], rest[_BLOCK:]
        first, second, reason = prints.pairs(block, block)
        bounds = np.searchsorted(first, np.arange(len(block) + 1))
        for place, (start, end) in enumerate(pairwise(bounds.tolist())):
            if not reasons[block[place]]:
                near = block[second[start:end]]
                lost = (second[start:end] > place) & (reasons[near] == 0) & ~is_reference[near]
                reasons[near[lost]], partners[near[lost]] = reason[start:end][lost], block[place]
        best = block[reasons[block] == 0]
        for start in range(0, len(rest), _OTHERS):
            part = rest[start : start + _OTHERS]
            first, second, reason = prints.pairs(best, part)
            near, at = np.unique(second, return_index=True)  # where it occurs first: with the best of its duplicates
            lost = ~is_reference[part[near]]
            near, at = part[near[lost]], at[lost]
            reasons[near], partners[near] = reason[at], best[first[at]]
        rest = rest[reasons[rest] == 0]
        yield len(rest)


def _by_rank(
    pictures: pa.Table,
    groups: NDArray[np.int64],
    labels: NDArray[np.int64],
    is_reference: NDArray[np.bool_],
    chosen: Indices,
) -> Indices:
    """Returns the chosen pictures group by group, the best of each group first."""
    part = pictures.take(pa.array(chosen))
    area = part["width"].to_numpy().astype(np.int64) * part["height"].to_numpy()
    size = part["num_bytes"].to_numpy()
    formats = [_FORMATS.index(name) if name in _FORMATS else len(_FORMATS) for name in part["format"].to_pylist()]
    keys = np.empty(len(chosen), np.int64)
    keys[np.asarray(_compute.sort_indices(part["key"]), np.int64)] = np.arange(len(chosen))
    together = _with_same_label(groups[chosen], labels[chosen])
    order = np.lexsort(
        (keys, -together, np.array(formats, np.int64), -size, -area, ~is_reference[chosen], groups[chosen])
    )
    return chosen[order]


def _with_same_label(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how many of a picture's group have its label; 0 for one without a label."""
    if not len(groups):
        return groups
    _, inverse, counts = np.unique(np.stack([groups, labels]), axis=1, return_inverse=True, return_counts=True)
    return np.where(labels < 0, 0, counts[inverse.reshape(-1)])


def _disagreeing(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns for each picture whether its group has two or more labels."""
    if not len(groups):
        return np.zeros(0, np.bool_)
    labelled = labels >= 0
    lowest, highest = np.full(len(groups), len(labels)), np.full(len(groups), -1)
    np.minimum.at(lowest, groups[labelled], labels[labelled])
    np.maximum.at(highest, groups[labelled], labels[labelled])
    return (lowest < highest)[groups]


def _codes(labels: Any) -> NDArray[np.int64]:
    """Returns a number for each label, -1 where there is none."""
    names = sorted(set(_compute.unique(labels).to_pylist()) - {None})
    found = _compute.index_in(labels, value_set=pa.array(names, pa.string()))
    return np.asarray(_compute.fill_null(found, -1), np.int64)
