"""The Serve deployment of one model: a bundle behind its HTTP face, in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve

from library.bundle import Bundle, Prepared
from library.bundle_record import BundleRecord
from library.errors import BadPicture, UsageError
from serve.engine import Engine, Result
from serve.gateway import MODEL
from serve.loopback import keep_to_loopback
from serve.metrics import ServeMetrics
from serve.model_api import model_app
from serve.service import Answer, Timing
from serve.settings import ServeSettings

#: Of pictures in a batch where nothing was said or measured.
_BATCH_SIZE = 32
#: A batch that takes longer never ends: the replica is replaced.
_STUCK_S = 120.0


class ModelReplica:
    """One model that answers (`serve.service.LocalService`).

    Args:
        name: under which it is served.
        uri: of the bundle.
        settings: of `ServeSettings`, as plain data.
        max_queued: pictures under way at once; more are refused.
    """

    def __init__(self, name: str, uri: str, settings: Mapping[str, Any], max_queued: int) -> None:
        keep_to_loopback()
        self._name, self._settings = name, ServeSettings.model_validate(settings)
        threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        torch.set_num_threads(threads)
        self._bundle = Bundle.load(uri, self._settings.device)
        self._metrics = ServeMetrics(name, self._bundle.classes)
        self._threads, self._batch_size = threads, self._settings.batch_size or _BATCH_SIZE
        self._engine = Engine(
            self._bundle,
            self._classify,
            self._settings.limits,
            threads=threads,
            capacity=max_queued,
            batch_size=self._batch_size,
            batch_wait_s=(self._settings.batch_wait_ms or 0.0) / 1000,
            on_batch=self._metrics.batch,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:  # noqa: N807 (the name is Serve's)
        return model_app(self, self._settings)

    def check_health(self) -> None:
        """Asked by Serve again and again; raises when the replica should be replaced."""
        stuck_s = self._engine.stuck_s()
        if stuck_s > _STUCK_S:
            raise RuntimeError(f"a batch of '{self._name}' has taken {stuck_s:.0f} s")

    @property
    def name(self) -> str:
        """Under which it is served."""
        return self._name

    @property
    def bundle_id(self) -> str:
        """Of the bundle that answers, in hex."""
        return self._bundle.id

    async def described(self) -> dict[str, Any]:
        """What `GET /models` says of it."""
        runtime = {
            "name": "eager",
            "device": str(getattr(self._bundle.network, "device", "cpu")),
            "batch_size": self._batch_size,
            "threads": self._threads,
        }
        return described(self._name, self._bundle.record, self._bundle.id) | {"runtime": runtime}

    async def predict(
        self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False
    ) -> tuple[list[Answer | BadPicture], Timing]:
        """Classify encoded pictures."""
        return await self._answers(pictures, top_k)

    async def predict_pixels(
        self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int
    ) -> tuple[list[Answer | BadPicture], Timing]:
        """Classify decoded pictures."""
        return await self._answers(pictures, top_k)

    async def view(self, data: bytes) -> bytes:
        """PNG of what the model sees."""
        self._engine.admit(1)
        try:
            return await self._engine.view(data)
        finally:
            self._engine.release(1)

    async def drift(self) -> dict[str, Any] | None:
        """Not measured."""
        return None

    async def _answers(
        self, pictures: Sequence[bytes] | Sequence[NDArray[np.uint8]], top_k: int
    ) -> tuple[list[Answer | BadPicture], Timing]:
        began = perf_counter()
        self._engine.admit(len(pictures))
        try:
            results = await asyncio.gather(*(self._engine.result(picture) for picture in pictures))
        finally:
            self._engine.release(len(pictures))
        good = [result for result in results if isinstance(result, Result)]
        answers = [result if isinstance(result, BadPicture) else self._answer(result, top_k) for result in results]
        self._count(good, [answer for answer in answers if isinstance(answer, Answer)])
        return answers, Timing(
            decode_ms=1000 * sum(result.prepare_s for result in good),
            queue_ms=1000 * max((result.wait_s for result in good), default=0.0),
            infer_ms=1000 * max((result.compute_s for result in good), default=0.0),
            total_ms=1000 * (perf_counter() - began),
        )

    def _answer(self, result: Result, top_k: int) -> Answer:
        (ranked,) = self._bundle.ranked(result.probabilities[None], top_k)
        return Answer(ranked.classes, result.width, result.height, result.probabilities)

    def _count(self, results: Sequence[Result], answers: Sequence[Answer]) -> None:
        self._metrics.predicted(answer.classes[0] for answer in answers)
        self._metrics.waiting(self._engine.waiting)
        for result in results:
            self._metrics.decoded(result.prepare_s)
            self._metrics.queued(result.wait_s)

    def _classify(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        return self._bundle.probabilities(pictures)


def described(name: str, record: BundleRecord, bundle_id: str) -> dict[str, Any]:
    """What is true of a bundle wherever it is served."""
    return {
        "name": name,
        "bundle_id": bundle_id,
        "model": record.model or "ensemble",
        "classes": list(record.classes),
        "input": {
            "steps": record.steps,
            "fit": record.fit,
            "size": list(record.input_size),
            "channels": record.channels,
        },
        "metrics": record.metrics,
        "provenance": record.provenance,
        "explain": False,
        "ready": True,
        "state": "RUNNING",
    }


Model = serve.deployment(name=MODEL)(serve.ingress()(ModelReplica))
