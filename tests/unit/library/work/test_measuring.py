"""Pictures are measured while a dataset is written: in every shard's report, and summed in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from library.dataset.destination import claim, committed, finish
from library.dataset.histograms import Histograms
from library.dataset.manifest import Job, Manifest, ShardReport, load_report
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.imaging import codec
from library.imaging.codec import Encoding
from library.work.filter_shard import FilterJob
from serve.replica.drift import compare
from tests.picture_examples import encoded, ingest, scene, write_files

DAMAGED = encoded("jpeg", 40, 50)[:-300]  # its header is complete, its pixels are not


def pictures(count: int = 30) -> Mapping[str, bytes]:
    random = np.random.default_rng(7)
    return {
        f"{'cat' if number % 2 else 'dog'}/{number:03d}.png": codec.encode(
            (scene(20 + number, 30 + number) * random.uniform(0.3, 1)).astype(np.uint8), Encoding.parse("png")
        )[0]
        for number in range(count)
    }


def expected(files: Mapping[str, bytes]) -> dict[str, object]:
    histograms = Histograms()
    histograms.add_pictures(files.values())
    return histograms.to_dict()


def filtered(source: Path, manifest: Manifest, destination: Path, steps: str, **options: bool) -> Manifest:
    work = FilterJob(str(source), steps, **options)  # type: ignore[arg-type]
    job = Job(kind="filter", source=str(source))
    claim(str(destination), [job], overwrite=False)
    tasks = [ShardTask(str(destination), e.name.removesuffix(".parquet"), e.digest, e.rows) for e in manifest.shards]
    return finish(str(destination), [job], Totals.of(work.run(task, lambda _: None) for task in tasks))


def test_ingest_measures_what_it_keeps_and_the_manifest_has_the_sum(tmp_path: Path) -> None:
    files = pictures()
    source = write_files(tmp_path / "raw", {**files, "cat/damaged.jpg": DAMAGED, "cat/text.jpg": b"no picture"})
    manifest = ingest(source, tmp_path / "made", measure=True, shard_bytes=9_000)
    assert len(manifest.shards) > 2
    assert manifest.histograms == expected(files)
    # As with `verify`, pictures that cannot be decoded are rejected and not measured.
    assert sum(manifest.tally.rejected.values()) == 2
    files = sorted((tmp_path / "made" / "_reports").glob("*.json"))
    parts = [load_report(path.read_bytes(), ShardReport) for path in files]
    assert Histograms.total(Histograms.from_dict(part.histograms or {}) for part in parts if part).to_dict() == (
        manifest.histograms
    )


def test_shards_of_another_size_add_up_to_the_same(tmp_path: Path) -> None:
    source = write_files(tmp_path / "raw", pictures())
    one, many = (
        ingest(source, tmp_path / name, measure=True, shard_bytes=s) for name, s in (("a", 10**9), ("b", 9000))
    )
    assert len(one.shards) < len(many.shards)
    assert one.histograms == many.histograms


def test_measuring_is_optional_and_does_not_change_the_pictures(tmp_path: Path) -> None:
    source = write_files(tmp_path / "raw", pictures())
    off, on = ingest(source, tmp_path / "off"), ingest(source, tmp_path / "on", measure=True)
    assert off.histograms is None
    assert off.shards == on.shards
    assert off.digest != on.digest


def test_filter_measures_the_pictures_as_it_stores_them(tmp_path: Path) -> None:
    files = pictures()
    manifest = ingest(write_files(tmp_path / "raw", files), tmp_path / "made")
    selection = {key: data for key, data in files.items() if codec.probe(data).height >= 30}
    selected = filtered(tmp_path / "made", manifest, tmp_path / "selected", "min_size(30)", measure=True)
    assert selected.histograms == expected(selection)
    darker = filtered(tmp_path / "made", manifest, tmp_path / "darker", "gamma(2.5)", measure=True)
    before, after = Histograms.from_dict(selected.histograms or {}), Histograms.from_dict(darker.histograms or {})
    assert compare(before, after)["brightness"].js > 0.3


def test_a_damaged_picture_that_no_step_decodes_stays_and_is_not_measured(tmp_path: Path) -> None:
    files = {"a.png": encoded("png"), "b.jpg": DAMAGED}
    manifest = ingest(write_files(tmp_path / "raw", files), tmp_path / "made")
    copied = filtered(tmp_path / "made", manifest, tmp_path / "copied", "", measure=True)
    assert copied.rows == 2
    assert sum(Histograms.from_dict(copied.histograms or {}).counts("width").values()) == 1


@pytest.mark.parametrize("measure", [True, False])
def test_a_shard_without_measures_is_written_again_with_them(tmp_path: Path, measure: bool) -> None:
    manifest = ingest(write_files(tmp_path / "raw", pictures(4)), tmp_path / "made")
    filtered(tmp_path / "made", manifest, tmp_path / "copy", "", measure=measure)
    (shard,) = manifest.shards
    task = ShardTask(str(tmp_path / "copy"), "part-000000", shard.digest, shard.rows)
    assert list(committed([task], FilterJob(str(tmp_path / "made"), "", measure=measure)))
    assert not list(committed([task], FilterJob(str(tmp_path / "made"), "", measure=not measure)))
