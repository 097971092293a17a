"""COCO's annotations of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
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
            {"id": number, "image_id": image, "category_id": category} for number, (image, category) in enumerate(pairs)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


def test_one_category_is_a_class_and_several_are_a_list(tmp_path: Path) -> None:
    listing = _list(tmp_path, _document([(0, 7), (0, 7), (1, 9), (2, 7), (2, 9)]))
    labels = dict(zip(listing.index["key"].to_pylist(), listing.index["label"].to_pylist(), strict=True))
    assert labels == {"val2017/0.jpg": "cat", "val2017/1.jpg": "dog", "val2017/2.jpg": None, "val2017/3.jpg": None}
    of_every = dict(zip(listing.index["key"].to_pylist(), listing.index["extra.labels"].to_pylist(), strict=True))
    assert [of_every[f"val2017/{n}.jpg"] for n in range(4)] == [["cat"], ["dog"], ["cat", "dog"], []]
    several = "pictures of annotations/instances_val2017.json with several categories, which get no class"
    assert f"{several} but a list in the column 'labels': 1" in listing.notes
    assert listing.columns.names == ["camera", "labels"]
    assert listing.columns.field("labels").type == pa.list_(pa.string())
    document = _document([(0, 7), (1, 9)])
    assert _list(tmp_path / "single", document).columns.names == ["camera"]
    document["annotations"][1] |= {"image_id": 0}
    document["images"] = [{**image, "labels": "their own"} for image in document["images"]]
    listing = _list(tmp_path / "taken", document)
    assert f"{several}: 1" in listing.notes
    assert set(listing.index["extra.labels"].to_pylist()) == {"their own"}


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


def _with_boxes(boxes: list[tuple[int, int, Any]], **fields: Any) -> dict[str, Any]:
    document = _document([(image, category) for image, category, _ in boxes])
    for annotation, (*_, box) in zip(document["annotations"], boxes, strict=True):
        annotation |= {"bbox": box, "area": 3, "iscrowd": 0, **fields}
    return document


def test_boxes_become_a_column_cut_off_at_the_borders(tmp_path: Path) -> None:
    document = _with_boxes(
        [
            (0, 7, [1, 2, 3, 4]),
            (0, 9, [-2, 5.5, 4, 10]),
            (1, 9, [8, 0, 5, 9]),
            (1, 7, [9, 0, 5, 9]),
            (1, 7, [3, 3, 0, 2]),
            (2, 7, [float("nan"), 0, 1, 1]),
        ]
    )
    listing = _list(tmp_path, document)
    boxes = dict(zip(listing.index["key"].to_pylist(), listing.index["extra.boxes"].to_pylist(), strict=True))
    assert boxes == {
        "val2017/0.jpg": [
            {"x": 1, "y": 2, "w": 3, "h": 4, "label": "cat"},
            {"x": 0, "y": 5.5, "w": 2, "h": 3.5, "label": "dog"},
        ],
        "val2017/1.jpg": [{"x": 8, "y": 0, "w": 1, "h": 9, "label": "dog"}],
        "val2017/2.jpg": [],
        "val2017/3.jpg": [],
    }
    labels = dict(zip(listing.index["key"].to_pylist(), listing.index["label"].to_pylist(), strict=True))
    assert labels == {"val2017/0.jpg": None, "val2017/1.jpg": None, "val2017/2.jpg": "cat", "val2017/3.jpg": None}
    left_out = "that lie outside of their picture or have no area, left out: 3"
    assert any(left_out in note for note in listing.notes)


def test_a_box_around_a_crowd_says_so(tmp_path: Path) -> None:
    listing = _list(tmp_path, _with_boxes([(0, 7, [1, 2, 3, 4])], iscrowd=1))
    boxes = [box for boxes in listing.index["extra.boxes"].to_pylist() for box in boxes]
    assert boxes == [{"x": 1, "y": 2, "w": 3, "h": 4, "label": "cat", "iscrowd": "1"}]


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, "4"], "1 2 3 4", [1, 2, 3, None]])
def test_a_box_that_is_not_four_numbers_is_an_error_with_the_file(tmp_path: Path, box: Any) -> None:
    with pytest.raises(StriateError, match=r"instances_val2017.json is damaged: .*not four numbers"):
        _list(tmp_path, _with_boxes([(0, 7, box)]))


def test_boxes_of_images_without_a_size_are_not_cut_off(tmp_path: Path) -> None:
    document = _with_boxes([(0, 7, [0, 0, 500, 400])])
    for image in document["images"]:
        del image["width"], image["height"]
    assert _list(tmp_path, document).index["extra.boxes"].to_pylist()[0][0]["w"] == 500
