"""Manifests and reports: their counts and digests, and the errors for damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.inspection.info import print_info
from jobs.output import balance
from library.dataset.manifest import (
    FileEntry,
    Job,
    Manifest,
    ShardReport,
    Tally,
    digest_of,
    find_manifest,
    load_manifest,
    load_report,
    save_manifest,
    save_report,
)
from library.errors import StriateError, UsageError

SHARD = FileEntry(name="part-000000.parquet", rows=2, bytes=100, digest="ab")
JOB = Job(kind="filter", source="/src", source_digest="cd", pipeline="invert", pipeline_digest="ef")
TALLY = Tally(rows_in=3, rows_out=2, dropped={"blank": 1}, classes={"cat": 1, "日本": 1})
MANIFEST = Manifest(
    complete=True, jobs=[JOB], tally=TALLY, shards=[SHARD], versions={"striate": "1"}, run={"workers": 2}
)


@pytest.mark.parametrize("options", [{}, {"copies": "2"}, {"copies": 2, "keep_original": []}])
def test_an_augmented_datasets_counts_need_no_recorded_copies(options: dict[str, Any]) -> None:
    manifest = MANIFEST.model_copy(update={"jobs": [JOB.model_copy(update={"kind": "augment", "options": options})]})
    assert balance(manifest).startswith("3 in = 2 out")


def test_a_manifest_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), MANIFEST)
    assert load_manifest(str(tmp_path)) == MANIFEST
    assert (MANIFEST.rows, MANIFEST.bytes, MANIFEST.job) == (2, 100, JOB)
    assert "日本" in (tmp_path / "_manifest.json").read_text(encoding="utf-8")


def test_the_digest_leaves_out_how_the_run_went() -> None:
    assert MANIFEST.model_copy(update={"run": {"workers": 64, "seconds": {"decode": 1.5}}}).digest == MANIFEST.digest


@pytest.mark.parametrize(
    "changed",
    [
        {"complete": False},
        {"jobs": [JOB, JOB]},
        {"tally": Tally(rows_in=3, rows_out=3)},
        {"skipped": {"hidden": 1}},
        {"shards": [SHARD.model_copy(update={"digest": "ac"})]},
        {"rejects": [SHARD]},
        {"versions": {"striate": "2"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_digest_is_over_everything_else(changed: dict[str, Any]) -> None:
    assert MANIFEST.model_copy(update=changed).digest != MANIFEST.digest


def test_the_digest_does_not_depend_on_the_order_of_counting() -> None:
    other = Tally(rows_in=3, rows_out=2, dropped={"blank": 1}, classes={"日本": 1, "cat": 1})
    assert MANIFEST.model_copy(update={"tally": other}).digest == MANIFEST.digest
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1}) != digest_of({"a": 1, "b": [2, 1]})


COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9))
TALLIES = st.builds(
    Tally, rows_in=st.integers(0, 99), rows_out=st.integers(0, 99), dropped=COUNTS, rejected=COUNTS, classes=COUNTS
)


@given(st.lists(TALLIES, max_size=5))
def test_a_total_sums_every_count(tallies: list[Tally]) -> None:
    total = Tally.total(tallies)
    assert total.rows_in == sum(tally.rows_in for tally in tallies)
    for name in "abc":
        assert total.classes.get(name, 0) == sum(tally.classes.get(name, 0) for tally in tallies)
        assert total.rejected.get(name, 0) == sum(tally.rejected.get(name, 0) for tally in tallies)
    assert list(total.classes) == sorted(total.classes)
    assert Tally.total(reversed(tallies)) == total


def test_a_tally_is_balanced_if_no_picture_was_lost_or_counted_twice() -> None:
    assert TALLY.balanced
    assert Tally().balanced
    assert not TALLY.model_copy(update={"rows_in": 4}).balanced
    assert not TALLY.model_copy(update={"rejected": {"damaged": 1}}).balanced


# -- missing and damaged manifests ------------------------------------------------------------------------------------


def test_a_folder_without_a_manifest_is_not_a_dataset(tmp_path: Path) -> None:
    assert find_manifest(str(tmp_path)) is None
    with pytest.raises(
        UsageError, match=r"is not a dataset: it has no _manifest.json; create one with `striate ingest`"
    ):
        load_manifest(str(tmp_path))


def test_the_error_for_a_folder_of_splits_lists_them(tmp_path: Path) -> None:
    for split in ("test", "train"):
        save_manifest(str(tmp_path / split), MANIFEST)
    with pytest.raises(
        UsageError, match=rf"holds a dataset for each split; choose {tmp_path}/train or {tmp_path}/test"
    ):
        load_manifest(str(tmp_path))


def test_a_dataset_that_is_not_finished_is_refused_unless_asked_for(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), MANIFEST.model_copy(update={"complete": False}))
    with pytest.raises(UsageError, match="is not finished; run the command that writes it again"):
        load_manifest(str(tmp_path))
    assert not load_manifest(str(tmp_path), must_be_complete=False).complete


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: "),
        ("{", "the file: "),
        ("[]", "the file: "),
        ('{"complete": true}', "jobs: Field required"),
        ('{"complete": true, "jobs": [], "schema_version": 2}', "schema_version: "),
        ('{"complete": true, "jobs": [], "more": 1}', "more: "),
        ('{"complete": true, "jobs": [{"kind": "steal", "source": "x"}]}', "jobs.0.kind: "),
        ("\xff\xfe", "the file: "),
    ],
)
def test_a_damaged_manifest_is_named_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "_manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StriateError) as raised:
        load_manifest(str(tmp_path))
    assert str(raised.value).startswith(
        f"{tmp_path}/_manifest.json is damaged or was written by another version: {message}"
    )


# -- reports ----------------------------------------------------------------------------------------------------------

REPORT = ShardReport(
    stem="part-000000", input_digest="a", work_digest="b", output=SHARD, tally=TALLY, seconds={"read": 0.1}
)


def test_a_report_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    save_report(str(tmp_path), REPORT)
    assert load_report((tmp_path / "_reports" / "part-000000.json").read_bytes(), ShardReport) == REPORT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        FileNotFoundError(),
        REPORT.model_dump_json().replace('"schema_version":1', '"schema_version":2').encode(),
    ],
    ids=lambda data: repr(data)[:20],
)
def test_a_report_that_cannot_be_read_counts_as_none(data: bytes | Exception) -> None:
    assert load_report(data, ShardReport) is None


def test_every_cut_of_a_report_counts_as_none() -> None:
    data = REPORT.model_dump_json().encode()
    assert load_report(data, ShardReport) == REPORT
    assert all(load_report(data[:length], ShardReport) is None for length in range(len(data)))


@pytest.mark.parametrize(
    "name",
    ["../part-000000.parquet", "/etc/part-000000.parquet", "part-000000.parquet\n", "x.parquet", "part-1.parquet"],
)
def test_a_name_that_leads_out_of_the_dataset_is_not_a_shard(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        FileEntry(name=name, rows=1, bytes=1, digest="a")
    text = MANIFEST.model_dump_json().replace('"part-000000.parquet"', json.dumps(name))
    (tmp_path / "_manifest.json").write_text(text, "utf-8")
    with pytest.raises(StriateError, match=r"is damaged or was written by another version: shards\.0\.name"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["[cat]", "[/cat]", ":cat:", "[bold]x[/]"])
def test_names_that_users_choose_are_printed_unchanged(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(rows_in=3, rows_out=1, dropped={name: 1}, rejected={name: 1}, classes={name: 1}, formats={name: 1})
    print_info(f"/data/{name}", Manifest(complete=True, jobs=[Job(kind="ingest", source=name)], tally=tally))
    output = capsys.readouterr().out
    for text in (f"/data/{name}", f"dropped: {name} 1", f"rejected: {name} 1", f"1 ({name} 1)", f"ingest {name}:"):
        assert text in output
    assert output.count(f"{name} 1") == 4, "and the formats"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"tally": TALLY.model_copy(update={"rows_in": 9})},
            "9 pictures in do not equal 2 out, 1 dropped and 0 rejected",
        ),
        (
            {"shards": [SHARD, SHARD.model_copy(update={"name": "part-000001.parquet"})]},
            "its shards hold 4 pictures, but",
        ),
        ({"shards": [SHARD.model_copy(update={"rows": 1})] * 2}, "its shards name a file twice"),
        ({"rejects": [SHARD]}, "its rejects hold 2 pictures, but its total is 0"),
        ({"tally": TALLY.model_copy(update={"classes": {"cat": 3}})}, "its classes hold 3 pictures in all, but its"),
    ],
)
def test_an_inconsistent_manifest_is_refused_with_the_reason(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    save_manifest(str(tmp_path), MANIFEST.model_copy(update=changed))
    with pytest.raises(StriateError, match=f"_manifest.json is inconsistent: {message}"):
        load_manifest(str(tmp_path))


def test_a_manifest_with_a_negative_count_is_refused(tmp_path: Path) -> None:
    document = MANIFEST.model_dump() | {"tally": {**TALLY.model_dump(), "dropped": {"blank": -1}}}
    (tmp_path / "_manifest.json").write_text(json.dumps(document))
    with pytest.raises(StriateError, match=r"tally\.dropped\.blank: Input should be greater than or equal to 0"):
        load_manifest(str(tmp_path))
