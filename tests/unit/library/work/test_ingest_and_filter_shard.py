"""One shard of `striate ingest` and of `striate filter`, without Ray."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.dataset.manifest import Manifest, ShardReport, Tally, load_report
from library.dataset.planning import Layout, plan
from library.dataset.record import dataset_schema
from library.dataset.shards import ROW_GROUP_BYTES, ShardWriter
from library.dataset.task import ShardOutput, ShardTask
from library.errors import StepError, StriateError
from library.imaging import codec
from library.sources import Options, Read, list_source, read_pictures
from library.work import ingest_shard
from library.work.filter_shard import FilterJob
from library.work.ingest_shard import IngestJob
from tests.picture_examples import encoded, ingest, table, write_files

GOOD, GREY, SMALL = encoded("jpeg", 40, 50), encoded("png", 40, 50, channels=1), encoded("png", 4, 5)
HEADER_ONLY = GOOD[:-300]  # its header is complete, its pixels are not
RAW = {
    "cat/a.jpg": GOOD,
    "cat/b.png": GREY,
    "cat/c.png": SMALL,
    "dog/d.jpg": HEADER_ONLY,
    "dog/e.jpg": b"text that calls itself a picture",
    "dog/f.jpg": b"",
    "dog/g.webp": encoded("webp", 60, 70),
}


def tasks_of(source: Path, destination: Path, shard_bytes: int | None = None) -> tuple[IngestJob, list[ShardTask]]:
    listing = list_source(str(source))
    tasks = plan(listing.index, str(destination), Layout(shard_bytes))
    return IngestJob.of(listing, Options(), verify=False), tasks


def quiet(_: Tally) -> None: ...


def rows_of(dataset: Path, folder: str = "") -> dict[str, dict[str, Any]]:
    """Returns every row of a dataset, or of its rejects, by key."""
    paths = sorted((dataset / folder).glob("part-*.parquet"))
    rows = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def filtered(source: Path, manifest: Manifest, destination: Path, pipeline: str, **options: Any) -> list[ShardReport]:
    work = FilterJob(str(source), pipeline, **options)
    stems = [(shard.name.removesuffix(".parquet"), shard) for shard in manifest.shards]
    return [work.run(ShardTask(str(destination), stem, shard.digest, shard.rows), quiet) for stem, shard in stems]


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, Manifest]:
    """A dataset of five pictures, one of them damaged after its header."""
    manifest = ingest(write_files(tmp_path / "raw", RAW), tmp_path / "source")
    return tmp_path / "source", manifest


# -- ingest -----------------------------------------------------------------------------------------------------------


def test_ingest_keeps_exact_bytes_and_rejects_what_is_not_a_picture(tmp_path: Path) -> None:
    manifest = ingest(write_files(tmp_path / "raw", RAW), tmp_path / "made")
    stored, rejects = rows_of(tmp_path / "made"), rows_of(tmp_path / "made", "_rejects")
    assert {key: row["image"]["bytes"] for key, row in stored.items()} == {
        key: RAW[key] for key in RAW if key not in rejects
    }
    assert {key: (row["image"]["bytes"], row["reason"]) for key, row in rejects.items()} == {
        "dog/e.jpg": (RAW["dog/e.jpg"], "not_an_image"),
        "dog/f.jpg": (b"", "empty"),
    }
    assert (manifest.tally.rows_in, manifest.tally.rows_out, manifest.tally.rejected) == (
        7,
        5,
        {"empty": 1, "not_an_image": 1},
    )
    assert stored["cat/b.png"] == {
        "key": "cat/b.png",
        "image": {"bytes": GREY, "path": "b.png"},
        "label": "cat",
        "width": 50,
        "height": 40,
        "channels": 1,
        "format": "png",
    }


def test_verify_finds_the_damage_that_the_header_does_not_show(tmp_path: Path) -> None:
    manifest = ingest(write_files(tmp_path / "raw", RAW), tmp_path / "made", verify=True)
    assert manifest.tally.rejected == {"empty": 1, "not_an_image": 1, "truncated": 1}
    reject = rows_of(tmp_path / "made", "_rejects")["dog/d.jpg"]
    assert (reject["image"]["bytes"], reject["label"]) == (HEADER_ONLY, "dog")
    assert "Premature end" in reject["detail"]


def test_the_report_that_is_stored_is_the_one_that_is_returned(tmp_path: Path) -> None:
    work, (task,) = tasks_of(write_files(tmp_path / "raw", RAW), tmp_path / "made")
    tallies: list[Tally] = []
    report = work.run(task, tallies.append)
    assert load_report((tmp_path / "made" / "_reports" / "part-000000.json").read_bytes(), ShardReport) == report
    assert (report.stem, report.input_digest, report.work_digest) == (
        task.stem,
        task.input_digest,
        work.work_digest(task),
    )
    assert Tally.total(tallies) == report.tally
    assert report.tally.balanced
    assert report.tally == Tally(
        rows_in=7,
        rows_out=5,
        rejected={"empty": 1, "not_an_image": 1},
        image_bytes_in=sum(map(len, RAW.values())),
        image_bytes_out=sum(len(RAW[key]) for key in rows_of(tmp_path / "made")),
        classes={"cat": 3, "dog": 2},
        formats={"jpeg": 2, "png": 2, "webp": 1},
        channels={"1": 1, "3": 4},
        sides={"8": 1, "64": 3, "128": 1},
    )
    assert report.rejects is not None
    for entry in (report.output, report.rejects):
        data = (tmp_path / "made" / entry.name).read_bytes()
        assert (entry.bytes, entry.digest) == (len(data), hashlib.sha256(data).hexdigest())
        assert entry.rows == pq.ParquetFile(tmp_path / "made" / entry.name).metadata.num_rows
    assert {"read", "check", "write"} <= set(report.seconds)


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", RAW)
    one, two = ingest(raw, tmp_path / "one"), ingest(raw, tmp_path / "two")
    assert [shard.digest for shard in one.shards] == [shard.digest for shard in two.shards]
    assert one.rejects == two.rejects
    assert one.digest == two.digest


NAMES = [
    "日本/猫.png",
    "Ünïcode/ñ o.png",
    "emoji \U0001f600/\U0001f600.png",
    f"long/{'x' * 196}.png",
    f"{'ß' * 100}/a.png",
    "quote\"s'/a|b.png",
    "-rf/--help.png",
    "a/%2e%2e%2f.png",
]


def test_names_in_any_script_and_of_200_bytes_are_keys_and_labels(tmp_path: Path) -> None:
    ingest(write_files(tmp_path / "raw", dict.fromkeys(NAMES, SMALL)), tmp_path / "made")
    rows = rows_of(tmp_path / "made")
    assert {key: (row["label"], row["image"]["path"]) for key, row in rows.items()} == {
        name: (name.split("/")[0], name.split("/")[1]) for name in NAMES
    }


def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    write_files(tmp_path / "raw", {"a/fine.png": SMALL})
    (tmp_path / "raw" / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(SMALL)
    manifest = ingest(tmp_path / "raw", tmp_path / "made")
    assert manifest.tally.rows_in == 2
    assert manifest.tally.balanced


def test_progress_is_reported_once_a_row_group(tmp_path: Path) -> None:
    big = codec.encode(np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8), codec.Encoding("npy"))[0]
    raw = write_files(tmp_path / "raw", {f"{number}.npy": big for number in range(12)})
    work, (task,) = tasks_of(raw, tmp_path / "made", 10**9)
    tallies: list[Tally] = []
    report = work.run(task, tallies.append)
    # Six pictures of 2.4 MB fill a row group.
    assert 5 * len(big) < ROW_GROUP_BYTES < 6 * len(big)
    assert [tally.rows_in for tally in tallies] == [6, 6]
    assert Tally.total(tallies) == report.tally
    assert pq.ParquetFile(tmp_path / "made" / "part-000000.parquet").metadata.num_row_groups == 2


def test_a_picture_that_was_deleted_after_listing_is_rejected(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", {"a.png": SMALL, "b.png": SMALL})
    work, (task,) = tasks_of(raw, tmp_path / "made")
    (raw / "b.png").unlink()
    assert work.run(task, quiet).tally.rejected == {"missing": 1}
    assert rows_of(tmp_path / "made", "_rejects")["b.png"]["image"]["bytes"] is None


def test_pictures_are_stored_while_later_ones_are_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number:02}.jpg": GOOD if number % 3 else b"no picture" for number in range(20)}
    listing = list_source(str(write_files(tmp_path / "raw", files)))
    order: list[str] = []

    def read_one_by_one(*arguments: Any) -> Iterator[Read]:
        for read in sorted(read_pictures(*arguments), key=lambda read: read.row):
            order.append("read")
            yield read

    monkeypatch.setattr(ingest_shard, "read_pictures", read_one_by_one)
    monkeypatch.setattr(ingest_shard, "ROW_GROUP_BYTES", 3 * len(GOOD))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, listing.index.schema) as stream:
        stream.write_table(listing.index)
    task = ShardTask(str(tmp_path / "made"), "part-000000", "x", 20, index=sink.getvalue().to_pybytes())
    report = IngestJob.of(listing, Options(), verify=False).run(task, lambda tally: order.append("stored"))
    assert (report.tally.rows_in, report.tally.rows_out, report.tally.rejected) == (20, 13, {"not_an_image": 7})
    assert order.index("stored") < 8
    assert order.count("stored") > 3
    assert len(rows_of(tmp_path / "made", "_rejects")) == 7


# -- filter -----------------------------------------------------------------------------------------------------------


def test_a_filter_job_counts_kept_dropped_and_rejected_pictures(tmp_path: Path, source: tuple[Path, Manifest]) -> None:
    (report,) = filtered(*source, tmp_path / "made", "min_size(short_side=10) | grayscale")
    assert (report.tally.rows_in, report.tally.rows_out) == (5, 3)
    assert (report.tally.dropped, report.tally.rejected) == ({"below_min_size": 1}, {"truncated": 1})
    assert report.tally.balanced
    assert report.tally.channels == {"1": 3}
    assert report.tally.classes == {"cat": 2, "dog": 1}
    rejects = rows_of(tmp_path / "made", "_rejects")
    assert rejects["dog/d.jpg"]["image"]["bytes"] == HEADER_ONLY
    assert rejects["dog/d.jpg"]["reason"] == "truncated"
    assert {"read", "min_size", "grayscale", "decode", "encode", "write"} <= set(report.seconds)
    for row in rows_of(tmp_path / "made").values():
        assert codec.decode(row["image"]["bytes"]).shape == (row["height"], row["width"], 1)


def test_a_plain_copy_keeps_the_rows_and_their_bytes(tmp_path: Path, source: tuple[Path, Manifest]) -> None:
    (report,) = filtered(*source, tmp_path / "made", "")
    assert rows_of(tmp_path / "made") == rows_of(source[0])
    assert report.rejects is None
    assert not (tmp_path / "made" / "_rejects").exists()


def test_the_same_job_gives_the_same_bytes(tmp_path: Path, source: tuple[Path, Manifest]) -> None:
    one, two = (filtered(*source, tmp_path / name, "gaussian_blur(2) | resize(20)") for name in ("one", "two"))
    assert [(report.output, report.rejects, report.tally) for report in one] == [
        (r.output, r.rejects, r.tally) for r in two
    ]


def test_the_work_digest_depends_on_what_decides_the_output_only() -> None:
    task = ShardTask("/made", "part-000000", "a", 5)
    base = FilterJob("/source", "invert")
    others = [FilterJob("/source", "grayscale"), FilterJob("/source", "invert", "png")]
    digests = {work.work_digest(task) for work in [base, *others]} | {
        base.work_digest(ShardTask("/made", "part-000000", "a", 5, 2))
    }
    assert len(digests) == 4
    assert FilterJob("/elsewhere", "invert").work_digest(
        ShardTask("/other", "part-000009", "b", 9)
    ) == base.work_digest(task)


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_max_rows_takes_the_first_rows_only(tmp_path: Path, source: tuple[Path, Manifest], limit: int) -> None:
    task = ShardTask(str(tmp_path / "made"), "part-000000", "x", 5, limit)
    report = FilterJob(str(source[0]), "").run(task, quiet)
    assert report.tally.rows_in == min(limit, 5)
    assert list(rows_of(tmp_path / "made")) == list(rows_of(source[0]))[:limit]


def test_max_rows_may_end_inside_a_later_row_group(tmp_path: Path) -> None:
    rows = table([bytes(7_000_000)] * 6)
    with ShardWriter(str(tmp_path / "source"), "part-000000.parquet", rows.schema) as writer:
        for row in range(6):
            writer.add(rows.slice(row, 1))
    assert pq.ParquetFile(tmp_path / "source" / "part-000000.parquet").metadata.num_row_groups == 3
    report = FilterJob(str(tmp_path / "source"), "").run(
        ShardTask(str(tmp_path / "made"), "part-000000", "x", 6, 3), quiet
    )
    assert report.tally.rows_in == 3
    assert list(rows_of(tmp_path / "made")) == ["0", "1", "2"]


def test_rows_beyond_max_rows_are_not_read(tmp_path: Path) -> None:
    rows = table([bytes([row]) * 13_000_000 for row in range(3)])
    path = tmp_path / "source" / "part-000000.parquet"
    with ShardWriter(str(path.parent), path.name, rows.schema) as writer:
        for row in range(3):
            writer.add(rows.slice(row, 1))
    data = bytearray(path.read_bytes())
    data[data.index(b"\2" * 1000) + 10] = 7
    path.write_bytes(data)
    for limit, whole in ((1, True), (2, True), (3, False)):
        task = ShardTask(str(tmp_path / "made"), "part-000000", "x", 3, limit)
        if whole:
            assert FilterJob(str(path.parent), "").run(task, quiet).tally.rows_in == limit
        else:
            with pytest.raises(StriateError, match="row group 2"):
                FilterJob(str(path.parent), "").run(task, quiet)


def test_a_shard_whose_pictures_are_all_dropped_is_an_empty_shard(
    tmp_path: Path, source: tuple[Path, Manifest]
) -> None:
    (report,) = filtered(*source, tmp_path / "made", 'keep_labels(["bird"])')
    assert (report.output.rows, report.tally.dropped) == (0, {"other_label": 5})
    again = filtered(
        tmp_path / "made", source[1].model_copy(update={"shards": [report.output]}), tmp_path / "again", "invert"
    )
    assert again[0].tally == Tally()


def test_other_columns_are_in_the_rejects_too(tmp_path: Path) -> None:
    rows = table([GOOD, HEADER_ONLY], ["a", "b"], boxes=[[[1.5]], [[2.5], []]], score=[0.5, None])
    with ShardWriter(str(tmp_path / "source"), "part-000000.parquet", rows.schema) as writer:
        writer.add(rows)
    FilterJob(str(tmp_path / "source"), "invert").run(ShardTask(str(tmp_path / "made"), "part-000000", "x", 2), quiet)
    assert rows_of(tmp_path / "made")["0"]["boxes"] == [[1.5]]
    assert rows_of(tmp_path / "made", "_rejects")["1"]["boxes"] == [[2.5], []]


def test_a_failing_step_names_shard_step_and_picture_and_leaves_nothing(
    tmp_path: Path, source: tuple[Path, Manifest]
) -> None:
    with pytest.raises(StriateError) as raised:
        filtered(*source, tmp_path / "made", 'blur_background(mask_column="mask")')
    assert "source/part-000000.parquet: step 'blur_background(" in str(raised.value)
    assert "the dataset has no column 'mask'" in str(raised.value)
    assert isinstance(raised.value.__cause__, StepError)
    assert [path for path in (tmp_path / "made").rglob("*") if path.is_file()] == []


def test_a_damaged_source_shard_is_named_and_leaves_nothing(tmp_path: Path, source: tuple[Path, Manifest]) -> None:
    path = source[0] / "part-000000.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(GOOD) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(StriateError, match=rf"{path}, row group 0: .*"):
        filtered(*source, tmp_path / "made", "")
    assert [path for path in (tmp_path / "made").rglob("*") if path.is_file()] == []


# -- the books --------------------------------------------------------------------------------------------------------


def test_a_shard_whose_pictures_do_not_add_up_is_not_committed(tmp_path: Path) -> None:
    rows = table([GOOD])
    task = ShardTask(str(tmp_path), "part-000000", "x", 2)
    with ShardOutput(task, rows.schema) as output:
        output.add(rows, rows.slice(0, 0), Tally(rows_in=2))
    with pytest.raises(StriateError, match="part-000000: pictures were lost or counted twice"):
        output.commit("work")
    assert not (tmp_path / "_reports").exists()


def test_rejects_of_a_picture_without_bytes_have_none(tmp_path: Path) -> None:
    rows = table([None, GOOD])
    with ShardWriter(str(tmp_path / "source"), "part-000000.parquet", dataset_schema()) as writer:
        writer.add(rows)
    FilterJob(str(tmp_path / "source"), "").run(ShardTask(str(tmp_path / "made"), "part-000000", "x", 2), quiet)
    assert rows_of(tmp_path / "made", "_rejects")["0"]["image"]["bytes"] is None


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("pictures", [3, 30], ids=["at the end", "in between"])
def test_a_full_disk_is_an_error_with_the_path_and_leaves_no_part(
    tmp_path: Path, small_disk: Path, pictures: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    rows = table([codec.encode(noise, codec.Encoding("npy"))[0]] * pictures)
    with ShardWriter(str(tmp_path / "source"), "part-000000.parquet", rows.schema) as writer:
        writer.add(rows)
    dataset = small_disk / "made"
    task = ShardTask(str(dataset), "part-000000", "x", pictures)
    with pytest.raises(StriateError) as raised:
        FilterJob(str(tmp_path / "source"), "").run(task, quiet)
    assert str(raised.value).startswith(f"cannot write {dataset}/part-000000.parquet: ")
    assert "No space left on device" in str(raised.value)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_disk_that_is_full_at_the_report_leaves_no_commit(tmp_path: Path, small_disk: Path) -> None:
    rows = table([GOOD])
    with ShardWriter(str(tmp_path / "source"), "part-000000.parquet", rows.schema) as writer:
        writer.add(rows)
    work = FilterJob(str(tmp_path / "source"), "")
    needed = work.run(ShardTask(str(tmp_path / "made"), "part-000000", "x", 1), quiet).output.bytes
    disk = os.statvfs(small_disk)
    # Room for the shard, but not for its report.
    (small_disk / "others").write_bytes(bytes((disk.f_bavail - -(-needed // disk.f_bsize)) * disk.f_bsize))
    with pytest.raises(StriateError, match=r"cannot write .*/_reports/part-000000.json: .*No space left on device"):
        work.run(ShardTask(str(small_disk / "made"), "part-000000", "x", 1), quiet)
    names = {str(path.relative_to(small_disk)) for path in small_disk.rglob("*") if path.is_file()}
    assert names == {"others", "made/part-000000.parquet"}


def test_a_repeated_member_of_an_archive_is_kept_once_and_rejected_once(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for data in (GREY, GOOD):
            for name in ("cat/a.jpg", "dog/b.jpg"):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    job, (task,) = tasks_of(tmp_path / "a.tar", tmp_path / "raw")
    tally = job.run(task, quiet).tally
    assert (tally.rows_in, tally.rows_out, tally.rejected) == (4, 2, {"duplicate_key": 2})
    assert {row["image"]["bytes"] for row in rows_of(tmp_path / "raw").values()} == {GOOD}
    rejects = rows_of(tmp_path / "raw", "_rejects")
    assert {key: row["image"]["bytes"] for key, row in rejects.items()} == {"cat/a.jpg": GREY, "dog/b.jpg": GREY}
    assert tally.classes == {"cat": 1, "dog": 1}
