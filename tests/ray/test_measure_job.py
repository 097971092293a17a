"""The measure job on a real local Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.choosing.measure import ensure_measures, measure_dataset, plan_measure
from jobs.filter import filter_dataset, plan_filter
from library.choosing.measures.measuring import DEFAULT
from library.choosing.measures.picture_models import picture_model
from library.choosing.measures.side_table import read_measures
from library.dataset.manifest import load_manifest
from library.errors import UsageError
from tests.bundles import make_bundle
from tests.datasets import rows
from tests.picture_examples import outputs_of


@pytest.fixture
def dataset(photos: str, tmp_path: Path) -> Path:
    """A copy of the photos, to which a side table can be added."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def table_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_any_number_of_workers_and_an_interruption_give_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    measured = measure_dataset(plan_measure(str(dataset), report=str(tmp_path / "page")), workers="2")
    assert measured.rows == 86
    whole = table_of(dataset / "_measures")
    assert (tmp_path / "page" / "index.html").stat().st_size > 10_000
    # What a killed run leaves: some files, and a temporary one.
    (dataset / "_measures" / min(whole)).unlink()
    (dataset / "_measures" / "_tmp-0123abcd").write_bytes(b"half a file")
    shutil.copy(dataset / "_measures" / max(whole), dataset / "_measures" / "part-999999.parquet")
    plan = plan_measure(str(dataset))
    assert (len(plan.todo), plan.described()["shards_done"]) == (1, len(whole) - 1)
    measure_dataset(plan, workers="1")
    assert table_of(dataset / "_measures") == whole
    assert sorted(path.name for path in (dataset / "_measures").iterdir()) == sorted(whole)
    assert plan_measure(str(dataset)).todo == []
    table = read_measures(str(dataset), load_manifest(str(dataset)), DEFAULT)
    assert sorted(table["key"].to_pylist()) == rows(dataset)["key"].to_pylist()


def test_another_folder_takes_the_measures_of_a_read_only_dataset(photos: str, tmp_path: Path) -> None:
    table = ensure_measures(photos, ["phash", "brightness"], folder=str(tmp_path / "table"))
    assert table.column_names == ["key", "phash", "brightness"]
    assert not (Path(photos) / "_measures").exists()
    again = ensure_measures(photos, ["brightness"], folder=str(tmp_path / "table"))
    assert again["brightness"].equals(table["brightness"])
    with pytest.raises(UsageError, match="lies in the dataset"):
        plan_measure(photos, folder=f"{photos}/inside")


def test_filter_reads_measures_and_a_bundle_writes_its_own_table(dataset: Path, tmp_path: Path) -> None:
    steps = "not_dark(0.7) | brightness_between(0.2, 0.6)"
    before = filter_dataset(plan_filter(str(dataset), str(tmp_path / "before"), steps))
    measure_dataset(plan_measure(str(dataset), ["brightness", "brightness_p99"]))
    after = filter_dataset(plan_filter(str(dataset), str(tmp_path / "after"), steps))
    assert [shard.digest for shard in before.shards] == [shard.digest for shard in after.shards]
    assert before.run["seconds"]["decode"] > 0 == after.run["seconds"]["decode"]
    model = picture_model(make_bundle(tmp_path / "letters"), None, None, None)
    assert model is not None
    measure_dataset(plan_measure(str(dataset), model=model))
    table = outputs_of(dataset, load_manifest(str(dataset)), model.name, "embedding", "predicted")
    assert table.num_rows == 86
    assert pq.read_table(dataset / "_measures" / "part-000000.parquet").column_names[-1] == "brightness_p99"
