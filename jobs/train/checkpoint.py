"""What is kept of a training, in Ray Train's checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch

from jobs.train.claim import local_checkpoint
from library.training.progress import TrainingProgress

if TYPE_CHECKING:  # the driver reads checkpoints and needs no timm for it
    from library.training.learner import Learner

#: Of the folder of a checkpoint; the step's number follows.
CHECKPOINT_PREFIX = "step-"

_STATE = "state.pt"


def load_state(checkpoint: Any, device: torch.device) -> dict[str, Any]:
    """A checkpoint's content; tensors and plain data only, nothing in it is executed."""
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / _STATE, map_location=device, weights_only=True)


def last_state(device: torch.device) -> dict[str, Any] | None:
    """What this run goes on from; None at its beginning."""
    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else load_state(checkpoint, device)


def keep(learner: Learner, at: TrainingProgress, metrics: dict[str, Any], out: str, kept: Callable[[], None]) -> None:
    """Keep the state of the training that writes to `out`; rank 0 writes it, all take part. It is uploaded while
    training goes on, then `kept` is called."""
    checkpoint = None
    storage: Any = ray.train.get_context().get_storage()

    def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        try:
            there = storage.persist_current_checkpoint(checkpoint, name)
        except BaseException:  # Ray removes the local folder after a success only
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            raise
        kept()
        return there

    if ray.train.get_context().get_world_rank() == 0:
        folder = local_checkpoint(out)
        content = {"state": learner.state(), "position": asdict(at)}
        content["best_model"] = learner.best_model.state_dict()
        torch.save(content, Path(folder) / _STATE)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        checkpoint_dir_name=f"{CHECKPOINT_PREFIX}{at.step:09d}",
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=upload,
    )
