"""Daft: decode, resize to 256x256, encode as JPEG, from Parquet to Parquet. Daft has no blur.

Run by benchmarks/filter/filter_throughput.py, which wants its last line, with a Python that has `daft`. By itself:

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
    # Daft 0.7.26 on a busy machine sometimes dies while the interpreter ends, with everything written.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
