"""What a search is planned on: budgets, recipes by the pictures' size, plugins, and requests that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.search.running import begin
from jobs.search.search_plan import default_recipe, plan_search, seconds_of, versions
from jobs.train.plan import model_inputs
from library import storage
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
    for number, name in enumerate(("train", "val", "same", "other", "few")):
        classes = ("a", "b") if name != "other" else ("a", "c")
        rng = np.random.default_rng(number)
        files = {
            f"{classes[row % 2]}/{row}.png": codec.encode(
                rng.integers(0, 256, (28, 28, 1), np.uint8), codec.Encoding("png")
            )[0]
            for row in range(12 if name != "few" else 3)
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
    assert not (tmp_path / "out").exists()
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
    with pytest.raises(UsageError, match="train and val have different classes"):
        plan_search(train, str(splits / "other"), out=out)
    with pytest.raises(UsageError, match="has 3 pictures; a search needs at least 4 for --val"):
        plan_search(train, str(splits / "few"), out=out)
    dropping = 'blur_background(no_subject="drop")'
    for name, steps in (
        ("steps", "not_blurry | grayscale"),
        ("steps", f"{dropping} | grayscale"),
        ("steps", f"with_channels({dropping}) | grayscale"),
        ("fit", f'{dropping} | resize([28, 28], mode="exact")'),
    ):
        (tmp_path / "recipe.yaml").write_text(f"{RECIPE}input: {{{name}: '{steps}'}}\n")
        with pytest.raises(UsageError, match=f"input.{name} drops pictures"):
            plan_search(train, val, out=out, recipe=str(tmp_path / "recipe.yaml"))


def test_a_context_has_all_that_trainings_depend_on_but_no_test(splits: Path, tmp_path: Path) -> None:
    train, val, out = str(splits / "train"), str(splits / "val"), str(tmp_path / "out")
    assert {"torch", "timm", "scikit-learn", "numpy", "striate"} <= versions().keys()
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "recipe.yaml").write_text(f"{RECIPE}weights: {tmp_path}/weights.pt\n")
    plan = plan_search(train, val, out=out, recipe=str(tmp_path / "recipe.yaml"))
    assert replace(plan, device="cuda").context != plan.context
    assert replace(plan, device="cuda").question == plan.question
    assert replace(plan, seeds=12).context == plan.context
    assert replace(plan, seeds=12).question != plan.question
    assert replace(plan, budget_s=9.0).question == plan.question
    assert plan.test_context is None
    tested = plan_search(train, val, out=out, test=str(splits / "same"), recipe=str(tmp_path / "recipe.yaml"))
    assert tested.context == plan.context
    assert tested.test_context not in (None, plan.context)
    before = plan.context
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    assert replace(plan).context != before


def test_another_search_on_the_same_test_pictures_is_refused(splits: Path, tmp_path: Path) -> None:
    train, val, test, out = (str(splits / name) for name in ("train", "val", "same", "out"))
    plan = plan_search(train, val, test=test, out=out)
    looks = begin(plan)
    looks.record("test", ["median_blur"], range(10), "helps")
    again = plan_search(train, val, test=test, out=out, budget="2h")
    assert again.looks().count("test") == 1
    with pytest.raises(UsageError, match="for median_blur; use other test pictures"):
        plan_search(train, val, test=test, out=out, seeds=12)
    plan_search(train, val, out=out, seeds=12)
    with pytest.raises(UsageError, match="for median_blur"):
        begin(replace(plan, seeds=12))


def test_a_new_search_removes_the_old_answer_and_the_same_one_keeps_it(splits: Path, tmp_path: Path) -> None:
    plan = plan_search(str(splits / "train"), str(splits / "val"), out=str(tmp_path / "out"))
    begin(plan).record("confirmation", ["invert"], range(10), "none")
    names = ("answer.json", "index.html", "answer.png", "recipe.yaml")
    for name in names:
        (tmp_path / "out" / name).write_text("old")
    begin(plan)
    assert all((tmp_path / "out" / name).exists() for name in names)
    looks = begin(replace(plan, space=replace(plan.space, placebos=1)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["search.json"]
    assert looks.count("confirmation") == 1


def test_a_search_that_was_killed_before_its_record_resumes(splits: Path, tmp_path: Path) -> None:
    train, val, out = str(splits / "train"), str(splits / "val"), tmp_path / "out"
    write_files(out, {"_leases/0123.json": b"{}", f"{storage.TEMPORARY_PREFIX}0123": b""})
    plan_search(train, val, out=str(out))
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"contains other files \(mine.txt\)"):
        plan_search(train, val, out=str(out))


def test_pictures_that_the_model_cannot_take_are_refused(splits: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("lenet5", "lenet5(in_chans=4)") + "input: {steps: rgb}\n")
    with pytest.raises(UsageError, match="no picture that the model can take"):
        plan_search(str(splits / "train"), str(splits / "val"), out=str(tmp_path), recipe=str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("model: lenet5\ninput: {size: 8}\nbatch_size: 8", "8x8"),
        ("model: resnet9\ninput: {steps: rgb}\nbatch_size: 1", "batch norm"),
        ("model: lenet5\nloss: {class_weights: {z: 2}}\nbatch_size: 8", "there is no class 'z'"),
        ("model: lenet5\naugment: sometimes(0.5, canny)\naugment_on: device\nbatch_size: 8", "no batched form"),
    ],
)
def test_what_a_training_would_refuse_is_refused_here(lines: str, text: str, splits: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{train: x}}\noptimizer: {{name: adamw, lr: 0.003}}\nepochs: 1\n{lines}\n")
    with pytest.raises(UsageError, match=text):
        plan_search(str(splits / "train"), str(splits / "val"), out=str(tmp_path / "out"), recipe=str(recipe))


def test_the_default_recipe_takes_any_path_and_any_number_of_bands() -> None:
    recipe = default_recipe("/data/bob's: {train}", "/data/#val", 100, 28, 5)
    assert recipe.data.train == "/data/bob's: {train}"
    assert recipe.data.val == "/data/#val"
    assert model_inputs(recipe).channels == model_inputs(default_recipe("a", "b", 100, 90, 5)).channels == 5


def test_a_named_place_that_the_recipe_cannot_have_is_an_error(splits: Path, tmp_path: Path) -> None:
    train, val, recipe = str(splits / "train"), str(splits / "val"), tmp_path / "recipe.yaml"
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    recipe.write_text(f"{RECIPE}weights: {tmp_path}/weights.pt\nfreeze: all\ncache_features: true\n")
    default = plan_search(train, val, out=str(tmp_path / "out"), recipe=str(recipe))
    assert default.described()["places"] == ["always", "channels"]
    (tmp_path / "space.yaml").write_text("places: [always, sometimes]\n")
    with pytest.raises(UsageError, match="caches features"):
        plan_search(train, val, out=str(tmp_path / "out"), recipe=str(recipe), space=str(tmp_path / "space.yaml"))


def test_a_filter_without_batched_form_is_no_augmentation_on_the_device(splits: Path, tmp_path: Path) -> None:
    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    recipe.write_text(f"{RECIPE}augment: flip\naugment_on: device\n")

    def planned(space: Path | None) -> list[str]:
        train, val, uri = str(splits / "train"), str(splits / "val"), None if space is None else str(space)
        return plan_search(train, val, out=str(tmp_path / "out"), recipe=str(recipe), space=uri).described()["places"]

    assert planned(None) == ["always", "channels"]
    space.write_text("filters: [invert, gamma(0.6)]\n")
    assert planned(space) == ["always", "sometimes", "channels"]
    space.write_text("filters: [invert, median_blur(3), canny]\n")
    with pytest.raises(
        UsageError, match=r"no batched form: median_blur, canny, .*write `places: \[always, channels\]`"
    ):
        planned(space)
