"""Plans and assignments of `striate split`, before Ray starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.choosing.split import (
    ASSIGNMENT,
    SplitPlan,
    assign_pictures,
    dry_run,
    plan_split,
    read_assignment,
    stored_assignment,
)
from library.choosing.duplicates.fingerprints import Rule
from library.choosing.measures.measuring import MEASURES
from library.choosing.splits.grouping import straddling
from library.dataset.manifest import MANIFEST, datasets_inside, load_manifest, splits_below
from library.dataset.shards import read_columns
from library.errors import StriateError, UsageError
from tests.picture_examples import encoded, ingest, table

FRACTIONS = "train=0.6,val=0.2,test=0.2"


def make_dataset(folder: Path, rows: Sequence[int], **columns: Any) -> str:
    """A dataset of pictures whose keys are the numbers `rows`, in two classes."""
    pictures = table([encoded("png", 20 + row % 7, 30) for row in rows], ["ab"[row % 2] for row in rows], **columns)
    folder.mkdir()
    keys = pa.array([f"{row:04}" for row in rows])
    pq.write_table(pictures.set_column(0, "key", keys), folder / "pictures.parquet")
    ingest(folder / "pictures.parquet", folder / "data", shard_bytes=4000)
    return str(folder / "data")


def measures(dataset: str, copies: Mapping[str, str] = {}) -> pa.Table:
    """Made-up measures of pictures that have nothing in common, but for those that are copies of another."""
    shards = [shard.name for shard in load_manifest(dataset).shards]
    keys = read_columns(dataset, ["key"], shards)["key"].to_pylist()
    values: dict[str, Any] = {"key": keys}
    for name in Rule(4).columns:
        digests = [copies.get(key, key).encode().ljust(16, b"\0") for key in keys]
        values[name] = pa.array(digests if "digest" in name else [None] * len(keys), MEASURES[name].type)
    return pa.table(values)


def splits_of(plan: SplitPlan, copies: Mapping[str, str] = {}) -> dict[str, str | None]:
    assigned = assign_pictures(plan, measures(plan.source, copies)).table
    return dict(zip(assigned["key"].to_pylist(), assigned["split"].to_pylist(), strict=True))


def keep(plan: SplitPlan, copies: Mapping[str, str] = {}) -> None:
    """Stores the assignment, as the command does."""
    Path(plan.destination).mkdir(parents=True, exist_ok=True)
    assigned = stored_assignment(plan, assign_pictures(plan, measures(plan.source, copies)))
    pq.write_table(assigned, Path(plan.destination) / ASSIGNMENT)


def test_duplicates_and_equal_values_of_a_column_stay_together(tmp_path: Path) -> None:
    patient = [f"p{row // 3}" if row % 10 else None for row in range(60)]
    source = make_dataset(tmp_path / "a", range(60), patient=patient)
    plan = plan_split(source, str(tmp_path / "out"), split=FRACTIONS, group_by="patient")
    assignment = assign_pictures(plan, measures(source, {"0007": "0050", "0013": "0050"}))
    rows = {row["key"]: row for row in assignment.table.to_pylist()}
    assert rows["0007"]["group"] == rows["0013"]["group"] == rows["0050"]["group"]
    assert rows["0007"]["group"] == "patient=p2"  # of p2, p4 and a picture without one
    assert rows["0010"]["group"] == "0010"
    groups = [rows[f"{row:04}"]["group"] for row in range(60)]
    numbers = pa.array(groups).dictionary_encode().indices.to_numpy()
    assert straddling(numbers, [rows[f"{row:04}"]["split"] for row in range(60)]) == {}
    facts = assignment.described()
    assert (facts["pictures"], facts["left_out"], facts["largest_group"]) == (60, 0, 7)
    assert sum(split["pictures"] for split in facts["splits"].values()) == 60
    assert all(split["pictures"] == sum(split["classes"].values()) for split in facts["splits"].values())


def test_folds_are_of_equal_size_and_each_is_validated_once(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "a", range(50))
    plan = plan_split(source, str(tmp_path / "out"), folds=5)
    assert Counter(splits_of(plan).values()) == {f"fold-{number}": 10 for number in range(1, 6)}
    assert plan.datasets["fold-2/val"] == {"fold-2"}
    assert plan.datasets["fold-2/train"] == {"fold-1", "fold-3", "fold-4", "fold-5"}
    assert len(plan.datasets) == 10


def test_no_picture_moves_when_the_dataset_grows(tmp_path: Path) -> None:
    small = make_dataset(tmp_path / "small", range(100))
    large = make_dataset(tmp_path / "large", range(160))
    first = plan_split(small, str(tmp_path / "out"), split=FRACTIONS)
    before = splits_of(first)
    keep(first)
    for plan in (
        plan_split(large, str(tmp_path / "out"), split=FRACTIONS),
        plan_split(large, str(tmp_path / "other"), split=FRACTIONS, like=str(tmp_path / "out"), seed=5),
    ):
        after = splits_of(plan)
        assert {key: after[key] for key in before} == before
        assert Counter(after.values()) == {"train": 96, "val": 32, "test": 32}
    anew = splits_of(plan_split(large, str(tmp_path / "out"), split=FRACTIONS, seed=5, overwrite=True))
    assert {key: anew[key] for key in before} != before


def test_a_new_picture_joins_its_group_and_is_left_out_between_two(tmp_path: Path) -> None:
    small = make_dataset(tmp_path / "small", range(40))
    large = make_dataset(tmp_path / "large", range(42), patient=[str(row) for row in range(42)])
    first = plan_split(small, str(tmp_path / "out"), split=FRACTIONS)
    before = splits_of(first)
    keep(first)
    train, test = (next(key for key, split in before.items() if split == name) for name in ("train", "test"))
    again = plan_split(large, str(tmp_path / "out"), split=FRACTIONS)
    assert splits_of(again, {"0040": test})["0040"] == "test"
    # The measures join one of them to the new picture, the column the other.
    patient = [train if row == 40 else f"{row:04}" for row in range(42)]
    joined = make_dataset(tmp_path / "joined", range(42), patient=patient)
    both = plan_split(joined, str(tmp_path / "else"), split=FRACTIONS, group_by="patient", like=str(tmp_path / "out"))
    after = splits_of(both, {"0040": test})
    assert after["0040"] is None
    assert {key: after[key] for key in before} == before
    assert assign_pictures(both, measures(joined, {"0040": test})).described()["left_out"] == 1


def test_an_earlier_split_with_other_groups_is_refused(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "a", range(40))
    first = plan_split(source, str(tmp_path / "out"), split=FRACTIONS)
    before = splits_of(first)
    keep(first)
    train, test = (next(key for key, split in before.items() if split == name) for name in ("train", "test"))
    again = plan_split(source, str(tmp_path / "out"), split=FRACTIONS)
    with pytest.raises(UsageError, match=f"1 groups are in several splits of .*'{train}' in train"):
        splits_of(again, {train: test})


def test_the_splits_of_an_ingest_can_be_kept(tmp_path: Path) -> None:
    for name, rows in (("train", range(30)), ("test", range(30, 40))):
        Path(make_dataset(tmp_path / f"{name}-source", rows)).rename(tmp_path / name)
    assert Counter(read_assignment(str(tmp_path))["split"].to_pylist()) == {"train": 30, "test": 10}
    source = make_dataset(tmp_path / "all", range(80))
    plan = plan_split(source, str(tmp_path / "out"), split="train=0.75,test=0.25", like=str(tmp_path))
    after = splits_of(plan)
    assert {key for key, split in after.items() if split == "test" and key < "0040"} == {
        f"{n:04}" for n in range(30, 40)
    }
    assert Counter(after.values()) == {"train": 60, "test": 20}


def test_an_assignment_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ASSIGNMENT).write_bytes(b"PAR1 cut off")
    with pytest.raises(StriateError, match=f"{ASSIGNMENT} is not a readable assignment"):
        read_assignment(str(tmp_path))
    pq.write_table(pa.table({"key": ["a"], "fold": [1]}), tmp_path / ASSIGNMENT)
    with pytest.raises(StriateError, match=f"{ASSIGNMENT} is not a readable assignment"):
        read_assignment(str(tmp_path))


def test_a_group_too_large_for_the_fractions_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "raw", range(20), patient=["one"] * 12 + [str(number) for number in range(8)])
    plan = plan_split(dataset, str(tmp_path / "out"), split="train=0.5,test=0.5", group_by="patient", near=None)
    lines = assign_pictures(plan, measures(dataset)).missed(plan.fractions)
    assert lines == [
        "train has 60.0% of the pictures instead of 50.0%",
        "test has 40.0% of the pictures instead of 50.0%",
    ]


def test_a_dry_run_needs_the_measures(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "a", range(10))
    with pytest.raises(UsageError, match=r"run `striate measure .*phash"):
        dry_run(plan_split(source, str(tmp_path / "out"), split=FRACTIONS))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --split train=0.8,val=0.1,test=0.1 or --folds 5"),
        ({"split": FRACTIONS, "folds": 5}, "either --split"),
        ({"split": "train=0.5"}, "the fractions sum to 0.5, not to 1"),
        ({"folds": 1}, "--folds 1: must be 2 to 100"),
        ({"folds": 5, "near": 13}, "--near 13: must be 0 to 12 bits"),
        ({"folds": 5, "near": None, "flips": True}, "leave out --no-near or --flips"),
        ({"folds": 5, "seed": -1}, "--seed -1: must be at least 0"),
        ({"folds": 5, "group_by": "patient"}, "has no column 'patient'; its columns are key, image"),
        ({"folds": 5, "group_by": "image"}, "name a column of texts or whole numbers"),
    ],
)
def test_a_wrong_request_is_told_before_anything_is_read(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = make_dataset(tmp_path / "a", range(4))
    with pytest.raises(UsageError, match=message):
        plan_split(source, str(tmp_path / "out"), **options)


def test_a_split_without_pictures_is_told_with_the_number_of_groups(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "a", range(20), patient=[str(row // 10) for row in range(20)])
    plan = plan_split(source, str(tmp_path / "out"), split=FRACTIONS, group_by="patient")
    with pytest.raises(UsageError, match=r"would have no pictures: the 20 pictures of .* are 2 groups"):
        splits_of(plan)


def test_other_splits_at_the_destination_are_named(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "a", range(4))
    Path(make_dataset(tmp_path / "b", range(4))).rename(tmp_path / "b" / "fold-7")
    with pytest.raises(UsageError, match="has other splits: fold-7; remove them"):
        plan_split(source, str(tmp_path / "b"), folds=3)
    with pytest.raises(UsageError, match="it has no splits; name a folder that `striate split` wrote"):
        plan_split(source, str(tmp_path / "out"), folds=3, like=str(tmp_path / "a" / "data" / "_reports"))


def test_features_of_an_audit_are_not_taken_for_other_splits(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "a", range(4))
    out = tmp_path / "out"
    out.mkdir()
    Path(make_dataset(tmp_path / "b", range(4))).rename(out / "train")
    (out / "train" / "_features" / "ab12").mkdir(parents=True)
    for folder in (out / "train" / "_features" / "ab12", out / "_unfinished"):
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).write_bytes((out / "train" / MANIFEST).read_bytes())
    plan_split(source, str(out), split="train=0.5,test=0.5", overwrite=True)
    assert datasets_inside(str(out)) == ["train"]
    assert splits_below(str(out)) == [str(out / "train")]


def test_a_picture_that_was_away_returns_and_its_group_follows(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    patient = [f"p{row // 3:02}" for row in range(60)]
    every = make_dataset(tmp_path / "every", range(60), patient=patient)
    fewer = make_dataset(tmp_path / "fewer", range(30), patient=patient[:30])
    first = plan_split(every, out, split=FRACTIONS, group_by="patient")
    before = splits_of(first)
    keep(first)
    keep(plan_split(fewer, out, split=FRACTIONS, group_by="patient", seed=3))
    assert read_assignment(out).num_rows == 60
    # Some pictures return, and there are new ones of the patients whose pictures do not.
    back = make_dataset(tmp_path / "back", [*range(33), *range(63, 90)], patient=patient)
    after = splits_of(plan_split(back, out, split=FRACTIONS, group_by="patient", seed=7))
    assert all(after[f"{row:04}"] == before[f"{row:04}"] for row in range(33))
    assert all(after[f"{row + 30:04}"] == before[f"{row:04}"] for row in range(33, 60))
