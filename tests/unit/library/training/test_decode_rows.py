"""Decoding the pictures that are learned from: other columns that steps ask for, and classes that vanish."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.errors import StriateError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.training.resident import decode_rows
from library.training.rows import Rows

_PNG = codec.Encoding("png")


def rows_of(folder: Path, records: list[ImageRecord]) -> Rows:
    """Rows of a dataset of one shard whose pictures have masks."""
    schema = dataset_schema([pa.field("mask", pa.binary())])
    pq.write_table(table_of(records, schema), folder / "part-0.parquet")
    counts = Counter(str(record.label) for record in records)
    classes = tuple(sorted(counts))
    sizes = np.asarray([len(records)])
    return Rows(str(folder), ("part-0.parquet",), sizes, classes, {name: counts[name] for name in classes})


def record(key: str, label: str, data: bytes, mask: bytes = b"") -> ImageRecord:
    return ImageRecord(key, data, None, label, codec.Header("png", 16, 16, 1), {"mask": mask})


def inputs(steps: str) -> InputPipeline:
    return InputPipeline(Pipeline.parse(steps), Pipeline.parse('resize([16, 16], mode="exact")'), (16, 16), 1)


def test_a_step_gets_the_column_that_it_asks_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    everything = codec.encode(np.full((16, 16, 1), 255, np.uint8), _PNG)[0]
    rows = rows_of(tmp_path, [record("a", "x", codec.encode(pixels, _PNG)[0], everything)])
    made = inputs('grayscale | blur_background(sigma=3, mask_column="mask")')
    assert made.columns == ("mask",)
    assert np.array_equal(decode_rows(rows, (0, 0, 1), made, fitted=True)[0], pixels)


def test_a_class_of_which_every_picture_is_damaged_is_named(tmp_path: Path) -> None:
    good = codec.encode(np.zeros((16, 16, 1), np.uint8), _PNG)[0]
    rows = rows_of(tmp_path, [record("a", "fine", good), record("b", "gone", good[:40])])
    decoded = decode_rows(rows, (0, 0, 2), inputs("grayscale"), fitted=True)
    with pytest.raises(StriateError, match=r"no picture can be used of: gone; rejected in all: \w+ 1"):
        decoded.check_classes(rows.dataset, rows.classes)
    decoded.check_classes(rows.dataset, rows.classes[:1])
