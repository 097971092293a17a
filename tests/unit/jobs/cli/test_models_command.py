"""`striate models`: the table, and one model."""

from __future__ import annotations

import json

import pytest

from jobs.cli.app import run
from jobs.inspection.catalogs import parse_size
from library.errors import UsageError
from library.models import names


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_json_has_every_model_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in table] == list(names())
    for model in table:
        assert {"name", "parameters", "layers", "flops", "input_size", "paper", "weights_source"} <= set(model)
        assert len(model["input_size"]) == len(model["mean"]) + 2 or len(model["mean"]) == model["input_size"][0]
    assert {model["name"]: model["differs"] for model in table if model["differs"]}["alexnet"] == ["parameters"]


@pytest.mark.usefixtures("narrow")
def test_the_table_fits_a_narrow_terminal_and_shows_both_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "61,100,840 (60 M)" in text
    assert "48 (42)" in text
    assert "138,357,544 " in text
    for name in names():
        assert f"\n{name} " in text


@pytest.mark.usefixtures("narrow")
def test_layers_are_listed_with_what_a_dense_layer_would_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "vgg16", "--layers", "--input", "200x200"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("features.0 "))
    assert line.split() == ["features.0", "conv", "3x3", "200x200x64", "1,792", "3", "71.7", "M", "307", "G"]
    assert "16" in next(line for line in text.splitlines() if line.startswith("layers "))


def test_one_model_as_json_has_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "lenet5(in_chans=3)", "--layers", "--classes", "7", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert model["call"] == "lenet5(in_chans=3)"
    assert model["per_layer"][-1]["output"] == [7]
    assert model["receptive_field"] == [32, 32]
    assert sum(layer["parameters"] for layer in model["per_layer"]) == model["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vg16"], "unknown model 'vg16' (did you mean 'vgg16'?)"),
        (["--layers"], "go with one model"),
        (["vgg16", "--input", "10"], "vgg16 cannot take pictures of 10x10"),
        (["vgg16", "--input", "ten"], "--input ten: write height x width in pixels"),
        (["timm('vgg61')"], "timm has no model 'vgg61'"),
        (["vgg16", "--plot"], "--plot draws all models as published"),
        (["--out", "page"], "--out goes with --plot"),
        (["--plot", "--batch-size", "4", "--seconds", "1"], "--batch-size and --seconds go with --measure"),
        (["--plot", "--measure", "--device", "tpu"], "--device tpu: use auto, cpu, cuda or cuda:1"),
    ],
)
def test_misuse_exits_with_2_and_says_what_would_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_size_is_height_by_width_or_a_side() -> None:
    assert parse_size("200x320") == (200, 320)
    assert parse_size("64") == (64, 64)
    for text in ("0", "0x3", "3x", "-4", "4x4x4", "123456"):
        with pytest.raises(UsageError):
            parse_size(text)
