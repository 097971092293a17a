"""The Serve deployment of one model: a bundle behind HTTP, in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve

from cluster.ray_internals import keep_replica_on_loopback
from library.bundle.bundle import Bundle
from library.errors import BadPicture
from library.evaluation.inside.grad_cam import explain as explanation
from library.evaluation.inside.grad_cam import overlay_png
from library.runtimes.runtime import open_runtime
from library.runtimes.tuning import tune, warm_up
from library.steps.plugins import Plugin, install, load_installed
from serve.http.logs import write_logs
from serve.http.model_routes import model_app
from serve.http.request_metrics import BackgroundCalls, CountRequests, ServeMetrics
from serve.http.schemas import DriftReport, InsidePart, ModelDescription, Timing
from serve.http.service import MODEL_DEPLOYMENT, Answer, Answers
from serve.processes import yield_to_others
from serve.replica.drift import LiveDrift
from serve.replica.engine import Engine, Result
from serve.replica.insides import Insides
from serve.settings import ServeSettings

_log = logging.getLogger("striate.serve")

#: Time to measure batch sizes at start, in seconds: by default, and with `tune`.
_PROBE_S, _LONG_PROBE_S = 2.0, 20.0
#: A replica whose batch takes longer is replaced, in seconds.
_STUCK_S = 120.0


class ModelReplica:
    """A replica of one model (`serve.http.service.ModelService`).

    Args:
        name: the name it is served under.
        uri: URI of the bundle.
        settings: `ServeSettings` as plain data.
        max_queued: most pictures in progress; more are refused.
        plugins: those that the command line named; those of installed packages are loaded too.
    """

    def __init__(
        self, name: str, uri: str, settings: Mapping[str, Any], max_queued: int, plugins: Sequence[Plugin]
    ) -> None:
        keep_replica_on_loopback()
        yield_to_others()
        self._name, self._settings = name, ServeSettings.model_validate(settings)
        write_logs(self._settings.access_log)
        threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        # By default PyTorch would use every core of the machine, in every replica.
        torch.set_num_threads(threads)
        load_installed()
        install(plugins)
        self._bundle = Bundle.load(uri, self._settings.device)
        self._runtime = open_runtime(self._bundle, self._settings.runtime, threads=threads)
        self._batch_size, self._batch_wait_ms = self._batches()
        warm_up(self._runtime, self._bundle, self._batch_size)
        _log.info("model %s, runtime: %s", name, json.dumps(self._runtime.described()))
        self._bundle_id = self._bundle.id
        self._metrics = ServeMetrics(name, self._bundle.classes)
        self._background = BackgroundCalls()
        self._drift = None
        if self._settings.drift:
            self._drift = LiveDrift(name, self._bundle.record, self._background.add, self._settings.limits)
        self._engine = Engine(
            self._bundle,
            self._runtime.probabilities,
            self._settings.limits,
            threads=threads,
            capacity=max_queued,
            batch_size=self._batch_size,
            lanes=self._runtime.lanes,
            timeout_s=self._settings.timeout_s,
            batch_wait_s=self._batch_wait_ms / 1000,
            on_batch=self._on_batch,
        )
        self._insides = Insides(self._bundle, self._engine, self._settings.timeout_s)
        # Everything loaded so far stays; otherwise the garbage collector would scan all of PyTorch while requests wait.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = model_app(self, self._settings)
        app.add_middleware(
            CountRequests, report=lambda _, *answer: self._background.add(self._metrics.request, *answer)
        )
        return app

    def check_health(self) -> None:
        """Raises when the replica should be replaced; Serve calls it regularly."""
        stuck_s = self._engine.stuck_s()
        if stuck_s > _STUCK_S:
            raise RuntimeError(f"a batch of '{self._name}' has taken {stuck_s:.0f} s")

    @property
    def name(self) -> str:
        """The name it is served under."""
        return self._name

    async def describe(self) -> ModelDescription:
        """Describes it for `GET /models`."""
        runtime = self._runtime.described() | {"batch_size": self._batch_size, "batch_wait_ms": self._batch_wait_ms}
        bundle, explain = self._bundle, self._settings.explain
        return ModelDescription.of_record(
            self._name, self._bundle_id, bundle.record, runtime, explain=explain, decoder=bundle.decoder_note
        )

    async def drift(self) -> DriftReport | None:
        """Compares recent requests with the training data; None where drift is not measured."""
        return None if self._drift is None else self._drift.report()

    async def is_reachable(self) -> bool:
        """Returns True; only the gateway's models probe the proxy."""
        return True

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        """Classifies encoded pictures."""
        return await self._answers(pictures, top_k, explain)

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        """Classifies decoded pictures."""
        return await self._answers(pictures, top_k)

    async def inside(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        """Draws, as PNG, what happens inside the model for a picture."""
        return await self._insides.draw(data, part, class_name)

    async def view(self, data: bytes) -> bytes:
        """Returns, as PNG, what the model sees of a picture."""
        self._engine.admit(1)
        try:
            return await self._engine.view(data)
        finally:
            self._engine.release(1)

    async def _answers(
        self, pictures: Sequence[bytes] | Sequence[NDArray[np.uint8]], top_k: int, explain: bool = False
    ) -> Answers:
        began = perf_counter()
        self._engine.admit(len(pictures))
        try:
            results = await asyncio.gather(*(self._engine.result(picture) for picture in pictures))
            answers = [result if isinstance(result, BadPicture) else self._answer(result, top_k) for result in results]
            if explain:
                answers = [
                    await self._explained(answer, result) for answer, result in zip(answers, results, strict=True)
                ]
        finally:
            self._engine.release(len(pictures))
        if self._drift is not None:
            self._drift.observe(pictures, answers)
        good = [result for result in results if isinstance(result, Result)]
        self._background.add(self._count, good, [answer.classes[0] for answer in answers if isinstance(answer, Answer)])
        timing = Timing(
            decode_ms=1000 * sum(result.prepare_s for result in good),
            queue_ms=1000 * max((result.wait_s for result in good), default=0.0),
            infer_ms=1000 * max((result.compute_s for result in good), default=0.0),
            total_ms=1000 * (perf_counter() - began),
        )
        return Answers(answers, timing, self._bundle_id)

    def _answer(self, result: Result, top_k: int) -> Answer:
        (ranked,) = self._bundle.ranked(result.probabilities[None], top_k)
        return Answer(ranked.classes, result.width, result.height, result.probabilities)

    async def _explained(self, answer: Answer | BadPicture, result: Result | BadPicture) -> Answer | BadPicture:
        if isinstance(answer, BadPicture) or isinstance(result, BadPicture):
            return answer
        best = answer.classes[0][0]

        def heat() -> bytes:
            return overlay_png(result.prepared, explanation(self._bundle, result.prepared, best).heat)

        return replace(answer, explanation=await self._engine.compute(heat))

    def _on_batch(self, size: int, seconds: float) -> None:
        self._background.add(self._metrics.batch, size, seconds)
        self._background.add(self._metrics.waiting, self._engine.waiting)

    def _count(self, results: Sequence[Result], best_classes: Sequence[tuple[str, float]]) -> None:
        self._metrics.predicted(best_classes)
        for result in results:
            self._metrics.decoded(result.prepare_s)
            self._metrics.queued(result.wait_s)

    def _batches(self) -> tuple[int, float]:
        """Returns the batch size and the wait for a batch in milliseconds: from the settings, else measured."""
        size, wait_ms = self._settings.batch_size, self._settings.batch_wait_ms
        if size is not None:
            return size, wait_ms or 0.0
        tuning = tune(self._runtime, self._bundle, probe_s=_LONG_PROBE_S if self._settings.tune else _PROBE_S)
        # Under load batches fill without waiting; a wait is worth it only where it was measured carefully.
        measured_wait_ms = tuning.batch_wait_ms if self._settings.tune else 0.0
        return tuning.batch_size, measured_wait_ms if wait_ms is None else wait_ms


Model = serve.deployment(name=MODEL_DEPLOYMENT)(serve.ingress()(ModelReplica))
