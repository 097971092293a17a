"""Commands on a Ray of several nodes, whose storage is an S3 server; and what they are given to do."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Steps slow enough to lose a node in the midst of them.
SLOW = "denoise(strength=0.03, search_size=21) | grayscale"
_RECIPE = """
data: {{train: "{data}", val_fraction: 0.2}}
input: {{steps: 'grayscale | resize([28, 28], mode="exact")'}}
model: lenet5
optimizer: {{name: adamw, lr: 3e-3}}
batch_size: 32
epochs: {epochs}
"""


class Commands(ABC):
    """Commands whose cluster and storage are given.

    Args:
        root: the folder that the S3 server serves.
        bucket: where datasets and bundles lie in it.
    """

    def __init__(self, root: Path, bucket: str) -> None:
        self._folder = root / bucket
        self._started: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """`striate` with these arguments, as a user of the cluster starts it, with pipes for stdout and stderr."""

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """As `popen`; killed by `end` if it still runs then."""
        self._started.append(self.popen(*arguments, **options))
        return self._started[-1]

    def end(self) -> None:
        """What failed tests have left."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def run(self, *arguments: str) -> Any:
        """What the command says in its JSON."""
        return finished(self.start(*arguments, "--json"))

    def folder(self, name: str) -> Path:
        """Where the S3 server keeps it."""
        return self._folder / name

    def shards_by_node(self, dataset: str) -> dict[str, int]:
        """How many of a dataset's shards each node has made, by Ray's id of it."""
        return json.loads((self.folder(dataset) / "_manifest.json").read_bytes())["run"]["shards_by_node"]


def finished(process: subprocess.Popen[bytes]) -> Any:
    """What a command that must succeed says in its JSON."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    return json.loads(out)


def write_recipe(folder: Path, data: str, epochs: int) -> str:
    """A recipe for LeNet on digits; returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(_RECIPE.format(data=data, epochs=epochs))
    return str(path)


def has_checkpoint(run: Path) -> bool:
    """Whether Ray Train has taken up a checkpoint of the run in this folder, from which it would go on."""
    snapshot = run / "checkpoint_manager_snapshot.json"
    return snapshot.exists() and "step-" in snapshot.read_text()


def epochs_of(training: Path) -> Sequence[int]:
    """The epochs that a training has logged, in the order of its log."""
    lines = (training / "logs" / "metrics.jsonl").read_text().splitlines()
    return [line["epoch"] for line in map(json.loads, lines) if "val_loss" in line]
