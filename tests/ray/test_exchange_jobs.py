"""Merge, convert, remove and trace on a real local Ray, on disk and in S3."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.choosing.dedup import dedup_dataset, plan_dedup
from jobs.exchange.convert import convert_dataset, plan_convert
from jobs.exchange.merge import merge_datasets, plan_merge
from jobs.exchange.remove import find_affected, plan_remove, remove_pictures
from jobs.exchange.trace import trace_subject
from jobs.ingest import ingest, plan_ingest
from library import storage
from library.dataset.manifest import load_manifest
from library.dataset.shards import ShardReader
from tests.datasets import content, rows
from tests.picture_examples import ingest as ingest_alone
from tests.picture_examples import write_files


def _table(dataset: str) -> pa.Table:
    shards = [ShardReader(storage.join(dataset, shard.name)) for shard in load_manifest(dataset).shards]
    return pa.concat_tables([table for shard in shards for table in shard])


def _content(table: pa.Table) -> dict[str, Any]:
    return {row["key"]: row for row in table.to_pylist()}


def test_pictures_go_to_webdataset_in_s3_and_come_back_to_be_merged(photos: str, bucket: str, tmp_path: Path) -> None:
    wds, back, merged = f"{bucket}/wds", f"{bucket}/back", str(tmp_path / "merged")
    record = convert_dataset(plan_convert(photos, wds, "webdataset"), workers="2")
    local = convert_dataset(plan_convert(photos, str(tmp_path / "wds"), "webdataset"), workers="1")
    assert local.digest == record.digest, "the same bytes for one worker on disk and two in S3"
    assert convert_dataset(plan_convert(photos, wds, "webdataset")) == record, "nothing is done again"
    ingest(plan_ingest(wds, back), workers="2")
    assert _content(_table(back)) == _content(rows(photos))
    row = rows(photos).to_pylist()[0]
    chain = trace_subject(row["key"], [wds, back]).roots
    while chain[-1].children:
        chain = [*chain, *chain[-1].children]
    assert [(node.kind, node.uri, node.found) for node in chain[1:]] == [
        *(("dataset", photos, False), ("export", wds, True), ("dataset", back, True))
    ]
    [picture] = chain[-1].facts["pictures"]
    assert picture["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
    manifest = merge_datasets(plan_merge([photos, back], merged, on_clash="keep-first"), workers="2")
    assert manifest.tally.dropped == {"key_clash": load_manifest(photos).rows}
    assert rows(merged).equals(rows(photos))


def test_merging_with_the_source_undoes_dedup(photo_folder: Path, tmp_path: Path) -> None:
    for path in photo_folder.glob("china/*"):
        write_files(tmp_path / "files", {f"{name}-{path.name}": path.read_bytes() for name in ("one", "two")})
    raw, unique, restored = (str(tmp_path / name) for name in ("raw", "unique", "restored"))
    whole = ingest_alone(tmp_path / "files", tmp_path / "raw")
    kept, _ = dedup_dataset(plan_dedup(raw, unique), workers="1")
    assert kept.rows <= whole.rows // 2
    manifest = merge_datasets(plan_merge([unique, raw], restored, on_clash="keep-first"), workers="1")
    assert manifest.tally.dropped == {"key_clash": kept.rows}
    assert rows(restored).equals(rows(raw))


def test_pictures_are_removed_in_place_on_disk_and_in_s3(photos: str, bucket: str, tmp_path: Path) -> None:
    keys = rows(photos)["key"].to_pylist()[:3]
    local, remote = str(shutil.copytree(photos, tmp_path / "photos")), f"{bucket}/photos"
    for file in storage.list_files(photos):
        storage.write_bytes(storage.join(remote, file.path), storage.read_bytes(file.uri))
    for dataset in (local, remote):
        plan = plan_remove(dataset, keys)
        affected = find_affected(plan, [])
        manifest = remove_pictures(plan, workers="2")
        assert (affected.datasets, affected.uses) == ({}, [])
        assert manifest.tally.dropped == {"removed": 3}
        assert _content(_table(dataset)) == {key: row for key, row in _content(rows(photos)).items() if key not in keys}
        assert remove_pictures(plan_remove(dataset, keys)) == manifest, "the second run has nothing to do"
    assert content(local).keys() == content(photos).keys(), "nothing is left of the work"
    elsewhere = str(tmp_path / "elsewhere")
    copy = remove_pictures(plan_remove(photos, keys, destination=elsewhere), workers="2")
    assert copy.tally.dropped == {"removed": 3}
    assert rows(elsewhere).equals(rows(local))
