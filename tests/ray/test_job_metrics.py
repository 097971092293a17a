"""The metrics of jobs at the metrics port of a real node, where Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from cluster.instruments import Gauge
from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from jobs.progress.job_metrics import TrainMetrics
from library import storage
from library.dataset.manifest import Manifest
from tests.prometheus import LISTED, SUFFIX, Exported, exported_once, labels_by_metric, total
from tests.waiting import until

_RUN = "s3://models/tested"


@ray.remote(num_cpus=0)
class _Trainer:
    """A separate process with metrics, like a training worker."""

    def count(self, rank: int) -> None:
        metrics = TrainMetrics(_RUN, rank)
        metrics.window(640, 2.0, 0.0, epoch=1, loss=0.7, learning_rate=0.1)
        metrics.window(640, 2.0, 0.5, epoch=2, loss=0.4, learning_rate=0.05)
        metrics.validated(0.875)
        if rank == 0:
            metrics.checkpoint_uploaded()


@dataclass(frozen=True)
class _Job:
    """The manifest of a new dataset, and the exported metrics of its job."""

    manifest: Manifest
    exported: Exported

    def total(self, name: str, **labels: str) -> float:
        return total(self.exported, name, **labels)


def _measured(command: str, dataset: str, manifest: Manifest) -> _Job:
    labels = {"command": command, "dataset_id": storage.uri_id(dataset)}
    # The gauges of a job that has ended are exported for some seconds only; counters stay.
    gauges = exported_once(labels, lambda now: total(now, "ray_striate_shards_done") >= len(manifest.shards))
    counters = exported_once(labels, lambda now: total(now, "ray_striate_pictures_in_total") >= manifest.tally.rows_in)
    return _Job(manifest, {**gauges, **counters})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counted")


@pytest.fixture(scope="module")
def raw(photo_folder: Path, folder: Path) -> _Job:
    dataset = str(folder / "raw")
    manifests = ingest(plan_ingest(str(photo_folder), dataset, shard_mb=0.25, verify=True), workers="2")
    return _measured("ingest", dataset, manifests[dataset])


@pytest.fixture(scope="module")
def filtered(raw: _Job, folder: Path) -> _Job:
    plan = plan_filter(str(folder / "raw"), str(folder / "soft"), "not_blank(0.08) | grayscale | gaussian_blur(2)")
    return _measured("filter", plan.destination, filter_dataset(plan, workers="2"))


@pytest.fixture(scope="module")
def trained() -> Iterator[Exported]:
    workers = [_Trainer.remote() for _ in range(2)]
    ray.get([worker.count.remote(rank) for rank, worker in enumerate(workers)])
    yield exported_once(
        {"run_id": storage.uri_id(_RUN)},
        lambda samples: total(samples, "ray_striate_train_seconds_total") == 8 and len(labels_by_metric(samples)) == 9,
    )
    for worker in workers:
        ray.kill(worker)


def test_the_counts_of_a_job_are_those_of_its_manifest(raw: _Job, filtered: _Job) -> None:
    for job in (raw, filtered):
        tally = job.manifest.tally
        assert job.total("ray_striate_pictures_in_total") == tally.rows_in
        assert job.total("ray_striate_pictures_out_total") == tally.rows_out
        assert job.total("ray_striate_bytes_in_total") == tally.image_bytes_in
        written = [*job.manifest.shards, *job.manifest.rejects]
        assert job.total("ray_striate_bytes_out_total") == sum(entry.bytes for entry in written)
        for name, counts in (("dropped", tally.dropped), ("rejected", tally.rejected)):
            for reason, count in counts.items():
                assert job.total(f"ray_striate_pictures_{name}_total", reason=reason) == count
        shards = len(job.manifest.shards)
        assert job.total("ray_striate_shards_planned") == job.total("ray_striate_shards_done") == shards
    assert raw.manifest.tally.rejected
    assert filtered.manifest.tally.dropped


def test_the_time_of_workers_is_exported_by_stage_with_all_steps_as_one(filtered: _Job) -> None:
    stages = {dict(labels).get("stage") for name, labels in filtered.exported if name.endswith("stage_seconds_total")}
    assert stages == {"read", "decode", "steps", "encode", "write"}
    stage_seconds = sum(seconds for stage, seconds in filtered.manifest.run["seconds"].items() if stage != "waiting")
    assert filtered.total("ray_striate_stage_seconds_total") == pytest.approx(stage_seconds, abs=0.01)


def test_a_gauge_that_has_ended_replaces_no_values_of_a_later_one() -> None:
    reads: list[str] = []

    def gauge(name: str) -> Gauge:
        return Gauge("striate_tested_end", "a test", (), read=lambda: reads.append(name) or [({}, 1.0)])

    ended, later = gauge("ended"), gauge("later")
    until(lambda: {"ended", "later"} <= set(reads))
    ended.end()
    reads.clear()
    until(lambda: reads.count("later") >= 2)
    later.end()
    assert reads.count("ended") <= 1, "only by a repeat that had begun before its end"


def test_training_is_counted_by_worker_and_shared_values_only_once(trained: Exported) -> None:
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
    raw: _Job, filtered: _Job, trained: Exported
) -> None:
    listed = [metric for metric in LISTED if not metric["name"].startswith("striate_serve_")]
    assert len(listed) == 18
    samples = labels_by_metric({**raw.exported, **filtered.exported, **trained})
    for metric in listed:
        assert samples[f"ray_{metric['name']}{SUFFIX[metric['type']]}"] == set(metric["tags"]), metric["name"]
