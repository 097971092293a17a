"""Histograms of scores and the pictures at both ends, over any number of shards."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from library.choosing.measures.distribution import BINS, ENDS, Distribution, by_shard, distributions
from library.choosing.measures.score_page import distributions_of, measures_page
from library.choosing.measures.side_table import Parts
from tests.picture_examples import encoded, ingest, measure, write_files


def tables(values: NDArray[np.float64], shards: int) -> list[pa.Table]:
    parts = np.array_split(np.arange(len(values)), shards)
    return [
        pa.table(
            {
                "key": [f"key{row}" for row in part],
                "brightness": pa.array(
                    [None if np.isnan(value) else value for value in values[part].tolist()], pa.float32()
                ),
            }
        )
        for part in parts
    ]


def of(values: NDArray[np.float64], shards: int = 3) -> Distribution:
    parts = tables(values, shards)
    (one,) = distributions(lambda: parts, ["brightness"])
    return one


@pytest.mark.parametrize("shards", [1, 4, 40])
@pytest.mark.parametrize("seed", range(5))
def test_counts_and_ends_are_those_of_all_values_sorted(seed: int, shards: int) -> None:
    rng = np.random.default_rng(seed)
    # Many equal values, and some that are missing.
    values = np.round(rng.normal(0.5, 0.2, 500), seed % 3 + 1).astype(np.float32).astype(np.float64)
    values[rng.integers(0, 500, 20)] = np.nan
    one = of(values, shards)
    present = np.flatnonzero(~np.isnan(values))
    assert (one.measured, one.missing) == (len(present), 500 - len(present))
    assert (one.low, one.high) == (np.nanmin(values), np.nanmax(values))
    assert sum(one.counts) == len(present)
    assert len(one.counts) == BINS == len(one.edges) - 1
    rising = present[np.argsort(values[present], kind="stable")]
    falling = present[np.argsort(-values[present], kind="stable")]
    assert [end.key for end in one.lowest] == [f"key{row}" for row in rising[:ENDS]]
    assert [end.key for end in one.highest] == [f"key{row}" for row in falling[:ENDS]]


def test_quantiles_are_near_those_of_the_values() -> None:
    values = np.random.default_rng(2).normal(10, 2, 20_000)
    one = of(values)
    for share, value in one.quantiles.items():
        assert value == pytest.approx(np.quantile(values, share), abs=0.02)


def test_a_wide_range_is_binned_on_a_logarithmic_axis() -> None:
    values = np.random.default_rng(2).lognormal(3, 2, 5_000)
    one = of(values)
    assert one.log
    assert np.allclose(np.diff(np.log(one.edges)), np.log(one.high / one.low) / BINS)
    for share, value in one.quantiles.items():
        assert value == pytest.approx(np.quantile(values, share), rel=0.05)


def test_one_value_and_no_value_at_all() -> None:
    one = of(np.full(7, 0.25))
    assert one.counts[BINS // 2] == sum(one.counts) == 7
    assert set(one.quantiles.values()) == {0.25}
    assert distributions(lambda: tables(np.full(7, np.nan), 2), ["brightness"]) == []


def test_a_million_rows_are_read_shard_by_shard() -> None:
    """Each table is made when it is asked for, and only the one before it may still be held then."""
    made: list[weakref.ref[Any]] = []
    held: list[int] = []

    def parts() -> Iterable[pa.Table]:
        for shard in range(20):
            rng = np.random.default_rng(shard)
            keys = pa.array(np.arange(50_000) + shard * 50_000).cast(pa.string())
            values = rng.lognormal(5, 1, 50_000).astype(np.float32)
            held.append(sum(one() is not None for one in made))
            made.append(weakref.ref(values))
            table = pa.table({"key": keys, "sharpness": pa.array(values)})  # holds the array, does not copy it
            del values
            yield table
            del table

    (one,) = distributions(parts, ["sharpness"])
    assert one.measured == sum(one.counts) == 1_000_000
    assert one.quantiles[0.5] == pytest.approx(np.exp(5), rel=0.02)
    assert len(by_shard([one])) <= 2 * ENDS
    assert (len(held), max(held)) == (40, 1)


def test_the_page_shows_scores_and_pictures_and_escapes_keys(tmp_path: Path) -> None:
    files = {f"cat/{number}.jpg": encoded("jpeg", 30 + number, 40) for number in range(20)}
    manifest = ingest(
        write_files(tmp_path / "files", files | {"cat/<b>&.jpg": encoded("jpeg", 20, 300)}), tmp_path / "raw"
    )
    measure(tmp_path / "raw", manifest)
    parts = Parts(str(tmp_path / "raw" / "_measures"), manifest.shards)
    found = distributions_of(parts, ["aspect_ratio", "brightness", "phash"])
    assert [one.name for one in found] == ["aspect_ratio", "brightness"]
    page = measures_page(str(tmp_path / "raw"), manifest, parts.folder, found, {"truncated": 2})
    assert page.count("<svg") == 2
    assert "cat/&lt;b&gt;&amp;.jpg" in page
    assert "<b>&" not in page
    assert "2 could not be measured" in page
    assert page.count("data:image/") == 4 * ENDS
    assert "http://" not in page
