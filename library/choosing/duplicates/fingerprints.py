"""What is compared of each picture, when two pictures count as duplicates, and the groups that follow from it.

Two pictures are duplicates if their files are equal, if their decoded pixels are equal, or if both of their perceptual
hashes are near: pHash within a radius, and dHash within that radius and `CHECK_BITS` more. pHash alone finds as much,
but dHash rejects most pairs that only look alike to pHash (benchmarks/choosing/duplicates_recall.py). On request,
pictures whose embeddings have a cosine above a threshold are duplicates, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.groups import in_order_of_occurrence, joined_groups, near_groups
from library.choosing.duplicates.neighbours import Hashes, Indices, distances
from library.choosing.duplicates.similarity import (
    Progress,
    UnitVectors,
    cosines,
    is_similar,
    may_be_similar,
    similar_groups,
)
from library.errors import UsageError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Bits that the dHashes of near pictures may differ in beyond the radius of their pHashes.
CHECK_BITS = 6
#: Below this standard deviation of grey (of white = 1) a picture has no structure, and its hash is noise.
FLAT_CONTRAST = 0.01
#: The largest radius; unrelated photos begin to be as near as this, and the cost of finding them rises steeply.
MOST_BITS = 12

#: Reasons why a picture is dropped, most certain first; 0 stands for none.
REASONS = ("", "exact_duplicate", "same_pixels", "near_duplicate", "similar_embedding", "labels_disagree")
EXACT, SAME_PIXELS, NEAR, SIMILAR, DISAGREE = range(1, 6)


@dataclass(frozen=True)
class Rule:
    """When two pictures are duplicates.

    Attributes:
        near: the most bits in which the pHashes of near duplicates differ; None for exact duplicates only.
        flips: whether a picture is also compared with the mirrored version of others.
        cosine: the least cosine of the embeddings of duplicates, above 0; None for no comparison of embeddings.
    """

    near: int | None
    flips: bool = False
    cosine: float | None = None

    @classmethod
    def of_options(cls, near: int | None, *, flips: bool = False, cosine: float | None = None) -> Rule:
        """Returns the rule that the options of a command give.

        Raises:
            UsageError: `--near` is out of its range, or `--flips` has no effect.
        """
        if near is not None and not 0 <= near <= MOST_BITS:
            raise UsageError(f"--near {near}: must be 0 to {MOST_BITS} bits")
        if flips and near is None:
            raise UsageError("--flips has no effect with --no-near: mirrored pictures are compared by their hashes")
        return cls(near, flips, cosine)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the side table that are compared, and those by which one of a group is chosen."""
        hashes = () if self.near is None else ("contrast", "phash", "dhash")
        flipped = ("phash_flipped", "dhash_flipped") if self.flips else ()
        return ("width", "height", "num_bytes", "bytes_digest", "pixels_digest", *hashes, *flipped)


@dataclass(frozen=True)
class Fingerprints:
    """What is compared of N pictures.

    Attributes:
        rule: when two are duplicates.
        files: a number for each distinct file.
        pixels: a number for each distinct picture, whatever its format.
        hashes: pHash and dHash, 2 x N; empty where only exact duplicates count.
        flipped: those of the mirrored pictures; empty without flips.
        hashed: whether the picture has hashes; a flat or damaged one has none.
        embeddings: N x D; empty where they are not compared.
    """

    rule: Rule
    files: NDArray[np.int64]
    pixels: NDArray[np.int64]
    hashes: Hashes
    flipped: Hashes
    hashed: NDArray[np.bool_]
    embeddings: UnitVectors

    def groups(self, progress: Progress = lambda share: None) -> NDArray[np.int64]:
        """Returns the group of each picture: duplicates, duplicates of duplicates and so on are one group.

        Args:
            progress: of the comparison of embeddings.
        """
        groupings = [self.files, self.pixels]
        if self.rule.near is not None:
            groupings += self._near_groupings(self.rule.near)
        if self.rule.cosine is not None:
            groupings.append(similar_groups(self.embeddings, self.rule.cosine, progress))
        return joined_groups(groupings)

    def _near_groupings(self, radius: int) -> list[NDArray[np.int64]]:
        chosen = np.flatnonzero(self.hashed)
        # With flips each picture is two points, itself and its mirror image; they are joined, as they are one picture.
        parts = [self.hashes[:, chosen], *([self.flipped[:, chosen]] if self.rule.flips else [])]
        first, second = np.concatenate(parts, axis=1) if len(chosen) else np.zeros((2, 0), np.uint64)
        near = near_groups(first, radius, second, radius + CHECK_BITS).reshape(len(parts), len(chosen))
        groupings: list[NDArray[np.int64]] = []
        for part in near:
            grouping = np.arange(len(self.files)) + len(self.files) * len(parts)  # alone, and unlike every group number
            grouping[chosen] = part
            groupings.append(grouping)
        return [_united(groupings)] if len(groupings) > 1 else groupings

    def distance(self, one: Indices, other: Indices) -> NDArray[np.uint8]:
        """Returns the bits in which the pHashes of pairs differ, of the mirrored picture where that is nearer.

        255 stands for pictures without hashes, and for all where only exact duplicates count; equal ones have 0.
        """
        found = np.full(np.broadcast(one, other).shape, 255, np.uint8)
        if self.rule.near is not None:
            both = self.hashed[one] & self.hashed[other]
            found = np.where(both, distances(self.hashes[0, one], self.hashes[0, other]), found)
            if self.rule.flips:
                mirrored = distances(self.hashes[0, one], self.flipped[0, other])
                found = np.where(both, np.minimum(found, mirrored), found)
        return np.where(self.pixels[one] == self.pixels[other], np.uint8(0), found)

    def cosine(self, one: Indices, other: Indices) -> NDArray[np.float32]:
        """Returns the cosines of the embeddings of pairs; NaN where one has none, or they are not compared."""
        if self.rule.cosine is None:
            return np.full(np.broadcast(one, other).shape, np.nan, np.float32)
        return cosines(self.embeddings, one, other)

    def reason(self, one: Indices, other: Indices) -> NDArray[np.int8]:
        """Returns why pairs are duplicates, as an index into `REASONS`; 0 where they are not."""
        reasons = np.zeros(np.broadcast(one, other).shape, np.int8)
        if self.rule.cosine is not None:
            reasons[is_similar(self.cosine(one, other), self.rule.cosine)] = SIMILAR
        if self.rule.near is not None:
            reasons[self._near(one, other, self.rule.near)] = NEAR
        reasons[self.pixels[one] == self.pixels[other]] = SAME_PIXELS
        reasons[self.files[one] == self.files[other]] = EXACT
        return reasons

    def pairs(self, one: Indices, other: Indices) -> tuple[Indices, Indices, NDArray[np.int8]]:
        """Finds the duplicates between N and M pictures; uses some 30 bytes for each of the N x M pairs.

        Returns:
            Places in `one`, in rising order; places in `other`; and the reasons, as of `reason`.
        """
        column = one[:, None]
        possible = (self.pixels[column] == self.pixels[other]) | (self.files[column] == self.files[other])
        if self.rule.near is not None:
            possible |= self._near(column, other, self.rule.near)
        if self.rule.cosine is not None:
            possible |= may_be_similar(self.embeddings, one, other, self.rule.cosine)
        first, second = np.divmod(np.flatnonzero(possible.reshape(-1)), len(other))
        reasons = self.reason(one[first], other[second])
        found = reasons > 0
        return first[found], second[found], reasons[found]

    def _near(self, one: Indices, other: Indices, radius: int) -> NDArray[np.bool_]:
        def within(hashes: Hashes) -> NDArray[np.bool_]:
            first = distances(self.hashes[0, one], hashes[0, other]) <= radius
            return first & (distances(self.hashes[1, one], hashes[1, other]) <= radius + CHECK_BITS)

        found = within(self.hashes)
        if self.rule.flips:
            found |= within(self.flipped)
        return found & self.hashed[one] & self.hashed[other]


def fingerprints(measures: pa.Table, rule: Rule, embeddings: UnitVectors | None = None) -> Fingerprints:
    """Takes what is compared from a side table.

    Args:
        measures: the columns of `rule.columns`; null where a picture could not be measured.
        rule: when two pictures are duplicates.
        embeddings: of the same pictures, where the rule compares them.
    """
    if (rule.cosine is None) != (embeddings is None):
        raise ValueError("embeddings are needed by a rule with a cosine, and by no other")
    rows = measures.num_rows
    hashes, flipped, hashed = np.zeros((2, 0), np.uint64), np.zeros((2, 0), np.uint64), np.zeros(rows, np.bool_)
    if rule.near is not None:
        hashed = np.asarray(_compute.is_valid(measures["phash"]))
        hashed = hashed & (_numbers(measures["contrast"], 0.0) >= FLAT_CONTRAST)
        hashes = _stacked(measures, ("phash", "dhash"))
    if rule.flips:
        flipped = _stacked(measures, ("phash_flipped", "dhash_flipped"))
    vectors = np.zeros((rows, 0), np.float32) if embeddings is None else embeddings
    files, pixels = _numbered(measures["bytes_digest"]), _numbered(measures["pixels_digest"])
    return Fingerprints(rule, files, pixels, hashes, flipped, hashed, vectors)


def _stacked(measures: pa.Table, names: Sequence[str]) -> Hashes:
    return np.stack([_numbers(measures[name], 0).astype(np.uint64, copy=False) for name in names])


def _numbers(column: Any, instead: float) -> NDArray[Any]:
    """Returns a column as an array, with another value in place of null."""
    return _compute.fill_null(column, pa.scalar(instead, column.type)).to_numpy()


def _numbered(digests: Any) -> NDArray[np.int64]:
    """Returns a number for each distinct digest; each null has one of its own."""
    encoded = _compute.dictionary_encode(digests)
    chunks = encoded.unify_dictionaries().chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    numbers = [np.asarray(_compute.fill_null(chunk.indices, -1), np.int64) for chunk in chunks]
    joined = np.concatenate([np.empty(0, np.int64), *numbers])
    absent = joined < 0
    joined[absent] = len(joined) + np.arange(int(absent.sum()))
    return in_order_of_occurrence(joined)


def _united(groupings: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Joins groupings whose numbers mean the same: pictures with a number in common are in one group."""
    pictures = len(groupings[0])
    owners = np.concatenate(groupings)
    points = np.tile(np.arange(pictures), len(groupings))
    # A picture's points are one grouping, the numbers of all points another.
    return joined_groups([points, owners])[:pictures]
