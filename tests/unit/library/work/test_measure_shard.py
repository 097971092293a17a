"""One shard of `striate measure`, without Ray, and the side table that it writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.choosing.measure import measure_dataset, outdated_files, plan_measure
from library.choosing.measures.hashes import dhash, phash
from library.choosing.measures.measuring import DEFAULT, MEASURES
from library.choosing.measures.side_table import read_measures, read_part
from library.dataset.destination import claim, remove_uncommitted
from library.dataset.manifest import Job, Manifest, ShardReport, Tally, load_manifest, save_manifest
from library.dataset.task import ShardTask
from library.errors import UsageError
from library.imaging import codec
from library.imaging.codec import Encoding
from library.work.filter_shard import FilterJob
from tests.picture_examples import encoded, ingest, measure, scene, write_files

GOOD = encoded("jpeg", 40, 50)
DAMAGED = GOOD[:-300]  # its header is complete, its pixels are not


def pictures(count: int = 12) -> Mapping[str, bytes]:
    return {
        f"cat/{number:03d}.png": codec.encode(scene(20 + number, 30 + number), Encoding.parse("png"))[0]
        for number in range(count)
    }


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, Manifest]:
    """A dataset of several shards with one picture that is damaged after its header."""
    folder = write_files(tmp_path / "files", {**pictures(), "cat/damaged.jpg": DAMAGED})
    return tmp_path / "raw", ingest(folder, tmp_path / "raw", shard_bytes=3_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def test_the_side_table_has_the_rows_of_the_shards_in_order(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    assert len(manifest.shards) > 2
    for shard in manifest.shards:
        stored = pq.read_table(dataset / shard.name)
        measured = pq.read_table(dataset / "_measures" / shard.name)
        assert measured.column_names == ["key", "reason", *DEFAULT]
        assert measured["key"].to_pylist() == stored["key"].to_pylist()
        assert measured["width"].to_pylist() == stored["width"].to_pylist()
        for row, image in zip(measured.to_pylist(), stored["image"].to_pylist(), strict=True):
            assert row["num_bytes"] == len(image["bytes"])
            if row["key"] != "cat/damaged.jpg":
                pixels = codec.decode(image["bytes"])
                assert (row["phash"], row["dhash"]) == (phash(pixels), dhash(pixels))
                assert row["reason"] is None


def test_a_damaged_picture_has_a_reason_instead_of_scores(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    reports = measure(dataset, manifest)
    assert sum(report.tally.rows_in for report in reports) == manifest.rows
    assert all(report.tally.balanced for report in reports)
    rows = [row for path in (dataset / "_measures").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    (damaged,) = (row for row in rows if row["reason"] is not None)
    assert damaged["key"] == "cat/damaged.jpg"
    for name, made in MEASURES.items():
        if name in DEFAULT:
            assert (damaged[name] is None) == (made.needs == "pixels")


def test_duckdb_reads_the_side_table(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    query = f"select count(*), count(phash), min(brightness) from '{dataset}/_measures/*.parquet'"
    rows, hashed, darkest = duckdb.connect().execute(query).fetchall()[0]
    assert (rows, hashed) == (manifest.rows, manifest.rows - 1)
    assert 0 <= darkest <= 1


def test_columns_are_added_and_those_that_are_there_stay(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest, "phash", "num_bytes")
    before = read_measures(str(dataset), manifest, ["phash", "num_bytes"])
    measure(dataset, manifest, "num_bytes", "brightness")
    after = read_measures(str(dataset), manifest, ["brightness", "phash", "num_bytes"])
    assert after.select(before.column_names).equals(before)
    assert after.column_names == ["key", "brightness", "phash", "num_bytes"]
    measured = pq.read_table(next((dataset / "_measures").glob("part-*.parquet")))
    assert measured.column_names == ["key", "reason", "num_bytes", "brightness", "phash"]


def test_measuring_in_one_run_or_in_several_gives_the_same_bytes(source: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = source
    measure(dataset, manifest, folder=tmp_path / "once")
    for column in reversed(DEFAULT):
        measure(dataset, manifest, column, folder=tmp_path / "often")
    assert contents(tmp_path / "once") == contents(tmp_path / "often")


def test_a_copy_of_a_dataset_gets_the_same_bytes(source: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = source
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    for each in (dataset, copy):
        measure(each, manifest)
    assert contents(copy / "_measures") == contents(dataset / "_measures") != {}


def test_measures_of_other_pictures_or_versions_count_as_missing(
    source: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, manifest = source
    with pytest.raises(UsageError, match=r"has no measures of phash.*striate measure"):
        read_measures(str(dataset), manifest, ["phash"])
    measure(dataset, manifest, "phash", "num_bytes")
    shard = manifest.shards[0]
    folder = str(dataset / "_measures")
    assert read_part(folder, shard.name, shard.digest, shard.rows, ["phash"]) is not None
    assert read_part(folder, shard.name, "0" * 64, shard.rows, ["phash"]) is None
    with pytest.raises(UsageError, match=r"no measures of dhash.*for \d of \d shards"):
        read_measures(str(dataset), manifest, ["dhash"])
    newer = {**MEASURES, "phash": MEASURES["width"]}
    monkeypatch.setattr("library.choosing.measures.side_table.MEASURES", newer)
    part = read_part(folder, shard.name, shard.digest, shard.rows, ["phash", "num_bytes"])
    assert part is not None
    assert part.column_names == ["key", "reason", "num_bytes"]


def test_a_picture_that_a_newer_codec_decodes_loses_its_reason(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest, "bytes_digest", "brightness")
    before = contents(dataset / "_measures")
    # What an older codec has left, which could decode no picture of the first shard.
    path = dataset / "_measures" / manifest.shards[0].name
    table = pq.read_table(path)
    facts = json.loads((table.schema.metadata or {})[b"striate.measures"])
    facts["columns"]["brightness"] = "an older version"
    for name, value in (("reason", "truncated"), ("brightness", None)):
        values = pa.array([value] * table.num_rows, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table.replace_schema_metadata({b"striate.measures": json.dumps(facts).encode()}), path)
    measure(dataset, manifest, "brightness")
    assert contents(dataset / "_measures") == before


def test_a_reason_stays_with_the_column_that_it_left_empty(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest, "brightness")
    measure(dataset, manifest, "num_bytes")
    tables = [pq.read_table(path) for path in (dataset / "_measures").glob("part-*.parquet")]
    reasons = [reason for table in tables for reason in table["reason"].to_pylist()]
    assert [reason for reason in reasons if reason is not None] == ["truncated"]


def test_a_damaged_file_counts_as_missing_and_is_written_again(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    before = contents(dataset / "_measures")
    (dataset / "_measures" / manifest.shards[0].name).write_bytes(b"PAR1 cut off")
    with pytest.raises(UsageError, match="for 1 of"):
        read_measures(str(dataset), manifest, ["phash"])
    measure(dataset, manifest)
    assert contents(dataset / "_measures") == before


def test_an_unknown_measure_is_refused_with_the_nearest_name(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    with pytest.raises(UsageError, match=r"unknown measure 'brightnes' .*'brightness'"):
        read_measures(str(dataset), manifest, ["brightnes"])


def test_jobs_on_the_dataset_leave_its_side_table_alone(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    before = contents(dataset / "_measures")
    remove_uncommitted(str(dataset))
    assert contents(dataset / "_measures") == before
    # Another job takes the dataset over: the table is still there, but no shard of the new dataset is in it.
    claim(str(dataset), [Job(kind="ingest", source="elsewhere")], overwrite=True)
    remove_uncommitted(str(dataset))
    assert contents(dataset / "_measures") == before
    assert load_manifest(str(dataset), must_be_complete=False).shards == []
    assert read_measures(str(dataset), manifest, ["width"]).num_rows == manifest.rows


STEPS = "not_dark(0.9) | brightness_between(0.3, 0.7) | min_entropy(6.5) | not_blurry(1000)"


def filtered(dataset: Path, manifest: Manifest, destination: Path, steps: str) -> list[ShardReport]:
    work = FilterJob(str(dataset), steps)
    stems = [(shard.name.removesuffix(".parquet"), shard) for shard in manifest.shards]
    return [
        work.run(ShardTask(str(destination), stem, shard.digest, shard.rows), lambda _: None) for stem, shard in stems
    ]


def test_filter_gives_the_same_with_and_without_measures(source: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = source
    before = filtered(dataset, manifest, tmp_path / "before", STEPS)
    measure(dataset, manifest)
    after = filtered(dataset, manifest, tmp_path / "after", STEPS)
    assert [report.tally for report in before] == [report.tally for report in after]
    assert contents(tmp_path / "before") == contents(tmp_path / "after")
    tally = Tally.total(report.tally for report in after)
    assert tally.rows_out > 0
    assert tally.dropped
    assert tally.rejected == {"truncated": 1}


def test_a_measured_picture_is_not_decoded_again(tmp_path: Path) -> None:
    dataset = tmp_path / "raw"
    manifest = ingest(write_files(tmp_path / "files", pictures()), dataset, shard_bytes=3_000)
    measure(dataset, manifest, "brightness", "brightness_p99", "sharpness")
    (first, *_) = filtered(dataset, manifest, tmp_path / "some", "not_dark | not_blurry(1)")
    assert first.seconds["decode"] == 0
    # One score was not measured, so the pixels are needed.
    (first, *_) = filtered(dataset, manifest, tmp_path / "all", "not_dark(0.1) | min_entropy(1)")
    assert first.seconds["decode"] > 0


def test_measures_of_an_earlier_shard_are_not_used_by_filter(source: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    for path in (dataset / "_measures").glob("*.parquet"):
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[b"striate.measures"])
        stale = table.replace_schema_metadata({b"striate.measures": json.dumps({**facts, "shard": "0" * 64}).encode()})
        pq.write_table(stale.set_column(0, "key", table["key"]), path)
    reports = filtered(dataset, manifest, tmp_path / "out", STEPS)
    assert sum(report.seconds["decode"] for report in reports) > 0


def test_a_finished_table_needs_no_ray_and_loses_files_of_gone_shards(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    before = contents(dataset / "_measures")
    shutil.copy(dataset / "_measures" / manifest.shards[0].name, dataset / "_measures" / "part-999999.parquet")
    (dataset / "_measures" / "part-888888.parquet").write_bytes(b"damaged")
    # What another command is writing at the moment.
    (dataset / "_measures" / "letters").mkdir()
    for folder in ("", "letters/"):
        (dataset / "_measures" / f"{folder}_tmp-0123").write_bytes(b"half a file")
    plan = plan_measure(str(dataset))
    assert plan.todo == []
    result = measure_dataset(plan)
    assert result.rejected == {"truncated": 1}
    assert contents(dataset / "_measures") == before
    assert len(list((dataset / "_measures").rglob("_tmp-0123"))) == 2


def test_files_that_are_not_measures_are_never_removed(source: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = source
    measure(dataset, manifest, folder=tmp_path / "table")
    foreign = tmp_path / "table" / "part-00000-5e2f.snappy.parquet"
    pq.write_table(pq.read_table(dataset / manifest.shards[0].name), foreign)
    with pytest.raises(UsageError, match=r"--out .* contains part-00000-5e2f.snappy.parquet, which holds no measures"):
        plan_measure(str(dataset), folder=str(tmp_path / "table"))
    measure(dataset, manifest)
    own = Path(shutil.copy(foreign, dataset / "_measures"))
    measure_dataset(plan_measure(str(dataset)))
    assert own.exists()


def test_measures_that_do_not_name_their_dataset_are_known_by_their_shards(
    source: tuple[Path, Manifest], tmp_path: Path
) -> None:
    dataset, manifest = source
    measure(dataset, manifest, folder=tmp_path / "table")
    for path in (tmp_path / "table").glob("part-*.parquet"):
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[b"striate.measures"])
        del facts["dataset"]
        pq.write_table(table.replace_schema_metadata({b"striate.measures": json.dumps(facts).encode()}), path)
    assert plan_measure(str(dataset), folder=str(tmp_path / "table")).todo == []
    ingest(write_files(tmp_path / "one", {"cat/other.jpg": GOOD}), tmp_path / "other")
    with pytest.raises(UsageError, match=r"contains part-000000.parquet with measures of another dataset, which would"):
        plan_measure(str(tmp_path / "other"), folder=str(tmp_path / "table"))


def test_measures_of_another_dataset_are_not_replaced(source: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = source
    measure(dataset, manifest, folder=tmp_path / "table")
    other = tmp_path / "other"
    ingest(write_files(tmp_path / "one", {"cat/other.jpg": GOOD}), other)
    with pytest.raises(
        UsageError, match=r"contains part-000000.parquet with measures of .*raw, which would be replaced"
    ):
        plan_measure(str(other), folder=str(tmp_path / "table"))
    # The same dataset, elsewhere, or after all its pictures have changed.
    moved = Path(shutil.copytree(dataset, tmp_path / "moved"))
    assert plan_measure(str(moved), folder=str(tmp_path / "table")).todo == []
    shutil.rmtree(dataset)
    shutil.copytree(other, dataset)
    assert len(plan_measure(str(dataset), folder=str(tmp_path / "table")).todo) == 1


@pytest.mark.parametrize("folder", ["inside", "_reports"])
def test_a_folder_inside_the_dataset_is_refused(source: tuple[Path, Manifest], folder: str) -> None:
    dataset, _ = source
    with pytest.raises(UsageError, match="lies in the dataset"):
        plan_measure(str(dataset), folder=str(dataset / folder))
    with pytest.raises(UsageError, match="is inside the dataset"):
        plan_measure(str(dataset), report=str(dataset / folder))


def test_a_plan_that_is_older_than_the_dataset_removes_no_measures(source: tuple[Path, Manifest]) -> None:
    dataset, manifest = source
    measure(dataset, manifest)
    save_manifest(str(dataset), Manifest(complete=True, jobs=manifest.jobs))
    plan = plan_measure(str(dataset))
    assert len(outdated_files(plan)) == len(manifest.shards)
    save_manifest(str(dataset), manifest)
    assert outdated_files(plan) == []
