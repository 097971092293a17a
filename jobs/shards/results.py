"""Results of a shard job: what collects the reports of shards, and what is measured while they run."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.shards.pool_size import WorkerPool
from library.dataset.manifest import Report, ShardReport
from library.dataset.task import ShardTask
from library.dataset.totals import Totals


class Results(Protocol):
    """Collects the reports of a job's shards, in any order."""

    def add(self, task: ShardTask, report: str) -> Report:
        """Adds the report of a shard, as JSON, and returns it."""
        ...


@dataclass
class ShardRun:
    """Measurements of one run of a job's tasks.

    Attributes:
        pictures: read in this run, by dataset.
        waited_s: idle seconds, summed over workers, by dataset of the next shard.
        wall_s: seconds from the start to the last report.
        first_report_s: seconds to the first report.
        peak_rss: largest resident size of a worker, in bytes.
        nodes: shards done on each node, by dataset and Ray's id of the node.
        ray_data: Ray Data's statistics of the passes, as `Dataset.stats` prints them.
    """

    pictures: Counter[str] = field(default_factory=Counter[str])
    waited_s: Counter[str] = field(default_factory=Counter[str])
    wall_s: float = 0.0
    first_report_s: float | None = None
    peak_rss: int = 0
    nodes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    ray_data: list[str] = field(default_factory=list[str])


class DatasetResults:
    """Sums of the reports of shards, by dataset.

    Attributes:
        totals: over all shards, including those of earlier runs.
        resumed: number of shards of earlier runs.
        run: measurements of this run; set when it has ended.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.totals: defaultdict[str, Totals] = defaultdict(Totals)
        self.resumed: Counter[str] = Counter()
        self.run: ShardRun | None = None
        self._pool = pool

    def add(self, task: ShardTask, report: str) -> ShardReport:
        """Adds the report of a shard, as JSON, and returns it."""
        loaded = ShardReport.model_validate_json(report)
        self.totals[task.dataset].add(loaded)
        return loaded

    def summary(self, dataset: str) -> dict[str, Any]:
        """Returns the measurements of one dataset, for the `run` of its manifest and the closing message.

        `seconds` includes shards of earlier runs; all else is of this run only.
        """
        run, totals = self.run, self.totals[dataset]
        assert run is not None
        seconds = {**totals.seconds, "waiting": run.waited_s[dataset]}
        return {
            "workers": self._pool.number,
            "shards": totals.shards,
            "shards_resumed": self.resumed[dataset],
            "pictures_made": run.pictures[dataset],
            "wall_s": round(run.wall_s, 3),
            "first_shard_s": run.first_report_s and round(run.first_report_s, 3),
            "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
            "worker_rss_bytes": run.peak_rss,
            "shards_by_node": {node: shards for (where, node), shards in sorted(run.nodes.items()) if where == dataset},
            "ray_data": run.ray_data,
        }
