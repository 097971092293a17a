"""Commands on a Ray of several nodes, whose storage is an S3 server; and what they are given to do."""

from __future__ import annotations

import json
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors

from tests.waiting import until

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

    def until_shards(self, process: subprocess.Popen[bytes], dataset: str, count: int) -> None:
        """Return when a job that is at work has made so many shards; fail when it ends before."""
        reports = self.folder(dataset) / "_reports"
        until(lambda: process.poll() is not None or len(list(reports.glob("*.json"))) >= count, 240)
        assert process.poll() is None, "it ended before something was lost"

    def until_checkpoint(self, process: subprocess.Popen[bytes], training: str) -> str:
        """Return when Ray Train would go on from a checkpoint of a training at work; the first line of its log."""
        snapshot = self.folder(training) / "checkpoints" / "run" / "checkpoint_manager_snapshot.json"
        until(lambda: process.poll() is not None or (snapshot.exists() and "step-" in snapshot.read_text()), 240)
        assert process.poll() is None, "it ended before something was lost"
        return self._log(training)[0]

    def check_went_on(self, training: str, first: str, epochs: int) -> None:
        """Fail unless the finished training has gone on from where its log began with `first`, and missed no epoch."""
        log = self._log(training)
        # With its times: begun again from nothing it would be another line.
        assert log[0] == first, "it was begun again from nothing"
        told = [line["epoch"] for line in map(json.loads, log) if "val_loss" in line]
        assert told == list(range(1, epochs + 1)), "an epoch is missing, or doubled"

    def check_weights(self, one: str, other: str) -> None:
        """Fail unless two trainings have learned the same, within rounding."""
        first, second = (load_tensors((self.folder(name) / "model.safetensors").read_bytes()) for name in (one, other))
        assert first.keys() == second.keys() != set()
        for name in first:
            np.testing.assert_allclose(first[name], second[name], atol=2e-3, err_msg=name)

    def _log(self, training: str) -> list[str]:
        return (self.folder(training) / "logs" / "metrics.jsonl").read_text().splitlines()


def finished(process: subprocess.Popen[bytes]) -> Any:
    """What a command that must succeed says in its JSON."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    return json.loads(out)


def up(process: subprocess.Popen[bytes]) -> Any:
    """What `striate cluster up --json` says when all nodes are there."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert b'"nodes"' in line, process.communicate(timeout=60)[1].decode()
    return json.loads(line)


def down(process: subprocess.Popen[bytes]) -> None:
    """End it as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def write_recipe(folder: Path, data: str, epochs: int) -> str:
    """A recipe for LeNet on digits; returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(_RECIPE.format(data=data, epochs=epochs))
    return str(path)
