"""Helpers for tests of the HTTP applications: a model service without Ray's actors, and servers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.types import ASGIApp, Receive, Scope, Send

from library.bundle.bundle import Bundle
from library.errors import BadPicture
from library.imaging import codec
from library.imaging.contact_sheet import visible
from serve.gateway.routes import gateway_app
from serve.http.model_routes import model_app
from serve.http.schemas import DriftReport, InsidePart, ModelDescription, Timing
from serve.http.service import Answer, Answers
from serve.replica.drift import LiveDrift
from serve.settings import ServeSettings
from tests.waiting import until


class LocalModel:
    """A `ModelService` that runs a bundle in threads."""

    def __init__(self, name: str, bundle: Bundle, settings: ServeSettings, *, ready: bool = True) -> None:
        self.name, self.bundle, self.settings, self.ready = name, bundle, settings, ready
        self.bundle_id = bundle.id
        self.reached = True
        self.cancelled = 0
        self.failing: Exception | None = None
        #: Answers wait until it is set.
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def describe(self) -> ModelDescription:
        runtime = {"name": "eager", "device": "cpu", "batch_size": 1, "threads": 1}
        explain, decoder = self.name == "colour", self.bundle.decoder_note
        described = ModelDescription.of_record(
            self.name, self.bundle_id, self.bundle.record, runtime, explain=explain, decoder=decoder
        )
        described.metrics = {"accuracy": 0.5, "loss": float("nan")}
        described.ready, described.state = self.ready, "RUNNING" if self.ready else "DEPLOYING"
        return described

    async def drift(self) -> DriftReport | None:
        if self.name != "colour":
            return None
        return LiveDrift(self.name, self.bundle.record, later=lambda call, *arguments: call(*arguments)).report()

    async def is_reachable(self) -> bool:
        return self.reached

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        if self.failing is not None:
            raise self.failing
        if self.gate is not None:
            self.entered.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return await asyncio.to_thread(self._predict, pictures, top_k, explain)

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        return await asyncio.to_thread(self._predict, pictures, top_k, False)

    async def inside(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        return await self.view(data)

    async def view(self, data: bytes) -> bytes:
        prepared: Any = await asyncio.to_thread(self.bundle.prepare, data, self.settings.limits)
        return codec.encode(visible(prepared), codec.Encoding("png"))[0]

    def _predict(self, pictures: Sequence[Any], top_k: int, explain: bool) -> Answers:
        answers = [self._one(picture, top_k, explain) for picture in pictures]
        return Answers(answers, Timing(decode_ms=1.0, queue_ms=0.0, infer_ms=2.0, total_ms=3.0), self.bundle_id)

    def _one(self, picture: Any, top_k: int, explain: bool) -> Answer | BadPicture:
        try:
            if isinstance(picture, bytes):
                header = codec.probe(picture, self.settings.limits)
                width, height = header.width, header.height
                prepared = self.bundle.prepare(picture, self.settings.limits)
            else:
                height, width = picture.shape[:2]
                prepared = self.bundle.prepare_pixels(picture)
        except BadPicture as bad:
            return bad
        row = self.bundle.probabilities([prepared])
        ranked = self.bundle.ranked(row, top_k)[0].classes
        return Answer(ranked, width, height, row[0], b"\x89PNG..." if explain else None)


def apps(models: Mapping[str, LocalModel], settings: ServeSettings) -> ASGIApp:
    """A whole server with the routes of Ray Serve: one application per model below its prefix, and the gateway."""
    gateway = gateway_app(models, settings)
    by_name = {name: model_app(model, settings) for name, model in models.items()}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, app in by_name.items():
                prefix = f"/models/{name}"
                if scope["path"] == prefix or scope["path"].startswith(prefix + "/"):
                    await app(scope | {"root_path": prefix}, receive, send)
                    return
        await gateway(scope, receive, send)

    return dispatch


class Server:
    """Runs uvicorn in a thread, on a free loopback port."""

    def __init__(self, app: ASGIApp) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> Server:
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def raw(self, data: bytes, *, half: bool = False) -> bytes:
        """Sends bytes unchanged, then closes the sending side if `half`, and reads until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            if half:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received


def asgi_client(app: ASGIApp, **options: Any) -> httpx.AsyncClient:
    """A client for an application in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", **options)


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The body of a problem response; fails if the response is not that problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = json.loads(response.content)
    assert (body["status"], body["type"]) == (status, f"urn:striate:{slug}"), body
    assert body["detail"]
    assert "Traceback" not in response.text
    return body
