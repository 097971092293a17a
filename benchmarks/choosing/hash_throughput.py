"""Measures how many photos one core decodes, and how many it decodes and hashes, per second of processor time.

The goal: with both perceptual hashes of a photo and of its mirror image, at least 0.8 of the speed of decoding alone.
Beside it the imagehash package on the same decoded photos, and all scores and digests of `striate measure`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.common.command_line import add_photos, at_least, make_parser, run_benchmark, work_folder
from benchmarks.common.photo_files import make_photos
from benchmarks.common.report import goal, print_goals, print_table
from library.choosing.measures import hashes
from library.choosing.measures.measuring import DEFAULT, measure_rows
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.imaging import codec
from library.imaging.picture import Pixels

_BATCH = 64
_GOAL = 0.8


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--photos 64 --rounds 1 --out /tmp/results")
    add_photos(parser, 0.1)
    parser.add_argument("--photos", type=at_least(1), default=500, help="photos (500)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="rounds, each with all contestants (5)")
    return run_benchmark(__file__, parser, _measure, _show, machine_facts=lambda _: {"cores_used": 1})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    with work_folder(options.work) as work:
        photos = make_photos(options.tar, work / "photos", options.photos)
        data = [path.read_bytes() for path in photos.paths]
    contestants: dict[str, Callable[[], object]] = {
        "decode": lambda: [codec.decode(one) for one in data],
        "decode and hash": lambda: _hashed(data),
        "decode and imagehash": lambda: [_by_imagehash(codec.decode(one)) for one in data],
        "striate measure": lambda: _measured(data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, work_of in contestants.items():
            start = time.process_time()
            work_of()
            seconds[name].append(time.process_time() - start)
    pairs = zip(seconds["decode"], seconds["decode and hash"], strict=True)
    return {
        "parameters": {"photos": dict(photos.facts), "rounds": options.rounds},
        "photos_per_s": {name: round(len(data) / min(values), 1) for name, values in seconds.items()},
        "goals": [goal("decode and hash / decode", [one / other for one, other in pairs], at_least=_GOAL)],
    }


def _hashed(data: list[bytes]) -> None:
    for first in range(0, len(data), _BATCH):
        reduced = [hashes.reduced(codec.decode(one)) for one in data[first : first + _BATCH]]
        for cells, bits in ((hashes.phash_cells, hashes.phash_bits), (hashes.dhash_cells, hashes.dhash_bits)):
            stack = np.stack([cells(one) for one in reduced])
            for flipped in (False, True):
                bits(stack, flipped=flipped)


def _by_imagehash(pixels: Pixels) -> None:
    image = Image.fromarray(pixels.squeeze())
    imagehash.phash(image)
    imagehash.dhash(image)


def _measured(data: list[bytes]) -> None:
    records = [ImageRecord(str(number), one, header=codec.probe(one)) for number, one in enumerate(data)]
    for first in range(0, len(records), _BATCH):
        measure_rows(table_of(records[first : first + _BATCH], dataset_schema()), DEFAULT)


def _show(result: Mapping[str, Any]) -> None:
    rates = result["photos_per_s"]
    rows = [[name, rate, f"{rate / rates['decode']:.2f}"] for name, rate in rates.items()]
    print_table("photos per second of one core", ["what", "photos/s", "of decoding"], rows)
    print_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(main())
