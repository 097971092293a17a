"""Process pools without Ray and Striate: the limit of these cores, and plain Pillow.

Time is taken from the moment when all processes have imported their modules to the last picture. Chunks are so large
that the pool itself costs nothing.
"""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import simplejpeg
from PIL import Image, ImageFilter

from benchmarks.common.measuring import Run, fresh_folder
from benchmarks.common.striate_runs import QUALITY, SIGMA
from benchmarks.filter.contestant import Setup

_CHUNK = 25


def limit_memory(setup: Setup) -> Run:
    """Measures codec and filter alone, from bytes in memory to bytes in memory."""
    return _pooled(setup, _blur_in_memory, None)


def limit_files(setup: Setup) -> Run:
    """Measures the same from files to files."""
    return _pooled(setup, _blur_files, setup.work / "limit")


def pillow_files(setup: Setup) -> Run:
    """Measures what one would usually write: Pillow in a pool, files to files."""
    return _pooled(setup, _pillow_files, setup.work / "pillow")


def blurred(data: bytes) -> bytes:
    """Returns what the limit makes of one JPEG: decoded, blurred and encoded; grey stays grey."""
    grey = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
    colours = "GRAY" if grey else "RGB"
    pixels = cv2.GaussianBlur(simplejpeg.decode_jpeg(data, colours), (0, 0), SIGMA)
    if grey:
        pixels = pixels[:, :, None]
    return simplejpeg.encode_jpeg(pixels, QUALITY, colours, "Gray" if grey else "420")


def _pooled(setup: Setup, work: Callable[[range], int], out: Path | None) -> Run:
    photos = setup.photos
    # Not forked, because this process has threads of Ray.
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(setup.cores + 1)
    chunks = [range(i, min(i + _CHUNK, len(photos.names))) for i in range(0, len(photos.names), _CHUNK)]
    in_memory = photos.distinct if out is None else 0
    with (
        fresh_folder(out or setup.work / "nothing"),
        context.Pool(setup.cores, _start, (ready, photos.paths, out, in_memory)) as pool,
    ):
        ready.wait(timeout=120)
        start = time.perf_counter()
        done = sum(pool.imap_unordered(work, chunks))
        seconds = time.perf_counter() - start
    return Run(done, seconds)


# -- in the pool's processes, set by `_start` ------------------------------------------------------------------

_paths: Sequence[Path] = ()
_out = Path()
_bytes: list[bytes] = []


def _start(ready: Any, paths: Sequence[Path], out: Path | None, in_memory: int) -> None:
    global _paths, _out
    cv2.setNumThreads(1)
    _paths, _out = paths, out or Path()
    _bytes.extend(path.read_bytes() for path in paths[:in_memory])
    blurred(paths[0].read_bytes())
    ready.wait(timeout=120)


def _blur_in_memory(chunk: range) -> int:
    for number in chunk:
        blurred(_bytes[number % len(_bytes)])
    return len(chunk)


def _blur_files(chunk: range) -> int:
    for number in chunk:
        path = _paths[number]
        (_out / path.name).write_bytes(blurred(path.read_bytes()))
    return len(chunk)


def _pillow_files(chunk: range) -> int:
    for number in chunk:
        path = _paths[number]
        encoded = io.BytesIO()
        with Image.open(path) as image:
            image.filter(ImageFilter.GaussianBlur(SIGMA)).save(encoded, "jpeg", quality=QUALITY)
        (_out / path.name).write_bytes(encoded.getvalue())
    return len(chunk)
