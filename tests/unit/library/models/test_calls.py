"""Calls of models: parsed, refused, and the facts known before a model is built."""

from __future__ import annotations

import subprocess
import sys

import pytest

from library.errors import GrammarError, UsageError
from library.models import info, names, parse_call


@pytest.mark.parametrize("name", names())
def test_a_plain_name_is_its_own_canonical_text(name: str) -> None:
    assert str(parse_call(name)) == name


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("resnet50(in_chans=4)", "resnet50(in_chans=4)"),
        ("resnet50(4)", "resnet50(in_chans=4)"),
        ("resnet50(in_chans=3, small_input=False)", "resnet50"),
        ("mlp([300, 100])", "mlp(hidden=[300, 100])"),
        ("lenet5(size=32, in_chans=3)", "lenet5(in_chans=3, size=32)"),
        ("timm('resnet10t')", 'timm(name="resnet10t")'),
        ('timm("resnet10t", drop_rate=0.1, in_chans=1)', 'timm(name="resnet10t", in_chans=1, drop_rate=0.1)'),
    ],
)
def test_a_call_has_one_canonical_text_that_parses_to_the_same_call(text: str, canonical: str) -> None:
    call = parse_call(text)
    assert str(call) == canonical
    assert parse_call(canonical) == call


def test_a_call_includes_the_defaults() -> None:
    assert parse_call("resnet18").parameters == {"in_chans": 3, "small_input": False, "drop_rate": 0.0}


def test_defaults_do_not_change_because_bundles_rely_on_them() -> None:
    """A bundle stores only what differs from these, so changing one would change the bundles that rely on it."""
    assert {name: dict(parse_call(name).parameters) for name in ("lenet5", "mlp", "resnet9", "vgg16", "googlenet")} == {
        "lenet5": {"in_chans": 1, "size": 28, "activation": "tanh", "pooling": "avg"},
        "mlp": {"hidden": (300,), "in_chans": 1, "size": 28},
        "resnet9": {"width": 16, "in_chans": 3},
        "vgg16": {"in_chans": 3, "drop_rate": 0.5},
        "googlenet": {"in_chans": 3, "auxiliary": True, "drop_rate": 0.2},
    }


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("resnt50", "unknown model 'resnt50' (did you mean 'resnet50'?)", "^~~~~~~"),
        ("resnet50(chan=1)", "resnet50 has no parameter 'chan' (did you mean 'in_chans'?)", " " * 9 + "^~~~"),
        ("resnet50(in_chans=0)", "'in_chans' should be greater than or equal to 1; got 0", " " * 9 + "^~~"),
        ("resnet50(in_chans=True)", "'in_chans' should be a valid integer; got True", " " * 9 + "^~~"),
        ("resnet50(3, in_chans=3)", "'in_chans' is given twice", " " * 12 + "^~~"),
        ("resnet18 | resnet34", "expected one model, not several", " " * 11 + "^~~"),
        ("resnet50(", "not a model's call", " " * 8 + "^"),
        ("", "no model is named", "^"),
        ("lenet5(size=30)", "'size' should be 28 or 32; got 30", " " * 7 + "^~~"),
        ("lenet5(activation=tanh)", 'text needs quotes: activation="tanh"', " " * 18 + "^~~~"),
        ("mlp(hidden=[])", "'hidden' should have at least 1 item", " " * 4 + "^~~"),
        ("timm", "timm needs the name of one of its models", "^~~~"),
        ('timm("hf-hub:a/b")', "timm takes a name from timm's own list", " " * 5 + "^~~"),
        ('timm("a", checkpoint_path="b")', "'checkpoint_path' is not a parameter of the model", " " * 10 + "^~~"),
        ('timm("a", in_chans=0)', "'in_chans' should be a whole number from 1 to 4096; got 0", " " * 10 + "^~~"),
    ],
)
def test_a_mistake_in_a_call_is_shown_with_its_place(text: str, message: str, caret: str) -> None:
    with pytest.raises(GrammarError) as raised:
        parse_call(text)
    assert message in str(raised.value)
    assert str(raised.value).splitlines()[-1].startswith(f"  {caret}")


def test_facts_follow_the_parameters() -> None:
    assert info("resnet18").input_size == (3, 224, 224)
    assert info("resnet18(in_chans=5, small_input=True)").input_size == (5, 32, 32)
    assert info("lenet5(size=32)").input_size == (1, 32, 32)
    red, green, blue = info("resnet18").mean
    assert info("resnet18(in_chans=5)").mean == (red, green, blue, red, green)
    assert info("resnet18(in_chans=1)").mean == pytest.approx(((red + green + blue) / 3,), abs=1e-6)


def test_facts_of_a_model_of_timm_come_from_timm() -> None:
    facts = info('timm("vit_tiny_patch16_224", in_chans=4, img_size=96)')
    assert facts.input_size == (4, 96, 96)
    assert facts.mean == (0.5, 0.5, 0.5, 0.5)
    assert facts.weights_source.startswith("https://huggingface.co/timm/vit_tiny_patch16_224.")


def test_a_model_that_timm_lacks_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"timm has no model 'resnet10x' \(did you mean 'resnet10t'\?\)"):
        info('timm("resnet10x")')


def test_parsing_calls_and_reading_facts_imports_no_torch() -> None:
    code = (
        "import sys; from library.models import info, parse_call; info(parse_call('vgg16(in_chans=1)'));"
        "print(sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
