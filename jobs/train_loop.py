"""What Ray Train calls on all workers at once, and what it tells them.

The driver and Ray Train's controller import this module as well, and need not wait for timm and torch's compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainTask:
    """What all workers are told; plain data.

    Attributes:
        recipe: as JSON, with absolute paths.
        recipe_digest: of the recipe as it was written.
        run: name under which progress is told.
        out: URI of the bundle that is made.
        logs: URI of the folder of metrics.jsonl.
        class_counts: training pictures by class, in the order of the model's outputs.
        steps_pipeline: canonical text of what is done to every picture before augmentation.
        fit: canonical text of what gives it the model's size.
        input_size: height and width of the model's input.
        channels: of the model's input.
        data: how to get at the pictures, as `jobs.feed` has it.
        threads: for torch in each worker.
    """

    recipe: str
    recipe_digest: str
    run: str
    out: str
    logs: str
    class_counts: dict[str, int]
    steps_pipeline: str
    fit: str
    input_size: tuple[int, int]
    channels: int
    data: dict[str, Any]
    threads: int


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of one worker; its return value on rank 0 says how it ended."""
    from jobs.train_worker import train_worker

    return train_worker(config)
