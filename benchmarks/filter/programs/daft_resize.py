"""Resizes the pictures of a dataset to 256x256 with Daft, from Parquet to Parquet. Daft has no blur.

benchmarks/filter/filter_throughput.py runs it with a Python that has Daft and reads the JSON in its last line.
By hand:

    python benchmarks/filter/programs/daft_resize.py DATASET OUT
"""

from __future__ import annotations

import json
import os
import sys
import time

import daft  # pyright: ignore[reportMissingImports] -- has its own environment, see README.md
from daft import functions  # pyright: ignore[reportMissingImports]


def main(dataset: str, out: str) -> None:
    start = time.perf_counter()
    pictures = functions.decode_image(functions.get(daft.col("image"), "bytes"), mode="RGB")
    resized = functions.encode_image(functions.resize(pictures, 256, 256), "jpeg")
    daft.read_parquet(f"{dataset}/*.parquet").with_column("image", resized).write_parquet(out)
    print(json.dumps({"seconds": time.perf_counter() - start, "version": daft.__version__}), flush=True)
    # With Daft 0.7.26 the interpreter sometimes crashes at its end on a busy machine, after everything is written.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
