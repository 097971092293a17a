"""Reads COCO's JSON: images, annotations and categories, as the classes of the pictures beside it.

Format: https://cocodataset.org/#format-data - an annotation gives an image a category; `striate convert` writes one for
each picture. An image whose annotations have several categories, as in detection, has no class.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.errors import StriateError
from library.sources.tables.sidecars import MARK

#: Fields of an image that say nothing about its content, or that are computed from its bytes.
_TECHNICAL = ("id", "width", "height", "license", "coco_url", "flickr_url", "date_captured")


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
        for annotation in document["annotations"]:
            classes.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
        images = [dict(image) for image in document["images"]]
        files = _found(posixpath.dirname(path), [str(image["file_name"]) for image in images], paths)
        of_each = [sorted(classes.get(image["id"], ())) for image in images]
    except (KeyError, TypeError, ValueError) as error:
        raise StriateError(f"{path} is damaged: {type(error).__name__} at {error} in a document of COCO") from error
    if 2 * sum(file in paths for file in files) <= len(files):
        return None
    several = sum(len(labels) > 1 for labels in of_each)
    notes = [f"pictures of {path} with several categories, which get no class: {several:,}"] if several else []
    fields = dict.fromkeys(name for image in images for name in image)
    kept = [name for name in fields if name not in _TECHNICAL and (name != "file_name" or MARK in fields)]
    columns = {name: [image.get(name) for image in images] for name in kept}
    columns["label"] = [labels[0] if len(labels) == 1 else None for labels in of_each]
    return CocoTable(files, columns, notes)


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
