"""Datasets are read by other programs without Striate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from library.dataset.manifest import Manifest
from library.imaging import codec
from tests.picture_examples import encoded, ingest, write_files

FILES = {
    f"{label}/{number:02}.{kind}": encoded(kind, 20 + number, 30)
    for label, kinds in (("cat", "jpeg png"), ("dog", "webp tiff"))
    for kind in kinds.split()
    for number in range(5)
}
FILES["cat/broken.jpg"] = b"no picture"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Twenty good pictures and a bad one, in several shards, with rejects and reports beside them."""
    folder = tmp_path_factory.mktemp("interop")
    manifest = ingest(write_files(folder / "raw", FILES), folder / "made", shard_bytes=8000)
    assert len(manifest.shards) > 1
    assert manifest.rejects
    return folder / "made", manifest


def test_hugging_face_datasets_reads_the_pictures(
    dataset: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset(
        "parquet", data_files=f"{dataset[0]}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(rows.features["image"], datasets.Image)
    assert len(rows) == 20
    for row in rows:
        assert row["image"].size == (row["width"], row["height"]) == (30, 20 + int(row["key"][4:6]))
        expected = codec.decode(FILES[row["key"]])
        assert np.abs(np.asarray(row["image"].convert("RGB")).astype(int) - expected).max() <= 1
        assert row["label"] == row["key"][:3]


def test_duckdb_counts_the_labels_of_the_shards_alone(dataset: tuple[Path, Manifest]) -> None:
    duckdb = pytest.importorskip("duckdb")
    columns = "label, count(*), sum(octet_length(image.bytes))"
    query = f"select {columns} from '{dataset[0]}/*.parquet' group by label order by label"
    sizes = {label: sum(len(data) for key, data in FILES.items() if key.startswith(label)) for label in ("cat", "dog")}
    assert duckdb.sql(query).fetchall() == [("cat", 10, sizes["cat"] - len(b"no picture")), ("dog", 10, sizes["dog"])]
    rejects = duckdb.sql(f"select key, reason from '{dataset[0]}/_rejects/*.parquet'").fetchall()
    assert rejects == [("cat/broken.jpg", "not_an_image")]


def test_pyarrow_reads_the_shards_of_a_folder_and_nothing_else(
    dataset: tuple[Path, Manifest],
) -> None:
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(str(dataset[0]), format="parquet").to_table()
    assert table.num_rows == 20
    assert "reason" not in table.schema.names
    assert sorted(table["key"].to_pylist()) == sorted(key for key in FILES if key != "cat/broken.jpg")


def test_names_outside_the_shards_begin_with_an_underscore(dataset: tuple[Path, Manifest]) -> None:
    shards = {shard.name for shard in dataset[1].shards}
    others = {path.name for path in dataset[0].iterdir()} - shards
    assert others == {"_manifest.json", "_rejects", "_reports"}
