"""Measures the limit of batch prediction on these cores: pictures in memory are decoded and classified, nothing else.

There is no Ray, no shard and no output. The bundle's network is called directly, in batches of the fastest size.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.measuring import Run
from library.bundle.bundle import Bundle
from library.work.classifying import Prefetcher

_SIZES = (1, 2, 4, 8, 16, 32, 64)
_CHUNK = 128
_READY_S = 600


def limit(bundle: Path, photos: Sequence[Path], distinct: int, processes: int, threads: int) -> Run:
    """Measures once, from the moment when all processes are ready and have chosen their batch size.

    Args:
        bundle: folder of the classifier, a single network.
        photos: files; photo `i` is the same as photo `i % distinct`.
        distinct: number of different photos, which are read into memory.
        processes: number of processes.
        threads: threads of PyTorch in each process; if more than one, as many threads decode ahead of the network.
    """
    context = multiprocessing.get_context("spawn")
    ready, sizes = context.Barrier(processes + 1), context.Queue()
    chunk = _CHUNK if processes > 1 else len(photos)
    chunks = [range(first, min(first + chunk, len(photos))) for first in range(0, len(photos), chunk)]
    arguments = (ready, sizes, bundle, photos[:distinct], threads)
    with context.Pool(processes, _start, arguments) as pool:
        ready.wait(timeout=_READY_S)
        start = time.perf_counter()
        done = sum(pool.imap_unordered(_predict, chunks))
        seconds = time.perf_counter() - start
    return Run(done, seconds, {"batch_size": sorted(sizes.get() for _ in range(processes))})


# -- in the pool's processes, set by `_start` --------------------------------------------------------------------------

_bytes: list[bytes] = []
_state: dict[str, Any] = {}


def _start(ready: Any, sizes: Any, bundle: Path, photos: Sequence[Path], threads: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(threads)
    _bytes.extend(path.read_bytes() for path in photos)
    loaded = Bundle.load(str(bundle), "cpu")
    _state.update(bundle=loaded, threads=threads)
    _state["size"] = _best_size([loaded.prepare(data) for data in _bytes[: _SIZES[-1]]])
    sizes.put(_state["size"])
    ready.wait(timeout=_READY_S)


def _best_size(pictures: Sequence[Any]) -> int:
    """Returns the batch size with the least time per picture, the better of two runs each."""
    pictures = (list(pictures) * _SIZES[-1])[: _SIZES[-1]]
    spent: dict[int, float] = {}
    for size in _SIZES:
        for _ in range(3):  # the first run also allocates memory
            start = time.perf_counter()
            _compute(pictures[:size])
            spent[size] = min(spent.get(size, np.inf), (time.perf_counter() - start) / size)
    return min(spent, key=lambda size: spent[size])


def _predict(chunk: range) -> int:
    size, bundle = _state["size"], _state["bundle"]
    batches = (chunk[first : first + size] for first in range(0, len(chunk), size))
    prepared = Prefetcher(_state["threads"])(batches, lambda number: bundle.prepare(_bytes[number % len(_bytes)]))
    return sum(len(_compute(pictures)) for pictures in prepared)


def _compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return torch.softmax(_state["bundle"].network.model(batch), 1).numpy()
