"""What jobs count appears where Prometheus asks for it: at the metrics port of a real node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from jobs.progress.job_metrics import TrainMetrics
from library import storage
from library.dataset.manifest import Manifest
from tests.prometheus import LISTED, SUFFIX, Exported, exported_once, labels_by_metric, total

_RUN = "s3://models/tested"


@ray.remote(num_cpus=0)
class _Trainer:
    """A process of its own that counts, as a training worker does."""

    def count(self, rank: int) -> None:
        told = TrainMetrics(_RUN, rank)
        told.window(640, 2.0, 0.0, epoch=1, loss=0.7, learning_rate=0.1)
        told.window(640, 2.0, 0.5, epoch=2, loss=0.4, learning_rate=0.05)
        told.validated(0.875)
        if rank == 0:
            told.kept()


@dataclass(frozen=True)
class _Made:
    """A dataset that a job made, and what was told of it."""

    manifest: Manifest
    exported: Exported

    def total(self, name: str, **labels: str) -> float:
        return total(self.exported, name, **labels)


def _told(command: str, dataset: str, manifest: Manifest) -> _Made:
    rows = manifest.tally.rows_in
    return _Made(
        manifest,
        exported_once(
            {"command": command, "dataset_id": storage.uri_id(dataset)},
            lambda found: (
                total(found, "ray_striate_pictures_in_total") >= rows
                and total(found, "ray_striate_shards_done") >= len(manifest.shards)
            ),
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counted")


@pytest.fixture(scope="module")
def raw(photo_folder: Path, folder: Path) -> _Made:
    dataset = str(folder / "raw")
    made = ingest(plan_ingest(str(photo_folder), dataset, shard_mb=0.25, verify=True), workers="2")
    return _told("ingest", dataset, made[dataset])


@pytest.fixture(scope="module")
def filtered(raw: _Made, folder: Path) -> _Made:
    plan = plan_filter(str(folder / "raw"), str(folder / "soft"), "not_blank(0.08) | grayscale | gaussian_blur(2)")
    return _told("filter", plan.destination, filter_dataset(plan, workers="2"))


@pytest.fixture(scope="module")
def trained() -> Iterator[Exported]:
    workers = [_Trainer.remote() for _ in range(2)]
    ray.get([worker.count.remote(rank) for rank, worker in enumerate(workers)])
    yield exported_once(
        {"run_id": storage.uri_id(_RUN)},
        lambda found: total(found, "ray_striate_train_seconds_total") == 8 and len(labels_by_metric(found)) == 9,
    )
    for worker in workers:
        ray.kill(worker)


def test_the_counts_of_a_job_are_those_of_its_manifest(raw: _Made, filtered: _Made) -> None:
    for made in (raw, filtered):
        tally = made.manifest.tally
        assert made.total("ray_striate_pictures_in_total") == tally.rows_in
        assert made.total("ray_striate_pictures_out_total") == tally.rows_out
        assert made.total("ray_striate_bytes_in_total") == tally.image_bytes_in
        written = [*made.manifest.shards, *made.manifest.rejects]
        assert made.total("ray_striate_bytes_out_total") == sum(entry.bytes for entry in written)
        for name, counts in (("dropped", tally.dropped), ("rejected", tally.rejected)):
            for reason, count in counts.items():
                assert made.total(f"ray_striate_pictures_{name}_total", reason=reason) == count
        shards = len(made.manifest.shards)
        assert made.total("ray_striate_shards_planned") == made.total("ray_striate_shards_done") == shards
    assert raw.manifest.tally.rejected
    assert filtered.manifest.tally.dropped


def test_the_time_of_workers_is_told_by_stage_and_all_steps_are_one(filtered: _Made) -> None:
    stages = {dict(labels).get("stage") for name, labels in filtered.exported if name.endswith("stage_seconds_total")}
    assert stages == {"read", "decode", "steps", "encode", "write"}
    spent = sum(seconds for stage, seconds in filtered.manifest.run["seconds"].items() if stage != "waiting")
    assert filtered.total("ray_striate_stage_seconds_total") == pytest.approx(spent, abs=0.01)


def test_training_is_counted_by_worker_and_what_all_share_is_told_once(trained: Exported) -> None:
    assert total(trained, "ray_striate_train_pictures_total") == 1280
    assert total(trained, "ray_striate_train_seconds_total", rank="1") == 4
    assert total(trained, "ray_striate_train_data_wait_seconds_total", rank="0") == 0.5
    assert total(trained, "ray_striate_train_epoch") == 2
    assert total(trained, "ray_striate_train_loss") == 0.4
    assert total(trained, "ray_striate_train_learning_rate") == 0.05
    assert total(trained, "ray_striate_train_val_top1") == 0.875
    assert total(trained, "ray_striate_train_checkpoints_total") == 1
    assert 0 <= time.time() - total(trained, "ray_striate_train_checkpoint_time_seconds") < 3600


def test_every_metric_of_jobs_that_is_listed_is_exported_with_its_labels(
    raw: _Made, filtered: _Made, trained: Exported
) -> None:
    listed = [metric for metric in LISTED if not metric["name"].startswith("striate_serve_")]
    assert len(listed) == 18
    found = labels_by_metric({**raw.exported, **filtered.exported, **trained})
    for metric in listed:
        assert found[f"ray_{metric['name']}{SUFFIX[metric['type']]}"] == set(metric["tags"]), metric["name"]
