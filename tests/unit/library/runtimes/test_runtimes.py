"""Runtimes: other ways to the same probabilities, and how many pictures at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.errors import StriateError, UsageError
from library.models.build import create
from library.pipeline.inputs import Prepared
from library.runtimes import Runtime, onnx_session, open_runtime, tune
from library.runtimes.parity import TOLERANCE, Disagreement, check, compare, noise, samples
from library.runtimes.tuning import Tuning
from tests.bundles import PROBABILITY_TOLERANCE

_CLASSES = ("ant", "bee", "cat")


def untrained(model: str, channels: int, side: int, classes: Sequence[str] = _CLASSES, seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    record = BundleRecord(model=model, classes=tuple(classes), input_size=(side, side), channels=channels)
    network = create(model, num_classes=len(classes))
    with torch.no_grad():
        # Random weights give much the same to all: spread out, a mistake in them shows.
        network.head[-1].weight.mul_(20)
    return Bundle.of_model(record, network, device="cpu")


def assert_close(
    got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = PROBABILITY_TOLERANCE
) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lenet() -> Bundle:
    return untrained("lenet5", 1, 28)


@pytest.fixture(scope="module")
def lenet_onnx(lenet: Bundle) -> Runtime:
    return open_runtime(lenet, "onnx", threads=2)


def test_eager_is_the_bundle_itself(lenet: Bundle) -> None:
    runtime = open_runtime(lenet, "eager")
    pictures = samples(lenet, 5)
    assert_close(runtime.probabilities(pictures), lenet.probabilities(pictures))
    assert (runtime.name, runtime.device, runtime.difference) == ("eager", "cpu", 0.0)


def test_the_pictures_of_the_check_are_told_apart_by_a_network(lenet: Bundle) -> None:
    rows = lenet.probabilities(samples(lenet, 8))
    assert rows.std(0).max() > 0.05


@pytest.mark.parametrize(
    ("model", "channels", "side"),
    [("mlp", 1, 28), ("resnet9(width=8)", 3, 32)],
)
def test_onnx_runtime_answers_as_the_bundle_does_in_batches_of_every_size(model: str, channels: int, side: int) -> None:
    bundle = untrained(model, channels, side)
    runtime = open_runtime(bundle, "onnx", threads=2)
    pictures = samples(bundle, 19)
    expected, whole = bundle.probabilities(pictures), runtime.probabilities(pictures)
    for size in (1, 2, 3, 8, 19):
        parts = [runtime.probabilities(pictures[first : first + size]) for first in range(0, 19, size)]
        assert compare(expected, np.concatenate(parts), TOLERANCE) <= TOLERANCE
        assert_close(np.concatenate(parts), whole)
    assert runtime.probabilities([]).shape == (0, 3)


def test_onnx_runtime_gives_other_dtypes_to_the_bundle(lenet: Bundle, lenet_onnx: Runtime) -> None:
    pixels = samples(lenet, 4)
    mixed: list[Prepared] = [
        pixels[0],
        pixels[1].astype(np.uint16) * 257,
        pixels[2],
        pixels[3].astype(np.float32) / 255,
    ]
    got = lenet_onnx.probabilities(mixed)
    assert got == pytest.approx(lenet.probabilities(pixels), abs=TOLERANCE)
    assert_close(got[[1, 3]], lenet.probabilities(mixed)[[1, 3]])


def test_any_thread_may_ask(lenet: Bundle, lenet_onnx: Runtime) -> None:
    pictures = samples(lenet, 8)
    alone = lenet_onnx.probabilities(pictures)
    with ThreadPoolExecutor(1) as pool:
        assert_close(pool.submit(lenet_onnx.probabilities, pictures).result(), alone)


def test_pictures_get_the_same_answers_whoever_else_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the clock says here: the way of larger networks, with a small one.
    monkeypatch.setattr(onnx_session, "_SMALL_S", 0.0)
    monkeypatch.setattr(onnx_session, "_ACCEPTED_SLOWDOWN", 1e9)
    bundle = untrained("resnet9(width=8)", 3, 32)
    runtime = open_runtime(bundle, "onnx", threads=2)
    assert runtime.lanes == 2
    pictures = samples(bundle, 24)
    together = runtime.probabilities(pictures)
    with ThreadPoolExecutor(runtime.lanes) as pool:
        apart = pool.map(lambda picture: runtime.probabilities([picture]), pictures)
        assert_close(np.concatenate(list(apart)), together)


def test_without_measuring_nothing_is_chosen_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = untrained("resnet9(width=8)", 3, 32)
    monkeypatch.setattr(onnx_session, "perf_counter", lambda: pytest.fail("it looked at the clock"))
    runtime = open_runtime(bundle, "onnx", threads=2, measure=False)
    assert runtime.lanes == 1
    assert_close(runtime.probabilities(samples(bundle, 5)), bundle.probabilities(samples(bundle, 5)), TOLERANCE)
    with pytest.raises(UsageError, match="auto is chosen by measuring"):
        open_runtime(bundle, "auto", measure=False)


def test_auto_tells_what_it_took_and_why_not_the_others(lenet: Bundle) -> None:
    runtime = open_runtime(lenet, "auto", probe_s=0.5)
    assert runtime.name in ("eager", "onnx")
    others = {"eager", "compile", "onnx"} - {runtime.name}
    assert set(runtime.passed_over) == others
    assert all(runtime.passed_over.values())
    assert json.loads(json.dumps(runtime.described()))["name"] == runtime.name
    assert check(lenet, runtime.compute) <= TOLERANCE


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ,
    reason="the cache of torch.compile on disk holds code for the processor's own kernels, not for those named here",
)
def test_torch_compile_answers_as_the_bundle_does(lenet: Bundle) -> None:
    runtime = open_runtime(lenet, "compile")
    pictures = samples(lenet, 8)
    assert runtime.probabilities(pictures) == pytest.approx(lenet.probabilities(pictures), abs=TOLERANCE)
    wide = [picture.astype(np.uint16) * 257 for picture in pictures]
    assert runtime.probabilities(wide) == pytest.approx(lenet.probabilities(pictures), abs=TOLERANCE)


def test_without_a_compiler_compile_says_so_and_auto_goes_on(lenet: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(StriateError, match=r"runtime 'compile': torch.compile needs a C\+\+ compiler.*install g\+\+"):
        open_runtime(lenet, "compile")
    runtime = open_runtime(lenet, "auto", probe_s=0.1, try_compile=True)
    assert "install g++" in runtime.passed_over["compile"]


def test_an_ensemble_runs_its_members_by_themselves_and_joins_them() -> None:
    one, two = untrained("lenet5", 1, 28, seed=1), untrained("mlp", 1, 28, ("cat", "ant", "bee"), seed=2)
    both = ensemble([ensemble([one, two], [3, 1]), one])
    pictures = samples(both, 5)
    runtime = open_runtime(both, "onnx")
    assert runtime.name == "onnx"
    assert runtime.probabilities(pictures) == pytest.approx(both.probabilities(pictures), abs=TOLERANCE)
    eager = open_runtime(both, "eager")
    assert_close(eager.probabilities(pictures), both.probabilities(pictures))


@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_an_ensemble_joins_its_members_answers_whoever_else_asks(lenet: Bundle, runtime: str) -> None:
    torch.set_num_threads(2)  # with one the members would take turns
    try:
        members = [lenet, untrained("resnet9(width=8)", 3, 32, seed=2)]
        inner = ensemble(members, [3, 1])
        outer = ensemble([inner, lenet])
        pictures = samples(outer, 5)
        seen = zip(*(picture[0] for picture in pictures), strict=True)
        alone = [open_runtime(member, runtime).probabilities(own) for member, own in zip(members, seen, strict=True)]
        wanted = outer.mean_of_members([inner.mean_of_members(alone), alone[0]])
        opened = open_runtime(outer, runtime)
        with ThreadPoolExecutor(3) as pool:
            for said in pool.map(opened.probabilities, [pictures] * 6):
                assert_close(said, wanted)
    finally:
        torch.set_num_threads(1)


def test_another_name_is_refused(lenet: Bundle) -> None:
    with pytest.raises(UsageError, match="no runtime 'tensorrt'; there are auto, eager, compile, onnx"):
        open_runtime(lenet, "tensorrt")


def _shifted(bundle: Bundle, by: float) -> Runtime:
    def compute(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        rows = bundle.probabilities(pictures).copy()
        rows[:, 0] += by
        return rows

    return Runtime("shifted", "cpu", 1, compute)


def test_the_check_finds_answers_that_are_not_the_bundles(lenet: Bundle) -> None:
    assert check(lenet, _shifted(lenet, 5e-5).compute) == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(Disagreement, match=r"differs by 0.01 from the bundle's; 0.0001 is allowed"):
        check(lenet, _shifted(lenet, 0.01).compute)
    with pytest.raises(Disagreement, match="differs by nan"):
        check(lenet, _shifted(lenet, float("nan")).compute)
    with pytest.raises(Disagreement, match="shape"):
        check(lenet, lambda pictures: lenet.probabilities(pictures)[:, :2])


def test_another_winner_is_let_pass_only_where_the_two_were_tied() -> None:
    near, far = np.array([[0.5, 0.49, 0.01]], np.float32), np.array([[0.5, 0.45, 0.05]], np.float32)
    assert compare(near, near[:, [1, 0, 2]], 0.02) == pytest.approx(0.01)
    with pytest.raises(Disagreement, match="the most probable class"):
        compare(far, np.array([[0.47, 0.48, 0.05]], np.float32), 0.04)


def test_tuning_measures_the_runtime_that_it_is_given(lenet: Bundle, lenet_onnx: Runtime) -> None:
    asked: list[int] = []

    def counted(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        asked.append(len(pictures))
        return lenet_onnx.probabilities(pictures)

    tuning = tune(Runtime("counted", "cpu", 1, counted), lenet, sizes=(1, 2, 4), probe_s=1.0)
    assert set(asked) == set(tuning.latency_ms) == set(tuning.pictures_per_s)
    assert tuning.batch_size in tuning.latency_ms
    assert 0 <= tuning.batch_wait_ms <= 10
    assert json.loads(json.dumps(tuning.described()))["batch_size"] == tuning.batch_size


def test_tuning_without_time_measures_the_smallest_batch_only(lenet: Bundle) -> None:
    tuning = tune(open_runtime(lenet, "eager"), lenet, probe_s=0.0)
    assert isinstance(tuning, Tuning)
    assert (tuning.batch_size, tuning.batch_wait_ms, list(tuning.latency_ms)) == (1, 0.0, [1])


def test_with_several_lanes_larger_batches_are_not_tried(lenet: Bundle) -> None:
    tuning = tune(Runtime("lanes", "cpu", 2, lenet.probabilities, lanes=2), lenet)
    assert (tuning.batch_size, list(tuning.latency_ms)) == (1, [1])


def test_tuning_stops_where_the_memory_of_a_gpu_ends(lenet: Bundle) -> None:
    def small(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        if len(pictures) > 1:
            raise torch.OutOfMemoryError
        return lenet.probabilities(pictures)

    tuning = tune(Runtime("small", "cuda", 1, small), lenet)
    assert list(tuning.latency_ms) == [1]


def test_noise_of_an_ensemble_is_one_picture_a_member(lenet: Bundle) -> None:
    both = ensemble([lenet, lenet])
    picture = noise(both, 3)
    assert isinstance(picture, tuple)
    assert both.probabilities([picture]).shape == (1, 3)
