"""Measures how long `striate dedup --cosine` compares every pair of embeddings, with and without the bound.

The vectors stand for embeddings: CIFAR-10's pictures reduced to 16x16 pixels, 768 numbers without their mean, and the
same of the pictures mirrored and upside down. Every pair is compared; up to 30,000 vectors also without the bound that
a few coordinates give, and the groups must be equal.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.command_line import at_least, make_parser, run_benchmark, say
from benchmarks.common.report import print_table
from benchmarks.train.recipe_results import add_cifar10
from library.choosing.duplicates import similarity
from library.imaging import codec
from library.sources import Options, list_source, read_pictures

_SIDE = 16
_MOST_WHOLE = 30_000


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--sizes 5000 10000 --out /tmp/results")
    add_cifar10(parser)
    parser.add_argument(
        "--sizes", type=at_least(100), nargs="+", default=[30_000, 60_000, 180_000], help="numbers of vectors"
    )
    parser.add_argument("--cosine", type=float, default=0.98, help="threshold (0.98)")
    return run_benchmark(__file__, parser, _measure, _show)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    vectors = _vectors(str(options.cifar10), max(options.sizes))
    sizes = [_compared(vectors[:size], options.cosine) for size in sorted(options.sizes)]
    return {
        "parameters": {"cosine": options.cosine, "width": vectors.shape[1]},
        "sizes": sizes,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def _compared(vectors: NDArray[np.float32], threshold: float) -> dict[str, Any]:
    facts: dict[str, Any] = {"vectors": len(vectors), "pairs": len(vectors) * (len(vectors) - 1) // 2}
    short = similarity.bounding(vectors, threshold)
    facts["numbers_compared"] = vectors.shape[1] if short is None else short.shape[1]
    groups, facts["seconds"], facts["cpu_seconds"] = _timed(vectors, threshold)
    facts["groups"] = int(groups.max()) + 1
    if len(vectors) <= _MOST_WHOLE:
        few = similarity.FEW
        similarity.FEW = len(vectors) + 1  # no bound
        whole, facts["seconds_without_bound"], facts["cpu_seconds_without_bound"] = _timed(vectors, threshold)
        similarity.FEW = few
        facts["equal_groups"] = bool(np.array_equal(groups, whole))
    say(str(facts))
    return facts


def _timed(vectors: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.int64], float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    groups = similarity.similar_groups(vectors, threshold)
    return groups, round(time.perf_counter() - start, 2), round(time.process_time() - cpu, 2)


def _vectors(uri: str, count: int) -> NDArray[np.float32]:
    listing = list_source(uri, Options())
    found: list[NDArray[np.float32]] = []
    for read in read_pictures(listing.kind, listing.index, listing.gzip_indexes, Options()):
        if read.data is not None:
            small = cv2.resize(codec.decode(read.data), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            found.append(small.astype(np.float32))
    pictures = np.stack(found)
    pictures = np.concatenate([pictures, pictures[:, :, ::-1], pictures[:, ::-1]])
    order = np.random.default_rng(0).permutation(len(pictures))[:count]
    vectors = pictures[order].reshape(len(order), -1)
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _show(result: Mapping[str, Any]) -> None:
    heads = ("vectors", "numbers_compared", "seconds", "cpu_seconds", "cpu_seconds_without_bound", "equal_groups")
    print_table("", heads, [[str(facts.get(name, "")) for name in heads] for facts in result["sizes"]])
    print(f"peak memory {result['peak_gb']} GB")


if __name__ == "__main__":
    sys.exit(main())
