"""The metrics of jobs for Prometheus, exported by Ray on every node; k8s/monitoring/metrics.yaml lists them.

Workers add to their counters after each shard or window of training steps, never after each picture. The node of a
worker keeps exporting its counters when the worker has ended; a gauge ends with its process. Datasets and trainings
are labelled by `storage.uri_id`, which `striate info` prints.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from cluster import instruments
from library import storage
from library.dataset.manifest import Report

#: The label of each stage of `Report.seconds`; all pipeline steps are `steps`.
_STAGES = {
    **{name: name for name in ("read", "decode", "encode", "write", "infer")},
    "load": "read",
    "check": "decode",
    "prepare": "decode",
    "robustness": "infer",
}
_JOB_LABELS = ("command", "dataset_id")


class WorkerMetrics:
    """The counters of one worker of a shard job.

    Args:
        command: ingest, filter, augment, evaluate or predict.
    """

    def __init__(self, command: str) -> None:
        self._in = _counter("striate_pictures_in", "pictures read", command)
        self._out = _counter("striate_pictures_out", "pictures written, or evaluated by evaluate", command)
        self._dropped = _counter("striate_pictures_dropped", "dropped by a selector", command, "reason")
        self._rejected = _counter("striate_pictures_rejected", "could not be used", command, "reason")
        self._bytes_in = _counter("striate_bytes_in", "bytes read", command)
        self._bytes_out = _counter("striate_bytes_out", "bytes written", command)
        self._seconds = _counter("striate_stage_seconds", "seconds of workers in each stage", command, "stage")

    def shard(self, dataset: str, report: Report) -> None:
        """Adds the counts of a shard that was committed."""
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
    """The progress of a shard job, exported by its driver until `end`."""

    def __init__(self, command: str, planned: Mapping[str, int], done: Mapping[str, int]) -> None:
        fixed = {"command": command}
        self._planned = instruments.Gauge("striate_shards_planned", "shards of the job", _JOB_LABELS, fixed)
        self._done = instruments.Gauge("striate_shards_done", "shards that are committed", _JOB_LABELS, fixed)
        self._counts = Counter(done)
        for dataset, shards in planned.items():
            self._planned.set(shards, _dataset(dataset))
            self._done.set(self._counts[dataset], _dataset(dataset))

    def one_more(self, dataset: str) -> None:
        """Counts one more committed shard of a dataset."""
        self._counts[dataset] += 1
        self._done.set(self._counts[dataset], _dataset(dataset))

    def end(self) -> None:
        """Stops the export; a later job in this process may have the same labels."""
        self._planned.end()
        self._done.end()


class TrainMetrics:
    """The metrics of one training worker; values that all workers share are exported by the first.

    Args:
        out: URI of the bundle that the training writes.
        rank: rank of the worker.
    """

    def __init__(self, out: str, rank: int) -> None:
        self._first = rank == 0
        run_id = {"run_id": storage.uri_id(out)}
        worker_labels = {**run_id, "rank": str(rank)}

        def gauge(name: str, description: str) -> instruments.Gauge:
            return instruments.Gauge(name, description, tuple(run_id), run_id)

        def counter(name: str, description: str, labels: Mapping[str, str] = run_id) -> instruments.Counter:
            return instruments.Counter(name, description, tuple(labels), labels)

        self._pictures = counter("striate_train_pictures", "pictures trained on")
        self._seconds = counter("striate_train_seconds", "seconds in the training loop", worker_labels)
        self._waited = counter("striate_train_data_wait_seconds", "seconds spent waiting for batches", worker_labels)
        self._epoch = gauge("striate_train_epoch", "epoch")
        self._loss = gauge("striate_train_loss", "loss of the last window of steps")
        self._rate = gauge("striate_train_learning_rate", "learning rate")
        self._top1 = gauge("striate_train_val_top1", "share of the validation set that is classified correctly")
        self._checkpoints = counter("striate_train_checkpoints", "checkpoints uploaded")
        self._checkpoint_time = gauge("striate_train_checkpoint_time_seconds", "Unix time of the last checkpoint")

    def window(
        self, pictures: int, seconds: float, waited: float, *, epoch: int, loss: float, learning_rate: float
    ) -> None:
        """Adds a window of steps: pictures of all workers, seconds of this one, and seconds it waited for batches."""
        self._seconds.add(seconds)
        self._waited.add(waited)
        if self._first:
            self._pictures.add(pictures)
            self._epoch.set(epoch)
            self._loss.set(loss)
            self._rate.set(learning_rate)

    def validated(self, top1: float) -> None:
        """Exports the accuracy of a validation."""
        if self._first:
            self._top1.set(top1)

    def checkpoint_uploaded(self) -> None:
        """Counts a checkpoint that was uploaded."""
        self._checkpoints.add(1)
        self._checkpoint_time.set(time.time())


def _counter(name: str, description: str, command: str, *labels: str) -> instruments.Counter:
    return instruments.Counter(name, description, (*_JOB_LABELS, *labels), {"command": command})


def _dataset(uri: str) -> dict[str, str]:
    return {"dataset_id": storage.uri_id(uri)}
