"""`striate steps`: every step in a table, and one with an example picture."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from jobs.cli.app import run
from jobs.inspection.catalogs import describe_step, example_picture
from library import storage
from library.errors import GrammarError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.steps import REGISTRY
from library.steps.examples import EXAMPLES
from library.steps.help import step_table


def test_the_table_has_every_step_once_filters_first() -> None:
    table = step_table()
    assert sorted(row["name"] for row in table) == sorted(REGISTRY)
    kinds = [row["kind"] for row in table]
    assert kinds == sorted(kinds, key=["filter", "selector", "augmentation"].index)
    for row in table:
        assert row["kind"] == REGISTRY[row["name"]].kind
        assert row["summary"].endswith((".", "`."))
        for name in REGISTRY[row["name"]].__dataclass_fields__:
            assert name in row["parameters"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_step_is_described_with_all_its_parameters(name: str) -> None:
    about = describe_step(name)
    assert (about.name, about.kind) == (name, REGISTRY[name].kind)
    assert Pipeline.parse(about.example) == Pipeline.parse(EXAMPLES[name])
    assert [parameter.name for parameter in about.parameters] == list(REGISTRY[name].__dataclass_fields__)
    for parameter in about.parameters:
        assert parameter.help
        assert parameter.type
        assert "typing" not in parameter.type
        assert parameter.required == (parameter.default is None)
    assert json.loads(json.dumps(asdict(about))) == asdict(about)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_described_defaults_are_those_of_the_step(name: str) -> None:
    about = describe_step(name)
    values = {p.name: p.default for p in about.parameters if p.default not in (None, "None")}
    arguments = ", ".join(f"{parameter}={default}" for parameter, default in values.items())
    is_complete = not any(p.required for p in about.parameters)
    if is_complete and about.kind == "filter":
        assert Pipeline.parse(f"{name}({arguments})") == Pipeline.parse(name)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_step_has_an_example_picture(name: str) -> None:
    png, verdict = example_picture(name)
    sheet = codec.decode(png)
    assert sheet.shape[1] == 10 + 2 * (420 + 10)
    before, after = sheet[:, 10:430], sheet[:, 440:860]
    assert before.std() > 20
    if REGISTRY[name].kind == "selector":
        assert verdict == "kept" or verdict.startswith("dropped: ")
    else:
        assert verdict.endswith(" uint8")
        assert not np.array_equal(before[30:], after[30:]) or name == "rgb"


def test_a_call_is_shown_with_its_own_parameters() -> None:
    assert describe_step("gaussian_blur(sigma=9)").example == 'gaussian_blur(sigma=9.0, border="reflect_101")'
    assert example_picture("resize(20)")[1].startswith("30x20x3") or example_picture("resize(20)")[1].startswith(
        "29x20x3"
    )
    assert example_picture("min_size(short_side=9999)")[1] == "dropped: below_min_size"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian_blur", "unknown step 'gausian_blur' (did you mean 'gaussian_blur'?)"),
        ("gaussian_blur(size=1)", "gaussian_blur has no parameter 'size'"),
        ("invert | invert", "'invert | invert' is 2 steps; name one"),
        ("", "write at least one step"),
        ("__import__('os')", "unknown step '__import__'"),
    ],
)
def test_an_invalid_step_is_refused(text: str, message: str) -> None:
    for show in (describe_step, example_picture):
        with pytest.raises((UsageError, GrammarError)) as raised:
            show(text)
        assert message in str(raised.value)


def test_a_step_that_reads_another_column_has_no_example_picture() -> None:
    with pytest.raises(UsageError, match=r"has no column 'm', which blur_background reads.*striate show"):
        example_picture("blur_background(mask_column='m')")


def test_the_example_picture_can_be_written_to_s3(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["steps", "invert", "--out", f"{bucket}/x.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == f"{bucket}/x.png"
    assert storage.exists(f"{bucket}/x.png")
