"""What a search is planned on: budgets, recipes by the pictures' size, plugins, and requests that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.search.search_plan import default_recipe, plan_search, seconds_of
from jobs.train.plan import model_inputs
from library.errors import UsageError
from library.imaging import codec
from tests.picture_examples import ingest, write_files

RECIPE = """
data: {train: x}
model: lenet5
optimizer: {name: adamw, lr: 0.003}
batch_size: 8
epochs: 1
"""


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    for number, name in enumerate(("train", "val", "other")):
        classes = ("a", "b") if name != "other" else ("a", "c")
        rng = np.random.default_rng(number)
        files = {
            f"{classes[row % 2]}/{row}.png": codec.encode(
                rng.integers(0, 256, (28, 28, 1), np.uint8), codec.Encoding("png")
            )[0]
            for row in range(12)
        }
        ingest(write_files(folder / "source" / name, files), folder / name)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("90s", 90), ("1h30m", 5400), ("0.5h", 1800)])
def test_a_budget_is_hours_minutes_and_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "1d", "2s", "nan"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        seconds_of(text)


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (41, 1), (500, 3)])
def test_the_default_recipe_takes_the_pictures_channels(side: int, channels: int) -> None:
    for pictures in (50, 1_000, 60_000):
        recipe = default_recipe("train", "val", pictures, side, channels)
        assert model_inputs(recipe).channels == channels
        assert recipe.epochs is not None
        assert 3 <= recipe.epochs <= 30
        assert recipe.model.startswith("lenet5" if side <= 40 else "resnet9")


def test_a_plan_says_what_is_searched_and_writes_nothing(splits: Path, tmp_path: Path) -> None:
    plan = plan_search(str(splits / "train"), str(splits / "val"), out=str(tmp_path / "out"))
    assert plan.recipe.model == "lenet5"
    assert plan.described()["candidates"] == len(plan.space.filters) * 3 + 3
    assert not list((tmp_path / "out").iterdir())
    named = plan_search(
        str(splits / "train"), str(splits / "val"), out=str(tmp_path), recipe=str(splits / "recipe.yaml")
    )
    assert named.recipe.data.train == str(splits / "train")
    assert named.context != plan.context
    same = plan_search(str(splits / "train"), str(splits / "val"), out=str(tmp_path), margin_points=1, cost_weight=2)
    assert same.context == plan.context  # a new question about the same trainings


def test_wrong_requests_are_refused_before_ray_starts(splits: Path, tmp_path: Path) -> None:
    train, val, out = str(splits / "train"), str(splits / "val"), str(tmp_path / "out")
    with pytest.raises(UsageError, match="different datasets"):
        plan_search(train, train, out=out)
    with pytest.raises(UsageError, match="at least 8"):
        plan_search(train, val, out=out, seeds=7)
    with pytest.raises(UsageError, match="--margin"):
        plan_search(train, val, out=out, margin_points=0)
    with pytest.raises(UsageError, match="--cost-weight"):
        plan_search(train, val, out=out, cost_weight=-1)
    with pytest.raises(UsageError, match="does not exist"):
        plan_search(train, val, out=out, space=str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError):
        plan_search(train, str(splits / "other"), out=out)
    (tmp_path / "recipe.yaml").write_text(f"{RECIPE}input: {{steps: not_blurry | grayscale}}\n")
    with pytest.raises(UsageError, match="drops pictures"):
        plan_search(train, val, out=out, recipe=str(tmp_path / "recipe.yaml"))
