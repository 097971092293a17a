"""Masks and boxes follow their picture through every step that moves pixels."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from library.dataset.record import image_array
from library.errors import BadPicture, GrammarError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.annotations import Annotations, Followed, Wanted, find_annotations
from library.pipeline.augmentation import Augmenter
from library.pipeline.batch import run_batch
from library.randomness import generator
from library.steps import REGISTRY
from library.steps.augmentations.geometric import rotation, shear, shift, warp
from library.steps.base import says_where, traced, with_nested
from library.steps.moves import Move, cut
from tests.step_examples import AUGMENTATIONS, FILTERS, RESIZING, step

BOTH = Annotations(("mask",), ("boxes",), 0.0)
BOX_TYPE = pa.list_(
    pa.struct(
        [("x", pa.float64()), ("y", pa.float64()), ("w", pa.float64()), ("h", pa.float64()), ("label", pa.string())]
    )
)
MOVING = [
    text
    for text in (*RESIZING, *AUGMENTATIONS)
    if any(not each.still for each in with_nested([step(text)])) and "sometimes(" not in text
]
#: Steps that continue the picture outside, where the mask has further copies of what the box is around.
CONTINUED = ("edge", "reflect", "wrap")


def scene(height: int, width: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A black picture with a white rectangle: x, y, w, h."""
    x, y, w, h = box
    pixels = np.zeros((height, width, 1), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    return pixels


def png(pixels: NDArray[Any]) -> bytes:
    return codec.encode(pixels, codec.Encoding("png"))[0]


def follow(text: str, pixels: NDArray[Any], box: tuple[float, ...], seed: int) -> tuple[NDArray[Any], Any, list[Any]]:
    """The picture, the mask and the boxes after a step; the mask begins as the picture."""
    values = {"mask": png(pixels), "boxes": [dict(zip("xywh", box, strict=True))]}
    followed = Followed(BOTH, values, (pixels.shape[0], pixels.shape[1]))
    each = step(text)
    after, moves = traced(each, pixels, generator(seed) if each.kind == "augmentation" else None)
    followed.follow(moves)
    return after, codec.decode(followed.column("mask")), followed.column("boxes")


@pytest.mark.parametrize("text", MOVING)
def test_a_mask_stays_on_what_it_marks(text: str) -> None:
    for seed in range(6):
        pixels = scene(64, 80, (18, 14, 40, 33))
        after, mask, _ = follow(text, pixels, (18, 14, 40, 33), seed)
        assert mask.shape == after.shape
        assert set(np.unique(mask)) <= {0, 255}
        if "convolve([[1, 0" in text or "augment" in text:  # they change values, or draw a step that does
            assert mask.shape[:2] == after.shape[:2]
            continue
        wrong = (mask > 127) != (after > 127)
        # At an edge a pixel may be counted to either side; nowhere else.
        edges = cv2.dilate(mask, np.ones((3, 3), np.uint8)) != cv2.erode(mask, np.ones((3, 3), np.uint8))
        outside = "fill=0.5" in text  # the picture is grey there, the mask 0
        assert outside or not (wrong[:, :, 0] & ~edges).any(), seed


@pytest.mark.parametrize("text", [text for text in MOVING if not any(fill in text for fill in CONTINUED)])
def test_a_box_stays_around_its_rectangle(text: str) -> None:
    for seed in range(8):
        given = (18, 14, 40, 33)
        _, mask, boxes = follow(text, scene(64, 80, given), given, seed)
        rows, columns = np.nonzero(mask[:, :, 0])
        if len(rows) == 0:
            assert all(min(box["w"], box["h"]) <= 2 for box in boxes)
            continue
        (box,) = boxes
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        found = box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]
        np.testing.assert_allclose(found, edges, atol=1.01)


def test_a_mask_follows_several_draws_like_its_picture() -> None:
    augmenter = Augmenter(
        Pipeline.parse("flip | rotate(20) | sometimes(0.5, rotate90 | zoom(0.2)) | random_crop(40)"), 3
    )
    pixels = scene(64, 80, (18, 14, 40, 33))
    for epoch in range(20):
        followed = Followed(BOTH, {"mask": png(pixels), "boxes": None}, (64, 80))
        after = augmenter.apply_with(pixels, epoch, "a", followed)
        np.testing.assert_array_equal(after, augmenter.apply(pixels, epoch, "a"))
        wrong = (codec.decode(followed.column("mask")) > 127) != (after > 127)
        assert wrong.mean() < 0.05
        assert followed.column("boxes") is None


def test_a_box_rotated_to_and_fro_is_the_same_box() -> None:
    given = (30.0, 25.0, 10.0, 12.0)
    pixels = scene(64, 80, (30, 25, 10, 12))
    followed = Followed(BOTH, {"mask": None, "boxes": [dict(zip("xywh", given, strict=True))]}, (64, 80))
    for degrees in ("[17, 17]", "[-17, -17]"):
        pixels, moves = traced(step(f"rotate({degrees})"), pixels, generator(0))
        followed.follow(moves)
    (box,) = followed.column("boxes")
    np.testing.assert_allclose([box[side] for side in "xywh"], given, atol=1e-9)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 1), (0.24, 1), (0.26, 0), (1.0, 0)])
def test_a_box_is_dropped_below_its_share(share: float, kept: int) -> None:
    values = {"boxes": [{"x": 10, "y": 10, "w": 20, "h": 20, "label": "cat"}]}
    followed = Followed(Annotations((), ("boxes",), share), values, (40, 40))
    _, moves = traced(step("crop(top=20, left=20, height=20, width=20)"), np.zeros((40, 40, 1), np.uint8))
    followed.follow(moves)
    expected = [{"x": 0, "y": 0, "w": 10, "h": 10, "label": "cat"}] * kept
    assert followed.column("boxes") == expected
    assert followed.boxes_dropped == 1 - kept


def test_whole_numbers_stay_whole_and_nothing_moves_without_a_move() -> None:
    values = {"boxes": [{"x": 1, "y": 2, "w": 3, "h": 5}], "mask": b"not even a picture"}
    followed = Followed(BOTH, values, (64, 80))
    followed.follow(())
    assert (followed.column("boxes"), followed.column("mask")) == (values["boxes"], values["mask"])
    followed = Followed(Annotations((), ("boxes",)), values, (60, 80))
    followed.follow(traced(step("resize(45)"), np.zeros((60, 80, 1), np.uint8))[1])
    assert followed.column("boxes") == [{"x": 1, "y": 2, "w": 2, "h": 3}]


def test_classes_of_a_palette_keep_their_numbers_and_colours() -> None:
    numbers = np.zeros((20, 26), np.uint8)
    numbers[5:12, 3:20] = 15
    image = Image.fromarray(numbers, "P")
    image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    stored = io.BytesIO()
    image.save(stored, "PNG")
    followed = Followed(Annotations(("mask",)), {"mask": {"bytes": stored.getvalue(), "path": "a.png"}}, (20, 26))
    followed.follow(traced(step("rotate90"), np.zeros((20, 26, 3), np.uint8))[1])
    after = Image.open(io.BytesIO(followed.column("mask")["bytes"]))
    np.testing.assert_array_equal(np.asarray(after), np.rot90(numbers))
    assert (after.mode, after.getpalette()) == ("P", image.getpalette())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"mask": png(scene(5, 5, (1, 1, 2, 2))), "boxes": []}, "mask_size"),
        ({"mask": b"\x89PNG\r\n\x1a\n", "boxes": []}, "truncated"),
        ({"mask": None, "boxes": [{"x": 1.0, "y": 1.0, "w": -1.0, "h": 3.0}]}, "bad_box"),
        ({"mask": None, "boxes": [{"x": None, "y": 1.0, "w": 1.0, "h": 3.0}]}, "bad_box"),
    ],
)
def test_a_picture_with_a_wrong_annotation_is_rejected(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadPicture) as bad:
        Followed(BOTH, values, (20, 26)).follow(traced(step("rotate90"), np.zeros((20, 26, 3), np.uint8))[1])
    assert bad.value.reason == reason


def moved(move: Move | None, mask: NDArray[Any], boxes: list[tuple[float, ...]]) -> tuple[NDArray[Any], Any]:
    """A mask and boxes (x, y, w, h) after a move."""
    assert move is not None
    values = {"mask": png(mask), "boxes": [dict(zip("xywh", box, strict=True)) for box in boxes]}
    followed = Followed(BOTH, values, (mask.shape[0], mask.shape[1]))
    followed.follow((move,))
    return codec.decode(followed.column("mask")), [tuple(box.values()) for box in followed.column("boxes")]


H, W = 90, 120
#: Our moves, and the same by torchvision; the angles of its affine are clockwise.
PAIRS: dict[str, tuple[Any, Any]] = {
    "flip": (lambda: step("flip(p=1)").move(H, W, generator(0)), lambda f, x: f.horizontal_flip(x)),
    "flip down": (
        lambda: step('flip(p=1, direction="vertical")').move(H, W, generator(0)),
        lambda f, x: f.vertical_flip(x),
    ),
    "crop": (lambda: cut(20, 30, 50, 60), lambda f, x: f.crop(x, 20, 30, 50, 60)),
    "center_crop": (lambda: step("center_crop([61, 80])").move(H, W), lambda f, x: f.center_crop(x, [61, 80])),
    "pad_square": (lambda: step("pad_square").move(H, W), lambda f, x: f.pad(x, [0, 15])),
    "resize": (lambda: step("resize(45)").move(H, W), lambda f, x: f.resize(x, [45])),
    "resize up": (
        lambda: step('resize([200, 150], mode="exact")').move(H, W),
        lambda f, x: f.resize(x, [200, 150]),
    ),
    "rotate90": (lambda: step("rotate90").move(H, W), lambda f, x: f.rotate(x, 90, expand=True)),
    "rotate": (lambda: rotation(25, H, W, 0.0), lambda f, x: f.rotate(x, 25)),
    "shift": (
        lambda: shift(13, -8, H, W, 0.0),
        lambda f, x: f.affine(x, angle=0, translate=[13, -8], scale=1, shear=[0, 0]),
    ),
    "zoom": (
        lambda: warp(((1.3, 0), (0, 1.3)), H, W, 0.0),
        lambda f, x: f.affine(x, angle=0, translate=[0, 0], scale=1.3, shear=[0, 0]),
    ),
    "shear": (
        lambda: shear(-np.tan(np.radians(15)), 0, H, W, 0.0),
        lambda f, x: f.affine(x, angle=0, translate=[0, 0], scale=1, shear=[15, 0]),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_moves_agree_with_torchvision(name: str) -> None:
    torch = pytest.importorskip("torch")
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    make, theirs = PAIRS[name]
    rng = np.random.default_rng(1)
    mask = cv2.resize(rng.integers(0, 4, (9, 12), np.uint8), (W, H), interpolation=cv2.INTER_NEAREST)[:, :, None]
    inside, across = [(50.0, 35.0, 20.0, 15.0), (42.5, 40.25, 8.5, 9.75)], [(2.0, 3.0, 40.0, 30.0)]
    mask_after, boxes = moved(make(), mask, [*inside, *across])
    expected = functional_of(theirs, functional, tv_tensors.Mask(torch.from_numpy(mask.transpose(2, 0, 1).copy())))
    assert mask_after.shape == (*expected.shape[1:], 1)
    other = mask_after[:, :, 0] != expected[0]
    # Which of two classes a pixel on their border gets depends on rounding: at most one pixel to either side.
    kernel = np.ones((3, 3), np.uint8)
    borders = cv2.dilate(mask_after, kernel) != cv2.erode(mask_after, kernel)
    assert not (other & ~borders).any()
    assert other.mean() < (0.0 if name in EXACT else 0.06) + 1e-9
    theirs_after = functional_of(
        theirs,
        functional,
        tv_tensors.BoundingBoxes(
            torch.tensor([*inside, *across], dtype=torch.float64), format="XYWH", canvas_size=(H, W)
        ),
    )
    np.testing.assert_allclose(boxes[:2], theirs_after[:2], atol=TOLERANCE_PX)
    # torchvision puts a box around the whole turned box and clamps it; ours is around what is left of it.
    (x, y, w, h) = boxes[2]
    left, top, wide, high = (float(value) for value in theirs_after[2])
    assert left - TOLERANCE_PX <= x < x + w <= left + wide + TOLERANCE_PX
    assert top - TOLERANCE_PX <= y < y + h <= top + high + TOLERANCE_PX


EXACT = ("flip", "flip down", "crop", "center_crop", "pad_square", "rotate90", "shift")
TOLERANCE_PX = 0.01


def functional_of(theirs: Any, functional: Any, value: Any) -> NDArray[Any]:
    return np.asarray(theirs(functional, value))


def table(boxes: list[Any], masks: list[bytes | None], sizes: tuple[int, int] = (64, 80)) -> pa.Table:
    pixels = png(scene(*sizes, (18, 14, 40, 33)))
    return pa.table(
        {
            "key": [f"k{row}" for row in range(len(boxes))],
            "image": image_array([pixels] * len(boxes), [None] * len(boxes)),
            "boxes": pa.array(boxes, BOX_TYPE),
            "mask": pa.array(masks, pa.binary()),
        }
    )


def test_a_batch_moves_the_columns_of_the_pictures_that_it_keeps() -> None:
    mask = png(scene(64, 80, (18, 14, 40, 33)))
    box = {"x": 18.0, "y": 14.0, "w": 40.0, "h": 33.0, "label": "cat"}
    edge = {"x": 0.0, "y": 0.0, "w": 10.0, "h": 10.0, "label": "sky"}
    rows = table([[box, edge], None, []], [mask, None, png(scene(3, 3, (0, 0, 1, 1)))])
    steps = Pipeline.parse("center_crop([32, 60]) | invert").steps
    result = run_batch(steps, rows, annotations=find_annotations(rows.schema, steps))
    assert result.table.schema == rows.schema
    assert result.table["key"].to_pylist() == ["k0", "k1"]
    moved = {"x": 8.0, "y": 0.0, "w": 40.0, "h": 31.0, "label": "cat"}
    assert result.table["boxes"].to_pylist() == [[moved], None]
    np.testing.assert_array_equal(
        codec.decode(result.table["mask"][0].as_py()), 255 - codec.decode(result.table["image"][0].as_py()["bytes"])
    )
    assert dict(result.rejected) == {"mask_size": 1}
    assert result.rejects["mask"][0].as_py() == rows["mask"][2].as_py()
    assert dict(result.noted) == {"boxes_dropped": 1}


def test_a_step_that_reads_a_mask_gets_it_as_it_was_moved() -> None:
    rows = table([[]], [png(scene(64, 80, (18, 14, 40, 33)))])
    steps = Pipeline.parse('resize(32) | rotate90 | blur_background(mask_column="mask")').steps
    result = run_batch(steps, rows, annotations=find_annotations(rows.schema, steps))
    assert dict(result.rejected) == {}


@pytest.mark.parametrize("wanted", [Wanted(("none",)), Wanted(("other",))])
def test_a_step_that_reads_a_mask_that_stayed_behind_is_refused(wanted: Wanted) -> None:
    schema = pa.schema({"mask": pa.binary(), "other": pa.binary()})
    late, early = (
        Pipeline.parse(text).steps
        for text in ('rotate90 | blur_background(mask_column="mask")', 'blur_background(mask_column="mask") | rotate90')
    )
    with pytest.raises(UsageError, match="move it too with --masks mask, or put 'blur_background' before"):
        find_annotations(schema, late, wanted)
    assert "mask" not in find_annotations(schema, early, wanted).masks
    assert find_annotations(schema, late).masks == ("mask",)


def test_every_step_says_what_it_does_to_places() -> None:
    silent = [name for name, each in REGISTRY.items() if each.__module__.startswith("library.") and not _says(each)]
    assert silent == []


def _says(each: Any) -> bool:
    return each.still or hasattr(each, "move") or hasattr(each, "traced")


@pytest.mark.parametrize("text", [text for text in (*FILTERS, *AUGMENTATIONS) if step(text).still])
def test_a_still_step_leaves_the_middle_of_a_blob_where_it_is(text: str) -> None:
    if "binarize" in text or "erase" in text or "channels" in text:
        return  # no blob is left, or another
    pixels = np.full((48, 64, 3), 60, np.uint8)
    cv2.circle(pixels, (40, 18), 9, (200, 210, 190), -1)
    each = step(text)
    after = each(pixels, generator(1)) if each.kind == "augmentation" else each(pixels)
    assert after.shape[:2] == (48, 64)
    difference = np.abs(after.astype(float) - after[-4:, :4].astype(float).mean(axis=(0, 1))).sum(axis=2)
    weights = difference * (difference > 0.5 * difference.max())
    y, x = np.mgrid[0:48, 0:64]
    if weights.sum() and weights.max() > 8:
        np.testing.assert_allclose(
            [(weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum()], [40, 18], atol=2
        )


def test_columns_are_found_by_name_or_by_option() -> None:
    moving, still = Pipeline.parse("resize(32)").steps, Pipeline.parse("invert").steps
    schema = pa.schema({"mask": pa.binary(), "boxes": BOX_TYPE, "objects": BOX_TYPE, "note": pa.string()})
    assert find_annotations(schema, moving) == Annotations(("mask",), ("boxes",), 0.1)
    assert find_annotations(schema, moving, Wanted((), ("objects", "boxes"), 0.3)).boxes == ("objects", "boxes")
    assert not find_annotations(schema, moving, Wanted(("none",), ("none",)))
    assert not find_annotations(schema, still)
    for wanted, message in (
        (Wanted(boxes=("note",)), "holds string"),
        (Wanted(masks=("seg",)), "no such column; possible are: mask"),
        (Wanted(min_box_share=2.0), "from 0 to 1"),
        (Wanted(boxes=("none",), min_box_share=0.5), "no column of boxes"),
    ):
        with pytest.raises(UsageError, match=message):
            find_annotations(schema, moving, wanted)
    with pytest.raises(UsageError, match="--boxes has no effect"):
        find_annotations(schema, still, Wanted(boxes=("boxes",)))
    with pytest.raises(UsageError, match="--boxes none"):
        find_annotations(pa.schema({"boxes": pa.list_(pa.list_(pa.float32()))}), moving)


def test_a_step_of_unknown_moves_is_refused_where_there_are_boxes() -> None:
    from library.steps.base import register

    @register("filter")
    class Swirl:
        """Swirls."""

        def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
            return pixels[::-1]

    try:
        assert not says_where(Pipeline.parse("swirl").steps[0])
        rows = table([[]], [None])
        for text in ("swirl", "sometimes(0.5, swirl)"):
            steps = Pipeline.parse(text).steps
            with pytest.raises(UsageError, match="'swirl' does not say where it moves pixels"):
                find_annotations(rows.schema, steps)
            with pytest.raises(UsageError, match="still=True"):
                run_batch(steps, rows, annotations=BOTH)
        assert run_batch(Pipeline.parse("swirl").steps, rows).table.num_rows == 1
    finally:
        del REGISTRY["swirl"]
    with pytest.raises(GrammarError):
        Pipeline.parse("swirl")
