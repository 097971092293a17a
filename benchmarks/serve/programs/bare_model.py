"""Classifies encoded pictures with a bundle in a loop, without a server: the upper limit of the cores.

serve_throughput.py runs it. It prints `{"ready": ...}`, and answers each line `{"batch": 8, "seconds": 2}` with the
number of pictures and the seconds that they took.

    python -m benchmarks.serve.programs.bare_model BUNDLE FOLDER_OF_JPEGS RUNTIME THREADS
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import torch

from library.bundle.bundle import Bundle
from library.runtimes.runtime import Runtime, open_runtime


def main(uri: str, folder: str, name: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    cv2.setNumThreads(1)
    bundle = Bundle.load(uri, "cpu")
    runtime = open_runtime(bundle, name, threads=int(threads))
    pictures = cycle([path.read_bytes() for path in sorted(Path(folder).iterdir())])
    _say({"ready": runtime.described()})
    with ThreadPoolExecutor(int(threads)) as pool:
        for line in sys.stdin:
            request = json.loads(line)
            _say(_measure(bundle, runtime, pictures, pool, request["batch"], request["seconds"], int(threads)))


def _measure(
    bundle: Bundle,
    runtime: Runtime,
    pictures: Any,
    pool: ThreadPoolExecutor,
    size: int,
    seconds: float,
    threads: int,
) -> dict[str, Any]:
    def batch() -> None:
        data = list(islice(pictures, size))
        # No pool for one thread: passing a small picture to it costs more than decoding.
        prepared = pool.map(bundle.prepare, data) if threads > 1 else map(bundle.prepare, data)
        bundle.ranked(runtime.probabilities(list(prepared)))

    batch()
    pictures_done, start = 0, perf_counter()
    while (spent := perf_counter() - start) < seconds:
        batch()
        pictures_done += size
    return {"pictures": pictures_done, "seconds": spent}


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
