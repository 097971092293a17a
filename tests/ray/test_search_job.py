"""The filter search on a real local Ray: killed and resumed it gives the same answer, whose recipe trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.search import running
from jobs.search.running import run_search
from jobs.search.search_plan import ANSWER, RECIPE, SearchPlan, plan_search
from jobs.search.unit_worker import UNITS, ComputerFactory
from jobs.train.driver import train
from jobs.train.plan import plan_train
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.recipe import Recipe
from tests.picture_examples import ingest, write_files

SPACE = """
filters: ["median_blur(size=3)", invert]
places: [always]
placebos: 1
"""
RECIPE_TEXT = """
data: {train: x}
model: lenet5
optimizer: {name: adamw, lr: 0.003}
batch_size: 32
epochs: 2
"""


def digit(kind: int, seed: int) -> bytes:
    """A bright half, the left one or the right one, below salt-and-pepper noise."""
    rng = np.random.default_rng(seed)
    pixels = np.full((28, 28, 1), 120, np.uint8)
    pixels[:, 14 * kind : 14 * kind + 14] += 10
    noise = rng.random(pixels.shape)
    pixels[noise < 0.15], pixels[noise > 0.85] = 0, 255
    return codec.encode(pixels, codec.Encoding("png"))[0]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    for number, name in enumerate(("train", "val", "test")):
        files = {f"{row % 2}/{row}.png": digit(row % 2, 1000 * number + row) for row in range(80)}
        ingest(write_files(folder / "source" / name, files), folder / name)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "recipe.yaml").write_text(RECIPE_TEXT)
    return folder


def planned(splits: Path, out: Path, budget: str = "1h") -> SearchPlan:
    return plan_search(
        str(splits / "train"),
        str(splits / "val"),
        test=str(splits / "test"),
        out=str(out),
        budget=budget,
        space=str(splits / "space.yaml"),
        recipe=str(splits / "recipe.yaml"),
    )


def answer_of(out: Path) -> dict[str, Any]:
    """The answer without what a clock measures."""
    document = json.loads((out / ANSWER).read_text())
    for gain in (*document["finalists"], document["test"]):
        gain["filter_ms"] = 0
    return {**document, "seconds": 0}


@dataclass(frozen=True)
class DyingFactory(ComputerFactory):
    """A worker that ends after some units: once as if its machine was lost, then with an error that stays."""

    marks: str = ""

    def __call__(self) -> Any:
        computer, marks = super().__call__(), Path(self.marks)

        def compute(units: Sequence[str]) -> None:
            computer(units)
            (marks / f"{len(list(marks.iterdir())):03d}").touch()
            done = len(list(marks.iterdir()))
            if done == 4:
                import os

                os._exit(1)
            if done > 8:
                raise StriateError("the machine is taken away")

        return compute


def test_a_search_answers_and_computes_nothing_twice(splits: Path, tmp_path: Path) -> None:
    whole = run_search(planned(splits, tmp_path / "whole"), workers="2", gpu=False)
    assert whole.report.unfinished is None
    assert whole.report.test is not None
    assert run_search(planned(splits, tmp_path / "whole"), workers="1", gpu=False).computed == 0
    page = (tmp_path / "whole" / "index.html").read_text()
    assert whole.report.answer.sentence.split(":")[0].replace('"', "&#34;") in page


@pytest.mark.faults
def test_a_killed_search_resumes_to_the_same_answer_and_its_recipe_trains(
    splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "marks").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(running, "ComputerFactory", lambda *parts: DyingFactory(*parts, marks=str(tmp_path / "marks")))
        with pytest.raises(StriateError, match="taken away"):
            run_search(planned(splits, tmp_path / "killed"), workers="2", gpu=False)
    kept = {path.name for path in (tmp_path / "killed" / UNITS).glob("[!r]*.json")}
    assert kept
    resumed = run_search(planned(splits, tmp_path / "killed"), workers="2", gpu=False)
    assert resumed.computed < resumed.report.trainings
    assert resumed.report.unfinished is None
    whole = run_search(planned(splits, tmp_path / "whole"), workers="1", gpu=False)
    assert answer_of(tmp_path / "killed") == answer_of(tmp_path / "whole")

    recipe = Recipe.load(str(tmp_path / "whole" / RECIPE))
    winner = whole.report.answer.winner
    assert (winner is None) or winner.filters.split(" ")[0] in f"{recipe.input.steps} {recipe.augment}"
    bundle = train(plan_train(recipe, str(tmp_path / "model")), gpu=False).bundle
    assert bundle.metrics["val_top1"] >= 0.4


def test_a_folder_with_other_files_is_refused(splits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        planned(splits, tmp_path)
    with pytest.raises(UsageError, match="contain one another"):
        planned(splits, splits / "train" / "search")
