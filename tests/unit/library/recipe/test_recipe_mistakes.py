"""Errors in recipes: all are reported together, each with the field, its value and what would work."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import UsageError
from library.recipe import Recipe
from library.recipe.paths import fields_of

BASE = """
data: {train: out/train, val: out/val}
model: resnet18( in_chans = 4 )
optimizer: {name: sgd, lr: 1e-1}
batch_size: 128
epochs: 10
"""


def parsed(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def problems(text: str, *overrides: str) -> list[str]:
    """Returns the lines of the error, without the lines that point into a value."""
    with pytest.raises(UsageError) as raised:
        Recipe.parse(text, overrides)
    first, *lines = str(raised.value).split("\n")
    if not first.endswith("problems"):
        return [first.removeprefix("the recipe: ")]
    report = [line.removeprefix("  ") for line in lines if not line.startswith("    ")]
    assert first == f"the recipe: {len(report)} problems"
    return report


@pytest.mark.parametrize(
    "override",
    [
        "epochs=1e308",
        "batch_size=99999999999",
        "optimizer.lr=1e300",
        "optimizer.weight_decay=1e9",
        "optimizer.eps=1e200",
        "schedule.warmup_epochs=1e9",
        "schedule={name: step, step_epochs: 1e12}",
        "schedule.min_lr=1e18",
        "head=[999999999999]",
        f"head={[1] * 17}",
        "freeze=9999999999",
        "unfreeze={99999999999: none}",
        "accumulate=99999999999",
        "copies=99999999999",
        "mixup=1e6",
        "cutmix=1e6",
        "clip_grad=1e99",
        "loss.class_weights={cat: 1e99}",
        "early_stopping={patience: 99999999999}",
        "early_stopping={min_delta: 1e99}",
        "checkpoint_minutes=1e99",
        "data.max_resident_mb=99999999999999",
        "seed=9223372036854775808",
        "epochs=.inf",
        "optimizer.lr=.nan",
    ],
)
def test_an_absurdly_large_number_is_refused(override: str) -> None:
    assert any(re.split("[.=]", override)[0] in line and " should be " in line for line in problems(BASE, override))


def test_an_absurdly_large_number_of_steps_is_refused() -> None:
    (line,) = problems(BASE, "steps=9999999999", "epochs=null")
    assert line == "steps: 9999999999 should be a whole number from 1 to 1,000,000,000, or null"


# -- mistakes in one field --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimizer.lr=fast", 'optimizer.lr: "fast" should be a number above 0'),
        ("optimizer.lr=0", "optimizer.lr: 0 should be a number above 0"),
        ("optimizer.lr=true", "optimizer.lr: true should be a number above 0"),
        ("optimizer.lr=1e999", "optimizer.lr: Infinity should be a number above 0"),
        ("optimizer.name=adamv", 'optimizer.name: "adamv" is not a timm optimizer that a recipe can use (did you mean'),
        ("optimizer.name=zzz", "(one of: adam, adamw, "),
        ("schedule.name=cosin", "should be cosine, step, linear, constant or onecycle (did you mean 'cosine'?)"),
        ("schedule=fast", 'schedule: "fast" should be a table of name, warmup_epochs, min_lr, step_epochs, gamma'),
        ("batch_size=0", "batch_size: 0 should be auto, or a whole number from 1"),
        ("batch_size=1.0", "batch_size: 1.0 should be auto, or a whole number from 1"),
        ("freeze=-1", "freeze: -1 should be none or all, or a whole number from 1"),
        ("unfreeze.0=none", 'unfreeze: {"0": "none"} should be a table {a whole number from 1 to 1,000,000: none, or'),
        ("head=256", "head: 256 should be a list, each a whole number from 1"),
        ("input.size=[32]", "input.size: [32] should be a whole number from 1 to 65,535, or [height, width], or null"),
        ("data.classes=[cat, 7]", "each in quotes if it looks like a number"),
        ("data.classes=[cat]", "should be all, or a list of two or more class names"),
        ("data.classes=[cat, dog, cat]", "should name every class once; repeated: cat"),
        (
            "data.train=http://x/y",
            "should be a local path or an address such as s3://bucket/prefix, gs://, az:// or hf://",
        ),
        ("weights=none", "would be read as a file of that name; leave weights out"),
        ("data.val_fraction=1", "data.val_fraction: 1 should be a number above 0 and below 1, or null"),
        (
            "loss.class_weights.cat=0",
            "should be balanced, or a table {text: a number above 0 and at most 1,000,000}, or null",
        ),
        ("mixup=on", 'mixup: "on" should be a number from 0'),
        ("compile=yes", 'compile: "yes" should be auto, or true or false'),
        ("seed=null", "seed: null should be a whole number from 0"),
        (
            "best_metric=top1",
            "should be val_top1, val_top5, val_f1, val_loss or train_loss, or null (did you mean 'val_top1'?)",
        ),
        ("input.steps=flip", 'input.steps: "flip" has a step of another field: flip is an augmentation, for augment'),
        ("input.fit=min_size(3)", "min_size is a selector, for input.steps or for `striate filter`"),
        ("augment=flip | min_size(3)", "min_size is a selector, for input.steps"),
        ("augment=invert", "has no random step"),
        ("model=lenet5 | lenet5", "model: "),
    ],
)
def test_the_error_for_a_wrong_value_says_what_would_work(override: str, problem: str) -> None:
    (line,) = problems(BASE, override)
    assert problem in line
    assert line.startswith(f"{re.split('[=]', override)[0].split('.cat')[0].split('.0')[0]}: ")


@pytest.mark.parametrize(("field", "text", "place"), [
    ("augment", "flip | rotat(5)", "rotat"),
    ("input.steps", "grayscale | gaussian_blur(sgma=1)", "sgma"),
    ("input.fit", "resize(", "("),
    ("model", "resnet18(in_chans=)", "in_chans=)"),
])  # fmt: skip
def test_a_mistake_in_a_pipeline_or_a_model_is_pointed_at(field: str, text: str, place: str) -> None:
    with pytest.raises(UsageError) as raised:
        parsed(f"{field}={text}")
    first, line, marks = str(raised.value).split("\n")
    assert first.startswith(f"the recipe: {field}: ")
    # The exact character that Python points at depends on its version.
    assert marks.index("^") in range(line.index(place), line.index(place) + len(place))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimiser.lr=1", "optimiser is not a field (did you mean 'optimizer'?)"),
        ("optimizer.rl=1", "optimizer.rl is not a field (did you mean 'optimizer.lr'?)"),
        ("lr=1", "lr is not a field (did you mean 'optimizer.lr'?)"),
        ("learning_rate=1", "learning_rate is not a field (did you mean 'optimizer.lr'?)"),
        ("optimizer.nesterov=true", "optimizer.name chooses it: sgd has Nesterov momentum"),
        ("workers=4", "workers is not part of a recipe, as the cluster must not change what is learned; use --workers"),
        ("data.num_workers=4", "use --workers"),
        ("gpus=1", "use --gpu on the command line"),
        ("cpus_per_worker=1", "use --cpus-per-worker on the command line"),
        (
            "batch_size.x=3",
            "batch_size takes auto, or a whole number from 1 to 1,000,000 and has no fields of its own",
        ),
        ("nonsense", "should be FIELD=VALUE, e.g. optimizer.lr=0.1"),
        ("=3", "should be FIELD=VALUE"),
        ("seed=[1", "line 1, column 3: "),
    ],
)
def test_an_override_of_an_unknown_field_suggests_the_nearest_one(override: str, problem: str) -> None:
    (line,) = problems(BASE, override)
    assert line.startswith(f"--set {override}: ")
    assert problem in line


def test_an_unknown_field_in_the_file_has_the_same_error() -> None:
    report = problems(f"{BASE}\nworkers: 4\nlr: 0.1\ninput: {{stepz: invert}}")
    assert any(line.startswith("workers: 4 is not part of a recipe") and "--workers" in line for line in report)
    assert "lr: 0.1 is not a field (did you mean 'optimizer.lr'?)" in report
    assert "input.stepz: \"invert\" is not a field (did you mean 'input.steps'?)" in report


def test_the_error_for_a_missing_field_has_an_example() -> None:
    assert problems("{}") == [
        "data: is missing; it takes a table of train, val, val_fraction, classes, labels, max_resident_mb",
        "model: is missing; it takes a model's call, e.g. resnet18(in_chans=3), e.g. lenet5",
        "optimizer: is missing; it takes a table of name, lr, weight_decay, momentum, betas, eps",
        "batch_size: is missing; it takes auto, or a whole number from 1 to 1,000,000, e.g. 128",
        "epochs: is missing; give epochs or steps",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nseed: 2", "line 2, column 1: 'seed' is given twice"),
        ("data: {train: a, train: b}", "line 1, column 18: 'train' is given twice"),
        ("model: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &x [1]\nb: *x", "line 2, column 4: an alias (*) is not allowed"),
        ("a: {[1]: 2}", "a key should be a name"),
        ("a: [1", "line 1, column 6: "),
        ("a: \x00", "not YAML: "),
        ("", "should be a table of fields, such as `model: lenet5`, not null"),
        ("- 1", "should be a table of fields, such as `model: lenet5`, not [1]"),
        ("[" * 3000, "not YAML: "),
    ],
)
def test_text_that_is_not_a_table_of_plain_values_is_refused(text: str, problem: str) -> None:
    (line,) = problems(text)
    assert problem in line


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
FIELDS = st.sampled_from([path.split(".")[-1] for path, _ in fields_of(Recipe)])


@given(
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner), max_leaves=12),
    st.dictionaries(FIELDS, LEAVES),
)
def test_errors_for_any_plain_data_are_in_our_own_words(data: object, fields: dict[str, object]) -> None:
    """Required fields are missing too, so each has a line."""
    (first, *_) = problems(json.dumps(data if isinstance(data, dict) else fields))
    assert re.match(r"[a-z_.]+: ", first)


# -- fields that contradict each other --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["steps=5"], "steps: 5 cannot be combined with epochs; set one of them to null"),
        (["epochs=null"], "epochs: is missing; give epochs or steps"),
        (["data.val_fraction=0.1"], "data.val_fraction: 0.1 cannot be combined with data.val"),
        (["data.val=out/train"], 'data.val: "out/train" is the training set'),
        (["data.val=", "best_metric=val_loss"], 'best_metric: "val_loss" needs data.val or data.val_fraction'),
        (["data.val=", "best_metric=train_loss"], 'best_metric: "train_loss" has no effect without validation'),
        (["data.val=", "early_stopping={metric: val_top1}"], 'early_stopping.metric: "val_top1" needs data.val'),
        (["early_stopping={patience: 10}"], "early_stopping.patience: 10 has no effect: training ends after 10 epochs"),
        (["data.classes=[a, b]", "best_metric=val_top5"], 'best_metric: "val_top5" is always 1 with 2 classes'),
        (["freeze=all", "layer_decay=0.5"], "layer_decay: 0.5 has no effect with freeze: all"),
        (["unfreeze.2=none"], "has no effect without freeze: all or a number of stages"),
        (["freeze=3", "unfreeze.10=none"], "has no effect from epoch 10: epochs are numbered 0 to 9"),
        (["freeze=3", "unfreeze.1=3"], "freezes 3 stages from epoch 1, but 3 were frozen before"),
        (["freeze=all", "unfreeze={1: 2, 2: 4}"], "freezes 4 stages from epoch 2, but 2 were frozen before"),
        (["copies=2", "augment=flip"], "copies: 2 has no effect without cache_features: true"),
        (["augment_on=device"], 'augment_on: "device" has no effect without augment'),
        (
            ["augment_on=cpu", "augment=flip", "cache_features=true", "freeze=all", "copies=2"],
            'augment_on: "cpu" has no effect with cache_features: true',
        ),
        (["cache_features=true"], "cache_features: true needs freeze: all"),
        (["cache_features=true", "freeze=2"], "cache_features: true needs freeze: all"),
        (["cache_features=true", "freeze=all", "unfreeze.2=1"], "cannot be combined with cache_features: true"),
        (["cache_features=true", "freeze=all", "augment=flip"], "cache N augmented passes with copies: N"),
        (["cache_features=true", "freeze=all", "copies=2"], "copies: 2 has no effect without augment"),
        (["cache_features=true", "freeze=all", "mixup=0.2"], "mixup: 0.2 mixes pictures"),
        (["cache_features=true", "freeze=all", "cutmix=1"], "cutmix: 1 mixes pictures"),
        (["cache_features=true", "freeze=all", "compile=true"], "compile: true has no effect with cache_features"),
        (["optimizer={name: adamw, lr: 1, momentum: 0.9}"], "momentum: 0.9 has no effect with adamw; it has betas"),
        (["optimizer.betas=[0.9, 0.99]"], "optimizer.betas: [0.9, 0.99] has no effect with sgd; it has momentum"),
        (["optimizer={name: adan, lr: 1, betas: [0.9, 0.99]}"], "should be 3 numbers for adan"),
        (["optimizer.eps=1e-8"], "optimizer.eps: 1e-08 has no effect with sgd"),
        (["optimizer.momentum=0"], "use optimizer.name: momentum for none"),
        (["schedule.name=onecycle"], "needs schedule.warmup_epochs for its rise"),
        (["schedule.name=step"], 'schedule.name: "step" needs schedule.step_epochs'),
        (["schedule.step_epochs=3"], "schedule.step_epochs: 3 has no effect with schedule.name: cosine"),
        (["schedule.gamma=0.5"], "schedule.gamma: 0.5 has no effect with schedule.name: cosine"),
        (["schedule={name: constant, min_lr: 0.01}"], "0.01 has no effect with schedule.name: constant; it belongs to"),
        (["schedule.min_lr=0.1"], "schedule.min_lr: 0.1 should be below optimizer.lr, 0.1"),
        (["schedule.warmup_epochs=10"], "schedule.warmup_epochs: 10 should be below epochs, 10"),
        (["schedule={name: step, step_epochs: 10}"], "schedule.step_epochs: 10 should be below epochs, 10"),
        (["sampling=balanced", "loss.class_weights=balanced"], "corrects the classes a second time"),
        (["mixup=0.2", "loss.class_weights=balanced"], "mixup: 0.2 cannot be combined with loss.class_weights"),
        (["data.classes=[a, b]", "loss.class_weights={a: 1}"], "should name every class; missing: b"),
        (["data.classes=[a, b]", "loss.class_weights={a: 1, b: 1, c: 1}"], "classes that are not in data.classes: c"),
        (["data.labels=tags", "mixup=0.2"], "mixup: 0.2 needs one class a picture"),
        (["data.labels=tags", "sampling=balanced"], "sampling: \"balanced\" needs one class a picture"),
        (["data.labels=tags", "loss.label_smoothing=0.1"], "loss.label_smoothing: 0.1 needs one class a picture"),
        (["data.labels=tags", "best_metric=val_top1"], "with data.labels use val_f1 or val_loss"),
        (["best_metric=val_f1"], 'best_metric: "val_f1" needs data.labels'),
        (["batch_size=4", "accumulate=5"], "accumulate: 5 should not be above batch_size, 4"),
        (["batch_size=1", "cutmix=1"], "cutmix: 1 mixes pictures of one batch"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other_are_refused(overrides: list[str], problem: str) -> None:
    (line,) = problems(BASE, *overrides)
    assert problem in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["layer_decay=0.7"],
        ["freeze=all"],
        ["freeze=all", "layer_decay=0.7", "unfreeze={1: 4, 2: 2, 3: none}"],
        ["cache_features=true", "freeze=all"],
        ["cache_features=true", "freeze=all", "augment=flip", "copies=4", "weights=pretrained"],
        ["mixup=0.2", "cutmix=1", "loss.label_smoothing=0.1", "sampling=balanced"],
        ["epochs=null", "steps=100", "schedule.warmup_epochs=50"],
        ["data.val=null"],
        ["data.labels=tags", "early_stopping={}", "ema=0.99", "freeze=all", "cache_features=true"],
        ["schedule={name: constant, warmup_epochs: 1}"],
        ["optimizer={name: momentum, lr: 1, momentum: 0}"],
        ["optimizer={name: muon, lr: 1, momentum: 0.9, betas: [0.9, 0.99]}"],
        ["early_stopping={}", "best_metric=val_loss"],
        ["best_metric=train_loss"],
    ],
)
def test_fields_that_go_together_are_accepted(overrides: list[str]) -> None:
    recipe = parsed(*overrides)
    assert Recipe.parse(recipe.dump()) == recipe


def test_all_errors_are_reported_together() -> None:
    """Unknown and missing fields, wrong values, pipelines, overrides, and contradictions among the rest."""
    text = """
    data: {trian: out/a, val_fraction: 2}
    model: "resnet18(in_chans=3"
    workers: 4
    augment: flipp
    optimizer: {name: adamw, lr: fast, momentum: 0.9}
    batch_size: many
    copies: 2
    epochs: 3
    steps: 100
    """
    report = problems(text, "sede=1", "freeze=some")
    assert [line.split(": ")[0] for line in report] == [
        "--set sede=1",
        "data.train",
        "data.val_fraction",
        "data.trian",
        "augment",
        "model",
        "freeze",
        "optimizer.lr",
        "batch_size",
        "workers",
        "steps",
        "copies",
        "optimizer.momentum",
    ]


def test_a_contradiction_with_a_wrong_field_is_not_reported() -> None:
    (line,) = problems(BASE, "cache_features=true", "freeze=al", "augment=flip", "copies=2")
    assert line.startswith("freeze: ")
