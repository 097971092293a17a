"""Small real classifiers, and their HTTP applications in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from library.bundle.bundle import Bundle
from serve.settings import ServeSettings
from tests.bundles import make_bundle
from tests.serving import LocalModel, Server, apps


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    """`grey` (a LeNet on greyscale pictures that drops tiny ones) and `colour` (a narrow ResNet)."""
    torch.set_num_threads(1)
    root, settings = tmp_path_factory.mktemp("bundles"), ServeSettings()
    grey = make_bundle(root / "grey", classes=("ant", "bee", "cat"), steps="min_size(short_side=4) | grayscale | rgb")
    names = tuple(f"class {number}" for number in range(7))
    colour = make_bundle(root / "colour", classes=names, steps="rgb", model="resnet9(width=4)", size=32)
    bundles = {"grey": Bundle.load(grey, "cpu"), "colour": Bundle.load(colour, "cpu")}
    return {name: LocalModel(name, bundle, settings) for name, bundle in bundles.items()}


@pytest.fixture(scope="session")
def server(models: dict[str, LocalModel]) -> Iterator[Server]:
    """A real server of both models on a free loopback port, without keys."""
    with Server(apps(models, ServeSettings())) as running:
        yield running
