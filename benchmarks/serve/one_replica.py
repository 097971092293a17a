"""Requests per second of one replica's HTTP application and engine in this process: no Ray, no sockets, no real model.

The model costs nothing, or as many calls of PyTorch a batch as `--calls` says: every call lets another thread run, as
each kernel that a GPU's eager network starts does. So the figures show what Python costs: the CPU time of a request in
the event loop and in all threads, and how many threads can decode beside the calls.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.command_line import add_photos, at_least, make_parser, run_benchmark, say, work_folder
from benchmarks.common.photo_files import make_photos
from benchmarks.common.report import print_table
from benchmarks.serve.served_models import make_bundle
from library.bundle.bundle import Bundle
from library.errors import BadPicture, StriateError
from library.pipeline.inputs import Prepared
from serve.http.model_routes import model_app
from serve.http.schemas import DriftReport, InsidePart, ModelDescription, Timing
from serve.http.service import Answer, Answers
from serve.replica.engine import Engine
from serve.settings import ServeSettings

_CAPACITY, _BATCH = 10_000, 32


class StubModel:
    """A network that answers every picture alike.

    Args:
        classes: number of classes.
        calls: calls of PyTorch for each batch.
    """

    def __init__(self, classes: int, calls: int) -> None:
        self._row = np.full(classes, 1 / classes, np.float32)
        self._calls, self._number = calls, torch.zeros(1)
        self.batches = 0

    def __call__(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """Probabilities, N x classes."""
        self.batches += 1
        np.stack(pictures)  # as every runtime does first
        for _ in range(self._calls):
            self._number.add_(1)
        return np.tile(self._row, (len(pictures), 1))


class StubService:
    """What `serve.replica.replica.ModelReplica` does for a request, without Ray, metrics and drift."""

    name = "stub"

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._bundle, self._engine = bundle, engine

    async def describe(self) -> ModelDescription:
        """Describes the bundle."""
        bundle = self._bundle
        note = bundle.decoder_note
        return ModelDescription.of_record(self.name, bundle.id, bundle.record, {}, explain=False, decoder=note)

    async def drift(self) -> DriftReport | None:
        """Is not measured."""
        return None

    async def is_reachable(self) -> bool:
        """Returns True."""
        return True

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        """Classifies encoded pictures."""
        began = time.perf_counter()
        self._engine.admit(len(pictures))
        try:
            results = await asyncio.gather(*(self._engine.result(picture) for picture in pictures))
        finally:
            self._engine.release(len(pictures))
        answers: list[Answer | BadPicture] = []
        for result in results:
            if isinstance(result, BadPicture):
                raise result
            (ranked,) = self._bundle.ranked(result.probabilities[None], top_k)
            answers.append(Answer(ranked.classes, result.width, result.height, result.probabilities))
        return Answers(answers, Timing(total_ms=1000 * (time.perf_counter() - began)), self._bundle.id)

    async def inside(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        """Is not measured."""
        raise StriateError("this benchmark posts pictures to be classified")

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        """Is not measured."""
        raise StriateError("this benchmark posts encoded pictures")

    async def view(self, data: bytes) -> bytes:
        """Is not measured."""
        raise StriateError("this benchmark posts encoded pictures")


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse."""
    return run_benchmark(__file__, _parser(), _measure, _show)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__file__, __doc__, "", "--threads 16 --calls 0 --calls 400 --calls 2000")
    add_photos(parser, disk_gb=0.2)
    parser.add_argument("--model", default="resnet50", help="model whose input pipeline prepares the photos (resnet50)")
    parser.add_argument("--photos", type=at_least(1), default=200, help="number of photos (200)")
    parser.add_argument("--threads", type=at_least(1), help="CPUs of the replica (all)")
    parser.add_argument("--calls", type=int, action="append", help="calls of PyTorch per batch; repeatable (0, 400)")
    parser.add_argument("--connections", type=at_least(1), action="append", help="repeatable (1, 32, 128)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (5)")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    threads: int = options.threads or len(os.sched_getaffinity(0))
    rows: list[dict[str, Any]] = []
    with work_folder(options.work) as work:
        photos = make_photos(options.tar, work / "photos", options.photos)
        bodies = [path.read_bytes() for path in photos.paths]
        make_bundle(options.model, work / "bundle")
        bundle = Bundle.load(str(work / "bundle"), "cpu")
        torch.set_num_threads(1)
        alone_s = _prepare_s(bundle, bodies)
        for calls in options.calls or (0, 400):
            for connections in options.connections or (1, 32, 128):
                row = asyncio.run(_measured(bundle, bodies, threads, calls, connections, options.seconds))
                rows.append(row)
                say(f"{calls} calls, {connections} connections: {row['requests_per_s']:,.0f} requests/s")
    return {
        "parameters": {"model": options.model, "threads": threads, "seconds": options.seconds},
        "photos": photos.facts | {"source": photos.source},
        "prepare_ms_alone": round(1000 * alone_s, 3),
        "decode_limit_per_s": round(threads / alone_s, 1),
        "rows": rows,
    }


def _show(result: Mapping[str, Any]) -> None:
    rows: list[Mapping[str, Any]] = result["rows"]
    limit = f"the threads alone would decode {result['decode_limit_per_s']:,.0f} photos/s"
    print_table(limit, list(rows[0]), [list(row.values()) for row in rows])


def _prepare_s(bundle: Bundle, bodies: Sequence[bytes]) -> float:
    """Seconds of one thread for decoding and preparing one photo, with nothing beside it."""
    for body in bodies[:10]:
        bundle.prepare(body)
    began = time.perf_counter()
    for body in bodies:
        bundle.prepare(body)
    return (time.perf_counter() - began) / len(bodies)


async def _measured(
    bundle: Bundle, bodies: Sequence[bytes], threads: int, calls: int, connections: int, seconds: float
) -> dict[str, Any]:
    settings, model = ServeSettings(), StubModel(len(bundle.classes), calls)
    engine = Engine(bundle, model, settings.limits, threads=threads, capacity=_CAPACITY, batch_size=_BATCH)
    app: Any = model_app(StubService(bundle, engine), settings)
    source, latencies, end = cycle(bodies), list[float](), time.perf_counter() + 1

    async def client() -> None:
        while (began := time.perf_counter()) < end:
            await _post(app, next(source))
            latencies.append(time.perf_counter() - began)

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(connections)))

    await all_clients()  # warm-up
    latencies.clear()
    model.batches = 0
    began, loop_s, process_s = time.perf_counter(), time.thread_time(), time.process_time()
    end = began + seconds
    await all_clients()
    took = time.perf_counter() - began
    loop_s, process_s = time.thread_time() - loop_s, time.process_time() - process_s
    engine.close()
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {
        "calls": calls,
        "connections": connections,
        "requests_per_s": round(len(latencies) / took, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "loop_cpu_ms": round(1000 * loop_s / len(latencies), 3),
        "cpu_ms": round(1000 * process_s / len(latencies), 3),
        "batch": round(len(latencies) / max(model.batches, 1), 1),
    }


async def _post(app: Any, body: bytes) -> None:
    """Posts a picture to the application; raises StriateError for any other answer than 200."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    left, statuses = asyncio.Event(), list[int]()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"image/jpeg"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    if statuses != [200]:
        raise StriateError(f"the application answered {statuses}")


if __name__ == "__main__":
    sys.exit(main())
