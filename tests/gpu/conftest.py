"""Tests of what can only fail on a GPU: `make test-gpu`. Where there is no CUDA they are skipped.

A test's body can be tried out without a GPU:

    python -m pytest -m gpu tests/gpu --device cpu

It then runs on the CPU, which shows that the test itself works and says nothing about CUDA. Tests that take the fixture
`cuda` are still skipped, because the CPU has nothing like what they are about.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from library.bundle.bundle import Bundle
from library.imaging import codec
from library.pipeline.inputs import Prepared
from tests.bundles import make_bundle
from tests.picture_examples import scene

#: Largest difference of a probability between a float32 network on CUDA, whose convolutions cuDNN computes in TF32
#: (11 bits of precision) by default, and the same on a CPU.
TF32_TOLERANCE = 5e-3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: try the bodies of the tests out without a GPU"
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tests compute: the first GPU."""
    chosen = torch.device(request.config.getoption("--device", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch.cuda.is_available() is False")
    return chosen


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The first GPU, for tests whose body has no meaning on a CPU."""
    if device.type != "cuda":
        pytest.skip("is about CUDA alone, so it is not tried out on a CPU")
    return device


@pytest.fixture(autouse=True)
def free_memory() -> Iterator[None]:
    """Returns the memory of a test to the GPU, so that the next one can measure what is free."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Twelve JPEGs of different sizes."""
    encoding = codec.Encoding("jpeg", 90)
    return [codec.encode(scene(40 + 3 * number, 64), encoding)[0] for number in range(12)]


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ResNet-9 with random weights, which a GPU computes in bf16."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "resnet", model="resnet9(width=16)", size=32)


@pytest.fixture
def bundle(bundle_uri: str, device: torch.device) -> Bundle:
    """That bundle on the device."""
    return Bundle.load(bundle_uri, str(device))


@pytest.fixture
def prepared(bundle: Bundle, photos: list[bytes]) -> list[Prepared]:
    """The photos as the bundle takes them."""
    return [bundle.prepare(data) for data in photos]
