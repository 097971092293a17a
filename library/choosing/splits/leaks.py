"""Finds leaks: pictures of a test set of which the training set holds a copy, equal or nearly so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.groups import near_groups
from library.choosing.duplicates.neighbours import HASH_BITS, Hashes, distances

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Columns that `find_leaks` needs of each set; all but the first two are measures.
LEAK_INPUTS = ("key", "label", "bytes_digest", "pixels_digest", "phash")

#: A leaked picture of the test set, and the closest picture of the training set.
LEAK_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("label", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("distance", pa.uint8()),
        pa.field("train_key", pa.string()),
        pa.field("train_label", pa.string()),
        pa.field("labels_agree", pa.bool_()),
    ]
)

#: How a picture can leak, the surest first: the same file, the same pixels in another file, or nearly the same pixels.
KINDS = ("bytes", "pixels", "near")

#: Hashes that are compared at a time.
_BLOCK = 2**20


def find_leaks(train: pa.Table, test: pa.Table, radius: int | None) -> pa.Table:
    """Finds the pictures of `test` that are in `train` too.

    A picture is near another where their hashes differ in at most `radius` bits. Unlike groups of duplicates, this is
    not transitive: a picture that is only near a copy of a training picture does not leak.

    Args:
        train: the columns of `LEAK_INPUTS`; `phash` may be left out where `radius` is None. Measures may be null.
        test: the same columns.
        radius: the largest number of different bits of near pictures, 0 to 64; None to find only equal ones.

    Returns:
        A row of `LEAK_SCHEMA` for each leaked picture, in the order of `test`. It names the training picture of the
        surest kind, then of the smallest distance in bits, then of the smallest key. `labels_agree` is null where one
        of the two has no label.

    Raises:
        ValueError: for a radius below 0 or above 64.
    """
    if radius is not None and not 0 <= radius <= HASH_BITS:
        raise ValueError(f"radius {radius}: must be 0 to {HASH_BITS} bits")
    train = train.sort_by("key")  # so that the first of equal pictures has the smallest key
    kind = np.full(test.num_rows, -1, np.int64)
    match = np.full(test.num_rows, -1, np.int64)
    distance = np.zeros(test.num_rows, np.uint8)
    for number, name in enumerate(("bytes_digest", "pixels_digest")):
        _keep_new(number, kind, match, _equal(train[name], test[name]))
    if radius is not None:
        known, close, bits = _nearest(train["phash"], test["phash"], radius)
        distance[known] = np.where(kind[known] < 0, bits, 0)
        rows = np.full(test.num_rows, -1, np.int64)
        rows[known] = close
        _keep_new(KINDS.index("near"), kind, match, rows)
    leaked = np.flatnonzero(kind >= 0)
    held, other = test.take(pa.array(leaked)), train.take(pa.array(match[leaked]))
    columns = {
        "key": held["key"],
        "label": held["label"],
        "kind": pa.array([KINDS[number] for number in kind[leaked].tolist()], pa.string()),
        "distance": pa.array(distance[leaked], pa.uint8()),
        "train_key": other["key"],
        "train_label": other["label"],
        "labels_agree": _compute.equal(held["label"], other["label"]),
    }
    return pa.table(columns, LEAK_SCHEMA)


def _keep_new(number: int, kind: NDArray[np.int64], match: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Notes the training rows of one kind for those pictures that have none of a surer kind."""
    new = (kind < 0) & (rows >= 0)
    kind[new], match[new] = number, rows[new]


def _equal(train: pa.ChunkedArray[Any], test: pa.ChunkedArray[Any]) -> NDArray[np.int64]:
    """Returns for each digest of `test` the first row of `train` with the same one; -1 where there is none."""
    rows = _compute.index_in(test, value_set=train.combine_chunks(), skip_nulls=True)
    return rows.fill_null(-1).to_numpy().astype(np.int64)


def _nearest(
    train: pa.ChunkedArray[Any], test: pa.ChunkedArray[Any], radius: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Returns the rows of `test` that are near some row of `train`, the nearest one, the first of ties, and the bits.

    Only hashes of one group of near hashes are compared with each other, so the cost is that of finding the groups.
    """
    train_rows, first = _distinct(train)
    test_rows = np.flatnonzero(test.is_valid().to_numpy())
    asked, of_asked = np.unique(_hashes(test)[test_rows], return_inverse=True)
    nearest, bits = np.full(len(asked), -1, np.int64), np.zeros(len(asked), np.uint8)
    groups = near_groups(np.concatenate([first, asked]), radius)
    for ours, theirs in _mixed(groups[: len(first)], groups[len(first) :]):
        step = max(1, _BLOCK // len(ours))
        for part in (theirs[start : start + step] for start in range(0, len(theirs), step)):
            apart = distances(asked[part][:, None], first[ours][None, :])
            best = apart.argmin(1)  # the first of ties
            found = apart[np.arange(len(part)), best]
            is_near = found <= radius
            nearest[part[is_near]] = ours[best[is_near]]
            bits[part[is_near]] = found[is_near]
    near = nearest[of_asked] >= 0
    return test_rows[near], train_rows[nearest[of_asked][near]], bits[of_asked][near]


def _distinct(column: pa.ChunkedArray[Any]) -> tuple[NDArray[np.int64], Hashes]:
    """Returns the first row of each hash, in order, and the hashes of these rows."""
    rows = np.flatnonzero(column.is_valid().to_numpy())
    hashes = _hashes(column)[rows]
    _, first = np.unique(hashes, return_index=True)
    first.sort()
    return rows[first], hashes[first]


def _hashes(column: pa.ChunkedArray[Any]) -> Hashes:
    return column.fill_null(0).to_numpy().astype(np.uint64)


def _mixed(train: NDArray[np.int64], test: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields, of each group that both sides have, the places in `train` in order and the places in `test`."""
    train_order, test_order = np.argsort(train, kind="stable"), np.argsort(test, kind="stable")
    shared = np.intersect1d(train, test)
    ranges = zip(
        *(np.searchsorted(train[train_order], shared, side) for side in ("left", "right")),
        *(np.searchsorted(test[test_order], shared, side) for side in ("left", "right")),
        strict=True,
    )
    for start, end, from_, to in ranges:
        yield train_order[start:end], test_order[from_:to]
