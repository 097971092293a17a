"""Leaks between a training set and a test set, from tables of measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from library.choosing.duplicates.fingerprints import Rule
from library.choosing.splits.leaks import LEAK_SCHEMA, find_leaks, surest_leaks


def pictures(*rows: tuple[str, str | None, str, str, int | None]) -> pa.Table:
    """Pictures as (key, label, name of the bytes, name of the pixels, hash)."""
    keys, labels, data, pixels, hashes = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    digest = pa.binary(16)
    count = len(keys)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "label": pa.array(labels, pa.string()),
            "bytes_digest": pa.array([name.encode().ljust(16, b"\0") for name in data], digest),
            "pixels_digest": pa.array([name.encode().ljust(16, b"\0") if name else None for name in pixels], digest),
            "phash": pa.array(hashes, pa.uint64()),
            "dhash": pa.array(hashes, pa.uint64()),
            "contrast": pa.array([0.2] * count, pa.float32()),
            **{name: pa.array([8] * count, pa.int32()) for name in ("width", "height", "num_bytes")},
        }
    )


FAR = 0xFFFF_0000_FFFF_0000


def test_each_leak_names_the_surest_and_closest_picture() -> None:
    train = pictures(
        ("t/4", "cat", "A", "a", 0),
        ("t/2", "cat", "A", "a", 0),
        ("t/3", "dog", "B", "a", 0),
        ("t/1", "cat", "C", "c", FAR),
    )
    test = pictures(
        ("same file", "cat", "A", "a", 0),
        ("same pixels", "cat", "X", "a", 0),
        ("other", "cat", "Y", "y", 0x00FF_00FF_00FF_00FF),
        ("near", "dog", "Z", "z", FAR ^ 0b101),
        ("no label", None, "Z", "z", FAR),
    )
    assert find_leaks(train, test, Rule(2)).to_pylist() == [
        leak("same file", "cat", "exact_duplicate", 0, "t/2", "cat", True),
        leak("same pixels", "cat", "same_pixels", 0, "t/2", "cat", True),
        leak("near", "dog", "near_duplicate", 2, "t/1", "cat", False),
        leak("no label", None, "near_duplicate", 0, "t/1", "cat", None),
    ]


def test_a_mirrored_copy_leaks_only_with_flips() -> None:
    train, test = pictures(("train", "cat", "A", "a", FAR)), pictures(("test", "cat", "B", "b", 0))
    for name in ("phash_flipped", "dhash_flipped"):
        train = train.append_column(name, pa.array([0], pa.uint64()))
        test = test.append_column(name, pa.array([FAR], pa.uint64()))
    assert find_leaks(train, test, Rule(4)).num_rows == 0
    assert find_leaks(train, test, Rule(4, flips=True))["key"].to_pylist() == ["test"]


def leak(*values: Any) -> dict[str, Any]:
    return dict(zip(LEAK_SCHEMA.names, values, strict=True))


def test_without_a_radius_only_equal_pictures_leak() -> None:
    train = pictures(("t", "a", "A", "a", 0)).drop_columns(["phash", "dhash", "contrast"])
    test = pictures(("same", "a", "A", "a", 0), ("near", "a", "B", "b", 0)).drop_columns(["phash", "dhash", "contrast"])
    assert find_leaks(train, test, Rule(None))["key"].to_pylist() == ["same"]


def test_a_picture_near_a_copy_of_a_training_picture_does_not_leak() -> None:
    train = pictures(("t", "a", "A", "a", 0))
    test = pictures(("near", "a", "B", "b", 0b11), ("farther", "a", "C", "c", 0b1111))
    assert find_leaks(train, test, Rule(2))["key"].to_pylist() == ["near"]


def test_pictures_without_measures_do_not_leak() -> None:
    train = pictures(("t", "a", "A", "", None), ("u", "a", "B", "", 0))
    test = pictures(("damaged", "a", "C", "", None))
    assert find_leaks(train, test, Rule(12)).num_rows == 0


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_side_has_no_leaks(sizes: tuple[int, int]) -> None:
    train, test = (pictures(*[(str(number), "a", "A", "a", 0)] * number) for number in sizes)
    result = find_leaks(train, test, Rule(4))
    assert (result.num_rows, result.schema) == (0, LEAK_SCHEMA)


@pytest.mark.parametrize("radius", [0, 3, 8])
def test_near_leaks_are_those_of_comparing_every_pair(radius: int) -> None:
    rng = np.random.default_rng(radius)
    centres = rng.integers(0, 2**63, 40, np.uint64)

    def side(count: int, name: str) -> tuple[pa.Table, Any]:
        hashes = centres[rng.integers(0, 40, count)].copy()
        for _ in range(2):
            hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
        rows = [(f"{name}{row:03}", "a", f"{name}{row}", f"{name}{row}", int(one)) for row, one in enumerate(hashes)]
        return pictures(*rows), hashes

    (train, ours), (test, theirs) = side(300, "a"), side(200, "b")
    apart = np.bitwise_count(theirs[:, None] ^ ours[None, :])
    expected = [
        (f"b{row:03}", int(apart[row].min()), f"a{int(apart[row].argmin()):03}")
        for row in range(200)
        if apart[row].min() <= radius
    ]
    found = find_leaks(train, test, Rule(radius))
    columns = [found[name].to_pylist() for name in ("key", "distance", "train_key")]
    assert list(zip(*columns, strict=True)) == expected
    assert expected or radius == 0


def test_of_several_training_sets_the_surest_copy_is_named_in_any_order() -> None:
    test = pictures(("x", "cat", "A", "a", 0), ("y", "cat", "B", "b", FAR))
    near = find_leaks(pictures(("n", "dog", "N", "n", 0)), test, Rule(4))
    same = find_leaks(pictures(("s", "cat", "A", "a", 0), ("t", "cat", "T", "t", FAR)), test, Rule(4))
    tables = [surest_leaks({"near": near, "same": same}), surest_leaks({"same": same, "near": near})]
    assert tables[0].equals(tables[1])
    rows = tables[0].select(["key", "kind", "trained_on", "labels_agree"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("x", "exact_duplicate", "same", True),
        ("y", "near_duplicate", "same", True),
    ]
    assert surest_leaks({"none": near.slice(0, 0)}).num_rows == 0
