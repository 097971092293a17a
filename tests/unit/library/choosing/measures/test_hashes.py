import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from library.choosing.measures.hashes import dhash, dhashes, distance, phash, phashes
from library.imaging import codec
from library.imaging.picture import Pixels

One = Callable[..., int]
Many = Callable[[Iterable[Pixels]], NDArray[np.uint64]]
Theirs = Callable[[Image.Image], Any]
HASHES = [(phash, phashes, imagehash.phash), (dhash, dhashes, imagehash.dhash)]


def soft_noise(seed: int, height: int = 333, width: int = 500) -> Pixels:
    """Random soft shapes in colour: like a photo, it has most of its energy at low frequencies."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize(("one", "many", "theirs"), HASHES)
def test_hashes_agree_with_imagehash_within_a_few_bits(one: One, many: Many, theirs: Theirs) -> None:
    sizes = [(333, 500), (500, 333), (64, 64), (9, 9), (20, 300), (1200, 90)]
    pictures = [soft_noise(seed, *sizes[seed % len(sizes)]) for seed in range(60)]
    expected = [int(str(theirs(Image.fromarray(picture))), 16) for picture in pictures]
    bits = [distance(mine, other) for mine, other in zip(many(pictures), expected, strict=True)]
    assert max(bits) <= 6
    assert np.mean(bits) < 1
    assert many(pictures).tolist() == [one(picture) for picture in pictures]


@pytest.mark.parametrize(("one", "many", "theirs"), HASHES)
def test_hashes_of_real_photos_agree_with_imagehash(one: One, many: Many, theirs: Theirs, shared_data: Path) -> None:
    with tarfile.open(shared_data / "photos-500.tar") as tar:
        files = [tar.extractfile(member) for member in tar.getmembers()[:60] if member.isfile()]
        pictures = [codec.decode(file.read()) for file in files if file is not None]
    bits = Counter(distance(one(p), int(str(theirs(Image.fromarray(p.squeeze()))), 16)) for p in pictures)
    assert max(bits) <= 6
    assert bits[0] > len(pictures) / 2


@pytest.mark.parametrize("one", [phash, dhash])
def test_a_hash_survives_resizing_and_is_another_for_other_pictures(one: One) -> None:
    for seed in range(10):
        picture = soft_noise(seed)
        smaller = np.asarray(cv2.resize(picture, (250, 167), interpolation=cv2.INTER_AREA))
        assert distance(one(picture), one(smaller)) <= 4
        assert distance(one(picture), one(soft_noise(seed + 100))) > 12


@pytest.mark.parametrize("one", [phash, dhash])
def test_the_flipped_hash_is_that_of_the_mirrored_picture(one: One) -> None:
    for seed in range(10):
        picture = soft_noise(seed, 96, 128)
        mirrored = np.ascontiguousarray(picture[:, ::-1])
        assert distance(one(picture, flipped=True), one(mirrored)) <= 2
        assert distance(one(picture), one(mirrored)) > 8


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_a_hash_does_not_depend_on_the_dtype(dtype: str, channels: int) -> None:
    grey = soft_noise(3)[:, :, :1].repeat(channels, axis=2)
    if channels in (2, 4):
        grey[:, :, -1] = 255
    other = grey.astype(np.uint16) * 257 if dtype == "uint16" else (grey / 255).astype(np.float32)
    assert distance(phash(grey), phash(other)) == distance(dhash(grey), dhash(other)) == 0


def test_flat_and_not_finite_pictures_have_hashes() -> None:
    flat = np.full((40, 50, 3), 77, np.uint8)
    assert dhash(flat) == 0
    assert phash(flat) == 1 << 63
    broken = np.full((40, 50, 1), np.nan, np.float32)
    assert dhash(broken) == 0
    assert phash(np.zeros((1, 1, 1), np.uint8)) == 0
