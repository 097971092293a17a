"""COCO's annotations of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from library.errors import StriateError
from library.sources import Listing, list_source
from tests.picture_examples import encoded, write_files


def _list(folder: Path, document: dict[str, Any], name: str = "annotations/instances_val2017.json") -> Listing:
    pictures = {f"val2017/{n}.jpg": encoded("jpeg") for n in range(4)}
    write_files(folder, {**pictures, name: json.dumps(document).encode()})
    return list_source(str(folder))


def _document(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9, "camera": f"c{n}"} for n in range(4)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1]}
            for number, (image, category) in enumerate(pairs)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


def test_the_only_category_of_a_picture_is_its_class(tmp_path: Path) -> None:
    listing = _list(tmp_path, _document([(0, 7), (0, 7), (1, 9), (2, 7), (2, 9)]))
    labels = dict(zip(listing.index["key"].to_pylist(), listing.index["label"].to_pylist(), strict=True))
    assert labels == {"val2017/0.jpg": "cat", "val2017/1.jpg": "dog", "val2017/2.jpg": None, "val2017/3.jpg": None}
    note = "pictures of annotations/instances_val2017.json with several categories, which get no class: 1"
    assert note in listing.notes
    assert listing.columns.names == ["camera"]


def test_json_of_other_kinds_is_not_used(tmp_path: Path) -> None:
    listing = _list(tmp_path, {"images": ["0.jpg"]}, "annotations.json")
    assert listing.classes == {}
    assert listing.skipped["beside"] == 1


def test_a_document_of_other_pictures_is_not_used(tmp_path: Path) -> None:
    document = _document([(0, 7)])
    document["images"] = [{"id": n, "file_name": f"other{n}.jpg"} for n in range(9)]
    assert _list(tmp_path, document).index["problem"].null_count == 4


def test_an_annotation_without_its_category_is_an_error_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(StriateError, match=r"annotations/instances_val2017.json is damaged: KeyError at 8"):
        _list(tmp_path, _document([(0, 8)]))
