"""Deduplication of real pictures on a local Ray, measured on the way."""

from __future__ import annotations

from pathlib import Path

from jobs.choosing.dedup import dedup_dataset, plan_dedup
from library.choosing.measures.picture_models import picture_model
from library.imaging import codec
from library.imaging.contact_sheet import thumbnail
from tests.bundles import make_bundle
from tests.datasets import content, rows
from tests.picture_examples import ingest


def test_duplicates_are_dropped_listed_and_the_job_resumes(photo_folder: Path, tmp_path: Path) -> None:
    files = sorted(photo_folder.glob("*/*[0-9].jpg"))[::6]
    for number, path in enumerate(files):
        target = tmp_path / "files" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        if number % 2:
            small = thumbnail(codec.decode(path.read_bytes()), 112)
            target.with_stem(f"{path.stem}-small").write_bytes(codec.encode(small, codec.Encoding("jpeg", 90))[0])
    raw = str(tmp_path / "raw")
    ingest(tmp_path / "files", tmp_path / "raw", shard_bytes=100_000)

    unique, dropped, page = (str(tmp_path / name) for name in ("unique", "dropped", "page"))
    plan = plan_dedup(raw, unique, near=2, report=page, dropped=dropped)
    manifest, found = dedup_dataset(plan, workers="1")
    assert len(manifest.shards) > 1
    assert manifest.tally.dropped == {"near_duplicate": len(files) // 2} == found.summary.dropped
    assert rows(unique).equals(rows(raw).filter(["small" not in key for key in rows(raw)["key"].to_pylist()]))
    listed = rows(f"{unique}/_duplicates.parquet")
    kept = {row["key"]: row["kept"] for row in listed.to_pylist() if row["reason"] == "near_duplicate"}
    assert kept == {f"{key[:-4]}-small.jpg": key for key in kept.values()}
    assert set(rows(dropped)["key"].to_pylist()) == set(kept)
    assert (tmp_path / "page" / "index.html").is_file()

    before = content(unique)
    (tmp_path / "unique" / "_reports" / "part-000000.json").unlink()
    again, _ = dedup_dataset(plan_dedup(raw, unique, near=2), workers="2")
    assert again.run["shards_resumed"] == len(again.shards) - 1
    assert content(unique) == before

    model = picture_model(make_bundle(tmp_path / "letters"), None, None, None)
    plan = plan_dedup(raw, str(tmp_path / "similar"), near=None, cosine=0.01, model=model, disagreeing="best")
    manifest, found = dedup_dataset(plan, workers="2")
    assert (manifest.tally.rows_out, found.summary.groups) == (1, 1)  # features after a ReLU: none is below 0
    assert manifest.tally.dropped == {"similar_embedding": plan.manifest.rows - 1}
