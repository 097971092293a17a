"""Jobs on a real S3 server, with and without faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from library import storage
from library.dataset.manifest import load_manifest
from library.errors import StriateError
from tests.conftest import S3Server
from tests.datasets import content
from tests.fault_proxy import FaultProxy

STEPS = "not_blank(min_std=0.08) | grayscale | gaussian_blur(sigma=1.5)"


def test_a_dataset_in_a_bucket_is_the_same_as_one_on_disk(
    photos: str, bucket: str, tmp_path: Path, s3_server: S3Server
) -> None:
    filter_dataset(plan_filter(photos, f"{bucket}/deep/edges", STEPS), workers="1")
    filter_dataset(plan_filter(photos, str(tmp_path / "edges"), STEPS), workers="1")
    assert content(s3_server.root / bucket.removeprefix("s3://") / "deep/edges") == content(tmp_path / "edges")
    again = filter_dataset(plan_filter(photos, f"{bucket}/deep/edges", STEPS), workers="1")
    assert again.run["shards_resumed"] == len(again.shards)


@pytest.mark.faults
def test_no_picture_is_lost_or_doubled_by_faults_of_object_storage(
    photo_folder: Path, bucket: str, s3_proxy: FaultProxy, tmp_path: Path, s3_server: S3Server
) -> None:
    for path in photo_folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/pictures/{path.relative_to(photo_folder)}", path.read_bytes())
    s3_proxy.applied.clear()
    s3_proxy.faults, s3_proxy.every = ("slow_down", "cut", "reset", "slow"), 5
    try:
        ingest(plan_ingest(f"{bucket}/pictures", f"{bucket}/raw", shard_mb=0.25, verify=True))
        filter_dataset(plan_filter(f"{bucket}/raw", f"{bucket}/edges", STEPS))
    finally:
        s3_proxy.faults = ()
    assert min(s3_proxy.applied[fault] for fault in ("slow_down", "cut", "reset", "slow")) > 3
    raw, edges = load_manifest(f"{bucket}/raw"), load_manifest(f"{bucket}/edges")
    assert (raw.tally.rows_in, raw.rows, edges.tally.rows_in) == (89, 86, 86)
    assert edges.tally.balanced
    ingest(plan_ingest(str(photo_folder), str(tmp_path / "raw"), shard_mb=0.25, verify=True))
    filter_dataset(plan_filter(str(tmp_path / "raw"), str(tmp_path / "edges"), STEPS))
    stored = s3_server.root / bucket.removeprefix("s3://")
    for name in ("raw", "edges"):
        in_bucket, on_disk = content(stored / name), content(tmp_path / name)
        assert in_bucket.keys() == on_disk.keys()
        shards = [path for path in on_disk if path.startswith("part-")]
        assert [in_bucket[path] for path in shards] == [on_disk[path] for path in shards]


def test_a_bucket_that_does_not_exist_is_reported_before_any_work(photos: str) -> None:
    with pytest.raises(StriateError, match=r"cannot .* s3://there-is-no-such-bucket/.*no such bucket"):
        filter_dataset(plan_filter(photos, "s3://there-is-no-such-bucket/edges", "invert"))
