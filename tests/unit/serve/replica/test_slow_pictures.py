"""Slow pictures are prepared in a process that ends with their request, while other requests are answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.filter.costly_pictures import many_scans, progressive_jpeg
from library.bundle.bundle import Bundle
from library.bundle.ensemble import ensemble
from library.errors import BadPicture, StepError
from library.imaging import codec
from serve.gateway.preview import Previewer
from serve.http.model_routes import model_app
from serve.http.schemas import Timing
from serve.http.service import Answer, TimedOut
from serve.processes import ProcessEndedError, ProcessPool
from serve.replica.engine import Engine
from serve.settings import ServeSettings
from tests.bundles import make_bundle
from tests.picture_examples import encoded, scene
from tests.serving import LocalModel, asgi_client, problem

SMALL = encoded("png", 40, 50)
#: Large enough that `denoise` takes most of a second.
MIDDLE = encoded("png", 500, 600)
#: 9 million pixels; `denoise` takes some 2 microseconds for each.
SLOW = encoded("png", 3000, 3000)
LIMITS = codec.Limits(max_pixels=10**7)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("slow"), steps="denoise"), "cpu")


def engine_of(bundle: Bundle, **options: Any) -> Engine:
    return Engine(bundle, bundle.probabilities, LIMITS, threads=2, capacity=100, batch_size=4, **options)


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Engine]:
    running = engine_of(bundle)
    yield running
    running.close()


def worker_processes() -> set[int]:
    """The ids of running child processes that prepare pictures."""
    ids = set[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"serve.replica.prepare_worker" in (entry / "cmdline").read_bytes():
                ids.add(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ids


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_picture_that_may_take_long_is_prepared_apart_to_the_same_pixels(engine: Engine, bundle: Bundle) -> None:

    async def ask() -> None:
        assert not worker_processes()
        assert np.array_equal(await engine.prepared(SMALL), bundle.prepare(SMALL))
        assert not worker_processes(), "a small one is not worth a process"
        expected = bundle.prepare(MIDDLE)
        assert np.array_equal(await engine.prepared(MIDDLE), expected)
        assert len(worker_processes()) == 1
        results = await asyncio.gather(engine.result(MIDDLE), engine.result(codec.decode(MIDDLE)))
        assert [(result.width, result.height) for result in results] == [(600, 500)] * 2  # type: ignore[union-attr]
        for result in results:
            assert np.array_equal(result.prepared, expected)  # type: ignore[union-attr]

    asyncio.run(ask())


def test_an_ensemble_prepares_apart_for_each_member(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle.load(make_bundle(tmp_path, steps="denoise | invert"), "cpu")
    both = ensemble([bundle, other])
    engine = engine_of(both)
    prepared_apart, expected = asyncio.run(engine.prepared(MIDDLE)), both.prepare(MIDDLE)
    engine.close()
    assert all(np.array_equal(one, two) for one, two in zip(prepared_apart, expected, strict=True))


def test_what_is_wrong_with_a_picture_is_the_same_apart(tmp_path: Path) -> None:
    steps = "denoise | min_size(short_side=501)"
    engine = engine_of(Bundle.load(make_bundle(tmp_path / "dropping", steps=steps), "cpu"))
    assert asyncio.run(engine.result(MIDDLE)).reason == "dropped:below_min_size"  # type: ignore[union-attr]
    engine.close()
    engine = engine_of(
        Bundle.load(make_bundle(tmp_path / "failing", steps='denoise | score_at_least("cat", 0.5)'), "cpu")
    )
    with pytest.raises(StepError, match="column"):
        asyncio.run(engine.result(MIDDLE))
    engine.close()


def test_four_slow_pictures_hold_up_no_other_and_end_with_their_requests(engine: Engine) -> None:
    async def ask() -> None:
        slow = [asyncio.ensure_future(engine.result(SLOW)) for _ in range(4)]
        await until(lambda: len(worker_processes()) == 2)
        running_before = worker_processes()
        for _ in range(20):
            await engine.result(SMALL)
        assert not any(future.done() for future in slow)
        for future in slow:
            future.cancel()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        assert not running_before & worker_processes()
        assert not worker_processes(), "those that waited did not begin"
        assert not isinstance(await engine.result(MIDDLE), BadPicture)

    asyncio.run(ask())


def test_a_picture_that_outlasts_its_limit_is_ended(bundle: Bundle) -> None:
    engine = engine_of(bundle, timeout_s=0.5)

    async def ask() -> None:
        with pytest.raises(TimedOut, match=r"0\.5 s"):
            await engine.result(SLOW)
        assert not worker_processes()

    asyncio.run(ask())
    engine.close()


def test_a_request_that_outlasts_its_limit_is_504_and_its_picture_ended(engine: Engine, bundle: Bundle) -> None:
    class Replica(LocalModel):
        async def predict(
            self, pictures: Any, *, top_k: int, explain: bool = False
        ) -> tuple[list[Answer | BadPicture], Timing]:
            await asyncio.gather(*(engine.result(picture) for picture in pictures))
            return await super().predict(pictures, top_k=top_k)

    async def ask() -> list[httpx.Response]:
        settings = ServeSettings(timeout_s=2)
        async with asgi_client(model_app(Replica("slow", bundle, settings), settings)) as client:
            slow = [asyncio.ensure_future(client.post("/predict", content=SLOW)) for _ in range(20)]
            await until(lambda: len(worker_processes()) == 2)
            good = [await client.post("/predict", content=SMALL) for _ in range(5)]
            assert {answer.status_code for answer in good} == {200}
            answers = await asyncio.gather(*slow)
            await until(lambda: not worker_processes())
            return answers

    for answer in asyncio.run(ask()):
        problem(answer, 504, "timed_out")


def test_a_jpeg_of_20_000_scans_is_refused_before_any_of_it_is_decoded(engine: Engine) -> None:
    attack = progressive_jpeg(3000, 3000, many_scans(19_000))
    assert asyncio.run(engine.result(attack)).reason == "too_much_work"  # type: ignore[union-attr]
    assert not worker_processes()


def test_a_preview_whose_client_has_left_is_ended() -> None:
    async def play() -> None:
        previewer = Previewer(ServeSettings())
        steps = "resize([6000, 6000], mode='exact') | denoise | denoise"
        left = asyncio.ensure_future(previewer.show(SMALL, steps))
        waiting = asyncio.ensure_future(previewer.show(SMALL, "grayscale"))
        await asyncio.sleep(0)
        left.cancel()
        assert (await waiting).startswith(b"\x89PNG")
        previewer.close()

    asyncio.run(play())


def test_a_process_that_dies_is_reported_and_the_next_call_gets_another() -> None:
    setup = {"inputs": {"steps": "", "fit": "", "size": [24, 32], "channels": 3}, "plugins": []}

    async def play() -> None:
        pool = ProcessPool("serve.replica.prepare_worker", 1, setup)
        with pytest.raises(ProcessEndedError) as raised:
            await pool.ask({"shape": [1, 1, 1]}, b"not so many bytes", seconds=30)
        assert (raised.value.in_time, raised.value.status) == (True, 1)
        answer, data = await pool.ask({"shape": [24, 32, 3]}, scene().tobytes(), seconds=30)
        assert answer == {"shapes": {"dtype": "uint8", "shape": [24, 32, 3]}}
        assert data == scene().tobytes()
        pool.close()

    asyncio.run(play())


def test_a_process_ended_after_its_answer_harms_no_later_picture() -> None:
    header = {"steps": "grayscale", "max_pixels": 10**6}

    async def ask() -> None:
        pool = ProcessPool("serve.gateway.preview", 1, [])
        call = asyncio.ensure_future(pool.ask(header, SMALL, seconds=60))
        await asyncio.sleep(0)
        # The only thread runs this after it has read the answer, before the event loop gets the answer.
        pool._threads.submit(int).result()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        answer, png = await pool.ask(header, SMALL, seconds=60)
        assert not answer
        assert png.startswith(b"\x89PNG")
        pool.close()

    asyncio.run(ask())
