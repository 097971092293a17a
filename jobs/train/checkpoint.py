"""Checkpoints of a training: their content, and the local folders that they are written to before the upload."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from library.training.progress import TrainingProgress

#: The name of a checkpoint's folder begins with this; the number of the step follows.
CHECKPOINT_PREFIX = "step-"

_STATE = "state.pt"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The state of a training.

    Attributes:
        learner: `Learner.state()`.
        best_model: state dict of the model that the bundle gets if this checkpoint is the best.
        progress: how far the training is.
    """

    learner: Mapping[str, Any]
    best_model: Mapping[str, Any]
    progress: TrainingProgress

    def save(self, folder: str) -> None:
        """Writes the checkpoint to a local folder."""
        import torch  # the driver and `striate info` import this module and do not need torch

        torch.save({**vars(self), "progress": asdict(self.progress)}, Path(folder) / _STATE)

    @classmethod
    def load(cls, folder: str, device: str) -> TrainingCheckpoint:
        """Reads the checkpoint in a local folder: only tensors and plain data, so nothing is executed."""
        import torch  # as above

        state: dict[str, Any] = torch.load(Path(folder) / _STATE, map_location=device, weights_only=True)
        return cls(state["learner"], state["best_model"], TrainingProgress(**state["progress"]))


def make_local_folder(out: str) -> str:
    """Creates a folder on this machine for a checkpoint of the training that writes to `out`, and returns its path."""
    return tempfile.mkdtemp(prefix=_local_prefix(out))


def remove_local_folders(out: str) -> None:
    """Removes all folders of `make_local_folder` on this machine; only one training at a time writes to `out`."""
    for folder in local_folders(out):
        shutil.rmtree(folder, ignore_errors=True)


def local_folders(out: str) -> list[Path]:
    """Returns the folders of `make_local_folder` on this machine."""
    return list(Path(tempfile.gettempdir()).glob(f"{_local_prefix(out)}*"))


def _local_prefix(out: str) -> str:
    return f"striate-checkpoint-{hashlib.sha256(out.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}-"
