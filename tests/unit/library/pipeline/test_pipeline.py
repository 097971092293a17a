"""Pipelines: built from text, identified by it, run over arrays and tables."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import GrammarError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.steps import REGISTRY
from library.steps.examples import EXAMPLES
from tests.picture_examples import encoded, scene, table
from tests.unit.library.test_grammar import marked


def refused(text: str) -> GrammarError:
    with pytest.raises(GrammarError) as raised:
        Pipeline.parse(text)
    return raised.value


# -- text -------------------------------------------------------------------------------------------------------------


def test_every_step_has_an_example_and_every_example_is_of_its_step() -> None:
    assert set(EXAMPLES) == set(REGISTRY)
    assert {name: Pipeline.parse(text).steps[0].name for name, text in EXAMPLES.items()} == {
        name: name for name in REGISTRY
    }


@given(st.lists(st.sampled_from(sorted(EXAMPLES.values())), min_size=1, max_size=6))
def test_the_canonical_text_is_read_back_as_an_equal_pipeline(texts: list[str]) -> None:
    pipeline = Pipeline.parse(" | ".join(texts))
    assert len(pipeline.steps) == len(texts)
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert str(Pipeline.parse(str(pipeline))) == str(pipeline)


@given(st.text(), st.floats(0.001, 250), st.integers(1, 65535))
def test_parameters_of_every_kind_survive_the_canonical_text(label: str, sigma: float, side: int) -> None:
    pipeline = Pipeline.parse("grayscale").steps
    pipeline += (
        REGISTRY["keep_labels"](labels=(label, "x")),  # type: ignore[call-arg]
        REGISTRY["gaussian_blur"](sigma=sigma),  # type: ignore[call-arg]
        REGISTRY["resize"](size=(side, side), mode="exact"),  # type: ignore[call-arg]
    )
    built = Pipeline(pipeline)
    assert Pipeline.parse(str(built)) == built


def test_the_canonical_text_has_every_parameter() -> None:
    text = str(Pipeline.parse("gaussian_blur(1) | resize(224)"))
    for step in Pipeline.parse(text).steps:
        for field in dataclasses.fields(step):  # type: ignore[arg-type]
            assert f"{field.name}=" in text


def test_the_digest_is_of_the_canonical_text_only() -> None:
    one = Pipeline.parse("gaussian_blur(sigma=2.0)|resize( 224 )")
    same = Pipeline.parse('\n gaussian_blur(2)  # comment\n | resize(size=224, mode="short_side")\n')
    assert one == same
    assert one.digest == same.digest == hashlib.sha256(str(one).encode()).hexdigest()
    others = [
        "gaussian_blur(sigma=2)",
        "resize(224) | gaussian_blur(sigma=2)",
        "gaussian_blur(sigma=2.1) | resize(224)",
    ]
    assert len({one.digest, *(Pipeline.parse(text).digest for text in others)}) == 4


def test_a_pipeline_can_be_pickled_hashed_and_compared() -> None:
    pipeline = Pipeline.parse(" | ".join(EXAMPLES.values()))
    again = pickle.loads(pickle.dumps(pipeline))
    assert again == pipeline
    assert {again: 1}[pipeline] == 1


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (
            "grayscale | gausian_blur(sigma=1)",
            "gausian_blur",
            "unknown step 'gausian_blur' (did you mean 'gaussian_blur'?)",
        ),
        ("gaussian_blur(sgma=1)", "sgma", "gaussian_blur has no parameter 'sgma' (did you mean 'sigma'?)"),
        ("gaussian_blur", "gaussian_blur", "gaussian_blur needs 'sigma'"),
        ("invert | gaussian_blur() | invert", "gaussian_blur", "gaussian_blur needs 'sigma'"),
        ("gaussian_blur(1, sigma=2)", "sigma=2", "'sigma' is given twice"),
        ("gaussian_blur(sigma=1, sigma=2)", "sigma=2", "'sigma' is given twice"),
        ("gaussian_blur(1, 'reflect', 3, 4)", "3", "gaussian_blur takes at most 2 arguments: sigma, border"),
        ("invert(1)", "1", "invert takes at most 0 arguments: none at all"),
        ("gaussian_blur(sigma='big')", "sigma='big'", "gaussian_blur: 'sigma' should be a valid number; got \"big\""),
        ("gaussian_blur(sigma=True)", "sigma=True", "'sigma' should be a valid number; got True"),
        ("gaussian_blur(None)", "None", "'sigma' should be a valid number; got None"),
        ("gaussian_blur(sigma=-1)", "sigma=-1", "'sigma' should be greater than 0; got -1"),
        ("gaussian_blur(sigma=1e999)", "sigma=1e999", "'sigma' should be a finite number; got inf"),
        ("gaussian_blur(sigma=canny)", "sigma=canny", "'sigma' should be a valid number; got canny("),
        ("gaussian_blur(sigma=canyn)", "canyn", "unknown step 'canyn' (did you mean 'canny'?)"),
        ("box_blur(size=3.0)", "size=3.0", "'size' should be a valid integer; got 3.0"),
        ('edges(direction="up")', 'direction="up"', "'direction' should be"),
        ('keep_labels("cat")', '"cat"', "'labels' should be a valid list"),
        ('keep_labels(["é", "日本"])\n  | box_blur(sise=3)', "sise", "did you mean 'size'?"),
        ('keep_labels(["\U0001f600"]) | canyn', "canyn", "did you mean 'canny'?"),
    ],
)
def test_a_mistake_is_pointed_at_and_explained(text: str, place: str, message: str) -> None:
    error = refused(text)
    assert message in error.message
    if text != "invert | gaussian_blur() | invert":
        assert marked(error) == place
    else:
        assert marked(error).startswith(place)


@pytest.mark.parametrize("text", ["__import__('os')", "eval('1')", "grayscale(__class__=1)", "grayscale(kind='x')"])
def test_only_registered_steps_and_their_parameters_can_be_named(text: str) -> None:
    assert "unknown step" in str(refused(text)) or "has no parameter" in str(refused(text))


# -- one array --------------------------------------------------------------------------------------------------------


def test_apply_runs_the_filters_in_order() -> None:
    pixels = scene(20, 30, 3)
    cropped = Pipeline.parse("crop(top=0, left=0, height=4, width=6) | rotate90").apply(pixels)
    assert cropped.shape == (6, 4, 3)
    assert np.array_equal(cropped, np.rot90(pixels[:4, :6], -1)) or np.array_equal(cropped, np.rot90(pixels[:4, :6]))
    assert np.array_equal(Pipeline().apply(pixels), pixels)


@pytest.mark.parametrize("text", ["min_size(short_side=1)", 'blur_background(mask_column="mask")'])
def test_apply_refuses_steps_that_need_more_than_pixels(text: str) -> None:
    with pytest.raises(TypeError, match=r"needs the whole record, not only the pixels; use run_batch"):
        Pipeline.parse(text).apply(scene())


# -- a table, as map_batches passes it --------------------------------------------------------------------------------


def test_a_table_keeps_its_schema_and_loses_only_bad_or_dropped_rows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, small = encoded("jpeg", height=40, width=50), encoded("png", height=5, width=5)
    rows = table([good, b"no picture", small, good[:-300]], box=[[1, 2], None, [3], []])
    with caplog.at_level(logging.WARNING):
        result = Pipeline.parse("min_size(short_side=10) | grayscale")(rows)
    assert result.schema.equals(rows.schema, check_metadata=True)
    assert result["key"].to_pylist() == ["0"]
    assert result["channels"].to_pylist() == [1]
    assert result["box"].to_pylist() == [[1, 2]]
    assert "left out 2 pictures that cannot be used" in caplog.text
    assert "not_an_image" in caplog.text


def test_a_table_without_rejects_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rows = table([encoded("jpeg")] * 3)
    assert Pipeline.parse("min_size(short_side=1)")(rows).equals(rows)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_a_plain_column_of_bytes_without_any_header_columns_works(kind: pa.DataType) -> None:
    stored = [encoded("png"), encoded("jpeg"), b""]
    rows = pa.table({"key": ["a", "b", "c"], "image": pa.array(stored, kind)})
    result = Pipeline.parse("min_size(short_side=1) | invert")(rows)
    assert result.schema == rows.schema
    assert result["key"].to_pylist() == ["a", "b"]
    first = codec.decode(result["image"][0].as_py())
    assert np.array_equal(first, 255 - codec.decode(stored[0]))
    assert codec.probe(result["image"][1].as_py()).format == "jpeg"


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.binary())]),
        pa.struct([("bytes", pa.binary())]),
    ],
    ids=str,
)
def test_the_image_column_of_other_programs_keeps_its_type(kind: pa.StructType) -> None:
    value: dict[str, Any] = {"bytes": encoded("bmp"), "path": "folder/x.bmp"}
    image = pa.array([{field.name: value[field.name] for field in kind}, None], kind)
    result = Pipeline.parse("invert")(pa.table({"key": ["a", "b"], "image": image}))
    assert result.schema.field("image").type == kind
    assert result["key"].to_pylist() == ["a"]
    stored = result["image"][0].as_py()
    assert codec.probe(stored["bytes"]).format == "png"
    assert stored.get("path", "folder/x.png") == "folder/x.png"


def test_the_encoding_can_be_chosen_and_is_checked() -> None:
    rows = table([encoded("png")])
    result = Pipeline.parse("invert")(rows, encode="webp:80")
    assert (result["format"][0].as_py(), codec.probe(result["image"][0].as_py()["bytes"]).format) == ("webp", "webp")
    with pytest.raises(UsageError, match="unknown encoding 'gif'"):
        Pipeline.parse("invert")(rows, encode="gif")


def test_an_empty_table_stays_empty() -> None:
    rows = table([encoded("png")]).slice(0, 0)
    assert Pipeline.parse("grayscale | not_blank")(rows).equals(rows)
