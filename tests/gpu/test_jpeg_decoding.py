"""JPEGs decoded on a GPU: near the CPU's pixels, and a training that records the difference."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.common.datasets import write_dataset
from library.bundle.description import load_record
from library.errors import BadPicture
from library.imaging import codec, cuda_jpeg
from tests.gpu.test_whole_commands import striate
from tests.picture_examples import encoded, orientation_exif, pil_bytes, scene

pytestmark = pytest.mark.gpu

pytest.importorskip("torchcodec", reason="needs TorchCodec: pip install 'torchcodec>=0.16'")

#: nvJPEG and libjpeg round differently, and scale up colours differently.
_MEAN_TOLERANCE = 3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpus_pixels_are_near_the_cpus(device: torch.device, channels: int) -> None:
    for size in ((37, 50), (480, 640)):
        data = codec.encode(scene(*size, channels), codec.Encoding("jpeg", 90))[0]
        ours, theirs = codec.decode(data), cuda_jpeg.decode(data, device=str(device))
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs.astype(int)).mean() <= _MEAN_TOLERANCE


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_gpu_turns_a_photo_upright_once(device: torch.device, orientation: int) -> None:
    exif = orientation_exif(orientation)
    data = pil_bytes(Image.fromarray(scene(48, 64)), "jpeg", quality=95, exif=exif)
    ours, theirs = codec.decode(data), cuda_jpeg.decode(data, device=str(device))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).mean() <= _MEAN_TOLERANCE


def test_threads_get_their_own_pictures(device: torch.device, photos: list[bytes]) -> None:
    expected = [cuda_jpeg.decode(data, device=str(device)) for data in photos]
    with ThreadPoolExecutor(4) as pool:
        decoded = pool.map(lambda data: cuda_jpeg.decode(data, device=str(device)), photos * 4)
        for one, other in zip(expected * 4, decoded, strict=True):
            assert np.array_equal(one, other)


def test_a_file_without_pixels_is_a_bad_picture(device: torch.device) -> None:
    data = encoded("jpeg")
    with pytest.raises(BadPicture):
        cuda_jpeg.decode(data[: data.index(b"\xff\xda") + 4], device=str(device))


def test_a_training_records_how_much_its_decoder_differs(cuda: torch.device, tmp_path: Path) -> None:
    pictures = [(encoded("jpeg", 32 + number % 9, 40), f"class-{number % 2}") for number in range(40)]
    write_dataset(pictures, tmp_path / "data", 80, 1, "made by a test")
    recipe = {
        "data": {"train": str(tmp_path / "data")},
        "input": {"steps": "rgb", "decode": "cuda"},
        "model": "lenet5(in_chans=3)",
        "optimizer": {"name": "sgd", "lr": 0.05},
        "batch_size": 16,
        "epochs": 2,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    striate("train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "bundle"), "--gpu")
    decoder = load_record(str(tmp_path / "bundle")).decoder
    assert decoder is not None
    assert decoder.pictures == 80
    assert decoder.library.startswith("torchcodec ")
