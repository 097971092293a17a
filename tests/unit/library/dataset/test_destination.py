"""Claims on a destination, what a job resumes after a kill, and what is removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from library.dataset.destination import check_apart, check_claim, check_unchanged, claim, committed, finish
from library.dataset.manifest import Job, Manifest, ShardReport, find_manifest, load_manifest, save_manifest
from library.dataset.shards import SUFFIX
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.errors import StriateError, UsageError
from library.work.filter_shard import FilterJob
from tests.picture_examples import encoded, ingest, write_files

WORK = "grayscale(background=1.0)"


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    """A dataset of three shards at tmp_path/source."""
    files = {
        f"{label}/{number}.png": encoded("png", 20 + number, 30) for label in ("cat", "dog") for number in range(6)
    }
    files["cat/broken.jpg"] = encoded("jpeg")[:-200]
    size = sum(map(len, files.values()))
    manifest = ingest(write_files(tmp_path / "raw", files), tmp_path / "source", shard_bytes=size // 3 + 1)
    assert len(manifest.shards) == 3
    return manifest


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return str(tmp_path / "made")


def job(**changes: object) -> Job:
    values = {"kind": "filter", "source": "/source", "pipeline": WORK, "options": {"limit": None}, **changes}
    return Job.model_validate(values)


def tasks_of(source: Manifest, dataset: str) -> list[ShardTask]:
    return [ShardTask(dataset, shard.name.removesuffix(SUFFIX), shard.digest, shard.rows) for shard in source.shards]


def run(work: FilterJob, tasks: Sequence[ShardTask]) -> list[ShardReport]:
    return [work.run(task, lambda _: None) for task in tasks]


def committed_reports(tasks: Sequence[ShardTask], work: FilterJob) -> dict[tuple[str, str], ShardReport]:
    return {(task.dataset, task.stem): report for task, report in committed(tasks, work)}


def files_of(dataset: str) -> set[str]:
    root = Path(dataset)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# -- apart ------------------------------------------------------------------------------------------------------------


def test_source_and_destination_may_not_contain_each_other_even_by_links(tmp_path: Path) -> None:
    source = tmp_path / "data" / "source"
    (source / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "up").symlink_to(tmp_path / "data")
    for destination in (source, source / "new", source / "inside", tmp_path / "link", tmp_path / "link" / "new"):
        with pytest.raises(UsageError, match=r"the destination .* lies in the source .*; choose a folder outside it"):
            check_apart(str(source), str(destination))
    for destination in (tmp_path, tmp_path / "data", tmp_path / "up"):
        with pytest.raises(UsageError, match=r"the source .* lies in the destination .*; choose a folder outside it"):
            check_apart(str(source), str(destination))
    check_apart(str(source), str(tmp_path / "data" / "source2"))
    check_apart("s3://b/source", "s3://b/source2")
    with pytest.raises(UsageError, match="lies in the source"):
        check_apart("s3://b/source", "s3://b/source/x")
    with pytest.raises(UsageError, match="lies in the destination"):
        check_apart("s3://b/source", "s3://b")


def test_a_source_file_in_the_destination_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.tar").write_bytes(b"")
    with pytest.raises(UsageError, match="lies in the destination"):
        check_apart(str(tmp_path / "photos.tar"), str(tmp_path))


# -- claims -----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_can_be_claimed_and_the_claim_is_not_complete(dataset: str) -> None:
    check_claim(dataset, job(), overwrite=False)
    assert files_of(dataset) == set(), "a check writes nothing"
    claim(dataset, [job()], overwrite=False)
    manifest = find_manifest(dataset)
    assert manifest is not None
    assert (manifest.complete, manifest.jobs) == (False, [job()])


def test_a_finished_job_run_again_leaves_its_manifest_complete(dataset: str) -> None:
    claim(dataset, [job()], overwrite=False)
    finish(dataset, [job()], Totals())
    check_claim(dataset, job(), overwrite=False)
    claim(dataset, [job()], overwrite=False)
    assert load_manifest(dataset).complete


def test_a_job_whose_source_has_grown_is_the_same_job_and_not_complete(dataset: str) -> None:
    finish(dataset, [job(source_digest="a")], Totals())
    check_claim(dataset, job(source_digest="b"), overwrite=False)
    claim(dataset, [job(source_digest="b")], overwrite=False)
    assert not load_manifest(dataset, must_be_complete=False).complete


@pytest.mark.parametrize(
    ("other", "this_job", "that_job"),
    [
        (job(pipeline="invert"), "--steps 'invert'", f"--steps '{WORK}'"),
        (job(source="/elsewhere"), "filter /elsewhere ", "filter /source "),
        (job(encode="png"), "--encode png", "--encode keep"),
        (
            job(kind="ingest", pipeline="", options={"seed": 7}),
            "ingest /source (seed=7)",
            "filter /source",
        ),
    ],
    ids=["steps", "source", "encoding", "kind"],
)
def test_another_job_is_refused_with_a_description_of_both(
    dataset: str, other: Job, this_job: str, that_job: str
) -> None:
    claim(dataset, [job()], overwrite=False)
    with pytest.raises(UsageError) as raised:
        check_claim(dataset, other, overwrite=False)
    first, old, new, advice = str(raised.value).split("\n")
    assert first == f"{dataset} holds the output of another job:"
    assert that_job in old
    assert this_job in new
    assert "--overwrite" in advice
    check_claim(dataset, other, overwrite=True)


def test_a_limit_can_be_raised_but_not_lowered(dataset: str) -> None:
    claim(dataset, [job(options={"limit": 1000})], overwrite=False)
    for limit in (1000, 2000, None):
        check_claim(dataset, job(options={"limit": limit}), overwrite=False)
    with pytest.raises(UsageError, match=r"was made from the first 1,000 pictures; --limit 10 would remove some"):
        check_claim(dataset, job(options={"limit": 10}), overwrite=False)
    check_claim(dataset, job(options={"limit": 10}), overwrite=True)
    claim(dataset, [job(options={"limit": None})], overwrite=False)
    with pytest.raises(UsageError, match="was made from all pictures; --limit 5000 would"):
        check_claim(dataset, job(options={"limit": 5000}), overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["holiday.jpg", "part-000000.parquet", "sub/folder/x"])
def test_a_folder_with_other_files_is_refused_even_with_overwrite(dataset: str, name: str, overwrite: bool) -> None:
    write_files(Path(dataset), {name: b"other"})
    with pytest.raises(UsageError, match="is not empty and is not a dataset; choose an empty folder"):
        check_claim(dataset, job(), overwrite=overwrite)
    assert files_of(dataset) == {name}


def test_a_job_that_was_killed_before_its_claim_can_be_run_again(dataset: str) -> None:
    write_files(Path(dataset), {"_tmp-0123456789abcdef": b"half a manifest"})
    check_claim(dataset, job(), overwrite=False)
    claim(dataset, [job()], overwrite=False)
    finish(dataset, [job()], Totals())
    assert files_of(dataset) == {"_manifest.json"}


def test_overwrite_removes_only_files_that_jobs_write(source: Manifest, dataset: str) -> None:
    claim(dataset, [job()], overwrite=False)
    tasks = tasks_of(source, dataset)
    work = FilterJob(source_of(dataset), WORK)
    finish(dataset, [job()], Totals.of(run(work, tasks)))
    other_files = {
        "notes.txt",
        "part-1.parquet.bak",
        "my-part-000000.parquet",
        "_rejects/notes",
        "_reports/x.json",
        "sub/part-000000.parquet",
    }
    job_files = {
        "_tmp-00ff",
        "_rejects/_tmp-00ff",
        "part-000099.parquet",
        "_reports/part-000099.json",
        "_rejects/part-000099.parquet",
    }
    write_files(Path(dataset), dict.fromkeys(other_files | job_files, b"x"))
    claim(dataset, [job(pipeline="invert")], overwrite=True)
    assert files_of(dataset) == other_files | {"_manifest.json"}
    assert load_manifest(dataset, must_be_complete=False).job.pipeline == "invert"


def source_of(dataset: str) -> str:
    return str(Path(dataset).parent / "source")


# -- resumed ----------------------------------------------------------------------------------------------------------


def test_a_shard_is_done_when_its_report_and_its_files_agree(source: Manifest, dataset: str) -> None:
    work, tasks = FilterJob(source_of(dataset), WORK), tasks_of(source, dataset)
    assert committed_reports(tasks, work) == {}
    reports = run(work, tasks[:2])
    assert committed_reports(tasks, work) == {(dataset, report.stem): report for report in reports}
    assert list(committed_reports(tasks[1:], work)) == [(dataset, tasks[1].stem)]


@pytest.mark.parametrize(
    "difference", ["input", "steps", "encoding", "limit", "gone", "cut", "report gone", "report cut", "rejects gone"]
)
def test_a_shard_is_not_done_when_anything_differs(source: Manifest, dataset: str, difference: str) -> None:
    # The filter rejects the broken picture, as ingest reads only its header.
    work, tasks = FilterJob(source_of(dataset), WORK), tasks_of(source, dataset)
    reports = run(work, tasks)
    (rejected,) = [report for report in reports if report.rejects]
    task = next(task for task in tasks if task.stem == rejected.stem)
    shard, report = Path(dataset, rejected.output.name), Path(dataset, "_reports", f"{task.stem}.json")
    if difference == "input":
        tasks = [ShardTask(dataset, task.stem, "another", task.rows) for task in tasks]
    elif difference == "steps":
        work = FilterJob(work.source, "invert")
    elif difference == "encoding":
        work = FilterJob(work.source, work.pipeline, "png")
    elif difference == "limit":
        tasks = [ShardTask(dataset, task.stem, task.input_digest, task.rows, 2) for task in tasks]
    elif difference == "gone":
        shard.unlink()
    elif difference == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif difference == "report gone":
        report.unlink()
    elif difference == "report cut":
        report.write_bytes(report.read_bytes()[:-20])
    else:
        Path(dataset, "_rejects", shard.name).unlink()
    reports_kept = committed_reports(tasks, work)
    assert len(reports_kept) == (0 if difference in ("input", "steps", "encoding", "limit") else 2)
    assert (dataset, task.stem) not in reports_kept


def test_finished_shards_of_several_datasets_are_recognized(source: Manifest, tmp_path: Path) -> None:
    one, two = (tasks_of(source, str(tmp_path / name)) for name in ("one", "two"))
    work = FilterJob(str(tmp_path / "source"), WORK)
    run(work, [one[0], two[1]])
    assert set(committed_reports([*one, *two], work)) == {(one[0].dataset, one[0].stem), (two[1].dataset, two[1].stem)}


# -- finished ---------------------------------------------------------------------------------------------------------


def test_finishing_removes_what_killed_attempts_left(source: Manifest, dataset: str) -> None:
    claim(dataset, [job()], overwrite=False)
    reports = run(FilterJob(source_of(dataset), WORK), tasks_of(source, dataset))
    expected = files_of(dataset)
    leftovers = [
        "_tmp-ab12",
        "_reports/_tmp-ab12",
        "part-000099.parquet",
        "_rejects/part-000099.parquet",
        "_reports/part-000099.json",
    ]
    other_files = {"notes.txt", "part-000099.parquet.bak", "_reports/part-000099.json.old", "old/part-000099.parquet"}
    write_files(Path(dataset), dict.fromkeys([*leftovers, *other_files], b"x"))
    manifest = finish(dataset, [job()], Totals.of(reports), skipped={"hidden": 2}, run={"workers": 3})
    assert files_of(dataset) == expected | other_files
    assert manifest == load_manifest(dataset)
    assert (manifest.skipped, manifest.run) == ({"hidden": 2}, {"workers": 3})


def test_the_order_in_which_shards_end_changes_nothing(source: Manifest, dataset: str) -> None:
    reports = run(FilterJob(source_of(dataset), WORK), tasks_of(source, dataset))
    one = finish(dataset, [job()], Totals.of(reports))
    two = finish(dataset, [job()], Totals.of(reversed(reports)))
    assert one == two
    assert [shard.name for shard in one.shards] == [f"part-00000{number}.parquet" for number in range(3)]
    assert (one.tally.rows_in, one.tally.rows_out, one.tally.rejected) == (13, 12, {"truncated": 1})
    assert one.tally.balanced


def test_a_manifest_of_another_version_is_not_overwritten_by_mistake(dataset: str) -> None:
    save_manifest(dataset, Manifest(complete=True, jobs=[job()]))
    path = Path(dataset, "_manifest.json")
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(Exception, match="was written by another version"):
        check_claim(dataset, job(), overwrite=False)


def test_a_source_that_was_changed_while_it_was_read_is_told(source: Manifest, tmp_path: Path) -> None:
    uri = str(tmp_path / "source")
    planned = Job(kind="filter", source=uri, source_digest=load_manifest(uri).digest)
    check_unchanged(planned)
    manifest = load_manifest(uri)
    changed = manifest.shards[0].model_copy(update={"digest": "0" * 64})
    save_manifest(uri, manifest.model_copy(update={"shards": [changed, *manifest.shards[1:]]}))
    with pytest.raises(StriateError, match=r"source was changed by another command .* run the same command again"):
        check_unchanged(planned)
