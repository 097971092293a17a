"""Finds leaks: pictures of a test set of which the training set holds a copy, equal or nearly so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.fingerprints import EXACT, NEAR, REASONS, SAME_PIXELS, Fingerprints, Rule, fingerprints

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
    files = _first_equal(prints.files, train.num_rows)
    pixels = _first_equal(prints.pixels, train.num_rows)
    match = np.where(files >= 0, files, pixels)
    kinds = np.select([files >= 0, pixels >= 0], [EXACT, SAME_PIXELS], 0)
    if rule.near is not None:
        rest = np.flatnonzero(match < 0)
        match[rest] = _nearest(prints, train.num_rows, rest)
        kinds[rest[match[rest] >= 0]] = NEAR
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


def surest_leaks(leaks: Mapping[str, pa.Table]) -> pa.Table:
    """Joins the leaks from several training sets: a picture that leaks from more than one has one row.

    Args:
        leaks: of one test set, as `find_leaks` returns them, by the URI of the training set; at least one.

    Returns:
        The rows by key, with the column `trained_on`. Of several training sets it is the one whose copy is of the first
        of `REASONS`, then of the smallest distance, then the first by its URI, so their order changes nothing.
    """
    table = pa.concat_tables(
        [
            leaks[uri].append_column("trained_on", pa.array([uri] * leaks[uri].num_rows, pa.string()))
            for uri in sorted(leaks)
        ]
    )
    ranks = pa.array([REASONS.index(kind) for kind in table["kind"].to_pylist()], pa.uint8())
    order = [("key", "ascending"), ("rank", "ascending"), ("distance", "ascending"), ("row", "ascending")]
    table = table.append_column("rank", ranks).append_column("row", pa.array(np.arange(table.num_rows))).sort_by(order)
    keys = table["key"].to_pylist()
    first = [row == 0 or keys[row - 1] != key for row, key in enumerate(keys)]
    return table.filter(pa.array(first, pa.bool_())).drop_columns(["rank", "row"])


def _first_equal(numbers: NDArray[np.int64], trained: int) -> NDArray[np.int64]:
    """Returns for each number after the first `trained` the place of its first equal among these; -1 without one."""
    values, first = np.unique(numbers[:trained], return_index=True)
    if not len(values):
        return np.full(len(numbers), -1)
    wanted = numbers[trained:]
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[place] == wanted, first[place], -1)


def _nearest(prints: Fingerprints, trained: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for pictures of the test set the near training picture of the fewest bits; -1 without one.

    Args:
        prints: of the training pictures, in order of key, and then of the test pictures.
        trained: how many training pictures there are.
        rows: places in the test set.
    """
    # Pictures with equal pixels are compared once: a thousand blank ones would otherwise be a million pairs.
    _, train_rows = np.unique(prints.pixels[:trained], return_index=True)
    _, first, inverse = np.unique(prints.pixels[trained + rows], return_index=True, return_inverse=True)
    train_rows, test_rows = np.sort(train_rows), trained + rows[first]
    match = np.full(len(test_rows), -1, np.int64)
    groups = prints.groups()
    # Only pictures of one group can be near each other.
    for ours, theirs in _mixed(groups[train_rows], groups[test_rows]):
        step = max(1, _BLOCK // len(ours))
        for part in (theirs[start : start + step] for start in range(0, len(theirs), step)):
            one, other = test_rows[part][:, None], train_rows[ours][None, :]
            ranks = np.where(prints.reason(one, other) > 0, prints.distance(one, other).astype(np.int64), _NONE)
            best = ranks.argmin(1)  # the first of ties has the smallest key
            has_copy = ranks[np.arange(len(part)), best] < _NONE
            match[part[has_copy]] = train_rows[ours[best[has_copy]]]
    return match[inverse]


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
