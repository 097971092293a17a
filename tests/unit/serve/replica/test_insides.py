"""A look inside a model for a request: what is drawn, and what it may cost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.ensemble import ensemble
from library.errors import BadPicture, UsageError
from library.imaging import codec
from serve.http.schemas import InsidePart
from serve.http.service import Busy
from serve.replica.engine import Engine
from serve.replica.insides import Insides
from tests.bundles import make_bundle
from tests.picture_examples import scene

PARTS: tuple[InsidePart, ...] = get_args(InsidePart)
PICTURE = codec.encode(scene(40, 48), codec.Encoding("png"))[0]
LIMITS = codec.Limits(max_pixels=10**4)


class Watched:
    """Classifies as the bundle does, counts, and waits while it is closed."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.pictures = 0
        self.open, self.begun = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, pictures: Sequence[Any]) -> NDArray[np.float32]:
        self.pictures += len(pictures)
        self.begun.set()
        assert self.open.wait(30)
        return self._bundle.probabilities(pictures)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("bundles")
    lenet = Bundle.load(make_bundle(root / "lenet"), "cpu")
    mlp = Bundle.load(make_bundle(root / "mlp", model="mlp(in_chans=3)"), "cpu")
    return {"lenet": lenet, "mlp": mlp, "both": ensemble([lenet, mlp])}


@contextmanager
def insides(bundle: Bundle) -> Generator[tuple[Insides, Engine, Watched]]:
    watched = Watched(bundle)
    engine = Engine(bundle, watched, LIMITS, threads=2, capacity=10, batch_size=4)
    try:
        yield Insides(bundle, engine, 30), engine, watched
    finally:
        watched.open.set()
        engine.close()


def run(call: Coroutine[Any, Any, bytes]) -> NDArray[Any]:
    return codec.decode(asyncio.run(call))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_network_is_a_drawing(bundles: dict[str, Bundle], part: InsidePart) -> None:
    with insides(bundles["lenet"]) as (looking, _, _):
        drawing = run(looking.draw(PICTURE, part, None))
    assert drawing.shape[2] == 3
    assert min(drawing.shape[:2]) > 80
    assert drawing.std() > 5


@pytest.mark.parametrize("part", ["maps", "kernels", "fields"])
def test_an_ensemble_is_drawn_member_below_member(bundles: dict[str, Bundle], part: InsidePart) -> None:
    heights: list[int] = []
    for name in ("lenet", "mlp", "both"):
        with insides(bundles[name]) as (looking, _, _):
            heights.append(run(looking.draw(PICTURE, part, None)).shape[0])
    assert heights[0] + heights[1] == heights[2]


def test_members_after_the_eighth_are_counted_in_the_drawing(bundles: dict[str, Bundle]) -> None:
    lenet, heights = bundles["lenet"], list[int]()
    for members in ([lenet] * 7, [lenet] * 8, [lenet] * 9, [ensemble([lenet] * 4), *[lenet] * 8]):
        with insides(ensemble(members)) as (looking, _, _):
            heights.append(run(looking.draw(PICTURE, "kernels", None)).shape[0])
    band = heights[1] - heights[0]
    assert 0 < heights[2] - heights[1] < band  # a line of text, not a ninth drawing
    assert heights[3] == heights[2]


def test_a_named_class_is_explained_in_place_of_the_best(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["lenet"]
    with insides(bundle) as (looking, _, _):
        drawings = [run(looking.draw(PICTURE, "occlusion", name)) for name in (None, *bundle.classes)]
    same = [bool(np.array_equal(drawings[0], other)) for other in drawings[1:] if other.shape == drawings[0].shape]
    assert same.count(True) == 1


def test_the_pictures_of_an_occlusion_wait_among_those_of_others(bundles: dict[str, Bundle]) -> None:
    with insides(bundles["lenet"]) as (looking, engine, watched):

        async def both() -> None:
            watched.open.clear()
            drawing = asyncio.create_task(looking.draw(PICTURE, "occlusion", None))
            await asyncio.to_thread(watched.begun.wait, 30)
            other = asyncio.create_task(engine.result(PICTURE))
            watched.open.set()
            await other
            assert not drawing.done()
            await drawing

        asyncio.run(both())
        assert 30 < watched.pictures < 80


def test_another_look_inside_is_refused_while_one_is_drawn(bundles: dict[str, Bundle]) -> None:
    with insides(bundles["lenet"]) as (looking, engine, watched):

        async def two() -> None:
            watched.open.clear()
            first = asyncio.create_task(looking.draw(PICTURE, "occlusion", None))
            await asyncio.to_thread(watched.begun.wait, 30)
            with pytest.raises(Busy, match="already draws"):
                await looking.draw(PICTURE, "maps", None)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            with pytest.raises(Busy, match="already draws"):
                await looking.draw(PICTURE, "maps", None)  # its client has left, but its work has not ended
            watched.open.set()
            async with asyncio.timeout(30):
                while looking.is_drawing:
                    await asyncio.sleep(0)
            await looking.draw(PICTURE, "maps", None)
            engine.admit(10)  # the room is free again

        asyncio.run(two())


def test_an_occlusion_that_nobody_waits_for_ends_early(bundles: dict[str, Bundle]) -> None:
    with insides(bundles["lenet"]) as (looking, engine, watched):

        async def leave() -> None:
            watched.open.clear()
            drawing = asyncio.create_task(looking.draw(PICTURE, "occlusion", None))
            await asyncio.to_thread(watched.begun.wait, 30)
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
            watched.open.set()
            await engine.result(PICTURE)

        asyncio.run(leave())
        assert watched.pictures <= 2  # the whole picture, for its class, and the other request


def test_limits_classes_and_networks_without_maps_are_told(bundles: dict[str, Bundle]) -> None:
    large = codec.encode(scene(120, 120), codec.Encoding("png"))[0]
    with insides(bundles["mlp"]) as (looking, engine, _):
        with pytest.raises(BadPicture) as refused:
            asyncio.run(looking.draw(large, "maps", None))
        assert refused.value.reason == "too_large"
        with pytest.raises(UsageError, match="Grad-CAM needs"):
            asyncio.run(looking.draw(PICTURE, "grad_cam", None))
        with pytest.raises(UsageError, match="has no class 'nothing'"):
            asyncio.run(looking.draw(PICTURE, "occlusion", "nothing"))
        engine.admit(10)  # each refusal freed its room
