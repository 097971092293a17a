"""One shard of `striate augment`, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.augment import plan_augment
from library.dataset.destination import claim, finish
from library.dataset.manifest import Manifest, ShardReport, Tally, load_manifest
from library.dataset.shards import ShardWriter
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.work.augment_shard import AugmentJob
from tests.picture_examples import encoded, ingest, table, write_files

STEPS = "rotate(15) | flip(p=0.5)"
FILES = {
    "cat/a.jpg": encoded("jpeg", 40, 50),
    "cat/b.png": encoded("png", 40, 50, channels=1),
    "dog/c.npy": encoded("npy", 20, 30, 5, "uint16"),
    "dog/d.jpg": encoded("jpeg", 40, 50)[:-300],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("augment")
    ingest(write_files(folder / "raw", FILES), folder / "made")
    return str(folder / "made")


def augmented(source: str, destination: Path, steps: str = STEPS, **options: Any) -> tuple[Manifest, list[Tally]]:
    """Runs the whole job without Ray."""
    plan = plan_augment(source, str(destination), steps, **{"copies": 3, **options})
    claim(plan.destination, plan.jobs, overwrite=False)
    tallies: list[Tally] = []
    return finish(
        plan.destination, plan.jobs, Totals.of(plan.work.run(task, tallies.append) for task in plan.tasks)
    ), tallies


def rows_of(dataset: Path, folder: str = "") -> dict[str, dict[str, Any]]:
    """Returns every row of a dataset, or of its rejects, by key."""
    rows = [
        row for path in sorted((dataset / folder).glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def work_on(rows: Any, destination: Path, **options: Any) -> tuple[ShardReport, list[Tally]]:
    """Augments one shard that holds `rows`."""
    with ShardWriter(str(destination / "source"), "part-000000.parquet", rows.schema) as writer:
        writer.add(rows)
    job = AugmentJob(str(destination / "source"), **{"pipeline": str(Pipeline.parse(STEPS)), "seed": 0, **options})
    tallies: list[Tally] = []
    return job.run(ShardTask(str(destination), "part-000000", "digest", rows.num_rows), tallies.append), tallies


def test_copies_have_the_label_and_the_pixels_of_the_augmenter(source: str, tmp_path: Path) -> None:
    manifest, _ = augmented(source, tmp_path, seed=5, encode="npy")
    rows = rows_of(tmp_path)
    assert set(rows) == {f"{key}#{number}" for key in list(FILES)[:3] for number in (1, 2, 3)}
    augmenter = Augmenter(Pipeline.parse(STEPS), 5)
    for key, row in rows.items():
        original, _, number = key.rpartition("#")
        expected = augmenter.apply(codec.decode(FILES[original]), int(number), original)
        np.testing.assert_array_equal(codec.decode(row["image"]["bytes"]), expected)
        assert row["label"] == original.split("/")[0]
        assert (row["height"], row["width"], row["channels"], row["format"]) == (*expected.shape, "npy")
        assert row["image"]["path"] == f"{Path(original).stem}#{number}.npy"
    assert manifest.tally.classes == {"cat": 6, "dog": 3}


def test_tallies_count_copies_also_those_of_a_damaged_picture(source: str, tmp_path: Path) -> None:
    manifest, tallies = augmented(source, tmp_path, keep_original=True)
    assert (manifest.tally.rows_in, manifest.tally.rows_out, manifest.tally.rejected) == (16, 12, {"truncated": 4})
    assert manifest.tally.balanced
    assert Tally.total(tallies) == manifest.tally
    rejects = rows_of(tmp_path, "_rejects")
    assert set(rejects) == {"dog/d.jpg", "dog/d.jpg#1", "dog/d.jpg#2", "dog/d.jpg#3"}
    assert [row["image"]["bytes"] for row in rejects.values()].count(FILES["dog/d.jpg"]) == 1
    assert [row["image"]["bytes"] for row in rejects.values()].count(None) == 3
    assert manifest.tally.image_bytes_in == sum(map(len, FILES.values()))


def test_originals_and_unchanged_copies_keep_their_bytes(source: str, tmp_path: Path) -> None:
    augmented(source, tmp_path, "flip(p=0)", copies=1, keep_original=True)
    before, after = rows_of(Path(source)), rows_of(tmp_path)
    for key in list(FILES)[:3]:
        assert after[key] == before[key]
        assert after[f"{key}#1"]["image"]["bytes"] == FILES[key]


def test_a_copy_keeps_the_format_of_the_picture_where_possible(source: str, tmp_path: Path) -> None:
    augmented(source, tmp_path)
    rows = rows_of(tmp_path)
    assert [rows[f"{key}#1"]["format"] for key in list(FILES)[:3]] == ["jpeg", "png", "npy"]
    assert rows["cat/a.jpg#2"]["image"]["path"] == "a#2.jpg"


def test_only_the_copies_on_which_a_step_fails_are_rejected(tmp_path: Path) -> None:
    rows = table([encoded("png", 20, 20)])
    report, _ = work_on(rows, tmp_path, pipeline="sometimes(0.5, random_crop(99)) | flip", copies=40)
    assert report.tally.balanced
    assert 8 < report.tally.rejected["too_small"] < 32
    assert report.tally.rows_out == 40 - report.tally.rejected["too_small"]


def test_other_columns_pass_through_untouched(tmp_path: Path) -> None:
    rows = table([encoded("png")] * 2, ["x", None], box=[[1, 2], None], score=[0.5, 2.0])
    work_on(rows, tmp_path, copies=2)
    copied = pq.read_table(tmp_path / "part-000000.parquet")
    before = pq.read_table(tmp_path / "source" / "part-000000.parquet")
    assert copied.schema.equals(before.schema, check_metadata=True)
    assert copied["box"].to_pylist() == [[1, 2], [1, 2], None, None]
    assert copied["score"].to_pylist() == [0.5, 0.5, 2.0, 2.0]
    assert copied["label"].to_pylist() == ["x", "x", None, None]


def test_copies_are_written_in_parts_however_many_there_are(tmp_path: Path) -> None:
    report, tallies = work_on(table([encoded("png")] * 3), tmp_path, copies=100)
    assert report.tally.rows_out == 300
    assert max(tally.rows_in for tally in tallies) <= 64
    big = codec.encode(np.zeros((1500, 1500, 1), np.float32), codec.Encoding("npy"))[0]
    _, tallies = work_on(table([big]), tmp_path / "big", copies=6)
    assert max(tally.rows_in for tally in tallies) == 2  # 9 MB each; a part is written at 12 MB


def test_with_a_limit_only_the_first_pictures_are_copied(source: str, tmp_path: Path) -> None:
    manifest, _ = augmented(source, tmp_path, limit=2)
    assert manifest.tally.rows_in == 6


def test_the_work_digest_distinguishes_seeds_copies_and_pipelines(source: str) -> None:
    task = ShardTask("x", "part-000000", "digest", 1)
    jobs = [
        AugmentJob(source, pipeline, copies, seed, keep, encode)
        for pipeline in ("flip", "rotate(3)")
        for copies in (1, 2)
        for seed in (0, 1)
        for keep in (False, True)
        for encode in ("keep", "png")
    ]
    assert len({job.work_digest(task) for job in jobs}) == len(jobs)
    assert len({job.work_digest(task) for job in [jobs[0], AugmentJob("elsewhere", "flip", 1, 0)]}) == 1


def test_keys_stay_unique_when_copies_are_copied_again(source: str, tmp_path: Path) -> None:
    augmented(source, tmp_path / "once", copies=2, keep_original=True)
    with pytest.raises(
        UsageError, match="already contains copies, and with --keep-original two pictures could get the same key"
    ):
        augmented(str(tmp_path / "once"), tmp_path / "twice", copies=2, keep_original=True)
    manifest, _ = augmented(str(tmp_path / "once"), tmp_path / "twice", copies=2)
    assert len(rows_of(tmp_path / "twice")) == manifest.rows == 18
    assert [job.kind for job in load_manifest(str(tmp_path / "twice")).jobs] == ["ingest", "augment", "augment"]


def test_a_key_like_that_of_a_copy_is_refused_with_originals_kept(tmp_path: Path) -> None:
    rows = table([encoded("png")])
    rows = rows.set_column(0, rows.schema.field("key"), [["photo#2"]])
    with pytest.raises(StriateError, match=r"shard .*part-000000.parquet: picture 'photo#2' has the key of a copy"):
        work_on(rows, tmp_path / "a", copies=2, keep_original=True)
    report, _ = work_on(rows, tmp_path / "b", copies=1, keep_original=True)
    assert report.tally.rows_out == 2
