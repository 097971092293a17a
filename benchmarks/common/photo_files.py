"""The input of the benchmarks: a folder of numbered JPEG files."""

from __future__ import annotations

import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks import REPOSITORY
from library.errors import UsageError

#: Outside the repository, in a folder beside the checkout.
DEFAULT_TAR = REPOSITORY.parent / "shared" / "data" / "photos-500.tar"

_SYNTHETIC = 500
_WIDTH, _HEIGHT = 500, 375
# Space for the files, the dataset and the largest output (of the selectors), in multiples of the input.
_DISK_FACTOR = 3.3


@dataclass(frozen=True)
class PhotoSet:
    """Photos on disk.

    Attributes:
        folder: holds only these photos.
        names: of all files; file `i` holds the same bytes as file `i % distinct`.
        distinct: number of different photos.
        source: path of the tar, or a description of synthetic photos.
        facts: sizes and counts, for the result.
    """

    folder: Path
    names: tuple[str, ...]
    distinct: int
    source: str
    facts: dict[str, Any]

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.names]


def make_photos(tar: Path | None, folder: Path, count: int) -> PhotoSet:
    """Writes `count` files into `folder`, which repeat the photos of `tar` as often as needed.

    Args:
        tar: None takes ../shared/data/photos-500.tar if it exists, else synthetic photos.
        folder: is created; it must not exist.
        count: number of files to write.

    Raises:
        UsageError: if the tar is missing or holds no JPEG, or the disk has too little space for the whole benchmark.
    """
    if tar is not None and not tar.is_file():
        raise UsageError(f"--tar {tar}: no such file; without --tar, {DEFAULT_TAR} or synthetic photos are used")
    path = tar or DEFAULT_TAR
    photos, source = (_photos_in(path), str(path)) if path.is_file() else (_synthetic(), "synthetic, smooth with noise")
    photos = photos[:count]
    sizes = [len(photos[i % len(photos)]) for i in range(count)]
    folder.mkdir(parents=True)
    _check_disk(folder, sum(sizes))
    names = tuple(f"{number:06d}.jpg" for number in range(count))
    for number, name in enumerate(names):
        (folder / name).write_bytes(photos[number % len(photos)])
    os.sync()
    headers = [simplejpeg.decode_jpeg_header(photo) for photo in photos]
    pixels = [int(height) * int(width) for height, width, *_ in headers]
    facts = {
        "photos": count,
        "distinct": len(photos),
        "mean_bytes": round(sum(sizes) / count),
        "mean_pixels": round(float(np.mean(pixels))),
        "median_pixels": round(float(np.median(pixels))),
        "largest_pixels": max(pixels),
        "grey": sum(colours == "Gray" for _, _, colours, _ in headers),
    }
    return PhotoSet(folder, names, len(photos), source, facts)


def _check_disk(folder: Path, input_bytes: int) -> None:
    needed, free = input_bytes * _DISK_FACTOR, shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"{folder} has {free / 1e9:.1f} GB free, but this run needs {needed / 1e9:.1f} GB; "
            "choose another folder with --work, or fewer photos"
        )


def _photos_in(tar: Path) -> list[bytes]:
    try:
        with tarfile.open(tar) as archive:
            members = [m for m in archive if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg"))]
            photos = [file.read() for member in members if (file := archive.extractfile(member)) is not None]
    except tarfile.TarError:
        raise UsageError(f"--tar {tar} is not a readable tar") from None
    if not photos:
        raise UsageError(f"--tar {tar} holds no .jpg or .jpeg")
    return photos


def _synthetic() -> list[bytes]:
    """Returns smooth random colours with a little noise, about as hard to encode as photos, the same in every run."""
    photos: list[bytes] = []
    for seed in range(_SYNTHETIC):
        random = np.random.default_rng(seed)
        coarse = random.uniform(0, 255, (_HEIGHT // 25, _WIDTH // 25, 3)).astype(np.float32)
        smooth = np.asarray(cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC))
        noisy = smooth + random.normal(0, 6, smooth.shape)
        photos.append(simplejpeg.encode_jpeg(np.clip(noisy, 0, 255).astype(np.uint8), 92))
    return photos
