"""What jobs tell Prometheus, through Ray's own metrics on every node; k8s/monitoring/metrics.yaml lists them.

Workers count what they did once a shard, or once a window of training steps, and never once a picture. A count stands
at the node of the worker that did the work and stays there when the worker has ended; a gauge goes with its process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from ray.util import metrics

from library.manifest import ShardReport

#: Stages of `ShardReport.seconds` and of evaluation by what they are told as; the name of any step is `steps`.
_STAGES = {
    **{name: name for name in ("read", "decode", "encode", "write", "infer")},
    "load": "read",
    "check": "decode",
    "prepare": "decode",
    "robustness": "infer",
}
_OF_JOBS = ("command", "dataset")


class WorkMetrics:
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

    def shard(self, dataset: str, report: ShardReport) -> None:
        """One shard was committed."""
        tally = report.tally
        written = report.output.bytes + (report.rejects.bytes if report.rejects else 0)
        self.pictures(dataset, tally.rows_in, tally.rows_out, tally.dropped, tally.rejected)
        self.bytes(dataset, tally.image_bytes_in, written)
        self.seconds(dataset, report.seconds)

    def pictures(
        self, dataset: str, read: int, used: int, dropped: Mapping[str, int], rejected: Mapping[str, int]
    ) -> None:
        """What became of some pictures."""
        tags = {"dataset": dataset}
        _add(self._in, read, tags)
        _add(self._out, used, tags)
        for counter, counts in ((self._dropped, dropped), (self._rejected, rejected)):
            for reason, count in counts.items():
                _add(counter, count, {**tags, "reason": reason})

    def bytes(self, dataset: str, read: int, written: int) -> None:
        """Encoded pictures that were read, files that were written."""
        _add(self._bytes_in, read, {"dataset": dataset})
        _add(self._bytes_out, written, {"dataset": dataset})

    def seconds(self, dataset: str, seconds: Mapping[str, float]) -> None:
        """Time by stage."""
        spent: Counter[str] = Counter()
        for stage, value in seconds.items():
            spent[_STAGES.get(stage, "steps")] += value  # pyright: ignore[reportArgumentType] -- sums floats as well
        for stage, value in spent.items():
            _add(self._seconds, value, {"dataset": dataset, "stage": stage})


class PlanMetrics:
    """How far a shard job is; told by its driver, and gone with it."""

    def __init__(self, command: str, planned: Mapping[str, int], done: Mapping[str, int]) -> None:
        self._planned = metrics.Gauge("striate_shards_planned", "shards of the job", _OF_JOBS)
        self._done = metrics.Gauge("striate_shards_done", "shards that are committed", _OF_JOBS)
        self._counts = Counter(done)
        for gauge in (self._planned, self._done):
            gauge.set_default_tags({"command": command})
        for dataset, shards in planned.items():
            self._planned.set(shards, {"dataset": dataset})
            self._done.set(self._counts[dataset], {"dataset": dataset})

    def one_more(self, dataset: str) -> None:
        """One more shard of a dataset is committed."""
        self._counts[dataset] += 1
        self._done.set(self._counts[dataset], {"dataset": dataset})


class TrainMetrics:
    """The counts of one training worker; what is the same for all of them is told by the first.

    Args:
        run: URI of the bundle that is made.
        rank: of the worker.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._first = rank == 0
        whole, own = {"run": run}, {"run": run, "rank": str(rank)}
        self._pictures = metrics.Counter("striate_train_pictures", "pictures trained on", ("run",))
        self._seconds = metrics.Counter("striate_train_seconds", "seconds in the training loop", ("run", "rank"))
        self._waited = metrics.Counter(
            "striate_train_data_wait_seconds", "of them, for the next batch", ("run", "rank")
        )
        self._epoch = metrics.Gauge("striate_train_epoch", "epoch", ("run",))
        self._loss = metrics.Gauge("striate_train_loss", "loss of the last window of steps", ("run",))
        self._rate = metrics.Gauge("striate_train_learning_rate", "learning rate", ("run",))
        self._top1 = metrics.Gauge(
            "striate_train_val_top1", "share of the validation set that is classified right", ("run",)
        )
        self._checkpoints = metrics.Counter("striate_train_checkpoints", "checkpoints uploaded", ("run",))
        self._kept_at = metrics.Gauge(
            "striate_train_checkpoint_time_seconds", "Unix time of the last checkpoint", ("run",)
        )
        for metric in vars(self).values():
            if isinstance(metric, metrics.Metric):
                metric.set_default_tags(own if "rank" in metric.info["tag_keys"] else whole)

    def window(
        self, pictures: int, seconds: float, waited: float, *, epoch: int, loss: float, learning_rate: float
    ) -> None:
        """Some steps were done: pictures of all workers, seconds of this one, and how long it waited for batches."""
        _add(self._seconds, seconds)
        _add(self._waited, waited)
        if self._first:
            _add(self._pictures, pictures)
            self._epoch.set(epoch)
            self._loss.set(loss)
            self._rate.set(learning_rate)

    def validated(self, top1: float) -> None:
        """The validation set was looked at."""
        if self._first:
            self._top1.set(top1)

    def kept(self) -> None:
        """A checkpoint lies where it is to stay."""
        self._checkpoints.inc()
        self._kept_at.set(time.time())


def _counter(name: str, what: str, command: str, *tags: str) -> metrics.Counter:
    return metrics.Counter(name, what, (*_OF_JOBS, *tags)).set_default_tags({"command": command})


def _add(counter: metrics.Counter, value: float, tags: Mapping[str, str] | None = None) -> None:
    # Ray refuses to add nothing.
    if value > 0:
        counter.inc(value, dict(tags or {}))
