"""Blurs the pictures of a folder as Ray Data's documentation suggests: read_images, map with Pillow, write_images.

benchmarks/filter/filter_throughput.py runs it and reads the JSON in its last line. By hand:

    python benchmarks/filter/programs/ray_data_images.py FOLDER OUT CORES
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import numpy as np
import ray
from PIL import Image, ImageFilter


def blur(row: dict[str, Any]) -> dict[str, Any]:
    row["image"] = np.asarray(Image.fromarray(row["image"]).filter(ImageFilter.GaussianBlur(radius=2)))
    return row


def nothing() -> None:
    pass


def main(folder: str, out: str, cores: str) -> None:
    start = time.perf_counter()
    ray.init(num_cpus=int(cores), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.get([ray.remote(nothing).remote() for _ in range(int(cores))])  # starts the worker processes, as for Striate
    started = time.perf_counter()
    # Without `mode`, a block with grey and colour photos gives arrays that Pillow cannot read.
    photos = ray.data.read_images(folder, include_paths=True, mode="RGB")
    # write_images has no option for the quality: Pillow's default is 75, a little cheaper than the others' 90.
    photos.map(blur).write_images(out, column="image", file_format="jpeg")
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "ray_init_s": started - start, "version": ray.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
