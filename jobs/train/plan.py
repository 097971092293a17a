"""What a training is going to do, as `jobs.train.driver` plans it, and the task of its workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.train.loop import TrainTask
from jobs.train.placement import Placement
from library import storage
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.rows import Rows


@dataclass(frozen=True)
class TrainPlan:
    """What a training is going to do.

    Attributes:
        recipe: what is learned, and how, as it was written: what the bundle keeps and a digest is taken of.
        located: the same with absolute paths: what workers get, whose current folder is Ray's.
        out: URI of the bundle, with `logs/` and `checkpoints/` in it.
        train: pictures to learn from.
        val: pictures to validate with, or None.
        inputs: what the model sees.
        datasets: digests by role.
        resident: whether the pictures fit into memory.
        overwrite: replace what another training left there.
        finished: whether the bundle is there already.
        plugins: digests by name of those that its pipelines use.
    """

    recipe: Recipe
    located: Recipe
    out: str
    train: Rows
    val: Rows | None
    inputs: InputPipeline
    datasets: dict[str, str]
    resident: bool
    overwrite: bool = False
    finished: bool = False
    plugins: dict[str, str] = field(default_factory=dict[str, str])

    def described(self) -> dict[str, Any]:
        """For --dry-run and the first lines of a run."""
        return {
            "model": self.recipe.model,
            "input": f"{self.inputs.steps} | {self.inputs.fit}".strip(" |"),
            "classes": len(self.train.classes),
            "train_pictures": len(self.train),
            "val_pictures": len(self.val) if self.val is not None else 0,
            "pictures_in": "memory" if self.resident else "a stream from the shards",
            "out": self.out,
        }

    def task(self, placement: Placement, run: str) -> TrainTask:
        """The task of every worker; `run` is the name under which they report progress."""
        return TrainTask(
            recipe=self.located.model_dump_json(),
            recipe_digest=self.recipe.digest,
            run=run,
            out=self.out,
            logs=storage.join(self.out, "logs"),
            class_counts=self.train.class_counts,
            steps_pipeline=str(self.inputs.steps),
            fit=str(self.inputs.fit),
            input_size=self.inputs.size,
            channels=self.inputs.channels,
            threads=placement.threads,
            decoders=placement.decoders,
            decoder_cpus=placement.decoder_cpus,
        )
