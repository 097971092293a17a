"""Datasets with masks and boxes through `striate filter`, `augment` and `show`, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from jobs.augment import plan_augment
from jobs.filter import plan_filter
from jobs.inspection.show import contact_sheet
from library.dataset.destination import claim, finish
from library.dataset.manifest import Manifest
from library.dataset.record import IMAGE_TYPE
from library.dataset.totals import Totals
from library.errors import UsageError
from library.imaging import codec
from library.pipeline.annotations import Wanted
from tests.picture_examples import ingest

BOXES = pa.list_(pa.struct([*((side, pa.int32()) for side in "xywh"), ("label", pa.string())]))


def png(pixels: NDArray[Any]) -> bytes:
    return codec.encode(pixels, codec.Encoding("png"))[0]


def stored(data: bytes | None, name: str) -> dict[str, Any]:
    return {"bytes": data, "path": name}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Black pictures with a white rectangle, its mask and its box; the last has no mask and no boxes."""
    folder = tmp_path_factory.mktemp("annotated")
    pictures: list[NDArray[np.uint8]] = []
    boxes: list[Any] = []
    for number in range(6):
        x, y, w, h = 10 + number, 8, 30, 20 + number
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[y : y + h, x : x + w] = 255
        pictures.append(pixels)
        boxes.append([{"x": x, "y": y, "w": w, "h": h, "label": "box"}])
    table = pa.table(
        {
            "key": [f"k{number}" for number in range(6)],
            "image": pa.array([stored(png(each), "a.png") for each in pictures], IMAGE_TYPE),
            "mask": pa.array([*(stored(png(each[:, :, :1]), "m.png") for each in pictures[:5]), None], IMAGE_TYPE),
            "boxes": pa.array([*boxes[:5], None], BOXES),
            "labels": pa.array([["a", "b"]] * 6, pa.list_(pa.string())),
        }
    )
    (folder / "raw").mkdir()
    pq.write_table(table, folder / "raw" / "data.parquet")
    ingest(folder / "raw", folder / "dataset", shard_bytes=3000)
    return str(folder / "dataset")


def carried_out(plan: Any) -> Manifest:
    claim(plan.destination, plan.jobs, overwrite=False)
    totals = Totals.of(plan.work.run(task, lambda _: None) for task in plan.tasks)
    return finish(plan.destination, plan.jobs, totals)


def check_alignment(destination: Path, off_px: int = 1) -> int:
    """Checks that mask and box of every picture are where its rectangle is; returns the number of boxes.

    Each interpolation may move the edge of the rectangle by a pixel: `off_px` in all.
    """
    count = 0
    for row in pq.read_table(destination).to_pylist():
        white = codec.decode(row["image"]["bytes"])[:, :, 0] > 127
        assert row["labels"] == ["a", "b"]
        assert white.shape == (row["height"], row["width"])
        if row["mask"] is None:
            assert row["boxes"] is None
            continue
        mask = codec.decode(row["mask"]["bytes"])[:, :, 0] > 127
        kernel, numbers = np.ones((2 * off_px + 1, 2 * off_px + 1), np.uint8), mask.astype(np.uint8)
        edge = np.asarray(cv2.dilate(numbers, kernel)) != np.asarray(cv2.erode(numbers, kernel))
        assert not ((mask != white) & ~edge).any()
        for box in row["boxes"]:
            rows, columns = np.nonzero(mask)
            found = [box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]]
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(found, edges, atol=1.6)  # whole numbers
            assert box["label"] == "box"
            count += 1
    return count


def test_a_filter_moves_masks_and_boxes(source: str, tmp_path: Path) -> None:
    manifest = carried_out(plan_filter(source, str(tmp_path / "out"), "resize(90) | rotate90 | center_crop(80)"))
    assert manifest.job.options["boxes"] == ["boxes"]
    assert manifest.job.options["min_box_share"] == 0.1
    assert check_alignment(tmp_path / "out") + manifest.tally.noted.get("boxes_dropped", 0) == 5
    assert pq.read_schema(next((tmp_path / "out").glob("*.parquet"))).field("boxes").type.equals(BOXES)


def test_an_augmentation_moves_all_by_the_same_draw(source: str, tmp_path: Path) -> None:
    steps = "rotate(25) | flip | random_resized_crop(64, scale=[0.5, 1])"
    manifest = carried_out(plan_augment(source, str(tmp_path / "out"), steps, copies=4, keep_original=True))
    assert manifest.rows == 30
    assert check_alignment(tmp_path / "out", off_px=2) + manifest.tally.noted.get("boxes_dropped", 0) == 25


def test_columns_stay_as_they_are_where_nothing_moves_them(source: str, tmp_path: Path) -> None:
    before = pq.read_table(source).sort_by("key")
    wanted = Wanted(("none",), ("none",))
    for name, steps, columns in (("still", "invert", Wanted()), ("none", "rotate90", wanted)):
        manifest = carried_out(plan_filter(source, str(tmp_path / name), steps, wanted=columns))
        after = pq.read_table(tmp_path / name).sort_by("key")
        for column in ("mask", "boxes", "labels"):
            assert after[column].equals(before[column])
        assert "boxes" not in manifest.job.options


def test_a_higher_share_drops_more_boxes(source: str, tmp_path: Path) -> None:
    for share, kept in ((0.0, 5), (0.9, 0)):
        plan = plan_filter(
            source, str(tmp_path / str(share)), "crop(top=0, left=0, height=60, width=30)", wanted=Wanted((), (), share)
        )
        manifest = carried_out(plan)
        assert check_alignment(tmp_path / str(share)) == kept
        assert manifest.tally.noted == ({"boxes_dropped": 5 - kept} if kept < 5 else {})


def test_a_wrong_column_is_refused_before_anything_is_written(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--masks labels"):
        plan_filter(source, str(tmp_path / "out"), "rotate90", wanted=Wanted(masks=("labels",)))
    assert not (tmp_path / "out").exists()


def test_a_sheet_shows_masks_and_boxes(source: str) -> None:
    plain = codec.decode(contact_sheet(source, wanted=Wanted(("none",), ("none",))).png)
    drawn = codec.decode(contact_sheet(source).png)
    assert plain.shape == drawn.shape
    colourful = [np.ptp(each.astype(int), axis=2) > 60 for each in (plain, drawn)]
    assert colourful[0].sum() == 0 < colourful[1].sum()
    for steps, variants in (("rotate90", None), ("rotate(20)", 2)):
        sheets = [
            contact_sheet(source, steps, count=2, augment=variants, wanted=wanted).png
            for wanted in (Wanted(), Wanted(("none",), ("none",)))
        ]
        assert sheets[0] != sheets[1]
