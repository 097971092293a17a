"""The actor that judges shards: it loads its classifiers once."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import board
from jobs.board import Count
from jobs.metrics import WorkMetrics
from library import storage
from library.errors import StriateError
from library.json_lines import WorkLog
from library.scoring import ShardScorer, ShardScores

_REPORT_EVERY_S = 1.0
_MAX_ATTEMPTS = 4
_GIVEN_UP = (
    "shard {shard}: its worker died {times} times while it was in work; a picture in it crashes a library, or the "
    "worker ran out of memory"
)


@dataclass(frozen=True)
class JudgeJob:
    """What every worker is told.

    Attributes:
        bundles: URIs of the classifiers.
        run: name under which progress is told.
        device: where the classifiers run.
        threads: pictures decoded at once by a worker; torch takes as many for itself.
        robust_fraction: of the pictures on which robustness is measured.
        examples: how many confident mistakes each shard gives as pictures.
        dataset: URI of what is judged.
    """

    bundles: tuple[str, ...]
    run: str
    device: str
    threads: int
    robust_fraction: float = 0.0
    examples: int = 0
    dataset: str = ""


class JudgeWorker:
    """Judges one shard after another; a failure comes back as a row, so that it is told once and whole."""

    def __init__(self, job: JudgeJob) -> None:
        self._job = job
        self._scorer: ShardScorer | None = None
        self._metrics = WorkMetrics("evaluate")
        self._log = WorkLog(command="evaluate", run=job.run)

    def run(self, shard: str) -> dict[str, Any]:
        """Judge the shard at a URI.

        Returns:
            `shard`; `error`, or for each classifier its `scores`; `load_s`, `busy_s` and `seconds` by stage.
        """
        row: dict[str, Any] = {"shard": shard, "error": "", "scores": [], "seconds": {}}
        begun = board.begin(self._job.run, shard)
        start = loaded = time.perf_counter()
        try:
            if begun > _MAX_ATTEMPTS:
                raise StriateError(_GIVEN_UP.format(shard=shard, times=begun - 1))
            scorer = self._scorer = self._scorer or self._load()
            loaded = time.perf_counter()
            row["scores"] = scorer.score(shard, self._teller(shard))
            row["seconds"] = scorer.seconds
            self._count(row["scores"][0], scorer.seconds)
            board.end(self._job.run, shard)
        except StriateError as error:
            row["error"] = str(error)
        except Exception:  # a defect too comes back as a row: told once, with its shard, and no other shard is lost
            row["error"] = f"shard {shard}: {traceback.format_exc()}"
        if row["error"]:
            self._log.error("shard failed", extra={"shard": shard, "error": row["error"]})
        else:
            took, counted = round(time.perf_counter() - loaded, 3), row["scores"][0]
            self._log.info("shard done", extra={"shard": shard, "pictures": counted.rows, "seconds": took})
        return row | {"load_s": loaded - start, "busy_s": time.perf_counter() - loaded}

    def _count(self, score: ShardScores, seconds: Mapping[str, float]) -> None:
        dataset = self._job.dataset
        self._metrics.pictures(dataset, score.rows, len(score.keys), score.dropped, score.rejected)
        self._metrics.bytes(dataset, score.image_bytes, 0)
        self._metrics.seconds(dataset, seconds)

    def _load(self) -> ShardScorer:
        import cv2
        import torch

        from library.bundle import Bundle

        # One thread a CPU of this worker: more would only take turns with the other workers.
        cv2.setNumThreads(1)
        torch.set_num_threads(self._job.threads)
        bundles = [Bundle.load(uri, self._job.device) for uri in self._job.bundles]
        names = {"command": "evaluate", "run": self._job.run, "dataset_id": storage.uri_id(self._job.dataset)}
        self._log = WorkLog(**names, bundle_ids=[bundle.id for bundle in bundles])
        return ShardScorer(
            bundles,
            threads=self._job.threads,
            robust_fraction=self._job.robust_fraction,
            examples=self._job.examples,
        )

    def _teller(self, shard: str) -> Any:
        """Tells the board at most once a second how far this shard is."""
        told = time.monotonic()

        def tell(scores: Sequence[ShardScores]) -> None:
            nonlocal told
            if time.monotonic() - told >= _REPORT_EVERY_S:
                told = time.monotonic()
                board.put(self._job.run, shard, count_of(scores))

        return tell


def count_of(scores: Sequence[ShardScores], shards: int = 0) -> Count:
    """A shard's counts for the progress display; of two classifiers the first one's."""
    first = scores[0]
    return Count(shards, first.rows, first.image_bytes, first.dropped.total(), first.rejected.total())
