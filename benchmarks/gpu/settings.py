"""What the parts of the GPU benchmark share: their sizes, their folder, and how they run a command of Striate."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from library.errors import StriateError


@dataclass(frozen=True)
class Settings:
    """Sizes of all parts.

    Attributes:
        device: cuda or cpu.
        model: call of the network that is trained and served.
        side: side of its input in pixels.
        photos: pictures in the dataset of photos.
        batch_size: pictures per step.
        epochs: epochs of a training; the first is not counted.
        seconds: duration of each measurement of a loop or of the server.
        connections: connections of the clients, one measurement for each.
        small_pictures: pictures of the CIFAR-like dataset, where CIFAR-10 itself is missing.
        overrides: fields of the recipe cifar10-fast that are replaced.
    """

    device: str
    model: str = "resnet50"
    side: int = 224
    photos: int = 6000
    batch_size: int = 256
    epochs: int = 5
    seconds: float = 8.0
    connections: tuple[int, ...] = (1, 32, 128)
    small_pictures: int = 50_000
    overrides: tuple[str, ...] = ()

    @classmethod
    def choose(cls, device: str, *, smoke: bool) -> Settings:
        """The sizes of the benchmark, or with `smoke` the smallest ones that run every line."""
        if not smoke:
            return cls(device)
        return cls(
            device,
            model="resnet9(width=4)",
            side=32,
            photos=64,
            batch_size=16,
            epochs=2,
            seconds=1.0,
            connections=(1, 4),
            small_pictures=256,
            overrides=("model=resnet9(width=4)", "epochs=1", "batch_size=64", "schedule.warmup_epochs=0"),
        )

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def described(self) -> dict[str, Any]:
        """The settings as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Folder:
    """The benchmark's temporary folder, which the part `prepare` fills."""

    path: Path

    @property
    def photos(self) -> Path:
        """JPEG files, `000000.jpg` and so on."""
        return self.path / "photos"

    @property
    def classes(self) -> Path:
        """The same files in a folder for each class."""
        return self.path / "files"

    @property
    def dataset(self) -> Path:
        """The same photos in shards."""
        return self.path / "dataset"

    @property
    def small(self) -> Path:
        """CIFAR-10, or pictures like it: `train` and `test`."""
        return self.path / "small"

    @property
    def bundle(self) -> Path:
        """A classifier with random weights."""
        return self.path / "bundle"


def parse_part(description: str | None, parts: tuple[str, ...]) -> tuple[str, Settings, Folder]:
    """Parses the arguments of a part's process: its name, `--work`, `--device` and `--smoke`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--work", type=Path, required=True, help="folder that the part `prepare` has filled")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes")
    options = parser.parse_args()
    return options.part, Settings.choose(options.device, smoke=options.smoke), Folder(options.work)


def striate_command(*arguments: str) -> list[str]:
    """The command line of Striate, whether or not it is installed."""
    return [sys.executable, "-m", "jobs.cli.app", *arguments]


def run_striate(*arguments: str) -> tuple[Mapping[str, Any], float]:
    """Runs a command of Striate; returns the JSON that it prints, and the seconds of the whole command.

    Raises:
        StriateError: its exit code is not 0; the message holds the end of its output.
    """
    start = time.perf_counter()
    done = subprocess.run([*striate_command(*arguments), "--json"], cwd=REPOSITORY, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise StriateError(f"striate {arguments[0]} failed:\n{(done.stderr or done.stdout).strip()[-1500:]}")
    return json.loads(done.stdout), round(seconds, 2)
