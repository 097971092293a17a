"""Measures perceptual hashes of JPEGs that are decoded at 1/2, 1/4 or 1/8 of their size: the bits and the time.

libjpeg decodes at these sizes for less work. For each photo the hashes of the smaller picture are compared with those
of the whole one, and the processor time of decoding and hashing with that of the whole picture. `fit` takes the
smallest size with at least 96 pixels at both sides, three times what phash needs. Beside the photos, the same photos
enlarged to 12 megapixels, as a camera's are. The digest of the pixels, which `striate dedup` compares too, needs all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks.common.command_line import add_photos, at_least, make_parser, run_benchmark, work_folder
from benchmarks.common.photo_files import make_photos
from benchmarks.common.report import print_table
from library.choosing.duplicates.neighbours import distances
from library.choosing.measures import hashes
from library.imaging import codec

_FACTORS = {"1/2": 2, "1/4": 4, "1/8": 8, "fit": 8}
_FIT_PX = 96
_CAMERA_PIXELS = 12_000_000


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--photos 50 --large 4 --rounds 1 --out /tmp/results")
    add_photos(parser, 0.1)
    parser.add_argument("--photos", type=at_least(1), default=500, help="photos (500)")
    parser.add_argument("--large", type=at_least(1), default=40, help="of which this many are enlarged, too (40)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="rounds, each with all sizes (3)")
    return run_benchmark(__file__, parser, _measure, _show, machine_facts=lambda _: {"cores_used": 1})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cv2.setNumThreads(1)
    with work_folder(options.work) as work:
        photos = make_photos(options.tar, work / "photos", options.photos)
        data = [path.read_bytes() for path in photos.paths]
    data = [one for one in data if _is_plain(one)]
    sets = {"photos": data, "12 megapixels": [_enlarged(one) for one in data[: options.large]]}
    return {
        "parameters": {"photos": dict(photos.facts), "large": options.large, "rounds": options.rounds},
        "sets": {name: _compared(some, options.rounds) for name, some in sets.items()},
    }


def _is_plain(data: bytes) -> bool:
    """Whether it is a JPEG of grey or RGB pixels that lie as they are stored: no orientation turns them."""
    if not data.startswith(b"\xff\xd8") or simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
        return False
    colours = "GRAY" if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else "RGB"
    return np.array_equal(codec.decode(data), simplejpeg.decode_jpeg(data, colours))


def _enlarged(data: bytes) -> bytes:
    pixels = codec.decode(data)
    factor = math.sqrt(_CAMERA_PIXELS / (pixels.shape[0] * pixels.shape[1]))
    large = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return codec.encode(large.reshape(*large.shape[:2], -1), codec.Encoding("jpeg", 90))[0]


def _compared(data: Sequence[bytes], rounds: int) -> dict[str, Any]:
    names = ["whole", *_FACTORS]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, list[tuple[int, int]]] = {}
    for _ in range(rounds):
        for name in names:
            start = time.process_time()
            found[name] = [_hashes(one, name) for one in data]
            seconds[name].append(time.process_time() - start)
    whole = np.array(found["whole"], np.uint64).T
    sizes: dict[str, Any] = {}
    for name in names:
        bits = [distances(one, other) for one, other in zip(whole, np.array(found[name], np.uint64).T, strict=True)]
        sizes[name] = {
            "pictures_per_s": round(len(data) / min(seconds[name]), 1),
            **{
                f"{kind}_bits": {
                    "none": round(float((part == 0).mean()), 4),
                    "most": int(part.max()),
                    "more_than_2": int((part > 2).sum()),
                }
                for kind, part in zip(("phash", "dhash"), bits, strict=True)
            },
        }
    return {"pictures": len(data), "sizes": sizes}


def _hashes(data: bytes, name: str) -> tuple[int, int]:
    if name == "whole":
        pixels = codec.decode(data)
    else:
        header: tuple[Any, ...] = simplejpeg.decode_jpeg_header(data)
        height, width, colours, _ = header
        factor = _FACTORS[name]
        while name == "fit" and factor > 1 and min(height, width) < _FIT_PX * factor:
            factor //= 2
        pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if colours == "Gray" else "RGB",
            min_height=math.ceil(height / factor),
            min_width=math.ceil(width / factor),
        )
    small = hashes.reduced(pixels)
    phash = hashes.phash_bits(np.stack([hashes.phash_cells(small)]))
    dhash = hashes.dhash_bits(np.stack([hashes.dhash_cells(small)]))
    return int(phash[0]), int(dhash[0])


def _show(result: Mapping[str, Any]) -> None:
    columns = (
        "size",
        "pictures/s",
        "pHash equal",
        "most bits",
        "more than 2",
        "dHash equal",
        "most bits",
        "more than 2",
    )
    for name, facts in result["sets"].items():
        rows: list[list[Any]] = []
        for size, one in facts["sizes"].items():
            bits = [one[f"{kind}_bits"] for kind in ("phash", "dhash")]
            cells = [cell for part in bits for cell in (f"{part['none']:.1%}", part["most"], part["more_than_2"])]
            rows.append([size, one["pictures_per_s"], *cells])
        print_table(f"{name}: {facts['pictures']:,} pictures", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
