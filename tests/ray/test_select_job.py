"""Selecting pictures by their keys, on a real local Ray."""

from __future__ import annotations

from pathlib import Path

from jobs.choosing.selection import select_dataset
from library.dataset.manifest import Job, load_manifest
from tests.datasets import content, rows


def test_a_selection_is_the_same_for_any_workers_and_resumes(photos: str, bucket: str, tmp_path: Path) -> None:
    manifest = load_manifest(photos)
    keys = rows(photos)["key"].to_pylist()
    job = Job(kind="remove", source=photos, source_digest=manifest.digest)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    dropped = dict.fromkeys(keys[::5], "chosen")
    made = select_dataset("remove", photos, one, manifest, dropped, job, workers="1")
    assert (made.tally.rows_in, made.tally.dropped) == (86, {"chosen": len(dropped)})
    assert made.jobs == [*manifest.jobs, job]
    assert rows(one).equals(rows(photos).filter([key not in dropped for key in keys]))
    select_dataset("remove", photos, two, manifest, dropped, job, workers="2")
    assert content(one) == content(two)
    stored = select_dataset("remove", photos, f"{bucket}/three", manifest, dropped, job)
    assert (stored.digest, stored.shards) == (made.digest, made.shards)

    shard = manifest.shards[1].name
    (tmp_path / "two" / "_reports" / shard.replace("parquet", "json")).unlink()
    again = select_dataset("remove", photos, two, manifest, dropped, job, workers="2")
    assert again.run["shards_resumed"] == len(manifest.shards) - 1
    assert content(one) == content(two)
