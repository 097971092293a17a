"""Looks inside a model for a request: drawings of its maps, kernels, Grad-CAM, occlusion and receptive fields.

What needs the network's own modules runs in the engine's first computing thread, between batches, as Grad-CAM for
`explain=true` does. The pictures of an occlusion are classified like those of any request, so others do not wait for
all of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import UsageError
from library.evaluation.inside.band_drawing import (
    Band,
    Tile,
    draw_bands,
    draw_fields,
    draw_heat,
    draw_kernels,
    draw_maps,
    enlarged,
    png,
)
from library.evaluation.inside.grad_cam import explain, overlay
from library.evaluation.inside.occlusion import Occlusion, first_of, occlusion
from library.evaluation.inside.recording import StageMaps, feature_maps, networks
from library.evaluation.inside.units import first_kernels
from library.grammar import nearest
from library.pipeline.inputs import Prepared
from serve.http.schemas import InsidePart
from serve.http.service import Busy, TimedOut
from serve.replica.engine import Engine

Drawing = NDArray[np.uint8]

#: Members of an ensemble that are drawn; more would make a picture of tens of thousands of pixels.
_MOST_NETWORKS = 8
_TILE_PX = 260


class Insides:
    """Draws one look inside at a time.

    Args:
        bundle: the model.
        engine: the replica's.
        timeout_s: longest time of one batch of an occlusion in seconds; its request may end it sooner.

    Attributes:
        is_drawing: whether work is in progress, also for a request that has ended.
    """

    def __init__(self, bundle: Bundle, engine: Engine, timeout_s: float) -> None:
        self._bundle, self._engine, self._timeout_s = bundle, engine, timeout_s
        self.is_drawing = False

    async def draw(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        """Returns a drawing as PNG, as `serve.http.service.ModelService.inside` describes.

        Cancelling ends an occlusion with the next batch. Other work cannot be interrupted; no other drawing begins
        before it has ended.
        """
        if class_name is not None and class_name not in self._bundle.classes:
            raise UsageError(f"the model has no class '{class_name[:80]}'{nearest(class_name, self._bundle.classes)}")
        if self.is_drawing:
            raise Busy("this replica already draws a look inside for another request")
        self._engine.admit(1)
        self.is_drawing, given_up = True, threading.Event()
        work = asyncio.ensure_future(self._drawn(data, part, class_name, given_up))
        work.add_done_callback(self._ended)
        try:
            return await asyncio.shield(work)
        finally:
            given_up.set()

    def _ended(self, work: asyncio.Future[bytes]) -> None:
        self.is_drawing = False
        self._engine.release(1)
        if not work.cancelled():
            work.exception()  # asyncio prints an error that nothing has read, as after a timeout

    async def _drawn(self, data: bytes, part: InsidePart, class_name: str | None, given_up: threading.Event) -> bytes:
        prepared = await self._engine.prepared(data)
        return await asyncio.to_thread(png, await self._drawing(prepared, part, class_name, given_up))

    async def _drawing(
        self, prepared: Prepared, part: InsidePart, class_name: str | None, given_up: threading.Event
    ) -> Drawing:
        compute = self._engine.compute
        match part:
            case "kernels":
                return await compute(lambda: self._kernels(prepared))
            case "grad_cam":
                return await compute(lambda: self._grad_cam(prepared, class_name))
            case "occlusion":
                hidden = await self._occlusion(prepared, class_name, given_up)
                return await asyncio.to_thread(draw_heat, prepared, None, hidden, tile_px=_TILE_PX)
            case "maps":
                stages = await compute(lambda: self._stages(prepared))
                return await asyncio.to_thread(self._stacked, [draw_maps(named) for _, named in stages])
            case "fields":
                stages = await compute(lambda: self._stages(prepared))
                return await asyncio.to_thread(self._stacked, [draw_fields(pixels, named) for pixels, named in stages])

    def _stages(self, prepared: Prepared) -> list[tuple[NDArray[np.generic], Sequence[StageMaps]]]:
        """The input of each network, and its stages, which an ensemble's members mark with their name."""
        inputs_and_stages: list[tuple[NDArray[np.generic], Sequence[StageMaps]]] = []
        for one in islice(networks(self._bundle, prepared), _MOST_NETWORKS):
            stages = feature_maps(one.model, one.pixels)
            if self._bundle.members:
                stages = [dataclasses.replace(stage, stage=f"{one.title}, {stage.stage}") for stage in stages]
            inputs_and_stages.append((one.pixels, stages))
        return inputs_and_stages

    def _kernels(self, prepared: Prepared) -> Drawing:
        drawings: list[Drawing] = []
        for one in islice(networks(self._bundle, prepared), _MOST_NETWORKS):
            kernels = first_kernels(one.model, one.pixels.shape[:2])
            if kernels is not None:
                drawings.append(draw_kernels(kernels))
        if not drawings:
            raise UsageError("the first layer of this model is neither a convolution nor dense, so it has no kernels")
        return self._stacked(drawings)

    def _grad_cam(self, prepared: Prepared, class_name: str | None) -> Drawing:
        explanation = explain(self._bundle, prepared, class_name)
        tiles = [
            Tile(enlarged(first_of(prepared)), "the network's input"),
            Tile(overlay(prepared, explanation.heat), "Grad-CAM"),
        ]
        note = "red parts speak for the class most; where there is no colour, there is no evidence"
        return draw_bands([Band(explanation.class_name, tiles, note)], tile_px=_TILE_PX)

    async def _occlusion(self, prepared: Prepared, class_name: str | None, given_up: threading.Event) -> Occlusion:
        loop = asyncio.get_running_loop()

        def classify(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
            if given_up.is_set():
                raise TimedOut("the request for this occlusion has ended")
            rows = asyncio.run_coroutine_threadsafe(self._engine.classified(pictures), loop)
            try:
                return rows.result(self._timeout_s)
            except TimeoutError:
                rows.cancel()
                raise TimedOut(f"a part of the occlusion took more than {self._timeout_s:g} s") from None

        return await asyncio.to_thread(occlusion, self._bundle, prepared, class_name, classify=classify)

    def _stacked(self, drawings: Sequence[Drawing]) -> Drawing:
        """Drawings of the networks below each other, on white, and a line on the members that are not drawn."""
        more = _networks(self._bundle) - _MOST_NETWORKS
        if more > 0:
            text = f"and {more} more {'member' if more == 1 else 'members'}, not drawn"
            drawings = [*drawings, draw_bands([Band(text, ())])]
        width = max(drawing.shape[1] for drawing in drawings)
        rows = [np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0)), constant_values=255) for one in drawings]
        return np.concatenate(rows)


def _networks(bundle: Bundle) -> int:
    """The number of networks of a bundle, with those of ensembles in it."""
    return sum(map(_networks, bundle.members)) or 1
