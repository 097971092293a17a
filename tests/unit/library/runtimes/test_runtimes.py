"""Runtimes give the bundle's probabilities; tuning chooses their batch size."""

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
from library.runtimes import onnx_session
from library.runtimes.parity import TOLERANCE, Disagreement, check, compare, noise, samples
from library.runtimes.runtime import Runtime, open_runtime
from library.runtimes.tuning import Tuning, tune
from tests.bundles import PROBABILITY_TOLERANCE

_CLASSES = ("ant", "bee", "cat")


def untrained(model: str, channels: int, side: int, classes: Sequence[str] = _CLASSES, seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    record = BundleRecord(model=model, classes=tuple(classes), input_size=(side, side), channels=channels)
    network = create(model, num_classes=len(classes))
    with torch.no_grad():
        # Random weights answer every picture nearly the same: larger ones make mistakes visible.
        network.head[-1].weight.mul_(20)
    return Bundle.of_model(record, network, device="cpu")


def assert_close(
    actual: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = PROBABILITY_TOLERANCE
) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


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


def test_the_checks_pictures_get_different_answers(lenet: Bundle) -> None:
    rows = lenet.probabilities(samples(lenet, 8))
    assert rows.std(0).max() > 0.05


@pytest.mark.parametrize(
    ("model", "channels", "side"),
    [("mlp", 1, 28), ("resnet9(width=8)", 3, 32)],
)
def test_onnx_runtime_gives_the_bundles_answers_in_every_batch_size(model: str, channels: int, side: int) -> None:
    bundle = untrained(model, channels, side)
    runtime = open_runtime(bundle, "onnx", threads=2)
    pictures = samples(bundle, 19)
    expected, together = bundle.probabilities(pictures), runtime.probabilities(pictures)
    for size in (1, 2, 3, 8, 19):
        parts = [runtime.probabilities(pictures[first : first + size]) for first in range(0, 19, size)]
        assert compare(expected, np.concatenate(parts), TOLERANCE) <= TOLERANCE
        assert_close(np.concatenate(parts), together)
    assert runtime.probabilities([]).shape == (0, 3)


def test_onnx_runtime_leaves_other_dtypes_to_the_bundle(lenet: Bundle, lenet_onnx: Runtime) -> None:
    pixels = samples(lenet, 4)
    mixed: list[Prepared] = [
        pixels[0],
        pixels[1].astype(np.uint16) * 257,
        pixels[2],
        pixels[3].astype(np.float32) / 255,
    ]
    actual = lenet_onnx.probabilities(mixed)
    assert actual == pytest.approx(lenet.probabilities(pixels), abs=TOLERANCE)
    assert_close(actual[[1, 3]], lenet.probabilities(mixed)[[1, 3]])


def test_any_thread_may_call_a_runtime(lenet: Bundle, lenet_onnx: Runtime) -> None:
    pictures = samples(lenet, 8)
    alone = lenet_onnx.probabilities(pictures)
    with ThreadPoolExecutor(1) as pool:
        assert_close(pool.submit(lenet_onnx.probabilities, pictures).result(), alone)


def test_concurrent_callers_get_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Forces one picture per thread, which is otherwise chosen for larger networks only.
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


def test_without_measuring_the_clock_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = untrained("resnet9(width=8)", 3, 32)
    monkeypatch.setattr(onnx_session, "perf_counter", lambda: pytest.fail("the clock was read"))
    runtime = open_runtime(bundle, "onnx", threads=2, measure=False)
    assert runtime.lanes == 1
    assert_close(runtime.probabilities(samples(bundle, 5)), bundle.probabilities(samples(bundle, 5)), TOLERANCE)
    with pytest.raises(UsageError, match="auto is chosen by measuring"):
        open_runtime(bundle, "auto", measure=False)


def test_auto_reports_its_choice_and_why_it_passed_over_the_others(lenet: Bundle) -> None:
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
def test_torch_compile_gives_the_bundles_answers(lenet: Bundle) -> None:
    runtime = open_runtime(lenet, "compile")
    pictures = samples(lenet, 8)
    assert runtime.probabilities(pictures) == pytest.approx(lenet.probabilities(pictures), abs=TOLERANCE)
    wide = [picture.astype(np.uint16) * 257 for picture in pictures]
    assert runtime.probabilities(wide) == pytest.approx(lenet.probabilities(pictures), abs=TOLERANCE)


def test_without_a_compiler_compile_fails_and_auto_uses_the_others(lenet: Bundle) -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):  # monkeypatch would leave the setting deleted
        with pytest.raises(
            StriateError, match=r"runtime 'compile': torch.compile needs a C\+\+ compiler.*install g\+\+"
        ):
            open_runtime(lenet, "compile")
        runtime = open_runtime(lenet, "auto", probe_s=0.1, try_compile=True)
    assert "install g++" in runtime.passed_over["compile"]


def test_an_ensembles_runtime_averages_its_members_runtimes() -> None:
    one, two = untrained("lenet5", 1, 28, seed=1), untrained("mlp", 1, 28, ("cat", "ant", "bee"), seed=2)
    both = ensemble([ensemble([one, two], [3, 1]), one])
    pictures = samples(both, 5)
    runtime = open_runtime(both, "onnx")
    assert runtime.name == "onnx"
    assert runtime.probabilities(pictures) == pytest.approx(both.probabilities(pictures), abs=TOLERANCE)
    eager = open_runtime(both, "eager")
    assert_close(eager.probabilities(pictures), both.probabilities(pictures))


@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_an_ensemble_gives_concurrent_callers_the_same_answers(lenet: Bundle, runtime: str) -> None:
    torch.set_num_threads(2)  # with one thread the members would run one after the other
    try:
        members = [lenet, untrained("resnet9(width=8)", 3, 32, seed=2)]
        inner = ensemble(members, [3, 1])
        outer = ensemble([inner, lenet])
        pictures = samples(outer, 5)
        inputs = zip(*(picture[0] for picture in pictures), strict=True)
        alone = [open_runtime(member, runtime).probabilities(own) for member, own in zip(members, inputs, strict=True)]
        expected = outer.mean_of_members([inner.mean_of_members(alone), alone[0]])
        opened = open_runtime(outer, runtime)
        with ThreadPoolExecutor(3) as pool:
            for actual in pool.map(opened.probabilities, [pictures] * 6):
                assert_close(actual, expected)
    finally:
        torch.set_num_threads(1)


def test_an_unknown_runtime_is_refused(lenet: Bundle) -> None:
    with pytest.raises(UsageError, match="no runtime 'tensorrt': choose auto, eager, compile or onnx"):
        open_runtime(lenet, "tensorrt")


def _shifted(bundle: Bundle, shift: float) -> Runtime:
    def compute(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        rows = bundle.probabilities(pictures).copy()
        rows[:, 0] += shift
        return rows

    return Runtime("shifted", "cpu", 1, compute)


def test_the_check_detects_answers_that_differ_from_the_bundles(lenet: Bundle) -> None:
    assert check(lenet, _shifted(lenet, 5e-5).compute) == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(Disagreement, match=r"differs by 0.01 from the bundle's; 0.0001 is allowed"):
        check(lenet, _shifted(lenet, 0.01).compute)
    with pytest.raises(Disagreement, match="differs by nan"):
        check(lenet, _shifted(lenet, float("nan")).compute)
    with pytest.raises(Disagreement, match="shape"):
        check(lenet, lambda pictures: lenet.probabilities(pictures)[:, :2])


def test_another_winner_passes_only_if_the_two_classes_were_tied() -> None:
    near, far = np.array([[0.5, 0.49, 0.01]], np.float32), np.array([[0.5, 0.45, 0.05]], np.float32)
    assert compare(near, near[:, [1, 0, 2]], 0.02) == pytest.approx(0.01)
    with pytest.raises(Disagreement, match="the most probable class"):
        compare(far, np.array([[0.47, 0.48, 0.05]], np.float32), 0.04)


def test_tuning_measures_the_runtime(lenet: Bundle, lenet_onnx: Runtime) -> None:
    batch_sizes: list[int] = []

    def counted(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        batch_sizes.append(len(pictures))
        return lenet_onnx.probabilities(pictures)

    tuning = tune(Runtime("counted", "cpu", 1, counted), lenet, sizes=(1, 2, 4), probe_s=1.0)
    assert set(batch_sizes) == set(tuning.latency_ms) == set(tuning.pictures_per_s)
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


def test_tuning_stops_when_the_gpus_memory_is_full(lenet: Bundle) -> None:
    def small(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        if len(pictures) > 1:
            raise torch.OutOfMemoryError
        return lenet.probabilities(pictures)

    tuning = tune(Runtime("small", "cuda", 1, small), lenet)
    assert list(tuning.latency_ms) == [1]


def test_noise_for_an_ensemble_has_one_picture_per_member(lenet: Bundle) -> None:
    both = ensemble([lenet, lenet])
    picture = noise(both, 3)
    assert isinstance(picture, tuple)
    assert both.probabilities([picture]).shape == (1, 3)
