"""What a costly beginning of a pipeline gave is computed once for all workers, and again where its file is no good."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.search.prefix_files import MOST_BYTES, PREFIXES, PrefixFiles, remove_prefixes
from jobs.search.preparing import Preparer
from library import storage
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.training.in_memory import PackedPictures

SHAPES = [(9, 7, 1), (12, 12, 1), (1, 30, 1)]


def pictures(dtype: str = "uint8", shapes: list[tuple[int, int, int]] = SHAPES) -> PackedPictures:
    rng = np.random.default_rng(0)
    pixels = [(rng.random(shape) * (255 if dtype == "uint8" else 1)).astype(dtype) for shape in shapes]
    return PackedPictures.pack(pixels, [0] * len(pixels), list(map(str, range(len(pixels)))), Counter())


def files(folder: str | Path, context: str = "context", role: str = "train") -> PrefixFiles:
    """Files for everything, as if every filter took long."""
    return PrefixFiles(storage.join(str(folder), PREFIXES), context, role, least_s=0.0, bytes_per_s=math.inf)


def computed(data: PackedPictures, steps: str, shared: PrefixFiles | None) -> tuple[int, list[NDArray[Any]]]:
    """How many filters one new worker computes, and what it gets, each picture in its own size."""
    preparer, rows = Preparer(data, files=shared), np.arange(len(data))
    packed = preparer.pack(InputPipeline(Pipeline.parse(steps), Pipeline(), (0, 0), 0), rows, fitted=False)
    return preparer.computed, [packed[row] for row in range(len(packed))]


def same(first: list[NDArray[Any]], second: list[NDArray[Any]]) -> bool:
    return all(
        np.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_second_worker_computes_only_what_is_new(dtype: str, tmp_path: Path) -> None:
    data, steps = pictures(dtype), "gaussian_blur(sigma=1.5) | invert"
    first = computed(data, steps, files(tmp_path))
    second = computed(data, steps, files(tmp_path))
    assert (first[0], second[0]) == (2, 0)
    assert same(first[1], second[1])
    assert same(second[1], computed(data, steps, None)[1])
    longer = computed(data, f"{steps} | invert", files(tmp_path))
    assert longer[0] == 1
    assert same(longer[1], computed(data, f"{steps} | invert", None)[1])


def test_a_file_keeps_the_size_and_the_type_of_each_picture(tmp_path: Path) -> None:
    kinds = [np.uint8, np.float32, np.uint16, np.bool_, np.float64]
    pixels: list[Any] = [
        np.arange(6).reshape(1 + number % 2 * 2, -1, 1).astype(kind) for number, kind in enumerate(kinds)
    ]
    shared = files(tmp_path)
    shared.write("one.safetensors", pixels)
    stored = shared.read("one.safetensors", len(pixels))
    assert stored is not None
    assert same(stored, pixels)
    assert shared.read("one.safetensors", len(pixels) - 1) is None


def test_files_of_a_store_are_read_by_others_and_removed(bucket: str) -> None:
    data = pictures()
    computed(data, "invert", files(bucket))
    again = computed(data, "invert", files(bucket))
    assert again[0] == 0
    assert same(again[1], computed(data, "invert", None)[1])
    remove_prefixes(bucket)
    assert storage.list_files(bucket) == []


def test_other_pictures_filters_or_versions_have_other_files(tmp_path: Path) -> None:
    data = pictures()
    computed(data, "invert", files(tmp_path))
    assert computed(data, "equalize", files(tmp_path))[0] == 1
    assert computed(data, "invert", files(tmp_path, context="other versions"))[0] == 1
    assert computed(data, "invert", files(tmp_path, role="val"))[0] == 1
    preparer = Preparer(data, files=files(tmp_path))
    reversed_rows = np.arange(len(data))[::-1].copy()
    packed = preparer.pack(InputPipeline(Pipeline.parse("invert"), Pipeline(), (0, 0), 0), reversed_rows, fitted=False)
    assert preparer.computed == 1
    assert np.array_equal(packed[0], 255 - data[len(data) - 1])


@pytest.mark.parametrize("damage", ["cut off", "empty", "of other pictures"])
def test_a_file_that_is_no_good_is_computed_again(damage: str, tmp_path: Path) -> None:
    data, shared = pictures(), files(tmp_path)
    expected = computed(data, "invert", shared)[1]
    (file,) = (tmp_path / PREFIXES).iterdir()
    whole = file.read_bytes()
    if damage == "of other pictures":
        shared.write(file.name, [data[0]])
    else:
        file.write_bytes(whole[:-5] if damage == "cut off" else b"")
    again, pixels = computed(data, "invert", shared)
    assert again == 1
    assert same(pixels, expected)
    assert file.read_bytes() == whole  # written again


def test_what_is_cheap_or_large_gets_no_file(tmp_path: Path) -> None:
    real = replace(files(tmp_path), least_s=0.5, bytes_per_s=100.0)
    assert not real.is_worth_a_file(0.4, 1)
    assert real.is_worth_a_file(0.6, 60)
    assert not real.is_worth_a_file(0.6, 61)
    assert not real.is_worth_a_file(1e9, MOST_BYTES + 1)
    computed(pictures(), "invert", PrefixFiles(storage.join(str(tmp_path), PREFIXES), "context", "train"))
    assert not (tmp_path / PREFIXES).exists()


def test_a_folder_that_takes_no_files_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / PREFIXES).write_text("a file in place of the folder")
    data = pictures()
    assert same(computed(data, "invert", files(tmp_path))[1], computed(data, "invert", None)[1])


def test_pixels_of_a_type_that_files_do_not_have_are_left_out(tmp_path: Path) -> None:
    strange: Any = [np.array([[[{}]]], object)]
    files(tmp_path).write("one.safetensors", strange)
    assert not (tmp_path / PREFIXES).exists()


def test_the_end_of_a_search_removes_its_files_only(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text("{}")
    computed(pictures(), "invert", files(tmp_path))
    (tmp_path / PREFIXES / f"{storage.TEMPORARY_PREFIX}1").write_bytes(b"of a killed writer")
    remove_prefixes(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]
