"""Ingest on a real local Ray, from real files."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.ingest import check_bad_fraction, ingest, plan_ingest
from jobs.inspection.info import datasets_below
from library.dataset.manifest import Manifest, load_manifest, save_manifest
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.sources import LinkLimits, Options
from tests.datasets import content, rows
from tests.link_server import LinkServer, reply


@pytest.fixture(scope="module")
def one_shard(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles as a dataset of one shard."""
    destination = tmp_path_factory.mktemp("ingested") / "raw"
    ingest(plan_ingest(str(photo_folder), str(destination)), workers="1")
    return destination


@pytest.fixture(scope="module")
def split(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiles in two splits."""
    destination = str(tmp_path_factory.mktemp("ingested") / "split")
    ingest(plan_ingest(str(photo_folder), destination, split="train=0.75,test=0.25"), workers="1")
    return destination


def test_a_folder_becomes_shards_and_its_damaged_files_become_rejects(photo_folder: Path, photos: str) -> None:
    manifest = load_manifest(photos)
    assert len(manifest.shards) > 2
    assert (manifest.tally.rows_in, manifest.rows) == (89, 86)
    assert manifest.tally.rejected == {"damaged": 1, "not_an_image": 1, "truncated": 1}
    stored = rows(photos).to_pylist()
    assert len({row["key"] for row in stored}) == 86
    for row in stored:
        assert row["image"]["bytes"] == (photo_folder / row["key"]).read_bytes()
        assert row["label"] == row["key"].split("/")[0]
    rejects = rows(f"{photos}/_rejects").to_pylist()
    assert {row["key"] for row in rejects} == {
        "china/damaged-cut-off.jpg",
        "flower/damaged-bit.png",
        "flower/damaged-text.jpg",
    }
    for row in rejects:
        assert row["image"]["bytes"] == (photo_folder / row["key"]).read_bytes()
        assert row["reason"] in manifest.tally.rejected
        assert row["detail"]


def test_too_many_bad_pictures_are_an_error_that_says_where_they_are(photos: str) -> None:
    with pytest.raises(StriateError, match=r"3 of 89 pictures \(3.4%\) cannot be used.*_rejects"):
        check_bad_fraction({photos: load_manifest(photos)}, 0.01)


def test_no_shard_is_sorted_by_class_or_key(one_shard: Path) -> None:
    (shard,) = one_shard.glob("*.parquet")
    stored = pq.read_table(shard)
    for column in ("label", "key"):
        values = stored[column].to_pylist()
        assert values != sorted(values)
    assert set(stored["label"].to_pylist()) == {"china", "flower", "hopper"}


def test_splits_are_datasets_of_their_own_with_every_class_in_proportion(split: str) -> None:
    datasets = datasets_below(split)
    assert list(datasets) == [f"{split}/train", f"{split}/test"]
    train, test = (load_manifest(dataset).tally.classes for dataset in datasets)
    for label, count in train.items():
        assert 2 < count / test[label] < 4
    with pytest.raises(UsageError, match="holds a dataset for each split"):
        load_manifest(split)


def test_other_splits_at_a_destination_are_refused(photo_folder: Path, split: str) -> None:
    with pytest.raises(UsageError, match=r"has other splits: .*/test"):
        plan_ingest(str(photo_folder), split, split="train=0.8,val=0.2", overwrite=True)


def test_a_tar_and_the_folder_it_was_made_of_give_the_same_pictures(
    photo_folder: Path, one_shard: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "photos.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("china", "flower", "hopper"):
            tar.add(photo_folder / name, name)
    ingest(plan_ingest(str(archive), str(tmp_path / "unpacked")), workers="1")
    folder, unpacked = (
        {name: data for name, data in content(dataset).items() if name.endswith(".parquet")}
        for dataset in (one_shard, tmp_path / "unpacked")
    )
    assert folder == unpacked != {}


def test_real_mnist_brings_its_own_splits_and_labels(shared_data: Path, tmp_path: Path) -> None:
    plan = plan_ingest(str(shared_data / "mnist"), str(tmp_path / "all"))
    splits = {dataset: facts["pictures"] for dataset, facts in plan.described()["datasets"].items()}
    assert splits == {str(tmp_path / "all" / "train"): 60_000, str(tmp_path / "all" / "test"): 10_000}
    (tmp_path / "some").mkdir()
    for file in (shared_data / "mnist").glob("t10k-*"):
        shutil.copy(file, tmp_path / "some")
    (test,) = ingest(plan_ingest(str(tmp_path / "some"), str(tmp_path / "made")), workers="1").values()
    assert sorted(test.tally.classes) == [str(digit) for digit in range(10)]
    assert test.tally.formats == {"png": 10_000}


def test_a_destination_inside_the_source_is_refused(photo_folder: Path) -> None:
    with pytest.raises(UsageError, match="lies in the source"):
        plan_ingest(str(photo_folder), str(photo_folder / "raw"))


def test_links_are_fetched_once_and_after_a_kill_only_what_is_missing(tmp_path: Path) -> None:
    options = Options(links=LinkLimits(retries=1, backoff_s=0.001, allowed=("127.0.0.1",)))
    pixels = np.zeros((8, 8, 3), np.uint8)
    with LinkServer() as server:
        urls = [server.add(f"/{number}.png", reply(codec.encode(pixels + number)[0])) for number in range(24)]
        server.add("/3.png", reply(b"", status=404))
        server.add("/5.png", reply(b"<html>", kind="text/html"))
        server.add("/7.png", reply(b"", status=503), reply(codec.encode(pixels + 7)[0]))
        (tmp_path / "links.csv").write_text("\n".join(["url,label", *(f"{url},x" for url in urls)]))

        def run() -> Manifest:
            plan = plan_ingest(str(tmp_path / "links.csv"), str(tmp_path / "raw"), shard_mb=2, options=options)
            return ingest(plan)[str(tmp_path / "raw")]

        manifest = run()
        assert (manifest.tally.rows_in, manifest.tally.rows_out, len(manifest.shards)) == (24, 22, 6)
        assert manifest.tally.rejected == {"http_404": 1, "not_an_image": 1}
        assert (max(server.requests.values()), server.requests.total()) == (2, 25)
        first, before = content(tmp_path / "raw"), server.requests.copy()
        for path in ("_reports/part-000002.json", "_manifest.json"):
            (tmp_path / "raw" / path).unlink()
        ((tmp_path / "raw") / "part-000002.parquet").unlink()
        claimed = manifest.model_copy(update={"complete": False})
        save_manifest(str(tmp_path / "raw"), claimed)
        assert run().digest == manifest.digest
        assert (server.requests - before).total() == 4
        shards = {path: data for path, data in first.items() if path.endswith(".parquet")}
        assert {path: data for path, data in content(tmp_path / "raw").items() if path in shards} == shards


def test_more_workers_than_a_host_may_have_connections_are_refused(tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text("https://example.org/a.jpg")
    plan = plan_ingest(
        str(tmp_path / "links.txt"), str(tmp_path / "raw"), options=Options(links=LinkLimits(per_host=1))
    )
    with pytest.raises(UsageError, match="--workers 2: each needs a connection of its own, and the limit is 1"):
        ingest(plan, workers="2")
