"""Commands on a Ray of several nodes with an S3 server as storage."""

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

#: Steps slow enough for a node to be lost while they run.
SLOW = "denoise(strength=0.03, search_size=21) | grayscale"
_OF_THE_ANSWER = ("outcome", "sentence", "winner", "finalists", "candidates", "robustness", "trainings", "unfinished")
_RECIPE = """
data: {{train: "{data}", val_fraction: 0.2}}
input: {{steps: 'grayscale | resize([28, 28], mode="exact")'}}
model: lenet5
optimizer: {{name: adamw, lr: 3e-3}}
batch_size: 32
epochs: {epochs}
"""


class Commands(ABC):
    """Runs commands on a cluster and reads what they left in its bucket.

    Args:
        root: the folder that the S3 server serves.
        bucket: the bucket in it that holds datasets and bundles.
    """

    def __init__(self, root: Path, bucket: str) -> None:
        self.bucket, self._folder = bucket, root / bucket
        self._started: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """`striate` with these arguments, as a user of the cluster starts it, with pipes for stdout and stderr."""

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts the command by `popen`; `end` kills it if it still runs then."""
        self._started.append(self.popen(*arguments, **options))
        return self._started[-1]

    def end(self) -> None:
        """Kills the commands that still run."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def run(self, *arguments: str) -> Any:
        """Runs the command and returns its JSON document."""
        return finished(self.start(*arguments, "--json"))

    def folder(self, name: str) -> Path:
        """The folder in which the S3 server stores it."""
        return self._folder / name

    def shards_by_node(self, dataset: str) -> dict[str, int]:
        """Number of a dataset's shards by the id of the node that wrote them."""
        return json.loads((self.folder(dataset) / "_manifest.json").read_bytes())["run"]["shards_by_node"]

    def until_shards(self, process: subprocess.Popen[bytes], dataset: str, count: int) -> None:
        """Waits until a running job has written `count` shards; fails when it ends earlier."""
        reports = self.folder(dataset) / "_reports"
        until(lambda: process.poll() is not None or len(list(reports.glob("*.json"))) >= count, 240)
        assert process.poll() is None, "the command ended before anything was killed"

    def until_checkpoint(self, process: subprocess.Popen[bytes], training: str) -> str:
        """Waits until a running training has a checkpoint to resume from; returns the first line of its log."""
        snapshot = self.folder(training) / "checkpoints" / "run" / "checkpoint_manager_snapshot.json"
        until(lambda: process.poll() is not None or (snapshot.exists() and "step-" in snapshot.read_text()), 240)
        assert process.poll() is None, "the command ended before anything was killed"
        return self._log(training)[0]

    def check_resumed(self, training: str, first: str, epochs: int) -> None:
        """Fails unless the finished training resumed: its log still begins with `first` and has each epoch once."""
        log = self._log(training)
        # The line holds times: a training that started again would have written another.
        assert log[0] == first, "the training started again instead of resuming"
        epochs_in_log = [line["epoch"] for line in map(json.loads, log) if "val_loss" in line]
        assert epochs_in_log == list(range(1, epochs + 1)), "an epoch is missing or was logged twice"

    def check_weights(self, one: str, other: str) -> None:
        """Fails unless the weights of two trainings are equal within rounding."""
        first, second = (load_tensors((self.folder(name) / "model.safetensors").read_bytes()) for name in (one, other))
        assert first.keys() == second.keys() != set()
        for name in first:
            np.testing.assert_allclose(first[name], second[name], atol=2e-3, err_msg=name)

    def _log(self, training: str) -> list[str]:
        return (self.folder(training) / "logs" / "metrics.jsonl").read_text().splitlines()


def finished(process: subprocess.Popen[bytes]) -> Any:
    """Waits for a command that must succeed and returns its JSON document."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    return json.loads(out)


def check_same_answer(search: Any, other: Any) -> None:
    """Fails unless two documents of `striate search --json` say the same, but for times and where it was computed."""
    one, two = ({name: search[name] for name in _OF_THE_ANSWER} for search in (search, other))
    for gain in (*one["finalists"], *two["finalists"]):
        gain.pop("filter_ms")
    assert one == two


def up(process: subprocess.Popen[bytes]) -> Any:
    """The line that `striate cluster up --json` prints when all nodes are running."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert b'"nodes"' in line, process.communicate(timeout=240)[1].decode()
    return json.loads(line)


def down(process: subprocess.Popen[bytes]) -> None:
    """Ends it with SIGINT, as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode == 0


def write_recipe(folder: Path, data: str, epochs: int) -> str:
    """A recipe for LeNet on digits; returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(_RECIPE.format(data=data, epochs=epochs))
    return str(path)
