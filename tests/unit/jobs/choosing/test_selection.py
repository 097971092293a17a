"""The decisions of a selection, before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from jobs.choosing.measure import plan_measure
from jobs.choosing.selection import decisions_table
from jobs.filter import plan_filter
from library.dataset.manifest import Manifest
from library.errors import StriateError, UsageError
from tests.datasets import carry_out, rows
from tests.picture_examples import encoded, ingest, measure, write_files


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    """Six pictures at tmp_path/source."""
    files = {f"{label}/{number}.png": encoded("png", 20 + number, 30) for label in "ab" for number in range(3)}
    return ingest(write_files(tmp_path / "raw", files), tmp_path / "source", shard_bytes=300)


def test_reasons_by_key_become_a_decision_for_every_picture(tmp_path: Path, source: Manifest) -> None:
    decisions = decisions_table(str(tmp_path / "source"), source, {"a/1.png": "leak", "b/2.png": "blurry"})
    assert len(source.shards) > 1
    reasons = dict(zip(decisions["key"].to_pylist(), decisions["reason"].to_pylist(), strict=True))
    stored = {row["key"] for row in rows(tmp_path / "source").to_pylist()}
    assert reasons == {**dict.fromkeys(stored), "a/1.png": "leak", "b/2.png": "blurry"}


def test_a_key_that_is_not_in_the_dataset_is_named(tmp_path: Path, source: Manifest) -> None:
    with pytest.raises(UsageError, match=r"no picture for 1 of the 2 keys: a/7\.png"):
        decisions_table(str(tmp_path / "source"), source, {"a/1.png": "leak", "a/7.png": "leak"})


def test_a_table_needs_one_decision_for_each_picture(tmp_path: Path, source: Manifest) -> None:
    table = pa.table({"key": ["a/1.png"], "reason": pa.array([None], pa.string())})
    with pytest.raises(StriateError, match="1 decisions for the 6 pictures"):
        decisions_table(str(tmp_path / "source"), source, table)


def test_a_shard_that_a_selection_emptied_is_measured_like_others(tmp_path: Path, source: Manifest) -> None:
    last = rows(tmp_path / "source" / source.shards[-1].name)["width"].to_pylist()
    narrow = str(tmp_path / "narrow")
    # Drops at least the pictures of the last shard.
    emptied = carry_out(plan_filter(str(tmp_path / "source"), narrow, f"min_size({max(last) + 1})"))
    assert emptied.shards[-1].rows == 0
    assert len(plan_measure(narrow).todo) == len(emptied.shards)
    measure(tmp_path / "narrow", emptied)
    assert plan_measure(narrow).todo == []
    again = carry_out(plan_filter(narrow, str(tmp_path / "again"), "min_size(1)"))
    assert [shard.rows for shard in again.shards] == [shard.rows for shard in emptied.shards]
