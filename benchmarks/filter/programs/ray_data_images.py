"""What Ray Data's documentation leads one to: read_images, map with Pillow, write_images.

Run by benchmarks/filter/filter_throughput.py, which wants its last line. By itself:

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
    ray.get([ray.remote(nothing).remote() for _ in range(int(cores))])  # the worker processes are up, as for ours
    started = time.perf_counter()
    # Grey photos among colour ones fail without `mode`: a block that holds both gives arrays Pillow cannot take.
    photos = ray.data.read_images(folder, include_paths=True, mode="RGB")
    # write_images takes no quality: Pillow's default of 75 it is, a little cheaper than the others' 90.
    photos.map(blur).write_images(out, column="image", file_format="jpeg")
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "ray_init_s": started - start, "version": ray.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
