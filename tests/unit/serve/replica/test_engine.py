"""The engine prepares, batches and refuses pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import BadPicture
from library.imaging import codec
from serve.http.service import Busy
from serve.replica.engine import Engine, Result
from tests.bundles import PROBABILITY_TOLERANCE, make_bundle
from tests.picture_examples import scene

PNG = codec.Encoding("png")
PICTURES = [codec.encode(scene(24 + number, 32), PNG)[0] for number in range(8)]
LIMITS = codec.Limits(max_pixels=10**6)


class Gate:
    """Classifies as the bundle does; while it is closed, a started batch waits."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.sizes: list[int] = []
        self.on_batch: Callable[[], object] = lambda: None
        self.open, self.begun = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, pictures: Sequence[Any]) -> NDArray[np.float32]:
        self.sizes.append(len(pictures))
        self.on_batch()
        self.begun.set()
        assert self.open.wait(30)
        return self._bundle.probabilities(pictures)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle"), steps="min_size(short_side=4)"), "cpu")


@pytest.fixture
def gate(bundle: Bundle) -> Gate:
    return Gate(bundle)


@pytest.fixture
def engine(bundle: Bundle, gate: Gate) -> Iterator[Engine]:
    running = Engine(bundle, gate, LIMITS, threads=2, capacity=10, batch_size=4)
    yield running
    gate.open.set()
    running.close()


def assert_close(probabilities: Sequence[NDArray[np.float32]], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=PROBABILITY_TOLERANCE)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_encoded_or_decoded_the_network_sees_the_bundles_own_pixels(engine: Engine, bundle: Bundle) -> None:
    async def ask() -> list[Any]:
        pictures = [*PICTURES, *(codec.decode(data) for data in PICTURES)]
        return await asyncio.gather(*(engine.result(picture) for picture in pictures))

    prepared = [bundle.prepare(data) for data in PICTURES] * 2
    results = run(ask())
    assert np.array_equal([result.prepared for result in results], prepared)
    assert_close([result.probabilities for result in results], bundle.probabilities(prepared))
    assert [(result.width, result.height) for result in results] == [(32, 24 + number) for number in range(8)] * 2


def test_a_picture_that_cannot_be_used_stops_no_other(engine: Engine) -> None:
    tiny = codec.encode(scene(2, 2), PNG)[0]
    huge = codec.encode(scene(1001, 1000), PNG)[0]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(engine.result(data) for data in (PICTURES[0], b"no picture", tiny, huge)))

    good, *bad = run(ask())
    assert isinstance(good, Result)
    assert [b.reason if isinstance(b, BadPicture) else b for b in bad] == [
        "not_an_image",
        "dropped:below_min_size",
        "too_large",
    ]


def test_an_answer_that_is_not_a_number_is_a_bad_picture_beside_good_ones(bundle: Bundle) -> None:
    def classify(pictures: Sequence[Any]) -> NDArray[np.float32]:
        rows = bundle.probabilities(pictures).copy()
        rows[0] = np.nan
        return rows

    engine = Engine(bundle, classify, LIMITS, threads=2, capacity=10, batch_size=2, batch_wait_s=30)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(engine.result(data) for data in PICTURES[:2]))

    results = run(ask())
    engine.close()
    assert sorted(each.reason if isinstance(each, BadPicture) else "" for each in results) == ["", "not_finite"]


def test_while_a_batch_is_computed_the_next_one_fills(engine: Engine, gate: Gate) -> None:
    async def ask() -> None:
        gate.open.clear()
        first = asyncio.ensure_future(engine.result(PICTURES[0]))
        await until(gate.begun.is_set)
        rest = [asyncio.ensure_future(engine.result(data)) for data in PICTURES[1:8]]
        await until(lambda: engine.waiting == 7)
        gate.open.set()
        await asyncio.gather(first, *rest)

    run(ask())
    assert gate.sizes == [1, 4, 3]


def test_a_picture_whose_client_has_left_is_not_computed(engine: Engine, gate: Gate) -> None:
    async def ask() -> None:
        gate.open.clear()
        first = asyncio.ensure_future(engine.result(PICTURES[0]))
        await until(gate.begun.is_set)
        left = [asyncio.ensure_future(engine.result(data)) for data in PICTURES[1:4]]
        await until(lambda: engine.waiting == 3)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        gate.open.set()
        await asyncio.gather(first, engine.result(PICTURES[5]))

    run(ask())
    assert gate.sizes == [1, 1]


def test_an_idle_model_waits_for_a_batch_only_where_that_is_set(bundle: Bundle, gate: Gate) -> None:
    engine = Engine(bundle, gate, LIMITS, threads=2, capacity=10, batch_size=3, batch_wait_s=30)

    async def ask() -> None:
        await asyncio.gather(*(engine.result(data) for data in PICTURES[:3]))

    run(ask())
    engine.close()
    assert gate.sizes == [3]


def test_capacity_is_limited_and_a_larger_request_is_admitted_alone(engine: Engine) -> None:
    engine.admit(64)
    with pytest.raises(Busy):
        engine.admit(1)
    engine.release(64)
    for _ in range(10):
        engine.admit(1)
    with pytest.raises(Busy, match="10"):
        engine.admit(1)


def test_other_work_runs_between_batches(engine: Engine, gate: Gate) -> None:
    async def ask() -> list[Any]:
        gate.open.clear()
        first = asyncio.ensure_future(engine.result(PICTURES[0]))
        await until(gate.begun.is_set)
        name = asyncio.ensure_future(engine.compute(lambda: threading.current_thread().name))
        await until(lambda: engine.waiting == 1)
        gate.open.set()
        return await asyncio.gather(first, name, engine.result(PICTURES[1]))

    assert run(ask())[1] == "compute-0"


def test_much_other_work_lets_pictures_through_in_turns(engine: Engine, gate: Gate) -> None:
    done: list[str] = []

    async def ask() -> None:
        gate.open.clear()
        first = asyncio.ensure_future(engine.result(PICTURES[0]))
        await until(gate.begun.is_set)
        calls = [asyncio.ensure_future(engine.compute(lambda: done.append("call"))) for _ in range(4)]
        picture = asyncio.ensure_future(engine.result(PICTURES[1]))
        await until(lambda: engine.waiting == 5)
        gate.on_batch = lambda: done.append("batch")
        gate.open.set()
        await asyncio.gather(first, picture, *calls)

    run(ask())
    assert done.index("batch") == 1, done


def test_two_lanes_compute_two_batches_and_calls_wait_for_the_first_lane(bundle: Bundle) -> None:
    both, names = threading.Barrier(2, timeout=30), set[str]()

    def classify(pictures: Sequence[Any]) -> NDArray[np.float32]:
        names.add(threading.current_thread().name)
        both.wait()
        return bundle.probabilities(pictures)

    engine = Engine(bundle, classify, LIMITS, threads=2, capacity=10, batch_size=1, lanes=2)

    async def ask() -> Any:
        results = await asyncio.gather(*(engine.result(data) for data in PICTURES[:4]))
        return results, await engine.compute(lambda: threading.current_thread().name)

    results, name = run(ask())
    engine.close()
    assert names == {"compute-0", "compute-1"}
    assert name == "compute-0"
    expected = bundle.probabilities([bundle.prepare(data) for data in PICTURES[:4]])
    assert_close([result.probabilities for result in results], expected)


def test_a_stuck_lane_is_detected_beside_one_that_works(bundle: Bundle, gate: Gate) -> None:
    engine = Engine(bundle, gate, LIMITS, threads=2, capacity=10, batch_size=1, lanes=2)

    async def ask() -> None:
        gate.open.clear()
        stuck = asyncio.ensure_future(engine.result(PICTURES[0]))
        await until(lambda: engine.stuck_s() > 0)
        gate.open.set()
        await stuck
        await until(lambda: engine.stuck_s() == 0)

    run(ask())
    engine.close()


def test_an_error_in_the_model_reaches_its_requests_and_no_other_batch(bundle: Bundle) -> None:
    failing = [True]

    def classify(pictures: Sequence[Any]) -> NDArray[np.float32]:
        if failing.pop():
            raise RuntimeError("out of memory")
        return bundle.probabilities(pictures)

    failing.insert(0, False)
    engine = Engine(bundle, classify, LIMITS, threads=2, capacity=10, batch_size=4)

    async def ask() -> Any:
        with pytest.raises(RuntimeError, match="out of memory"):
            await engine.result(PICTURES[0])
        return await engine.result(PICTURES[0])

    assert isinstance(run(ask()), Result)
    engine.close()


def test_a_batch_that_does_not_end_is_detected(engine: Engine, gate: Gate) -> None:
    async def ask() -> None:
        assert engine.stuck_s() == 0
        gate.open.clear()
        pending = asyncio.ensure_future(engine.result(PICTURES[0]))
        await until(gate.begun.is_set)
        await until(lambda: engine.stuck_s() > 0)
        gate.open.set()
        await pending

    run(ask())


def test_the_view_is_what_the_model_sees(engine: Engine, bundle: Bundle) -> None:
    assert np.array_equal(codec.decode(run(engine.view(PICTURES[0]))), bundle.prepare(PICTURES[0]))
    with pytest.raises(BadPicture):
        run(engine.view(b"no picture"))
