"""Decoding JPEGs with TorchCodec: refusals without a GPU or the package, and its pixels where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from library.errors import BadPicture, UsageError
from library.imaging import codec, cuda_jpeg
from tests.picture_examples import encoded, orientation_exif, pil_bytes, scene

needs_torchcodec = pytest.mark.skipif(importlib.util.find_spec("torchcodec") is None, reason="TorchCodec is missing")
#: Decoders of JPEG round differently.
PIXEL_TOLERANCE = 8


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Lets each test look for the package and the GPU anew."""
    cuda_jpeg._decode_jpeg.cache_clear()
    yield
    cuda_jpeg._decode_jpeg.cache_clear()


def set_installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    found: Any = None if version is None else object()
    monkeypatch.setattr(cuda_jpeg, "find_spec", lambda name: found)
    monkeypatch.setattr(cuda_jpeg, "version", lambda name: version)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    set_installed(monkeypatch, None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'torchcodec>=0.16', or set input.decode: cpu"):
        cuda_jpeg.decode(encoded("jpeg"))


@pytest.mark.parametrize(("version", "accepted"), [("0.9.1", False), ("0.15", False), ("0.16.0", True), ("1.0", True)])
def test_a_version_that_decodes_no_pictures_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    set_installed(monkeypatch, version)
    if accepted:
        cuda_jpeg.check_installed()
    else:
        with pytest.raises(UsageError, match=f"needs a newer TorchCodec than {version}"):
            cuda_jpeg.check_installed()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_installed(monkeypatch, "0.17.0")
    with pytest.raises(UsageError, match=r"needs a CUDA device, and this machine has none; set input.decode: cpu"):
        cuda_jpeg.decode(encoded("jpeg"))


def test_other_formats_and_damage_are_the_cpus_matter() -> None:
    png = encoded("png")
    assert np.array_equal(cuda_jpeg.decode(png), codec.decode(png))
    with pytest.raises(BadPicture, match="starts with"):
        cuda_jpeg.decode(b"no picture")
    with pytest.raises(BadPicture, match="768 pixels; the limit is 10"):
        cuda_jpeg.decode(encoded("jpeg"), codec.Limits(max_pixels=10))


@needs_torchcodec
@pytest.mark.parametrize("channels", [1, 3])
def test_its_pixels_are_near_the_cpus(channels: int) -> None:
    data = codec.encode(scene(37, 50, channels), codec.Encoding("jpeg", 90))[0]
    ours, theirs = codec.decode(data), cuda_jpeg.decode(data, device="cpu")
    assert ours.shape == theirs.shape == (37, 50, channels)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= PIXEL_TOLERANCE


@needs_torchcodec
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_once(orientation: int) -> None:
    exif = orientation_exif(orientation)
    data = pil_bytes(Image.fromarray(scene(37, 50)), "jpeg", quality=95, exif=exif)
    ours, theirs = codec.decode(data), cuda_jpeg.decode(data, device="cpu")
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= PIXEL_TOLERANCE


@needs_torchcodec
def test_a_picture_that_torchcodec_cannot_decode_is_a_bad_picture() -> None:
    data = encoded("jpeg")
    start = data.index(b"\xff\xda") + 4
    with pytest.raises(BadPicture):
        cuda_jpeg.decode(data[:start], device="cpu")
