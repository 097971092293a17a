"""Finds leaks: pictures of a test set of which the training set holds a copy, equal or nearly so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.fingerprints import REASONS, Rule, fingerprints

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

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

#: Pairs that are compared at a time.
_BLOCK = 2**20
_NONE = 2**15


def find_leaks(train: pa.Table, test: pa.Table, rule: Rule) -> pa.Table:
    """Finds the pictures of `test` that are in `train` too, by the rule of `striate dedup`.

    Unlike groups of duplicates, this is not transitive: a picture that is only near a copy of a training picture does
    not leak.

    Args:
        train: `key`, `label` and the columns of `rule.columns`; measures may be null.
        test: the same columns.
        rule: when two pictures are duplicates.

    Returns:
        A row of `LEAK_SCHEMA` for each leaked picture, in the order of `test`. `kind` is one of `REASONS`:
        `exact_duplicate` (the same file), `same_pixels` or `near_duplicate`. Of several training pictures it names that
        of the first of these kinds, then of the smallest distance in bits, then of the smallest key. `labels_agree` is
        null where one of the two has no label.
    """
    names = list(dict.fromkeys(["key", "label", *rule.columns]))
    train, test = train.select(names).sort_by("key"), test.select(names)
    prints = fingerprints(pa.concat_tables([train, test]), rule)
    groups = prints.groups()
    match, kinds = np.full(test.num_rows, -1, np.int64), np.zeros(test.num_rows, np.int64)
    # Only pictures of one group can be duplicates of each other, so the cost is that of finding the groups.
    for ours, theirs in _mixed(groups[: train.num_rows], groups[train.num_rows :]):
        step = max(1, _BLOCK // len(ours))
        for part in (theirs[start : start + step] for start in range(0, len(theirs), step)):
            one, other = part[:, None] + train.num_rows, ours[None, :]
            reasons = prints.reason(one, other).astype(np.int64)
            ranks = np.where(reasons > 0, reasons * 256 + prints.distance(one, other), _NONE)
            best = ranks.argmin(1)  # the first of ties has the smallest key
            rows = np.arange(len(part))
            found = ranks[rows, best] < _NONE
            match[part[found]] = ours[best[found]]
            kinds[part[found]] = reasons[rows[found], best[found]]
    leaked = np.flatnonzero(match >= 0)
    held, other_rows = test.take(pa.array(leaked)), match[leaked]
    copied = train.take(pa.array(other_rows))
    columns = {
        "key": held["key"],
        "label": held["label"],
        "kind": pa.array([REASONS[kind] for kind in kinds[leaked].tolist()], pa.string()),
        "distance": pa.array(prints.distance(leaked + train.num_rows, other_rows), pa.uint8()),
        "train_key": copied["key"],
        "train_label": copied["label"],
        "labels_agree": _compute.equal(held["label"], copied["label"]),
    }
    return pa.table(columns, LEAK_SCHEMA)


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
