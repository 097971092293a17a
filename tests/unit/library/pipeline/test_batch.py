"""Running steps over a table: no picture is lost, and none is changed except by a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.dataset.record import REJECT_COLUMNS, ImageRecord, dataset_schema, table_of
from library.errors import BadPicture, StepError
from library.imaging import codec
from library.imaging.codec import Encoding, Limits
from library.imaging.picture import Picture, Pixels
from library.pipeline import Pipeline
from library.pipeline.batch import BatchResult, run_batch
from library.steps import REGISTRY
from library.steps.base import register
from tests.picture_examples import encoded, orientation_exif, pil_bytes, scene, table

GOOD, SMALL, GREY = encoded("jpeg", 30, 40), encoded("png", 6, 7), encoded("png", 30, 40, channels=1)
DAMAGED = GOOD[: len(GOOD) // 2]


def run(text: str, rows: pa.Table, *options: Any) -> BatchResult:
    return run_batch(Pipeline.parse(text).steps if text else (), rows, *options)


@pytest.fixture
def _own_steps() -> Iterator[None]:
    """Removes the steps that a test registers."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def stored(result: BatchResult) -> dict[str, bytes]:
    """Bytes by key."""
    pairs = zip(result.table["key"].to_pylist(), result.table["image"].to_pylist(), strict=True)
    return {key: image["bytes"] for key, image in pairs}


# -- the balance ------------------------------------------------------------------------------------------------------

PIPELINES = ["", "grayscale", "min_size(short_side=10)", "not_blank | min_size(short_side=10) | grayscale | resize(8)"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([GOOD, SMALL, GREY, DAMAGED, b"", b"text", None]), max_size=12), st.sampled_from(PIPELINES)
)
def test_every_picture_is_kept_dropped_or_rejected_in_order(pictures: list[bytes | None], text: str) -> None:
    rows = table(pictures, number=list(range(len(pictures))) or pa.array([], pa.int64()))
    result = run(text, rows)
    assert rows.num_rows == result.table.num_rows + result.dropped.total() + result.rejects.num_rows
    assert result.rejected.total() == result.rejects.num_rows
    assert result.table.schema == rows.schema
    assert result.rejects.schema.names == [*rows.schema.names, *REJECT_COLUMNS]
    for side in (result.table, result.rejects):
        numbers = side["number"].to_pylist()
        assert numbers == sorted(numbers)
        assert side["key"].to_pylist() == [str(number) for number in numbers]
    assert not set(result.table["key"].to_pylist()) & set(result.rejects["key"].to_pylist())
    for row in result.rejects.to_pylist():
        assert row["image"]["bytes"] == pictures[row["number"]], "a reject keeps its exact bytes"
        assert row["reason"]
        assert row["detail"]
    for key, data in stored(result).items():
        if text in ("", "min_size(short_side=10)"):
            assert data == pictures[int(key)]
        else:
            assert codec.decode(data).shape[2] == 1


def test_each_drop_and_reject_is_counted_under_its_reason() -> None:
    result = run("not_blank | min_size(short_side=10)", table([GOOD, SMALL, DAMAGED, b"", SMALL, b"text", None]))
    assert result.dropped == {"below_min_size": 2}
    assert result.rejected == {"truncated": 1, "empty": 2, "not_an_image": 1}


def test_a_picture_without_bytes_is_a_reject_even_without_steps() -> None:
    for text in ("", "min_size(short_side=1)", "invert"):
        result = run(text, table([GOOD, None]))
        assert (result.table["key"].to_pylist(), result.rejected) == (["0"], {"empty": 1})
        assert result.rejects["image"].to_pylist()[0]["bytes"] is None


def test_a_result_that_cannot_be_encoded_is_a_reject_with_its_old_bytes() -> None:
    rgba = encoded("png", channels=4)
    result = run("invert", table([rgba, GOOD]), Encoding.parse("jpeg"))
    assert (result.rejected, result.table["key"].to_pylist()) == ({"cannot_encode": 1}, ["1"])
    assert result.rejects["image"][0].as_py()["bytes"] == rgba


def test_a_picture_beyond_the_limits_is_rejected_before_decoding() -> None:
    result = run("invert", table([GOOD, SMALL]), codec.KEEP, Limits(max_pixels=1000))
    assert (result.rejected, result.table["key"].to_pylist()) == ({"too_large": 1}, ["1"])


# -- what stays unchanged ---------------------------------------------------------------------------------------------


def test_selectors_of_the_header_decode_nothing_and_keep_the_bytes() -> None:
    text = 'min_size(short_side=10) | keep_labels(["cat"]) | keep_channels([3]) | file_size_between(min_bytes=9)'
    result = run(text, table([GOOD, DAMAGED, b"no picture at all"], ["cat", "cat", "dog"]))
    assert stored(result) == {"0": GOOD, "1": DAMAGED}
    assert result.dropped == {"other_label": 1}
    assert not result.seconds["decode"]


def test_selectors_of_pixels_keep_the_bytes_too() -> None:
    result = run("not_blank", table([GOOD, DAMAGED]))
    assert stored(result) == {"0": GOOD}
    assert result.seconds["decode"] > 0
    assert "encode" not in result.seconds


def test_without_steps_the_table_is_unchanged() -> None:
    rows = table([GOOD, SMALL], ["cat", None])
    assert run("", rows).table.equals(rows)


def test_other_columns_pass_through_unchanged() -> None:
    extras: dict[str, Any] = {
        "count": pa.array([1, None, 3], pa.int16()),
        "boxes": pa.array([[[1.5, 2.5]], [], None], pa.list_(pa.list_(pa.float32()))),
        "about": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "z"}]),
        "blob": pa.array([b"\0\1", None, b""]),
        "when": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    }
    rows = table([GOOD, DAMAGED, GREY])
    for name, values in extras.items():
        rows = rows.append_column(name, values)
    result = run("invert", rows)
    for name in extras:
        assert result.table[name].to_pylist() == [rows[name][0].as_py(), rows[name][2].as_py()]
        assert result.rejects[name].to_pylist() == [rows[name][1].as_py()]
        assert result.table.schema.field(name) == rows.schema.field(name)


def test_slices_and_chunks_of_a_table_give_the_same_result() -> None:
    rows = table([GOOD, SMALL, GREY, DAMAGED, GOOD], ["a", "b", "c", "d", "e"])
    chunks = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 0), rows.slice(1, 3), rows.slice(4)])
    assert run("grayscale", chunks).table.equals(run("grayscale", rows).table)
    part = run("grayscale", rows.slice(2))
    assert part.table["key"].to_pylist() == ["2", "4"]
    assert stored(part) == {key: data for key, data in stored(run("grayscale", rows)).items() if key in "24"}


def test_without_header_columns_the_pictures_headers_are_read() -> None:
    rows = table([GOOD, SMALL, b"text", GREY]).select(["key", "image"])
    result = run("min_size(short_side=10) | keep_channels([3])", rows)
    assert result.table["key"].to_pylist() == ["0"]
    assert (result.dropped, result.rejected) == ({"below_min_size": 1, "other_channels": 1}, {"not_an_image": 1})


def test_rows_with_null_header_columns_are_read_from_the_pictures() -> None:
    rows = table([GOOD, GOOD])
    for name in ("width", "height"):
        kind = rows.schema.field(name).type
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array([None, rows[name][1].as_py()], kind))
    assert run("min_size(short_side=31)", rows).dropped == {"below_min_size": 2}


# -- what a filter changed --------------------------------------------------------------------------------------------


def test_size_channels_format_and_path_are_updated_by_filters() -> None:
    result = run(
        "crop(top=0, left=0, height=5, width=6) | grayscale",
        table([GOOD, encoded("gif"), encoded("tiff", dtype="float32")]),
    )
    assert result.table.select(["width", "height", "channels", "format"]).to_pylist() == [
        {"width": 6, "height": 5, "channels": 1, "format": name} for name in ("jpeg", "png", "tiff")
    ]
    assert [image["path"] for image in result.table["image"].to_pylist()] == [
        "folder/0.jpeg",
        "folder/1.png",
        "folder/2.tiff",
    ]
    for row in result.table.to_pylist():
        header = codec.probe(row["image"]["bytes"])
        assert (header.format, header.width, header.height, header.channels) == (row["format"], 6, 5, 1)


@pytest.mark.parametrize(
    ("path", "renamed"),
    [
        ("a/b.JPG", "a/b.JPG"),
        ("b.jpeg", "b.jpeg"),
        ("a.b/c", "a.b/c.jpeg"),
        ("c.png", "c.jpeg"),
        ("ü.tif", "ü.jpeg"),
        (None, None),
    ],
)
def test_a_path_takes_the_extension_of_its_new_format(path: str | None, renamed: str | None) -> None:
    rows = table([GOOD])
    image = pa.array([{"bytes": GOOD, "path": path}], rows.schema.field("image").type)
    result = run("invert", rows.set_column(1, rows.schema.field("image"), image))
    assert result.table["image"][0].as_py()["path"] == renamed


def test_filters_run_in_order_and_the_result_is_encoded_once() -> None:
    once = run("invert | rotate90 | invert", table([encoded("png", dtype="uint16")]))
    expected = Pipeline.parse("rotate90").apply(scene(dtype="uint16"))
    assert np.array_equal(codec.decode(stored(once)["0"]), expected)


def test_a_rotated_picture_is_stored_upright_without_orientation() -> None:
    turned = pil_bytes(Image.fromarray(scene()), "jpeg", exif=orientation_exif(6))
    result = run("invert", table([turned]))
    assert codec.decode(stored(result)["0"]).shape == (32, 24, 3)
    assert (result.table["width"][0].as_py(), result.table["height"][0].as_py()) == (24, 32)


def test_selectors_after_a_filter_see_its_result() -> None:
    result = run("resize(5) | min_size(short_side=10)", table([GOOD]))
    assert result.dropped == {"below_min_size": 1}
    result = run("grayscale | keep_channels([1])", table([GOOD]))
    assert result.table.num_rows == 1


def test_time_is_measured_by_stage() -> None:
    seconds = run("not_blank | invert", table([GOOD, GREY])).seconds
    assert list(seconds) == ["not_blank", "invert", "decode", "encode"]
    assert min(seconds.values()) > 0


# -- a step's own code ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_own_steps")
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (KeyError("x"), "KeyError: 'x'"),
        (AttributeError("y"), "AttributeError: y"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["filter", "selector"])
def test_an_exception_from_a_step_names_the_step_and_the_picture(failure: Exception, message: str, kind: Any) -> None:
    class Broken:
        def __call__(self, pixels: Pixels) -> Pixels:
            raise failure

        def reason(self, picture: Picture) -> str | None:
            raise failure

    register(kind)(Broken)
    with pytest.raises(StepError) as raised:
        run("min_size(short_side=10) | broken", table([SMALL, GOOD]))
    assert str(raised.value) == f"step 'broken' failed on picture '1': {message}"
    assert raised.value.__cause__ is failure


@pytest.mark.usefixtures("_own_steps")
@pytest.mark.parametrize(
    "returned",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.int64), np.zeros((0, 4, 3), np.uint8)],
    ids=lambda a: f"{a.dtype} {a.shape}",
)
def test_a_filter_that_returns_no_picture_is_a_step_error(returned: Any) -> None:
    class Odd:
        def __call__(self, pixels: Pixels) -> Any:
            return returned

    register("filter")(Odd)
    with pytest.raises(
        StepError, match=r"step 'odd' failed on picture '0': TypeError: must return height x width x channels of uint8"
    ):
        run("odd", table([GOOD]))


@pytest.mark.usefixtures("_own_steps")
def test_a_bad_picture_from_a_step_is_a_reject() -> None:
    class Picky:
        def __call__(self, pixels: Pixels) -> Pixels:
            raise BadPicture("too_plain", "not for me")

    register("filter")(Picky)
    result = run("picky", table([GOOD]))
    assert result.rejects.select(REJECT_COLUMNS).to_pylist() == [{"reason": "too_plain", "detail": "not for me"}]


# -- masks ------------------------------------------------------------------------------------------------------------

MASKED = 'blur_background(sigma=3, mask_column="mask")'


def mask(height: int = 24, width: int = 32) -> bytes:
    subject = np.zeros((height, width, 1), np.uint8)
    subject[6:18, 8:24] = 255
    return codec.encode(subject, Encoding.parse("png"))[0]


@pytest.mark.parametrize("wrapped", [False, True], ids=["bytes", "struct"])
def test_the_background_is_blurred_around_the_mask_in_another_column(wrapped: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    data = codec.encode(noise, Encoding.parse("png"))[0]
    masks = [{"bytes": mask(), "path": "m.png"}, {"bytes": None, "path": None}] if wrapped else [mask(), None]
    result = run(MASKED, table([data, data], mask=masks))
    assert result.rejected == {"no_mask": 1}
    pixels = codec.decode(stored(result)["0"])
    assert np.array_equal(pixels[6:18, 8:24], noise[6:18, 8:24])
    assert pixels[:4].std() < noise[:4].std() / 2
    assert result.table["mask"][0].as_py() == masks[0]


def test_a_damaged_mask_or_one_of_another_size_is_a_reject() -> None:
    result = run(MASKED, table([GOOD, GOOD], mask=[mask(5, 5), mask()[:50]]))
    assert result.rejected == {"mask_size": 1, "truncated": 1}


def test_a_missing_column_is_named() -> None:
    with pytest.raises(StepError, match=r"on picture '0': the dataset has no column 'mask'"):
        run(MASKED, table([GOOD]))


@pytest.mark.parametrize("step", ["resize(500, enlarge=False)", "pad_square", "invert | invert", "rgb"])
def test_a_filter_that_changes_nothing_keeps_the_bytes(step: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 40, 3), np.uint8)
    data, _ = codec.encode(pixels, codec.Encoding("jpeg", 80))
    table = table_of([ImageRecord("a", data, "a.jpg", None, codec.probe(data))], dataset_schema())
    stored = run_batch(Pipeline.parse(step).steps, table).table["image"][0].as_py()["bytes"]
    assert (stored == data) == (step != "invert | invert")
