"""The engine of a replica with a bundle on a GPU: every request gets the answer to its own picture."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from library.bundle.bundle import Bundle
from library.errors import BadPicture
from library.evaluation.inside.grad_cam import explain
from library.imaging import codec
from library.runtimes.parity import compare, tolerance
from library.runtimes.runtime import Runtime, open_runtime
from serve.replica.engine import Engine, Result

pytestmark = pytest.mark.gpu

LIMITS = codec.Limits(max_pixels=10**6)


@pytest.fixture(params=["eager", "auto"])
def runtime(request: pytest.FixtureRequest, bundle: Bundle) -> Runtime:
    return open_runtime(bundle, request.param, probe_s=0.5)


@pytest.fixture
def engine(bundle: Bundle, runtime: Runtime) -> Iterator[Engine]:
    running = Engine(bundle, runtime.probabilities, LIMITS, threads=4, capacity=1000, batch_size=8, lanes=runtime.lanes)
    yield running
    running.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 120))


def test_each_of_many_requests_gets_its_own_answer(engine: Engine, bundle: Bundle, photos: list[bytes]) -> None:
    order = np.random.default_rng(0).integers(0, len(photos), 200).tolist()

    async def ask() -> list[Any]:
        return await asyncio.gather(*(engine.result(photos[number]) for number in order))

    results = run(ask())
    expected = bundle.probabilities([bundle.prepare(data) for data in photos])
    got = np.stack([result.probabilities for result in results])
    compare(expected[order], got, tolerance(bundle))


def test_a_bad_picture_stops_no_other_of_its_batch(engine: Engine, photos: list[bytes]) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(engine.result(data) for data in (photos[0], b"no picture", photos[1])))

    first, bad, last = run(ask())
    assert isinstance(bad, BadPicture)
    assert all(isinstance(one, Result) and np.isfinite(one.probabilities).all() for one in (first, last))


def test_explanations_run_beside_batches(engine: Engine, bundle: Bundle, photos: list[bytes]) -> None:
    picture = bundle.prepare(photos[0])
    alone = explain(bundle, picture, bundle.classes[0]).heat

    async def ask() -> Any:
        batches = asyncio.gather(*(engine.result(data) for data in photos * 4))
        heat = await engine.compute(lambda: explain(bundle, picture, bundle.classes[0]).heat)
        return heat, await batches

    heat, results = run(ask())
    assert np.abs(heat - alone).max() < 0.1
    assert all(isinstance(result, Result) for result in results)


def test_a_full_memory_fails_its_batch_and_no_later_one(
    bundle: Bundle, photos: list[bytes], cuda: torch.device
) -> None:
    fail = [True]

    def classify(pictures: Any) -> Any:
        if fail and fail.pop():
            torch.empty(2**50, dtype=torch.uint8, device=cuda)
        return bundle.probabilities(pictures)

    engine = Engine(bundle, classify, LIMITS, threads=2, capacity=10, batch_size=2)

    async def ask() -> Any:
        with pytest.raises(torch.OutOfMemoryError):
            await engine.result(photos[0])
        return await engine.result(photos[0])

    result = run(ask())
    engine.close()
    compare(bundle.probabilities([bundle.prepare(photos[0])]), result.probabilities[None], tolerance(bundle))
