"""Groups to splits: nothing straddles, classes are divided evenly, and what was assigned stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from library.choosing.duplicates.fingerprints import Rule
from library.choosing.splits.assignment import LEFT_OUT, assign_groups
from library.choosing.splits.grouping import Groups, group_pictures, name_groups, straddling
from library.dataset.planning import Layout, parse_fractions, plan
from library.errors import UsageError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def singles(keys: Sequence[str]) -> Groups:
    return name_groups(np.arange(len(keys)), keys)


def splits_of(
    groups: Groups, labels: Sequence[str | None], fractions: Mapping[str, float] = FRACTIONS, **options: Any
) -> list[str | None]:
    """The split of each picture."""
    names = list(fractions)
    splits = assign_groups(groups, labels, fractions, **options)
    return [None if splits[group] == LEFT_OUT else names[splits[group]] for group in groups.of_pictures.tolist()]


def patients(count: int, seed: int = 0) -> tuple[Groups, list[str]]:
    """Groups of 1 to 12 pictures that hold one to three of four classes each."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(count), rng.integers(1, 13, count))
    own = rng.integers(0, 4, (count, 3))
    labels = [f"class{own[number, rng.integers(0, 3)]}" for number in numbers]
    keys = [f"{row:06}" for row in range(len(numbers))]
    return name_groups(numbers, keys, "patient", [f"p{number}" for number in numbers]), labels


def test_every_class_of_single_pictures_is_divided_to_the_picture() -> None:
    labels = ["a"] * 1000 + ["b"] * 150 + [None] * 30
    splits = splits_of(singles([str(row) for row in range(len(labels))]), labels)
    assert Counter(zip(labels, splits, strict=True)) == {
        ("a", "train"): 800,
        ("a", "val"): 100,
        ("a", "test"): 100,
        ("b", "train"): 120,
        ("b", "val"): 15,
        ("b", "test"): 15,
        (None, "train"): 24,
        (None, "val"): 3,
        (None, "test"): 3,
    }


def test_single_pictures_are_assigned_as_ingest_does() -> None:
    keys = [f"folder/{row}" for row in range(237)]
    labels = [f"class{row % 7}" if row % 11 else None for row in range(237)]
    index = pa.table(
        {
            "key": keys,
            "uri": keys,
            "size": [1] * 237,
            "label": pa.array(labels, pa.string()),
            "split": pa.array([None] * 237, pa.string()),
            "block": pa.array([None] * 237, pa.int64()),
        }
    )
    text = "train=0.7,val=0.2,test=0.1"
    expected: dict[str, str] = {}
    for task in plan(index, "/made", Layout(fractions=parse_fractions(text))):
        rows = pa.ipc.open_stream(task.index).read_all()
        expected |= dict.fromkeys(rows["key"].to_pylist(), task.dataset.removeprefix("/made/"))
    assert dict(zip(keys, splits_of(singles(keys), labels, parse_fractions(text)), strict=True)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_group_straddles_and_classes_are_near_their_fractions(seed: int) -> None:
    groups, labels = patients(300, seed)
    splits = splits_of(groups, labels, seed=seed)
    assert straddling(groups.of_pictures, splits) == {}
    for name, total in Counter(labels).items():
        for split, fraction in FRACTIONS.items():
            held = sum(pair == (name, split) for pair in zip(labels, splits, strict=True))
            assert abs(held - fraction * total) < 3, (name, split)  # groups have up to 12 pictures


def test_few_large_groups_are_divided_as_well_as_they_allow() -> None:
    numbers = np.repeat(np.arange(10), 20)
    labels = [("a", "b")[row % 2] for row in range(200)]
    groups = name_groups(numbers, [f"{row:03}" for row in range(200)])
    splits = splits_of(groups, labels, {"train": 0.5, "test": 0.5})
    assert Counter(zip(labels, splits, strict=True)) == {
        ("a", "train"): 50,
        ("b", "train"): 50,
        ("a", "test"): 50,
        ("b", "test"): 50,
    }


def test_the_assignment_does_not_depend_on_the_order_of_pictures() -> None:
    groups, labels = patients(100)
    keys = [f"{row:06}" for row in range(len(labels))]
    order = np.random.default_rng(1).permutation(len(labels))
    numbers = group_pictures(pa.table({"patient": groups.of_pictures[order]}), column="patient")
    names = [groups.names[number].removeprefix("patient=") for number in groups.of_pictures[order]]
    shuffled = name_groups(numbers, [keys[row] for row in order], "patient", names)
    before, after = splits_of(groups, labels), splits_of(shuffled, [labels[row] for row in order])
    assert [before[row] for row in order] == after


def test_another_seed_gives_another_assignment() -> None:
    groups, labels = patients(100)
    assert splits_of(groups, labels, seed=1) != splits_of(groups, labels)
    assert splits_of(groups, labels, seed=1) == splits_of(groups, labels, seed=1)


# -- data is added ----------------------------------------------------------------------------------------------------


def test_without_stratification_a_group_never_moves() -> None:
    groups, labels = patients(200)
    few = int(np.searchsorted(groups.of_pictures, 60))
    first = Groups(groups.of_pictures[:few], groups.names[:60])
    before = splits_of(first, labels[:few], stratify=False)
    assert splits_of(groups, labels, stratify=False)[:few] == before
    whole = splits_of(singles([str(row) for row in range(20_000)]), ["a"] * 20_000, stratify=False)
    assert Counter(whole)["test"] == pytest.approx(2000, abs=4 * (20_000 * 0.09) ** 0.5)


def test_stratified_pictures_rarely_move_when_data_is_added() -> None:
    keys = [f"{row:05}" for row in range(11_000)]
    labels = [f"class{row % 10}" for row in range(11_000)]
    before = splits_of(singles(keys[:10_000]), labels[:10_000])
    after = splits_of(singles(keys), labels)
    moved = sum(one != other for one, other in zip(before, after, strict=False))
    assert 0 < moved < 150  # of 10,000, each of them beside a bound


def test_what_was_assigned_stays_and_the_new_fill_up_the_classes() -> None:
    keys = [f"{row:05}" for row in range(2000)]
    labels = [f"class{row % 4}" for row in range(2000)]
    before = splits_of(singles(keys[:1000]), labels[:1000], seed=3)
    after = splits_of(singles(keys), labels, earlier=[*before, *[None] * 1000])
    assert after[:1000] == before
    assert Counter(zip(labels, after, strict=True))["class0", "test"] == 50
    assert Counter(after) == {"train": 1600, "val": 200, "test": 200}


def test_a_group_goes_where_its_earlier_pictures_are() -> None:
    groups = name_groups(np.array([0, 0, 0, 1, 1, 2]), list("abcdef"))
    splits = splits_of(groups, ["x"] * 6, earlier=["test", None, None, "train", None, None])
    assert splits[:5] == ["test", "test", "test", "train", "train"]


def test_a_group_with_earlier_pictures_in_several_splits_is_left_out() -> None:
    groups = name_groups(np.array([0, 0, 0, 1]), list("abcd"))
    splits = splits_of(groups, ["x"] * 4, earlier=["train", None, "test", None])
    assert splits[:3] == [None, None, None]
    assert splits[3] is not None


def test_an_earlier_split_of_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="has a split 'dev'; the splits are train, val, test"):
        splits_of(singles(["a"]), ["x"], earlier=["dev"])


# -- groups -----------------------------------------------------------------------------------------------------------


def test_groups_join_by_duplicates_and_a_column() -> None:
    digest = pa.binary(2)
    hashes = pa.array([0, 2**40 - 1, 2**63, 2**62 + 1, 2**62 + 3, None, None, 7], pa.uint64())
    table = pa.table(
        {
            "bytes_digest": pa.array([b"aa", b"aa", b"b\0", b"bb", b"cc", b"dd", None, None], digest),
            "pixels_digest": pa.array([None, b"pp", b"pp", None, None, None, None, None], digest),
            "phash": hashes,
            "dhash": hashes,
            "contrast": pa.array([0.5] * 8, pa.float32()),
            "patient": ["x", None, None, "x", None, None, "y", "y"],
        }
    )
    assert group_pictures(table).tolist() == list(range(8))
    assert group_pictures(table, column="patient").tolist() == [0, 1, 2, 0, 3, 4, 5, 5]
    assert group_pictures(table, Rule(None)).tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert group_pictures(table, Rule(None), "patient").tolist() == [0, 0, 0, 0, 1, 2, 3, 3]
    assert group_pictures(table, Rule(1)).tolist() == [0, 0, 0, 1, 1, 2, 3, 4]
    assert group_pictures(table, Rule(1), "patient").tolist() == [0, 0, 0, 0, 0, 1, 2, 2]


def test_a_group_is_named_by_its_smallest_value_or_else_its_smallest_key() -> None:
    numbers = np.array([0, 1, 0, 1, 2])
    keys = ["d", "c", "b", "a", "e"]
    assert name_groups(numbers, keys).names == ("b", "a", "e")
    assert name_groups(numbers, keys, "patient", [7, 3, None, 12, None]).names == ("patient=7", "patient=12", "e")


def test_groups_in_several_splits_are_told_with_their_splits() -> None:
    splits = ["train", "test", None, "val", "val"]
    assert straddling(np.array([0, 0, 0, 1, 1]), splits) == {0: {"train", "test"}}
