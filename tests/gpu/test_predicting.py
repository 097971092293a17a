"""Bundles on a GPU: the CPU's answers within a stated tolerance, alone, in batches, from threads, and in ensembles."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.ensemble import ensemble
from library.errors import StriateError
from library.evaluation.inside.grad_cam import explain
from library.pipeline.inputs import Prepared
from library.runtimes import NAMES
from library.runtimes.parity import BF16_TOLERANCE, check, compare, samples, tolerance
from library.runtimes.runtime import open_runtime
from library.runtimes.tuning import tune
from tests.bundles import make_bundle
from tests.gpu.conftest import TF32_TOLERANCE

pytestmark = pytest.mark.gpu

MODELS = {"lenet5(in_chans=3)": 28, "resnet18": 64, 'timm("vit_tiny_patch16_224")': 224}


def with_precision(folder: Path, uri: str, precision: str, device: str) -> Bundle:
    """The same network as the bundle at `uri`, with another precision."""
    saved = Bundle.load(uri, "cpu")
    record = saved.record.model_copy(update={"precision": precision})
    Bundle.of_model(record, saved.model, "cpu").save(str(folder / precision))
    return Bundle.load(str(folder / precision), device)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_answers_as_a_cpu_does(tmp_path: Path, device: torch.device, model: str, precision: str) -> None:
    uri = make_bundle(tmp_path / "bundle", model=model, size=MODELS[model])
    here, there = Bundle.load(uri, "cpu"), with_precision(tmp_path, uri, precision, str(device))
    pictures = samples(here, 5)
    allowed = TF32_TOLERANCE if precision == "fp32" else BF16_TOLERANCE
    compare(here.probabilities(pictures), there.probabilities(pictures), allowed)
    features, probabilities = there.features(pictures)
    assert features.shape == (5, there.model.num_features)
    assert features.dtype == probabilities.dtype == np.float32


def test_a_picture_gets_the_same_answer_alone_and_in_a_batch(bundle: Bundle, prepared: list[Prepared]) -> None:
    together = bundle.probabilities(prepared)
    for size in (1, 5):
        parts = [bundle.probabilities(prepared[at : at + size]) for at in range(0, len(prepared), size)]
        compare(together, np.concatenate(parts), tolerance(bundle))
    assert bundle.probabilities([]).shape == (0, len(bundle.classes))


def test_uint16_and_float_pictures_reach_the_gpu(bundle: Bundle, prepared: list[Prepared]) -> None:
    expected = bundle.probabilities(prepared)
    for other in (
        [one.astype(np.uint16) * 257 for one in prepared],
        [one.astype(np.float32) / 255 for one in prepared],
    ):
        compare(expected, bundle.probabilities(other), tolerance(bundle))


def checked_from_threads(
    compute: Callable[[list[Prepared]], NDArray[np.float32]], pictures: list[Prepared], allowed: float
) -> None:
    """Calls from several threads, each with pictures of its own, and compares with calls one after the other."""
    parts = [pictures[at:] + pictures[:at] for at in range(len(pictures))] * 4
    expected = [compute(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for one, got in zip(expected, pool.map(compute, parts), strict=True):
            compare(one, got, allowed)


def test_threads_get_the_answers_to_their_own_pictures(bundle: Bundle, prepared: list[Prepared]) -> None:
    checked_from_threads(bundle.probabilities, prepared, tolerance(bundle))


def test_an_ensembles_members_compute_on_streams_of_their_own(
    tmp_path: Path, device: torch.device, photos: list[bytes]
) -> None:
    uris = [
        make_bundle(tmp_path / str(seed), seed, model=f"resnet9(width={8 + 8 * seed})", size=32) for seed in range(3)
    ]
    # Loaded just before: their weights may still be on the way to the GPU when the first stream starts.
    both = ensemble([Bundle.load(uri, str(device)) for uri in uris], [3, 1, 2])
    pictures = [both.prepare(data) for data in photos]
    first = both.probabilities(pictures)
    on_cpu = ensemble([Bundle.load(uri, "cpu") for uri in uris], [3, 1, 2])
    compare(on_cpu.probabilities(pictures), first, BF16_TOLERANCE)
    alone = [
        member.probabilities(list(own)) for member, own in zip(both.members, zip(*pictures, strict=True), strict=True)
    ]
    compare(both.mean_of_members(alone), first, tolerance(both))
    checked_from_threads(both.probabilities, pictures, tolerance(both))


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_answers_as_the_bundle_or_says_what_would(
    bundle: Bundle, prepared: list[Prepared], name: str
) -> None:
    try:
        runtime = open_runtime(bundle, name)
    except StriateError as error:
        if "the runtime eager takes every bundle" not in str(error):
            raise
        pytest.skip(f"{name}: {error}")
    assert runtime.device.startswith(bundle.device.type)
    assert check(bundle, runtime.compute, prepared) <= tolerance(bundle)
    if runtime.lanes > 1:
        checked_from_threads(runtime.probabilities, prepared, tolerance(bundle))


def test_auto_measures_on_the_gpu_and_says_why_it_passed_over_others(bundle: Bundle) -> None:
    runtime = open_runtime(bundle, "auto", probe_s=1.0)
    assert set(runtime.passed_over) | {runtime.name} == set(NAMES)
    assert all(runtime.passed_over.values())
    tuning = tune(runtime, bundle, probe_s=1.0)
    assert tuning.batch_size in tuning.latency_ms


def test_an_explanation_is_the_cpus(bundle_uri: str, bundle: Bundle, prepared: list[Prepared]) -> None:
    here = Bundle.load(bundle_uri, "cpu")
    for picture in prepared[:3]:
        name = here.classes[1]
        expected, got = explain(here, picture, name).heat, explain(bundle, picture, name).heat
        assert np.abs(expected - got).max() < 0.1
