"""Datasets for searches whose answer is known: digits with noise, low contrast, or as they are, and vertical edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.datasets import write_dataset
from library.errors import StriateError
from library.imaging import codec
from library.sources import Options, list_source, read_pictures

Pictures: TypeAlias = NDArray[np.uint8]
#: Pictures, N x height x width x channels, and their labels.
Labelled: TypeAlias = tuple[Pictures, list[str]]

SPLITS = ("train", "val", "test")


def digits(mnist: Path, sizes: Mapping[str, int], seed: int) -> dict[str, Labelled]:
    """Returns digits of MNIST for each split, drawn without repetition; those of `test` are test digits.

    Args:
        mnist: folder of the four files.
        sizes: pictures of each split.
        seed: of the draw.
    """
    listing = list_source(str(mnist), Options())
    splits = np.array(listing.index["split"].to_pylist())
    rng = np.random.default_rng(seed)
    train, test = (rng.permutation(np.flatnonzero(splits == name)) for name in ("train", "test"))
    rows = {"train": train[: sizes["train"]], "val": train[sizes["train"] :][: sizes["val"]]}
    rows["test"] = test[: sizes.get("test", 0)]
    drawn: dict[str, Labelled] = {}
    for name, chosen in rows.items():
        table = listing.index.take(np.sort(chosen))
        pixels: dict[int, Pictures] = {}
        for read in read_pictures(listing.kind, table, listing.gzip_indexes, Options()):
            if read.data is None:
                raise StriateError(f"{mnist}: a digit cannot be read")
            pixels[read.row] = codec.decode(read.data)
        labels = table["label"].to_pylist()
        drawn[name] = np.stack([pixels[row] for row in range(len(labels))]) if labels else np.zeros(0, np.uint8), labels
    return drawn


def salt_and_pepper(pictures: Pictures, rng: np.random.Generator, share: float = 0.3) -> Pictures:
    """Makes a share of the pixels black or white, half of them each."""
    drawn = rng.random(pictures.shape)
    noisy = pictures.copy()
    noisy[drawn < share / 2], noisy[drawn > 1 - share / 2] = 0, 255
    return noisy


def low_contrast(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Squeezes each picture into 8 to 40 of the 255 levels, somewhere between black and white."""
    span = rng.uniform(8, 40, (len(pictures), 1, 1, 1))
    low = rng.uniform(0, 255 - span)
    return np.rint(low + pictures / 255 * span).astype(np.uint8)


def vertical_edges(count: int, rng: np.random.Generator, side: int = 28) -> Labelled:
    """Returns pictures whose label is the third of the picture with a faint vertical edge, below strong horizontal
    stripes and noise."""
    rows = rng.uniform(40, 215, (count, side, 1))
    pictures = np.repeat(rows, side, axis=2)
    places = rng.integers(0, 3, count)
    for number, place in enumerate(places.tolist()):
        column = int(rng.integers(place * side // 3 + 2, (place + 1) * side // 3 - 1))
        pictures[number, :, column:] += 12 * rng.choice([-1.0, 1.0])
    pictures += rng.normal(0, 4, pictures.shape)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)[..., None], [f"third-{place}" for place in places]


def photos(tar: Path, most_px: int, seed: int) -> dict[str, tuple[list[bytes], list[str]]]:
    """Returns photos of an archive in three splits of 60, 25 and 15%, made smaller: JPEG with quality 95."""
    listing = list_source(str(tar), Options())
    encoded: dict[int, bytes] = {}
    for read in read_pictures(listing.kind, listing.index, listing.gzip_indexes, Options()):
        if read.data is None:
            continue
        pixels = codec.decode(read.data)
        scale = most_px / max(pixels.shape[:2])
        if scale < 1:
            size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
        encoded[read.row] = codec.encode(pixels, codec.Encoding("jpeg", 95))[0]
    labels = listing.index["label"].to_pylist()
    order = np.random.default_rng(seed).permutation(sorted(encoded))
    ends = [0, int(0.6 * len(order)), int(0.85 * len(order)), len(order)]
    chosen = {name: order[ends[number] : ends[number + 1]].tolist() for number, name in enumerate(SPLITS)}
    return {name: ([encoded[row] for row in rows], [labels[row] for row in rows]) for name, rows in chosen.items()}


def write_splits(folder: Path, splits: Mapping[str, Labelled], change: Callable[[Pictures], Pictures]) -> None:
    """Writes a dataset for each split that has pictures, with all pictures changed; existing ones stay."""
    for name, (pictures, labels) in splits.items():
        if len(labels) and not (folder / name / "_manifest.json").exists():
            encoded = [codec.encode(pixels, codec.Encoding("png"))[0] for pixels in change(pictures)]
            write_dataset(list(zip(encoded, labels, strict=True)), folder / name, len(labels), 16, "search_data")
