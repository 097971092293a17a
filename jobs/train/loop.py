"""The function that Ray Train calls on all workers at once, and its task.

The driver and Ray Train's controller import this module as well, and need not wait for timm and torch's compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainTask:
    """The task of every worker; plain data.

    Attributes:
        recipe: as JSON, with absolute paths.
        recipe_digest: of the recipe as it was written.
        run: name under which progress is reported.
        out: URI of the bundle.
        logs: URI of the folder of metrics.jsonl.
        class_counts: training pictures by class, in the order of the model's outputs.
        steps_pipeline: canonical text of the steps before augmentation.
        fit: canonical text of the steps that give a picture the model's size.
        input_size: height and width of the model's input.
        channels: of the model's input.
        threads: of torch in each worker; as many augment pictures that are in memory.
        decoders: actors that decode for each worker, where pictures are streamed.
        decoder_cpus: logical CPUs of each of these.
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
    threads: int
    decoders: int
    decoder_cpus: float


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs the loop of one worker; on rank 0 its return value says how the training ended."""
    from jobs.train.training_worker import train_worker

    return train_worker(config)
