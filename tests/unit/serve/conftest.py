"""Small real classifiers, and their HTTP faces in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# For `picture_examples`, which lies beside this folder.
sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import LocalModel, Server, apps, make_bundle

from serve.settings import ServeSettings


@pytest.fixture(scope="session")
def models() -> dict[str, LocalModel]:
    """`grey` (LeNet over grey pictures, which drops tiny ones), and `colour` (a narrow ResNet)."""
    torch.set_num_threads(1)
    settings = ServeSettings()
    grey = make_bundle("lenet5", ("ant", "bee", "cat"), (28, 28), 1, "min_size(short_side=4) | grayscale")
    colour = make_bundle("resnet9(width=4)", tuple(f"class {n}" for n in range(7)), (32, 32), 3, "rgb")
    return {"grey": LocalModel("grey", grey, settings), "colour": LocalModel("colour", colour, settings)}


@pytest.fixture(scope="session")
def server(models: dict[str, LocalModel]) -> Iterator[Server]:
    """A real server of both models on a free loopback port, without keys."""
    with Server(apps(models, ServeSettings())) as running:
        yield running
