"""Copying the chosen pictures of a shard, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.dataset.destination import claim, committed, finish
from library.dataset.manifest import Job, Manifest, ShardReport, Tally, load_report
from library.dataset.shards import read_columns
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.errors import StriateError, UsageError
from library.work.select_shard import DECISION_SCHEMA, SelectJob, decisions_file, decisions_uri
from tests.datasets import rows
from tests.picture_examples import encoded, ingest, write_files

JOB = Job(kind="dedup", source="/source")


def quiet(_: Tally) -> None: ...


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    """Twelve pictures in three shards at tmp_path/source; one is damaged, which a copy need not notice."""
    files = {f"{label}/{number}.png": encoded("png", 20 + number, 30) for label in "ab" for number in range(6)}
    files["a/broken.jpg"] = encoded("jpeg")[:-200]
    size = sum(map(len, files.values()))
    manifest = ingest(write_files(tmp_path / "raw", files), tmp_path / "source", shard_bytes=size // 3 + 1)
    assert len(manifest.shards) == 3
    return manifest


def decide(source: Path, manifest: Manifest, dropped: dict[str, str]) -> dict[str, pa.Table]:
    """Decisions of each shard, by stem."""
    tables: dict[str, pa.Table] = {}
    for shard in manifest.shards:
        keys = read_columns(str(source), ["key"], [shard.name])["key"].to_pylist()
        tables[shard.name.removesuffix(".parquet")] = pa.table(
            {"key": keys, "reason": [dropped.get(key) for key in keys]}, DECISION_SCHEMA
        )
    return tables


def select(source: Path, manifest: Manifest, made: Path, dropped: dict[str, str]) -> tuple[SelectJob, list[ShardTask]]:
    """Writes the decisions; returns the job and its tasks."""
    tasks = [ShardTask(str(made), one.name.removesuffix(".parquet"), one.digest, one.rows) for one in manifest.shards]
    tables, digests = decide(source, manifest, dropped), dict[str, str]()
    for task in tasks:
        data, digests[task.stem] = decisions_file(tables[task.stem])
        path = Path(decisions_uri(task))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return SelectJob(str(source), {str(made): digests}), tasks


def run(work: SelectJob, tasks: Sequence[ShardTask]) -> list[ShardReport]:
    return [work.run(task, quiet) for task in tasks]


def stems_done(work: SelectJob, tasks: Sequence[ShardTask]) -> list[str]:
    return [task.stem for task, _ in committed(tasks, work)]


def test_kept_pictures_keep_every_byte_and_others_are_counted(tmp_path: Path, source: Manifest) -> None:
    dropped = {"a/1.png": "duplicate", "b/3.png": "duplicate", "b/4.png": "leak"}
    reports = run(*select(tmp_path / "source", source, tmp_path / "made", dropped))
    before, after = rows(tmp_path / "source").to_pylist(), rows(tmp_path / "made").to_pylist()
    assert after == [row for row in before if row["key"] not in dropped]
    assert "a/broken.jpg" in {row["key"] for row in after}
    tally = Tally.total(report.tally for report in reports)
    assert (tally.rows_in, tally.rows_out) == (13, 10)
    assert (tally.dropped, tally.rejected) == ({"duplicate": 2, "leak": 1}, {})
    assert all(report.tally.balanced for report in reports)
    assert tally.image_bytes_in == source.tally.image_bytes_out


def test_a_shard_keeps_its_columns_order_and_metadata(tmp_path: Path, source: Manifest) -> None:
    run(*select(tmp_path / "source", source, tmp_path / "made", {}))
    for shard in source.shards:
        before, after = (pq.ParquetFile(tmp_path / folder / shard.name) for folder in ("source", "made"))
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        assert after.read().equals(before.read())


def test_a_shard_of_which_nothing_is_kept_is_an_empty_shard(tmp_path: Path, source: Manifest) -> None:
    keys = rows(tmp_path / "source")["key"].to_pylist()
    reports = run(*select(tmp_path / "source", source, tmp_path / "made", dict.fromkeys(keys, "other")))
    assert [report.output.rows for report in reports] == [0, 0, 0]
    assert sum(report.tally.dropped["other"] for report in reports) == len(keys)


def test_only_shards_without_a_report_are_left_to_do(tmp_path: Path, source: Manifest) -> None:
    made = tmp_path / "made"
    claim(str(made), [JOB], overwrite=False)
    work, tasks = select(tmp_path / "source", source, made, {"a/1.png": "duplicate"})
    run(work, tasks[:2])
    assert stems_done(work, tasks) == [task.stem for task in tasks[:2]]
    again, _ = select(tmp_path / "source", source, made, {"a/1.png": "duplicate"})
    assert stems_done(again, tasks) == [task.stem for task in tasks[:2]]


def test_only_shards_with_other_decisions_are_written_again(tmp_path: Path, source: Manifest) -> None:
    work, tasks = select(tmp_path / "source", source, tmp_path / "made", {"a/1.png": "duplicate"})
    run(work, tasks)
    changed, _ = select(tmp_path / "source", source, tmp_path / "made", {"a/1.png": "leak"})
    where = decide(tmp_path / "source", source, {})
    (holds,) = (stem for stem, table in where.items() if "a/1.png" in table["key"].to_pylist())
    assert set(stems_done(changed, tasks)) == {task.stem for task in tasks} - {holds}


def test_the_decisions_of_a_vanished_shard_are_removed(tmp_path: Path, source: Manifest) -> None:
    made = tmp_path / "made"
    claim(str(made), [JOB], overwrite=False)
    work, tasks = select(tmp_path / "source", source, made, {"a/1.png": "duplicate"})
    finish(str(made), [JOB], Totals.of(run(work, tasks)))
    assert len(list((made / "_decisions").iterdir())) == 3
    finish(str(made), [JOB], Totals.of(run(work, tasks[:2])))
    assert sorted(path.stem for path in (made / "_decisions").iterdir()) == [task.stem for task in tasks[:2]]


def test_overwriting_removes_the_decisions_of_the_job_before(tmp_path: Path, source: Manifest) -> None:
    made = tmp_path / "made"
    claim(str(made), [JOB], overwrite=False)
    work, tasks = select(tmp_path / "source", source, made, {})
    finish(str(made), [JOB], Totals.of(run(work, tasks)))
    claim(str(made), [Job(kind="filter", source="/other")], overwrite=True)
    assert not list(made.glob("_decisions/*"))


def test_changed_decisions_and_changed_sources_stop_the_shard(tmp_path: Path, source: Manifest) -> None:
    work, tasks = select(tmp_path / "source", source, tmp_path / "made", {})
    path = Path(decisions_uri(tasks[0]))
    path.write_bytes(Path(decisions_uri(tasks[1])).read_bytes())
    with pytest.raises(StriateError, match=r"_decisions/part-000000\.parquet was changed while the job ran"):
        work.run(tasks[0], quiet)
    ((made, digests),) = work.decisions.items()
    other = SelectJob(work.source, {made: {**digests, tasks[0].stem: digests[tasks[1].stem]}})
    with pytest.raises(StriateError, match="its keys are not those for which the decisions"):
        other.run(tasks[0], quiet)
    assert load_report_of(tmp_path / "made", tasks[0].stem) is None
    assert not (tmp_path / "made" / "part-000000.parquet").exists()


def load_report_of(dataset: Path, stem: str) -> ShardReport | None:
    path = dataset / "_reports" / f"{stem}.json"
    return load_report(path.read_bytes(), ShardReport) if path.exists() else None


def test_columns_of_all_shards_are_read_in_order(tmp_path: Path, source: Manifest) -> None:
    names = [shard.name for shard in source.shards]
    table = read_columns(str(tmp_path / "source"), ["label", "key"], names)
    assert table.column_names == ["label", "key"]
    stored = [key for name in names for key in pq.ParquetFile(tmp_path / "source" / name).read()["key"].to_pylist()]
    assert table["key"].to_pylist() == stored
    with pytest.raises(UsageError, match="has no column 'patient'; its columns are key, image"):
        read_columns(str(tmp_path / "source"), ["patient"], names)


def test_one_read_writes_the_shards_of_several_datasets(tmp_path: Path, source: Manifest) -> None:
    some = {"a/1.png": "in_test", "b/3.png": "in_test"}
    rest = {key: "in_train" for key in rows(tmp_path / "source")["key"].to_pylist() if key not in some}
    alone, both = {}, {}
    for name, dropped in (("train", some), ("test", rest)):
        alone[name] = run(*select(tmp_path / "source", source, tmp_path / "alone" / name, dropped))
        both[name], tasks = select(tmp_path / "source", source, tmp_path / "both" / name, dropped)
    work = SelectJob(
        str(tmp_path / "source"), {uri: found for job in both.values() for uri, found in job.decisions.items()}
    )
    reports = [work.run(task, quiet) for task in tasks]
    for number, report in enumerate(reports):
        (other,) = report.others.values()
        for name, one in (("test", report), ("train", other)):
            assert (one.output, one.tally) == (alone[name][number].output, alone[name][number].tally)
    for uri in work.decisions:
        assert stems_done(work, [replace(task, dataset=uri) for task in tasks]) == [task.stem for task in tasks]
