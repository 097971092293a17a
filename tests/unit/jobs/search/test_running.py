"""What a search leaves beside its page: a recipe with the winner's filters, which `striate train` accepts."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.search.running import PICTURE, screening_half, write_answer
from jobs.search.search_plan import ANSWER, RECIPE, SearchPlan, plan_search
from jobs.train.plan import model_inputs, plan_train
from library.choosing.filter_search.answer import Answer, judge
from library.choosing.filter_search.race import Race
from library.choosing.filter_search.search_page import SearchReport
from library.choosing.filter_search.space import Candidate, Place
from library.errors import UsageError
from library.evaluation.report.templates import PAGE
from library.imaging import codec
from library.pipeline import Pipeline
from library.recipe import Recipe
from library.steps.plugins import load
from library.training.in_memory import PackedPictures
from tests.datasets import bar, write_search
from tests.plugins import unloaded_afterwards, write_plugin

MEDIAN = "median_blur(size=3)"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    write_search(folder, pictures=8)
    # The winner's filters are added to steps and augmentation that the recipe has already.
    with (folder / "recipe.yaml").open("a") as recipe:
        recipe.write("augment: flip\ninput: {steps: invert | grayscale}\n")
    return folder


def planned(folder: Path, out: Path) -> SearchPlan:
    train, val, recipe = (str(folder / name) for name in ("train", "val", "recipe.yaml"))
    return plan_search(train, val, out=str(out), recipe=recipe)


def report_of(candidate: Candidate, right: float) -> SearchReport:
    """Ten trainings of a candidate that gets this share of 400 pictures right; the identity gets half of them."""

    def correct(share: float) -> NDArray[np.bool_]:
        return np.tile(np.arange(400) < 400 * share, (10, 1))

    answer = judge(correct(0.5), {candidate: correct(right)})
    return SearchReport(answer, Race((candidate,)).standings(), None, {}, {}, 20, 1.0)


def pictures() -> PackedPictures:
    pixels = [codec.decode(bar(row % 2, row)) for row in range(4)]
    return PackedPictures.pack(pixels, [0, 1, 0, 1], list("abcd"), Counter())


@pytest.mark.parametrize(
    ("place", "steps", "augment", "channels"),
    [
        ("always", f"{MEDIAN} | invert | grayscale", "flip", 1),
        ("sometimes", "invert | grayscale", f"sometimes(0.5, {MEDIAN}) | flip", 1),
        ("channels", f"invert | grayscale | with_channels({MEDIAN})", "flip", 2),
    ],
)
def test_the_recipe_of_a_winner_has_its_filters_and_can_be_trained(
    place: Place, steps: str, augment: str, channels: int, searched: Path, tmp_path: Path
) -> None:
    plan = planned(searched, tmp_path / "out")
    report = report_of(Candidate(MEDIAN, place, 0.5 if place == "sometimes" else None), 0.8)
    assert report.answer.outcome == "helps"
    write_answer(plan, report, pictures())
    uri = str(tmp_path / "out" / RECIPE)
    recipe = Recipe.load(uri)
    inputs = model_inputs(recipe)
    assert inputs.steps == Pipeline.parse(steps)
    assert Pipeline.parse(recipe.augment or "") == Pipeline.parse(augment)
    assert inputs.channels == channels
    assert recipe.seed == plan.recipe.seed
    training = plan_train(recipe, str(tmp_path / "model"))
    assert f"{training.recipe.data.train} {training.recipe.data.val}" == f"{searched / 'train'} {searched / 'val'}"
    # The comment says what the recipe is, and how it is used.
    text = Path(uri).read_text()
    assert f"# {report.answer.sentence}" in text
    assert f"striate train {uri} --out MODEL" in text


def test_the_command_that_trains_the_winner_can_be_pasted_into_a_shell(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "My search"
    command = write_answer(planned(searched, out), report_of(Candidate(MEDIAN), 0.8), pictures())
    assert shlex.split(command) == ["striate", "train", str(out / RECIPE), "--out", "MODEL"]


def test_the_recipe_of_a_plugins_filter_names_the_plugin(searched: Path, tmp_path: Path) -> None:
    plan = planned(searched, tmp_path / "out")
    with unloaded_afterwards():
        plugin = write_plugin(tmp_path)
        load([plugin])
        command = write_answer(plan, report_of(Candidate("halve(by=2)"), 0.8), pictures())
    assert command.endswith(f"--out MODEL --plugin {Path(plugin).name}")
    assert f"#   {command}\n" in (tmp_path / "out" / RECIPE).read_text()


def test_without_a_winner_the_recipe_is_as_it_was(searched: Path, tmp_path: Path) -> None:
    plan, report = planned(searched, tmp_path / "out"), report_of(Candidate(MEDIAN), 0.5)
    write_answer(plan, report, pictures())
    assert report.answer.winner is None
    assert Recipe.load(str(tmp_path / "out" / RECIPE)).digest == plan.recipe.digest
    assert "# The recipe as it was." in (tmp_path / "out" / RECIPE).read_text()


def test_a_search_that_confirmed_nothing_shows_no_filtered_pictures(searched: Path, tmp_path: Path) -> None:
    answer = Answer("undecided", "unfinished: no finalist has been confirmed", None, ())
    report = SearchReport(answer, Race((Candidate(MEDIAN),)).standings(), None, {}, {}, 1, 1.0, "no time")
    plan = planned(searched, tmp_path)
    write_answer(plan, report_of(Candidate(MEDIAN), 0.8), pictures())
    assert "What the filters do" in (tmp_path / PAGE).read_text()
    write_answer(plan, report, pictures())
    assert "What the filters do" not in (tmp_path / PAGE).read_text()
    assert not (tmp_path / PICTURE).exists()


def test_the_page_and_the_answer_say_the_same(searched: Path, tmp_path: Path) -> None:
    report = report_of(Candidate(MEDIAN), 0.8)
    write_answer(planned(searched, tmp_path), report, pictures())
    answer: Mapping[str, object] = json.loads((tmp_path / ANSWER).read_text())
    assert answer["sentence"] == report.answer.sentence
    assert report.answer.sentence in (tmp_path / PAGE).read_text()
    assert codec.decode((tmp_path / PICTURE).read_bytes()).size


def test_two_pictures_choose_and_two_confirm_or_the_search_is_refused() -> None:
    def validation(keys: str) -> PackedPictures:
        return PackedPictures.pack([np.zeros((8, 8, 1), np.uint8)] * len(keys), [0] * len(keys), list(keys), Counter())

    screens = dict(zip("abcdefghijkl", screening_half("val", validation("abcdefghijkl")), strict=True))
    choosing, confirming = ("".join(key for key in screens if screens[key] == kind) for kind in (True, False))
    assert screening_half("val", validation(choosing[:2] + confirming[:2])).sum() == 2
    with pytest.raises(UsageError, match="3 would choose the finalists and 1 confirm them"):
        screening_half("val", validation(choosing[:3] + confirming[:1]))
