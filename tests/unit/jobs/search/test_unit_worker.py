"""Units of a search: the same numbers each time, filters where a candidate puts them, and beginnings computed once."""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.search.preparing import FilterFailed, Preparer, StoredInputs
from jobs.search.proxy import features_of
from jobs.search.script import RecipeLimit, RecipeTooLong
from jobs.search.unit_worker import (
    UNITS,
    FileStore,
    UnitComputer,
    UnitTask,
    first_confirmation_seed,
    measured_in_time,
    with_candidate,
)
from jobs.train.plan import model_inputs
from library import storage
from library.choosing.filter_search.space import IDENTITY, Candidate, Place
from library.choosing.filter_search.trials import Unit
from library.errors import BadPicture, StorageError
from library.imaging import codec
from library.models.build import create
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.steps.plugins import load
from library.training.in_memory import PackedPictures
from tests.plugins import HALVE, unloaded_afterwards, write_plugin

RECIPE = """
data: {train: train, val: val}
model: lenet5
optimizer: {name: adamw, lr: 0.003}
batch_size: 16
epochs: 2
"""
MEDIAN = "median_blur(size=3)"


def halves(count: int, seed: int) -> PackedPictures:
    """Noise with a bright half: the left one or the right one."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 160, (count, 28, 28, 1), np.uint8)
    labels = (np.arange(count) % 2).tolist()
    for picture, label in zip(pictures, labels, strict=True):
        picture[:, 14 * label : 14 * label + 14] += 90
    return PackedPictures.pack(list(pictures), labels, [f"{seed}/{row}" for row in range(count)], Counter())


def computer(
    out: Path,
    recipe: str = RECIPE,
    *,
    train: PackedPictures | None = None,
    test: bool = False,
    budget_s: float = 1e6,
    sleep: Callable[[float], None] = time.sleep,
) -> UnitComputer:
    train, val = halves(80, 1) if train is None else train, halves(60, 2)
    text = Recipe.parse(recipe).model_dump_json()
    even, odd = np.arange(0, 60, 2), np.arange(1, 60, 2)
    # Both halves of the validation pictures have both classes.
    screening, confirmation = np.sort(np.r_[even[:15], odd[:15]]), np.sort(np.r_[even[15:], odd[15:]])
    task = UnitTask(
        text,
        ("left", "right"),
        str(out),
        np.arange(60),
        screening,
        confirmation,
        1,
        False,
        (),
        "c",
        2**24,
        RecipeLimit(budget_s, 30, 50.0),
    )
    task = replace(task, test_context="t" if test else None)
    return UnitComputer(task, train, val, halves(20, 3) if test else None, sleep)


def unit(candidate: Candidate, stage: str, seed: int = 0) -> Unit:
    return Unit(candidate, seed, stage, "c")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "candidate",
    [
        IDENTITY,
        Candidate(MEDIAN),
        Candidate(MEDIAN, "sometimes", 0.5),
        Candidate(MEDIAN, "channels"),
        Candidate(placebo=1),
    ],
    ids=lambda candidate: candidate.name,
)
def test_a_cheap_training_is_repeatable_and_learns(candidate: Candidate, tmp_path: Path) -> None:
    first = computer(tmp_path).compute(unit(candidate, "proxy"))
    assert first.failure is None
    assert first.accuracy > 0.8
    again = computer(tmp_path)
    again.compute(unit(Candidate("invert"), "proxy"))  # what a worker has computed before does not matter
    assert np.array_equal(again.compute(unit(candidate, "proxy")).correct, first.correct)


def test_a_recipe_is_trained_and_judged_on_all_its_pictures(tmp_path: Path) -> None:
    seed = first_confirmation_seed(Recipe.parse(RECIPE))
    worker, store = computer(tmp_path, test=True), FileStore(str(tmp_path))
    training = unit(Candidate(MEDIAN), "recipe", seed)
    worker([json.dumps(training.to_json())])
    trained = store.read(training)
    assert trained is not None
    assert (trained.failure, trained.correct.shape) == (None, (30,))
    assert trained.accuracy > 0.8
    assert store.robustness(training).keys() >= {"clean", "noise 1", "contrast 3"}
    testing = Unit(Candidate(MEDIAN), seed, "test", "t")
    tested = store.read(testing)
    assert tested is not None
    assert (tested.failure, tested.correct.shape) == (None, (20,))
    # Where the training was before there was a test, it is repeated.
    again = worker.compute(testing)
    assert again.correct.mean() == pytest.approx(tested.correct.mean(), abs=0.05)


@pytest.mark.parametrize("place", ["always", "sometimes", "channels"])
def test_a_filter_that_cannot_take_a_picture_fails_with_its_reason(place: Place, tmp_path: Path) -> None:
    candidate = Candidate("channels([0, 1, 2])", place, 0.5 if place == "sometimes" else None)
    worker = computer(tmp_path)
    # A training rejects pictures that its augmentation cannot take, so the race has to find this out.
    for stage in ("proxy",) if place == "sometimes" else ("proxy", "recipe"):
        result = worker.compute(unit(candidate, stage))
        assert result.failure is not None
        assert "channels" in result.failure
        assert not len(result.correct)


def test_a_filter_that_cannot_take_the_second_picture_fails_too() -> None:
    pictures = [np.zeros((8, 8, channels), np.uint8) for channels in (3, 1)]
    preparer = Preparer(PackedPictures.pack(pictures, [0, 1], ["a", "b"], Counter()))
    with pytest.raises(FilterFailed, match="channels"):
        preparer.milliseconds(Pipeline.parse("channels([2])"), np.arange(2))


@pytest.mark.parametrize("augmented", [False, True])
def test_pictures_that_the_recipe_cannot_take_are_left_out(augmented: bool) -> None:
    recipe = InputPipeline.parse("channels([0, 1, 2])", "center_crop([8, 8])", (8, 8), 3)
    stored = StoredInputs.of(recipe, augmented=augmented)

    def taken(shape: tuple[int, ...], dtype: type = np.uint8) -> str:
        pixels = np.ones(shape, dtype)
        try:
            returned = stored.before_fit(codec.encode(pixels, codec.Encoding("npy"))[0])
        except BadPicture as bad:
            return bad.reason
        assert np.array_equal(returned, pixels)
        return ""

    assert [taken((9, 9, 4)), taken((9, 9, 1)), taken((9, 9, 1)), taken((9, 9, 3))] == [
        "",
        "wrong_channels",
        "wrong_channels",
        "",
    ]
    # Augmentation may give a picture its size.
    assert taken((5, 9, 3)) == ("" if augmented else "too_small")


def test_a_plugin_may_refuse_one_of_two_pictures_of_a_kind(tmp_path: Path) -> None:
    refusal = "if pixels.max() < 10: raise BadPicture('too_dark', 'nothing to see')\n        return pixels"
    source = HALVE.replace("return pixels // self.by", refusal).replace(
        "from library.steps", "from library.errors import BadPicture\nfrom library.steps"
    )
    with unloaded_afterwards():
        load([write_plugin(tmp_path, source)])
        inputs = InputPipeline.parse("halve(by=2)", "center_crop([8, 8])", (8, 8), 1)
        stored = StoredInputs.of(inputs, augmented=False)
        bright, dark = (codec.encode(np.full((8, 8, 1), v, np.uint8), codec.Encoding("npy"))[0] for v in (99, 3))
        for _ in range(2):
            assert stored.before_fit(bright).max() == 99
            with pytest.raises(BadPicture, match="nothing to see"):
                stored.before_fit(dark)


def test_the_recipe_of_a_candidate_has_its_filters_channels_and_seed() -> None:
    recipe, picture = Recipe.parse(RECIPE), np.zeros((28, 28, 1), np.uint8)
    always = with_candidate(recipe, Candidate(MEDIAN), picture, 7)
    assert (always.input.steps, always.seed, always.model) == (
        "median_blur(size=3) | grayscale(background=1.0)",
        7,
        "lenet5",
    )
    channels = with_candidate(recipe, Candidate(MEDIAN, "channels"), picture, 7)
    assert model_inputs(channels).channels == 2
    assert channels.model == "lenet5(in_chans=2)"
    sometimes = with_candidate(recipe, Candidate(MEDIAN, "sometimes", 0.5), picture, 7)
    assert (sometimes.input.steps, sometimes.augment) == (None, "sometimes(p=0.5, steps=median_blur(size=3))")
    assert with_candidate(recipe, IDENTITY, picture, 0) == recipe
    assert with_candidate(recipe, Candidate(placebo=1), picture, 7).seed != 7


def test_a_common_beginning_is_computed_once_and_nothing_is_changed() -> None:
    pictures, rows = halves(6, 1), np.arange(6)
    preparer = Preparer(pictures)

    def packed(steps: str) -> PackedPictures:
        return preparer.pack(InputPipeline(Pipeline.parse(steps), Pipeline(), (28, 28), 1), rows)

    before = pictures.flat.copy()
    first = packed(f"{MEDIAN} | invert")
    assert preparer.computed == 2
    packed(f"{MEDIAN} | equalize")
    assert preparer.computed == 3
    direct = Pipeline.parse(f"{MEDIAN} | invert").apply(pictures[2])
    assert np.array_equal(first[2], direct)
    assert np.array_equal(pictures.flat, before)
    forgetful = Preparer(pictures, most_bytes=0)
    inputs = InputPipeline(Pipeline.parse(f"{MEDIAN} | invert"), Pipeline(), (28, 28), 1)
    assert np.array_equal(forgetful.pack(inputs, rows).flat, first.flat)
    with pytest.raises(FilterFailed, match="channels"):
        packed("channels([2])")


@pytest.mark.parametrize("cached", [False, True])
def test_a_frozen_backbone_is_compared_by_a_head_on_its_features(cached: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(create("lenet5", num_classes=2).net.state_dict(), tmp_path / "backbone.pth")
    recipe = f"{RECIPE}weights: {tmp_path}/backbone.pth\nfreeze: all\ncache_features: {str(cached).lower()}\n"
    worker = computer(tmp_path, recipe)
    # Features that are cached once cannot be drawn anew in each epoch.
    sometimes = () if cached else (Candidate(MEDIAN, "sometimes", 0.5),)
    for candidate in (IDENTITY, Candidate(MEDIAN, "channels"), *sometimes):
        first = worker.compute(unit(candidate, "proxy", 1))
        assert (first.failure, len(first.correct)) == (None, 30)
        assert first.accuracy > 0.8
        assert np.array_equal(computer(tmp_path, recipe).compute(unit(candidate, "proxy", 1)).correct, first.correct)
    trained = worker.compute(unit(IDENTITY, "recipe", 1000))
    assert (trained.failure, len(trained.correct)) == (None, 30)


@pytest.mark.parametrize("small", [2, 80], ids=["some", "all"])
def test_cached_features_leave_out_what_the_augmentation_rejects(small: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(create("lenet5", num_classes=2).net.state_dict(), tmp_path / "backbone.pth")
    recipe = f"{RECIPE}weights: {tmp_path}/backbone.pth\nfreeze: all\ncache_features: true\ncopies: 2\n"
    stored = halves(80, 1)
    pixels = [stored[row] if row < 80 - small else stored[row][:20, :20] for row in range(80)]
    train = PackedPictures.pack(pixels, stored.labels.tolist(), stored.keys.tolist(), Counter())
    worker = computer(tmp_path, f"{recipe}augment: random_crop(28)\n", train=train)
    trained = worker.compute(unit(IDENTITY, "recipe", 1000))
    if small < 80:
        assert (trained.failure, len(trained.correct)) == (None, 30)
    else:
        assert "no picture can be used after the augmentation: too_small 80" in str(trained.failure)


def test_a_recipe_beyond_the_budget_ends_in_its_first_training(tmp_path: Path) -> None:
    seed = first_confirmation_seed(Recipe.parse(RECIPE))
    worker = computer(tmp_path, budget_s=1e-4)
    with pytest.raises(RecipeTooLong, match=r"needs 30 of them: give --budget at least (\d+h)?\d+m, or"):
        worker([json.dumps(unit(IDENTITY, "recipe", seed).to_json())])
    # The others are begun only where there is time for them; a test that is added later follows a whole search.
    assert worker.compute(unit(IDENTITY, "recipe", seed + 1)).failure is None
    tested = computer(tmp_path, test=True, budget_s=1e-4).compute(Unit(IDENTITY, seed, "test", "t"))
    assert (tested.failure, len(tested.correct)) == (None, 20)


def test_features_beyond_the_budget_end_within_their_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(create("lenet5", num_classes=2).net.state_dict(), tmp_path / "backbone.pth")
    recipe = f"{RECIPE}weights: {tmp_path}/backbone.pth\nfreeze: all\ncache_features: true\n"
    worker = computer(tmp_path, recipe, budget_s=1e-9)
    with pytest.raises(RecipeTooLong, match="needs 30 of them"):
        worker.compute(unit(IDENTITY, "recipe", first_confirmation_seed(Recipe.parse(recipe))))
    shares: list[float] = []
    pictures = PackedPictures.pack([np.zeros((28, 28, 1), np.uint8)] * 200, [0] * 200, ["a"] * 200, Counter())
    features_of(create("lenet5", num_classes=2), pictures, torch.device("cpu"), lambda _, share: shares.append(share))
    assert shares == [pytest.approx(third / 3) for third in (1, 2, 3)]


def test_a_worker_keeps_the_training_pictures_of_one_candidate_and_stage(tmp_path: Path) -> None:
    worker, seed = computer(tmp_path, test=True), first_confirmation_seed(Recipe.parse(RECIPE))

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, PackedPictures) for one in gc.get_objects())

    worker.compute(unit(Candidate("invert"), "proxy"))
    before = kept()
    worker([json.dumps(unit(one, "recipe", seed).to_json()) for one in (IDENTITY, Candidate(MEDIAN))])
    worker.compute(unit(Candidate("invert"), "proxy"))
    assert kept() == before


def test_a_failure_of_this_moment_is_not_the_filters_fault(tmp_path: Path) -> None:
    with unloaded_afterwards():
        load([write_plugin(tmp_path, HALVE.replace("return pixels // self.by", "raise MemoryError"))])
        training = unit(Candidate("halve(by=2)"), "proxy")
        with pytest.raises(MemoryError):
            computer(tmp_path)([json.dumps(training.to_json())])
    assert FileStore(str(tmp_path)).read(training) is None


def test_a_store_that_fails_for_a_while_is_waited_for_with_the_result(tmp_path: Path) -> None:
    folder, waits, training = tmp_path / UNITS, list[float](), unit(Candidate(placebo=1), "proxy")
    folder.symlink_to(folder)  # as a network file system that is being mounted again

    def mounted(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            folder.unlink()

    computer(tmp_path, sleep=mounted)([json.dumps(training.to_json())])
    assert waits == list(storage.WAITS_S)
    result = FileStore(str(tmp_path)).read(training)
    assert result is not None
    assert result.failure is None


def test_weights_that_cannot_be_read_now_do_not_count_against_a_filter(tmp_path: Path) -> None:
    weights, waits = tmp_path / "weights.pth", list[float]()
    weights.symlink_to(weights)
    worker = computer(tmp_path, f"{RECIPE}weights: {weights}\n", sleep=waits.append)
    training = unit(Candidate(MEDIAN), "recipe", 1000)
    with pytest.raises(StorageError, match="cannot read"):
        worker([json.dumps(training.to_json())])
    assert waits == list(storage.WAITS_S)
    assert FileStore(str(tmp_path)).read(training) is None


def test_robustness_takes_no_more_than_its_time() -> None:
    now = [0.0]

    def measure(seconds: float) -> float | None:
        now[0] += seconds
        return None if seconds == 3 else seconds

    def names(limit_s: float, expected_s: float = 0.0) -> str:
        kinds = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0}
        return "".join(measured_in_time(kinds, measure, limit_s, expected_s, lambda: now[0]))

    assert names(9.0) == "acd"  # 1 + 3 + 2, and at most 3 more
    assert names(8.0) == "ac"
    assert names(9.0, expected_s=4.0) == "ac"
    assert names(9.0, expected_s=10.0) == ""
