"""Recipes as they are read, written, shipped and documented. For errors see test_recipe_mistakes.py."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import StriateError, UsageError
from library.pipeline import Pipeline
from library.recipe import Recipe
from library.recipe.fields import BETAS, OPTIMIZERS, WITH_EPS, WITH_MOMENTUM
from library.recipe.paths import fields_of
from tests import ROOT

SHIPPED = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))

BASE = """
data: {train: out/train, val: out/val}
model: resnet18( in_chans = 4 )
optimizer: {name: sgd, lr: 1e-1}
batch_size: 128
epochs: 10
"""


def parsed(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def test_relative_paths_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = parsed("data.val=s3://bucket/val/", "weights=~/models/first")
    located = written.located()
    assert located.data.train == str(tmp_path / "out/train")
    assert (located.data.val, located.weights) == ("s3://bucket/val", str(Path.home() / "models/first"))
    assert located.located() == located
    assert (written.data.train, written.weights) == ("out/train", "~/models/first")
    assert (parsed().located().weights, parsed("weights=pretrained").located().weights) == (None, "pretrained")


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_short_recipe_is_completed_with_defaults() -> None:
    recipe = parsed()
    assert (recipe.data.classes, recipe.data.max_resident_mb, recipe.input.steps) == ("all", 2048, None)
    assert (recipe.model, recipe.weights, recipe.freeze, recipe.head) == ("resnet18(in_chans=4)", None, "none", ())
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.betas) == (0.1, 0.9, None)
    assert (recipe.schedule.name, recipe.schedule.min_lr, recipe.schedule.gamma) == ("cosine", 0.0, None)
    assert (recipe.epochs, recipe.steps, recipe.best_metric, recipe.seed) == (10, None, "val_top1", 0)
    assert (recipe.precision, recipe.channels_last, recipe.early_stopping) == ("auto", "auto", None)


def test_fields_without_effect_get_no_default() -> None:
    recipe = parsed("optimizer.name=adamw", "schedule.name=constant", "data.val=")
    assert (recipe.optimizer.momentum, recipe.schedule.min_lr, recipe.best_metric) == (None, None, None)
    assert parsed("schedule={name: step, step_epochs: 3}").schedule.gamma == 0.1


def test_pipelines_and_models_are_stored_in_canonical_form() -> None:
    recipe = parsed(
        "input.steps=min_size(8)|grayscale", "input.fit=resize([8,8],'exact')", "augment=sometimes(.5,invert)"
    )
    assert recipe.input.steps == str(Pipeline.parse("min_size(8) | grayscale"))
    assert recipe.input.fit == str(Pipeline.parse('resize([8, 8], mode="exact")'))
    assert recipe.augment == "sometimes(p=0.5, steps=invert)"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("input.size=[32, 64]", "input.size", (32, 64)),
        ("input.size=32", "input.size", 32),
        ("data.classes=[cat, 'no', \"3\"]", "data.classes", ("cat", "no", "3")),
        ("data.train=s3://bucket/a=b", "data.train", "s3://bucket/a=b"),
        ("early_stopping.patience=3", "early_stopping.patience", 3),
        ("early_stopping=null", "early_stopping", None),
        ("loss.class_weights.cat.tabby=2", "loss.class_weights", {"cat.tabby": 2.0}),
        ("loss={class_weights: balanced}", "loss.class_weights", "balanced"),
        ("model=resnet18(small_input=True)", "model", "resnet18(small_input=True)"),
        ("head=[256, 64]", "head", (256, 64)),
        ("channels_last=true", "channels_last", True),
        ("batch_size=auto", "batch_size", "auto"),
        ("epochs=0.5", "epochs", 0.5),
    ],
)
def test_set_overrides_one_field(override: str, path: str, value: object) -> None:
    field: Any = parsed(override)
    for name in path.split("."):
        field = getattr(field, name)
    assert field == value


def test_overrides_build_on_each_other_and_the_last_one_wins() -> None:
    recipe = parsed("freeze=all", "unfreeze.2=3", "unfreeze.4=none", "seed=1", "seed=2")
    assert (recipe.unfreeze, recipe.seed) == ({2: 3, 4: "none"}, 2)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        parsed().seed = 1  # type: ignore[misc] -- the assignment must fail


def test_a_file_is_read_and_its_errors_name_it(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(BASE)
    assert Recipe.load(str(path), ["epochs=3"]).epochs == 3
    with pytest.raises(UsageError, match=rf"^{path}: seed: -1 should be a whole number from 0$"):
        Recipe.load(str(path), ["seed=-1"])
    with pytest.raises(StriateError, match=r"nowhere\.yaml"):
        Recipe.load(str(tmp_path / "nowhere.yaml"))


# -- writing ----------------------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["1e-3", "no", "012", "12:30", "2024-01-01", "~", "null", "*a"]
)


@given(
    st.lists(NAMES, min_size=2, max_size=5, unique=True),
    st.floats(min_value=1e-12, max_value=1e6),
    st.dictionaries(st.integers(1, 9), st.just("none"), max_size=1),
    st.lists(st.integers(1, 9999), max_size=3),
)
def test_a_dumped_recipe_is_read_back_as_an_equal_one(
    names: list[str], rate: float, unfreeze: dict[int, str], head: list[int]
) -> None:
    weights = dict.fromkeys(names, rate)
    fields: dict[str, Any] = {"head": tuple(head), "unfreeze": unfreeze, "freeze": "all"}
    recipe = Recipe.model_validate(
        {
            "data": {"train": names[0], "classes": tuple(names)},
            "model": "lenet5",
            "optimizer": {"name": "adamw", "lr": rate, "betas": (0.9, 0.95)},
            "batch_size": 1,
            "steps": 1,
            "loss": {"class_weights": weights},
            **fields,
        }
    )
    again = Recipe.parse(recipe.dump())
    assert again == recipe
    assert again.digest == recipe.digest
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_spelling_and_written_out_defaults_do_not_change_the_digest() -> None:
    reordered = "\n".join(reversed(BASE.strip().split("\n")))
    assert Recipe.parse(reordered, ["seed=0", "optimizer.momentum=0.90", "model=resnet18(4)"]).digest == parsed().digest
    assert re.fullmatch("[0-9a-f]{64}", parsed().digest)


@pytest.mark.parametrize("override", ["seed=1", "optimizer.lr=0.2", "data.train=out/other", "augment=flip", "ema=0.9"])
def test_everything_that_changes_what_is_learned_changes_the_digest(override: str) -> None:
    assert parsed(override).digest != parsed().digest


# -- shipped recipes --------------------------------------------------------------------------------------------------


def test_the_promised_recipes_are_shipped() -> None:
    promised = "lenet-digits lenet-mnist mlp-mnist cifar10-fast cifar10-cpu cifar10-resnet18 resnet50-imagenet"
    promised += " cats-dogs-scratch cats-dogs-transfer"
    assert {path.stem for path in SHIPPED} == set(promised.split())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_states_its_cost_and_result(path: Path) -> None:
    recipe = Recipe.load(str(path))
    assert Recipe.parse(recipe.dump()) == recipe
    assert recipe.has_validation
    head = path.read_text(encoding="utf-8").split("\ndata:")[0]
    assert all(line.startswith("#") for line in head.split("\n"))
    for needed in ("\n# Costs:   ", "\n# Reached: ", f"striate train jobs/recipes/{path.name} "):
        assert needed in head


def test_the_page_lists_every_field() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = runpy.run_path(str(ROOT / "docs" / "hooks" / "recipes.py"))["reference"]()
    assert page.endswith(table), "run `.venv/bin/python docs/hooks/recipes.py`"
    assert {f"| `{path}` |" for path, _ in fields_of(Recipe)} <= set(re.findall(r"^\| `[^`]+` \|", page, re.M))


def test_the_recipe_on_the_page_is_valid() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert Recipe.parse(example).weights == "pretrained"


def test_the_tables_of_optimizers_agree_with_timm() -> None:
    optim = pytest.importorskip("timm.optim")
    registry = pytest.importorskip("timm.optim._optim_factory").default_registry
    known = set(optim.list_optimizers())
    for name in sorted(OPTIMIZERS & known):
        info = registry.get_optimizer_info(name)
        assert (info.has_momentum, info.has_eps) == (name in WITH_MOMENTUM, name in WITH_EPS), name
        assert (info.num_betas if info.has_betas else None) == BETAS.get(name), name
    assert {"sgd", "momentum", "adamw", "lamb", "lars", "lion", "rmsprop"} <= OPTIMIZERS & known
