"""What steps there are, and a picture of one: `striate steps`."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from typing import Any

from library.errors import UsageError
from library.grammar import nearest
from library.imaging import codec
from library.imaging.codec import Header
from library.imaging.contact_sheet import Tile, draw_sheet
from library.imaging.picture import Picture, Pixels
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.steps import REGISTRY
from library.steps.base import Selector, Step
from library.steps.examples import EXAMPLES
from library.steps.help import step_help
from library.steps.selectors import TOP_CLASSES, TOP_PROBABILITIES

_TILE_PX = 420
_VARIANTS = 5
# What a classifier might say of the example picture, for selectors that ask for it.
_PREDICTED = {TOP_CLASSES: ["flower", "butterfly"], TOP_PROBABILITIES: [0.93, 0.05]}


def describe(text: str) -> dict[str, Any]:
    """One step, by name or as a call: everything about it.

    Raises:
        UsageError: when there is no such step, or the call is wrong.
    """
    step = _step(text)
    return dataclasses.asdict(step_help(type(step), str(step)))


def example_picture(text: str) -> tuple[bytes, str]:
    """A real photo before and beside it after one step, as a PNG, and a line that says what became of it.

    After an augmentation there are several, each drawn anew.

    Raises:
        UsageError: when there is no such step, or the call is wrong.
    """
    step = _step(text)
    photo = codec.decode((files("jobs") / "flower.jpg").read_bytes())
    before = Tile(photo, _kind_of(photo))
    after = _after(step, photo)
    tiles = [before, *after]
    rows = [tiles[first : first + 2] for first in range(0, len(tiles), 2)]
    sheet = draw_sheet(rows, tile_px=_TILE_PX, headings=["before", str(step)])
    return codec.encode(sheet, codec.Encoding("png"))[0], after[0].caption


def _after(step: Step, photo: Pixels) -> list[Tile]:
    if step.kind == "selector":
        header = Header("jpeg", photo.shape[1], photo.shape[0], 3)
        data, _ = codec.encode(photo, codec.Encoding("jpeg", 95))
        reason = _as_selector(step).reason(Picture("flower.jpg", "flower", header, lambda: data, _PREDICTED))
        verdict = "kept" if reason is None else f"dropped: {reason}"
        return [Tile(photo if reason is None else None, verdict, verdict)]
    missing = step.columns()
    if missing:
        raise UsageError(
            f"the example picture has no column '{missing[0]}', which {step.name} would read: leave that parameter "
            "out here, or see it on a dataset that has the column: striate show DATASET --steps ..."
        )
    pipeline = Pipeline((step,))
    if step.kind == "augmentation":
        augmenter = Augmenter(pipeline, seed=0)
        results = [augmenter.apply(photo, number, "flower.jpg") for number in range(1, _VARIANTS + 1)]
    else:
        results = [pipeline.apply(photo)]
    return [Tile(result, _kind_of(result)) for result in results]


def _kind_of(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}x{pixels.shape[2]} {pixels.dtype}"


def _as_selector(step: Any) -> Selector:
    return step


def _step(text: str) -> Step:
    name = text.strip()
    if name.isidentifier() and name not in REGISTRY:
        raise UsageError(f"unknown step '{name}'{nearest(name, REGISTRY)}; `striate steps` lists them all")
    pipeline = Pipeline.parse(EXAMPLES.get(name, name))
    if len(pipeline.steps) != 1:
        raise UsageError(f"'{text}' is {len(pipeline.steps)} steps; name one")
    return pipeline.steps[0]
