"""A server for tests of the page: the real applications and engines in this process, without Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import uvicorn
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.errors import BadPicture
from library.imaging import codec
from library.models.build import create
from library.pipeline.inputs import Prepared
from serve.http.schemas import DriftReport, InsidePart, ModelDescription, Timing
from serve.http.service import Answer, Answers, Busy
from serve.replica.engine import Engine, Result
from serve.replica.insides import Insides
from serve.settings import ServeSettings
from tests.serving import apps
from tests.waiting import until

PROVENANCE = {
    "recipe": "model: lenet5\nepochs: 2\n",
    "recipe_digest": "ab" * 32,
    "datasets": {"train": "s3://pictures/train"},
    "dataset_digests": {"train": "cd" * 32},
    "class_counts": {"china": 20, "flower": 30, "hopper": 10},
    "versions": {"torch": "2.11.0"},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
}


def make_bundle(
    classes: Sequence[str], steps: str, channels: int = 3, size: int = 28, model: str | None = None
) -> Bundle:
    """An untrained network as a bundle: LeNet-5, or another one."""
    torch.manual_seed(len(classes))
    model = model or f"lenet5(in_chans={channels})"
    record = BundleRecord(
        model=model,
        classes=tuple(classes),
        steps=steps,
        fit=f'resize([{size}, {size}], mode="exact")',
        input_size=(size, size),
        channels=channels,
        metrics={"val_top1": 0.875, "val_loss": 0.25},
        provenance=PROVENANCE,
    )
    return Bundle.of_model(record, create(model, num_classes=len(classes)), device="cpu")


class EngineModel:
    """A model's service with a replica's engine for `capacity` pictures; tests can pause its model."""

    def __init__(self, name: str, bundle: Bundle, settings: ServeSettings, *, capacity: int = 64) -> None:
        self.name, self.bundle, self.bundle_id = name, bundle, bundle.id
        #: The model computes only while this is set.
        self.open = threading.Event()
        self.open.set()
        #: Number of pictures that the model has started on.
        self.begun = 0
        self.engine = Engine(bundle, self._classify, settings.limits, threads=1, capacity=capacity, batch_size=8)
        self._insides = Insides(bundle, self.engine, settings.timeout_s)

    def _classify(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        self.begun += len(pictures)
        self.open.wait(30)
        return self.bundle.probabilities(pictures)

    def engine_has_room(self, pictures: int) -> bool:
        """Whether the engine would admit that many more pictures now."""
        try:
            self.engine.admit(pictures)
        except Busy:
            return False
        self.engine.release(pictures)
        return True

    async def describe(self) -> ModelDescription:
        runtime = {"name": "eager", "device": "cpu", "batch_size": 8, "threads": 1}
        record, decoder = self.bundle.record, self.bundle.decoder_note
        return ModelDescription.of_record(self.name, self.bundle_id, record, runtime, explain=True, decoder=decoder)

    async def drift(self) -> DriftReport | None:
        return None

    async def is_reachable(self) -> bool:
        return True

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        self.engine.admit(len(pictures))
        try:
            results = await asyncio.gather(*(self.engine.result(picture) for picture in pictures))
        finally:
            self.engine.release(len(pictures))
        answers = [self._answer(result, top_k, explain) for result in results]
        return Answers(answers, Timing(decode_ms=1.25, queue_ms=0.5, infer_ms=2.0, total_ms=3.75), self.bundle_id)

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        raise NotImplementedError

    async def inside(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        return await self._insides.draw(data, part, class_name)

    async def view(self, data: bytes) -> bytes:
        return await self.engine.view(data)

    def _answer(self, result: Result | BadPicture, top_k: int, explain: bool) -> Answer | BadPicture:
        if isinstance(result, BadPicture):
            return result
        row = result.probabilities
        (ranked,) = self.bundle.ranked(row[None], top_k)
        heat = np.linspace(0, 255, 32 * 24, dtype=np.uint8).reshape(24, 32, 1).repeat(3, axis=2)
        explanation = codec.encode(heat, codec.Encoding("png"))[0] if explain else None
        return Answer(ranked.classes, result.width, result.height, row, explanation)


class PageServer:
    """Runs uvicorn in a thread; can be stopped and started again at the same address."""

    def __init__(self, models: Mapping[str, EngineModel], settings: ServeSettings) -> None:
        self._models, self._settings, self._port = models, settings, 0
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        config = uvicorn.Config(
            apps(self._models, self._settings),  # pyright: ignore[reportArgumentType]
            host="127.0.0.1",
            port=self._port,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        listener = config.bind_socket()
        self._port = int(listener.getsockname()[1])
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        until(lambda: self._server is not None and self._server.started)

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(20)
            self._server = None

    def __enter__(self) -> PageServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
