"""What jobs tell Prometheus, through Ray's own metrics on every node; k8s/monitoring/metrics.yaml lists them.

Workers count what they did once a shard, or once a window of training steps, and never once a picture. A count stands
at the node of the worker that did the work and stays there when the worker has ended; a gauge goes with its process.
Datasets and trainings are labelled by `storage.uri_id`, which `striate info` prints.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from cluster import instruments
from library import storage
from library.dataset.manifest import Report

#: The stage that metrics name for each stage of `Report.seconds`; every step counts as `steps`.
_STAGES = {
    **{name: name for name in ("read", "decode", "encode", "write", "infer")},
    "load": "read",
    "check": "decode",
    "prepare": "decode",
    "robustness": "infer",
}
_OF_JOBS = ("command", "dataset_id")


class WorkerMetrics:
    """The counts of one worker of a shard job.

    Args:
        command: ingest, filter, augment, evaluate or predict.
    """

    def __init__(self, command: str) -> None:
        self._in = _counter("striate_pictures_in", "pictures read", command)
        self._out = _counter("striate_pictures_out", "pictures written; of evaluate, judged", command)
        self._dropped = _counter("striate_pictures_dropped", "dropped by a selector", command, "reason")
        self._rejected = _counter("striate_pictures_rejected", "could not be used", command, "reason")
        self._bytes_in = _counter("striate_bytes_in", "bytes read", command)
        self._bytes_out = _counter("striate_bytes_out", "bytes written", command)
        self._seconds = _counter("striate_stage_seconds", "seconds of workers in each stage", command, "stage")

    def shard(self, dataset: str, report: Report) -> None:
        """One shard was committed."""
        labels, tally = _dataset(dataset), report.tally
        self._in.add(tally.rows_in, labels)
        self._out.add(tally.rows_out, labels)
        for counter, counts in ((self._dropped, tally.dropped), (self._rejected, tally.rejected)):
            for reason, count in counts.items():
                counter.add(count, {**labels, "reason": reason})
        self._bytes_in.add(tally.image_bytes_in, labels)
        self._bytes_out.add(report.bytes_written, labels)
        spent: Counter[str] = Counter()
        for stage, value in report.seconds.items():
            spent[_STAGES.get(stage, "steps")] += value  # pyright: ignore[reportArgumentType] -- sums floats as well
        for stage, value in spent.items():
            self._seconds.add(value, {**labels, "stage": stage})


class JobMetrics:
    """How far a shard job is; told by its driver, and gone with it."""

    def __init__(self, command: str, planned: Mapping[str, int], done: Mapping[str, int]) -> None:
        fixed = {"command": command}
        # A gauge ends with its object.
        self._planned = instruments.Gauge("striate_shards_planned", "shards of the job", _OF_JOBS, fixed)
        self._done = instruments.Gauge("striate_shards_done", "shards that are committed", _OF_JOBS, fixed)
        self._counts = Counter(done)
        for dataset, shards in planned.items():
            self._planned.set(shards, _dataset(dataset))
            self._done.set(self._counts[dataset], _dataset(dataset))

    def one_more(self, dataset: str) -> None:
        """One more shard of a dataset is committed."""
        self._counts[dataset] += 1
        self._done.set(self._counts[dataset], _dataset(dataset))


class TrainMetrics:
    """The counts of one training worker; what is the same for all of them is told by the first.

    Args:
        run: URI of the bundle that is made.
        rank: of the worker.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._first = rank == 0
        run_id = {"run_id": storage.uri_id(run)}
        of_worker = {**run_id, "rank": str(rank)}

        def gauge(name: str, description: str) -> instruments.Gauge:
            return instruments.Gauge(name, description, tuple(run_id), run_id)

        def counter(name: str, description: str, labels: Mapping[str, str] = run_id) -> instruments.Counter:
            return instruments.Counter(name, description, tuple(labels), labels)

        self._pictures = counter("striate_train_pictures", "pictures trained on")
        self._seconds = counter("striate_train_seconds", "seconds in the training loop", of_worker)
        self._waited = counter("striate_train_data_wait_seconds", "of them, for the next batch", of_worker)
        self._epoch = gauge("striate_train_epoch", "epoch")
        self._loss = gauge("striate_train_loss", "loss of the last window of steps")
        self._rate = gauge("striate_train_learning_rate", "learning rate")
        self._top1 = gauge("striate_train_val_top1", "share of the validation set that is classified right")
        self._checkpoints = counter("striate_train_checkpoints", "checkpoints uploaded")
        self._kept_at = gauge("striate_train_checkpoint_time_seconds", "Unix time of the last checkpoint")

    def window(
        self, pictures: int, seconds: float, waited: float, *, epoch: int, loss: float, learning_rate: float
    ) -> None:
        """Some steps were done: pictures of all workers, seconds of this one, and how long it waited for batches."""
        self._seconds.add(seconds)
        self._waited.add(waited)
        if self._first:
            self._pictures.add(pictures)
            self._epoch.set(epoch)
            self._loss.set(loss)
            self._rate.set(learning_rate)

    def validated(self, top1: float) -> None:
        """The validation set was looked at."""
        if self._first:
            self._top1.set(top1)

    def kept(self) -> None:
        """A checkpoint lies where it is to stay."""
        self._checkpoints.add(1)
        self._kept_at.set(time.time())


def _counter(name: str, description: str, command: str, *labels: str) -> instruments.Counter:
    return instruments.Counter(name, description, (*_OF_JOBS, *labels), {"command": command})


def _dataset(uri: str) -> dict[str, str]:
    return {"dataset_id": storage.uri_id(uri)}
