"""A map of a dataset: pictures whose features are alike lie near each other (PCA, or UMAP where it is installed)."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.decomposition import PCA

from library.bundle.bundle import Bundle
from library.imaging.contact_sheet import thumbnail
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

_BATCH = 32
#: UMAP's own number of neighbours; with fewer pictures it has nothing to say.
_NEIGHBOURS = 15
_MARGIN_PX, _LEGEND_PX, _TEXT_PX = 24, 190, 13
#: How far a thumbnail may be moved, in its own sides.
_MOVES = 2
_PAPER, _INK, _MUTED = (255, 255, 255), (27, 34, 48), (91, 101, 118)
#: Colours of the classes, Paul Tol's bright and muted schemes, which colour-blind readers tell apart.
_COLOURS = (
    (68, 119, 170), (238, 102, 119), (34, 136, 51), (204, 187, 68), (102, 204, 238), (170, 51, 119),
    (136, 34, 85), (153, 153, 51), (51, 34, 136), (17, 119, 51),
)  # fmt: skip
_OTHERS = (150, 150, 150)


@dataclass(frozen=True)
class Embedding:
    """Places of pictures on a plane.

    Attributes:
        method: `PCA` or `UMAP`.
        points: N x 2, float32.
        explained: the share of the features' variance that the two axes of PCA hold; None for UMAP.
    """

    method: str
    points: NDArray[np.float32]
    explained: float | None


def features_of(bundle: Bundle, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
    """The head's inputs of pictures, N x features; for an ensemble those of its members side by side.

    A member's features are scaled so that each member counts by its weight, whatever the size of its numbers.
    """
    if not bundle.members:
        parts = [bundle.features(pictures[first : first + _BATCH])[0] for first in range(0, len(pictures), _BATCH)]
        return np.concatenate(parts)
    columns: list[NDArray[np.float32]] = []
    for number, (member, entry) in enumerate(zip(bundle.members, bundle.record.members, strict=True)):
        values = features_of(member, [picture[number] for picture in pictures])
        spread = float(np.sqrt(values.var(0).sum())) or 1.0
        columns.append(values * np.float32(np.sqrt(entry.weight) / spread))
    return np.concatenate(columns, 1)


def pca(features: NDArray[np.float32]) -> Embedding:
    """The two directions in which features (N x F, N at least 2) vary most, with signs that do not depend on chance."""
    width = min(2, *features.shape)
    if not features.var(0).any():
        return Embedding("PCA", np.zeros((len(features), 2), np.float32), 0.0)
    model: Any = PCA(width, svd_solver="full").fit(features)
    signs = np.sign(model.components_[np.arange(width), np.abs(model.components_).argmax(1)])
    points = np.zeros((len(features), 2), np.float32)
    points[:, :width] = model.transform(features) * signs
    return Embedding("PCA", points, float(model.explained_variance_ratio_.sum()))


def has_umap() -> bool:
    """Whether the package umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def umap(features: NDArray[np.float32], seed: int = 0) -> Embedding | None:
    """UMAP of features (McInnes, Healy 2018, https://arxiv.org/abs/1802.03426); None for 15 pictures or fewer.

    Distances between far groups mean little; near neighbours are kept.
    """
    if len(features) <= _NEIGHBOURS:
        return None
    umap: Any = importlib.import_module("umap")  # optional; compiles itself, which takes seconds
    model = umap.UMAP(n_neighbors=_NEIGHBOURS, random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the spectral start of small sets
        points = model.fit_transform(features)
    return Embedding("UMAP", np.asarray(points, np.float32), None)


def draw_embedding(
    embedding: Embedding,
    pictures: Sequence[Pixels],
    labels: Sequence[str | None],
    *,
    size: tuple[int, int] = (760, 980),
    thumbnail_px: int = 34,
) -> NDArray[np.uint8]:
    """Draws a dot for each picture, and thumbnails framed in the colour of their class at or beside their dots.

    Args:
        embedding: places of N pictures.
        pictures: N pictures of any size.
        labels: N class names; None where a picture has none.
        size: height and width in pixels.
        thumbnail_px: side of a thumbnail in pixels.
    """
    height, width = size
    colours = _colours(labels)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    low, high = embedding.points.min(0), embedding.points.max(0)
    span = np.where(high > low, high - low, 1)
    inner = np.array([width - _LEGEND_PX - 2 * _MARGIN_PX - thumbnail_px, height - 2 * _MARGIN_PX - thumbnail_px])
    places = (embedding.points - low) / span * inner + _MARGIN_PX + thumbnail_px / 2
    places[:, 1] = height - places[:, 1]
    framed = _apart(places, thumbnail_px + 3, np.array([width - _LEGEND_PX, height]))
    for number, (x, y) in enumerate(places.tolist()):
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), colours.get(labels[number], _OTHERS))
    for number, centre in framed.items():
        image = Image.fromarray(thumbnail(pictures[number], thumbnail_px - 4))
        left, top = (round(float(edge)) for edge in centre - np.array([image.width, image.height]) / 2)
        frame = (left - 2, top - 2, left + image.width + 1, top + image.height + 1)
        draw.rectangle(frame, colours.get(labels[number], _OTHERS))
        sheet.paste(image, (left, top))
    _legend(draw, embedding, labels, colours, width - _LEGEND_PX)
    return np.asarray(sheet)


def _apart(places: NDArray[Any], step_px: int, limits: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """Where thumbnails are drawn, by the number of their picture, so that none overlaps another.

    One that would is moved by up to a few of its sides, or left out where there is no room.
    """
    near = np.array([(y, x) for y in range(-_MOVES, _MOVES + 1) for x in range(-_MOVES, _MOVES + 1)]) * step_px
    near = near[np.argsort((near**2).sum(1), kind="stable")]
    taken, framed = np.zeros((0, 2)), dict[int, NDArray[Any]]()
    for number, place in enumerate(places):
        free = place + near
        inside = ((free >= step_px / 2) & (free <= limits - step_px / 2)).all(1)
        overlaps = (np.abs(free[:, None] - taken[None]).max(2) < step_px).any(1) if len(taken) else ~inside
        usable = np.flatnonzero(inside & ~overlaps)
        if len(usable):
            framed[number] = free[usable[0]]
            taken = np.vstack([taken, framed[number]])
    return framed


def _colours(labels: Sequence[str | None]) -> dict[str | None, tuple[int, int, int]]:
    """The colours of the most frequent classes; the others share grey."""
    named = [label for label in labels if label is not None]
    order = sorted(set(named), key=lambda name: (-named.count(name), name))[: len(_COLOURS)]
    return dict(zip(sorted(order), _COLOURS, strict=False))


def _legend(
    draw: Any,
    embedding: Embedding,
    labels: Sequence[str | None],
    colours: dict[str | None, tuple[int, int, int]],
    left: int,
) -> None:
    font = ImageFont.load_default(_TEXT_PX)
    top = _MARGIN_PX
    explained = "" if embedding.explained is None else f", {embedding.explained:.0%} of variance"
    draw.text((left, top), embedding.method + explained, _INK, font)
    rows = [(name or "", colour) for name, colour in colours.items()]
    if any(label not in colours for label in labels):
        rows.append(("others", _OTHERS))
    for name, colour in rows:
        top += _TEXT_PX + 9
        draw.rectangle((left, top + 1, left + 11, top + 12), colour)
        text = "".join(char for char in name if char.isprintable())
        while text and font.getlength(text) > _LEGEND_PX - _MARGIN_PX - 18:
            text = text[:-1]
        draw.text((left + 18, top - 2), text, _MUTED, font)
