"""Reads COCO's JSON: images, annotations and categories, as classes and boxes of the pictures beside it.

Format: https://cocodataset.org/#format-data - an annotation gives an image a category, and in detection a box. An image
whose annotations have several categories has no class; where there is one, the column `labels` lists the categories of
every image. Boxes become the column `boxes` of docs/annotations.md:
`x`, `y`, `w` and `h` in pixels, cut off at the borders of the image, and the category's name as `label`.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.errors import StriateError
from library.sources.tables.sidecars import MARK

#: Fields of an image that say nothing about its content, or that are computed from its bytes.
_TECHNICAL = ("id", "width", "height", "license", "coco_url", "flickr_url", "date_captured")

#: Column of all classes of a picture, where any picture has several.
LABELS = "labels"
_BOXES = "boxes"


@dataclass(frozen=True)
class CocoTable:
    """The pictures of a COCO document: their paths, columns by name, and sentences for the user."""

    paths: Sequence[str]
    columns: Mapping[str, list[Any]]
    notes: Sequence[str]


def is_coco_name(name: str) -> bool:
    """Whether a file may be COCO's, by the names that are usual."""
    name = name.lower()
    return name in ("annotations.json", "_annotations.coco.json") or (
        name.startswith("instances_") and name.endswith(".json")
    )


def read_coco(path: str, data: bytes, paths: Collection[str]) -> CocoTable | None:
    """Reads a COCO document.

    Args:
        path: its path below the source.
        data: its content.
        paths: the paths of all files of the source.

    Returns:
        None where the document is of another kind, or most of its images are not in the source.

    Raises:
        StriateError: it is COCO's but damaged.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        return None
    try:
        names = {category["id"]: str(category["name"]) for category in document["categories"]}
        classes: dict[Any, set[str]] = {}
        boxes: dict[Any, list[dict[str, Any]]] = {}
        for annotation in document["annotations"]:
            name = names[annotation["category_id"]]
            classes.setdefault(annotation["image_id"], set()).add(name)
            if annotation.get("bbox"):
                boxes.setdefault(annotation["image_id"], []).append(_box(annotation, name))
        images = [dict(image) for image in document["images"]]
        files = _found(posixpath.dirname(path), [str(image["file_name"]) for image in images], paths)
        of_each = [sorted(classes.get(image["id"], ())) for image in images]
        clipped = [_clipped(boxes.get(image["id"], ()), image) for image in images]
    except (KeyError, TypeError, ValueError) as error:
        raise StriateError(f"{path} is damaged: {type(error).__name__} at {error} in a document of COCO") from error
    if 2 * sum(file in paths for file in files) <= len(files):
        return None
    fields = dict.fromkeys(name for image in images for name in image)
    kept = [name for name in fields if name not in _TECHNICAL and (name != "file_name" or MARK in fields)]
    columns = {name: [image.get(name) for image in images] for name in kept}
    if MARK in fields:  # written by `striate convert`: the images hold their own labels and boxes
        columns["label"] = [image.get("label") for image in images]
        return CocoTable(files, columns, [])
    columns["label"] = [labels[0] if len(labels) == 1 else None for labels in of_each]
    notes: list[str] = []
    if several := sum(len(labels) > 1 for labels in of_each):
        listed = "" if LABELS in fields else f" but a list in the column '{LABELS}'"
        notes.append(f"pictures of {path} with several categories, which get no class{listed}: {several:,}")
        columns.setdefault(LABELS, of_each)
    if boxes:
        columns[_BOXES] = clipped
        total = sum(len(boxes.get(image["id"], ())) for image in images)
        if left := total - sum(map(len, clipped)):
            notes.append(f"boxes of {path} that lie outside of their picture or have no area, left out: {left:,}")
    return CocoTable(files, columns, notes)


def _box(annotation: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Returns the box of an annotation; `iscrowd` is there where it is set, as a box around a crowd is no object.

    Raises:
        ValueError: it does not have four numbers.
    """
    sides = annotation["bbox"]
    if not isinstance(sides, list) or len(sides) != 4 or any(type(side) not in (int, float) for side in sides):
        raise ValueError(f"bbox {sides}, which is not four numbers,")
    box: dict[str, Any] = {**dict(zip("xywh", sides, strict=True)), "label": label}
    return box | {"iscrowd": "1"} if annotation.get("iscrowd") else box


def _clipped(boxes: Sequence[dict[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts of boxes that lie in their image, without those of which nothing does."""
    borders = [image.get(name) for name in ("width", "height")]
    width, height = (float(side) if isinstance(side, int | float) and side > 0 else math.inf for side in borders)
    clipped: list[dict[str, Any]] = []
    for box in boxes:
        left, top = max(box["x"], 0), max(box["y"], 0)
        right, bottom = min(box["x"] + box["w"], width), min(box["y"] + box["h"], height)
        # False for NaN, too.
        if left < right < math.inf and top < bottom < math.inf:
            clipped.append(box | {"x": left, "y": top, "w": right - left, "h": bottom - top})
    return clipped


def _found(folder: str, names: Sequence[str], paths: Collection[str]) -> list[str]:
    """Returns the path of each image: from the document's folder, or else the only path that ends so."""
    direct = [posixpath.normpath(posixpath.join(folder, name)) for name in names]
    if all(path in paths for path in direct):
        return direct
    ends: dict[str, list[str]] = {}
    for path in paths:
        ends.setdefault(posixpath.basename(path), []).append(path)
    result: list[str] = []
    for name, path in zip(names, direct, strict=True):
        others = [other for other in ends.get(posixpath.basename(name), ()) if f"/{other}".endswith(f"/{name}")]
        result.append(others[0] if path not in paths and len(others) == 1 else path)
    return result
