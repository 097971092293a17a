from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.bundle.bundle import Bundle
from library.choosing.labels import patch_features
from library.choosing.labels.embedders import (
    BundleEmbedder,
    Embedder,
    FoldEmbedder,
    ModelEmbedder,
    PatchEmbedder,
    write_folds,
)
from library.choosing.labels.patch_features import PatchFilters, patch_inputs
from library.dataset.destination import claim, finish
from library.dataset.manifest import Job, ShardReport, load_manifest
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.errors import UsageError
from library.imaging import codec
from library.work.embed_shard import KEY, VECTOR, EmbedJob, SiftJob
from tests.bundles import PROBABILITY_TOLERANCE, make_bundle
from tests.picture_examples import ingest, measure, write_files


def noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), np.uint8)
    return codec.encode(pixels, codec.Encoding("png"))[0]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six pictures of noise and one that is white."""
    white = codec.encode(np.full((28, 28, 3), 255, np.uint8), codec.Encoding("png"))[0]
    files = {f"{'ab'[row % 2]}/{row}.png": noise(row) for row in range(6)} | {"a/white.png": white}
    ingest(write_files(tmp_path / "source", files), tmp_path / "data")
    return tmp_path / "data"


def run(dataset: Path, job: EmbedJob | SiftJob, folder: Path) -> tuple[dict[str, Any], ShardReport]:
    task = ShardTask(str(folder), "part-000000", "digest", 7)
    report = job.run(task, lambda _: None)
    table = pq.read_table(folder / "part-000000.parquet")
    values = table[VECTOR].to_pylist() if VECTOR in table.column_names else [None] * table.num_rows
    return dict(zip(table[KEY].to_pylist(), values, strict=True)), report


def test_vectors_are_the_bundles_features_for_every_number_of_threads(dataset: Path, tmp_path: Path) -> None:
    uri = make_bundle(tmp_path / "bundle")
    bundle, embedder = Bundle.load(uri, "cpu"), BundleEmbedder.of(uri)
    vectors, report = run(dataset, EmbedJob(str(dataset), embedder), tmp_path / "one")
    assert len(vectors) == report.tally.rows_out == report.output.rows == 7
    expected = bundle.features([bundle.prepare(noise(3))])[0][0]
    np.testing.assert_allclose(vectors["b/3.png"], expected, atol=PROBABILITY_TOLERANCE)
    threaded, _ = run(dataset, EmbedJob(str(dataset), embedder, threads=3), tmp_path / "three")
    assert list(threaded) == list(vectors)


def test_pictures_that_the_bundle_drops_are_counted(dataset: Path, tmp_path: Path) -> None:
    embedder = BundleEmbedder.of(make_bundle(tmp_path / "bundle", steps="not_blank"))
    vectors, report = run(dataset, EmbedJob(str(dataset), embedder), tmp_path / "out")
    assert report.tally.dropped == {"blank": 1}
    assert "a/white.png" not in vectors
    assert report.tally.balanced


@pytest.mark.parametrize("kind", ["features", "sift"])
def test_a_picture_that_cannot_be_decoded_leaves_a_manifest_to_resume(kind: Any, tmp_path: Path) -> None:
    files = {"a/good.png": noise(1), "a/cut.png": noise(2)[:-600]}
    manifest = ingest(write_files(tmp_path / "source", files), tmp_path / "data")
    assert manifest.rows == 2, "ingest looks at headers only"
    source, folder = str(tmp_path / "data"), str(tmp_path / "out")
    vectors = EmbedJob(source, BundleEmbedder.of(make_bundle(tmp_path / "bundle")))
    work = vectors if kind == "features" else SiftJob(source, "not_blank")
    jobs, [shard] = [Job(kind=kind, source=source)], manifest.shards
    claim(folder, jobs, overwrite=False)
    report = work.run(ShardTask(folder, "part-000000", shard.digest, shard.rows), lambda _: None)
    finish(folder, jobs, Totals.of([report]))
    claim(folder, jobs, overwrite=False)  # as the next run does
    assert load_manifest(folder).tally.dropped == {"truncated": 1}


def test_each_picture_is_judged_by_the_bundle_of_its_own_fold(dataset: Path, tmp_path: Path) -> None:
    uris = [make_bundle(tmp_path / f"bundle{seed}", seed) for seed in range(2)]
    bundles = [Bundle.load(uri, "cpu") for uri in uris]
    keys = ["a/white.png", *(f"{'ab'[row % 2]}/{row}.png" for row in range(6))]
    write_folds(str(tmp_path / "folds.npz"), keys, np.array([0, 0, 1, 0, 1, 1, 0]))
    embedder = FoldEmbedder(tuple(uris), tuple(bundle.id for bundle in bundles), str(tmp_path / "folds.npz"))
    vectors, _ = run(dataset, EmbedJob(str(dataset), embedder), tmp_path / "out")
    for row, fold in enumerate([0, 1, 0, 1, 1, 0]):
        expected = bundles[fold].probabilities([bundles[fold].prepare(noise(row))])[0]
        np.testing.assert_allclose(vectors[f"{'ab'[row % 2]}/{row}.png"], expected, atol=PROBABILITY_TOLERANCE)


def test_a_picture_of_no_fold_is_left_out(dataset: Path, tmp_path: Path) -> None:
    uris = [make_bundle(tmp_path / f"bundle{seed}", seed) for seed in range(2)]
    keys = [f"{'ab'[row % 2]}/{row}.png" for row in range(4)]
    write_folds(str(tmp_path / "folds.npz"), keys, np.array([0, 1, 0, 1]))
    ids = tuple(Bundle.load(uri, "cpu").id for uri in uris)
    embedder = FoldEmbedder(tuple(uris), ids, str(tmp_path / "folds.npz"))
    vectors, report = run(dataset, EmbedJob(str(dataset), embedder), tmp_path / "out")
    assert set(vectors) == set(keys)
    assert report.tally.dropped == {"in_no_fold": 3}
    assert report.tally.balanced


def test_another_version_of_the_patches_has_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = PatchEmbedder(PatchFilters.learn([patch_inputs(3).prepare(noise(9))], filters=4), 3, "source")
    before = embedder.identity
    assert embedder.identity == before
    monkeypatch.setattr(patch_features, "VERSION", patch_features.VERSION + 1)
    assert embedder.identity != before


def test_patches_need_no_bundle_and_names_say_what_computes(dataset: Path, tmp_path: Path) -> None:
    filters = PatchFilters.learn([patch_inputs(3).prepare(noise(9))], filters=4)
    embedder = PatchEmbedder(filters, 3, "source")
    vectors, _ = run(dataset, EmbedJob(str(dataset), embedder), tmp_path / "out")
    assert {len(vector) for vector in vectors.values()} == {filters.dimensions}
    others: list[Embedder] = [embedder, BundleEmbedder("b", "id"), ModelEmbedder.of("resnet18")]
    assert len({str(list(one.identity)) for one in others}) == len({one.name for one in others}) == 3


def test_a_picture_has_the_same_patches_with_8_bits_16_bits_or_floats() -> None:
    pixels = codec.decode(noise(1))
    loaded = PatchEmbedder(PatchFilters.learn([patch_inputs(3).prepare(noise(9))], filters=4), 3, "source").load("cpu")
    kinds = {
        "png": [pixels, pixels.astype(np.uint16) * 257],
        "npy": [pixels.astype(np.float32) / 255, np.full_like(pixels, np.nan, np.float32)],
    }
    files = [codec.encode(one, codec.Encoding(kind))[0] for kind, both in kinds.items() for one in both]
    first, *others, not_finite = loaded.embed([loaded.prepare(file, {"key": "a"}) for file in files])
    for vector in others:
        # Resized values are rounded to whole numbers where they have 8 bits.
        np.testing.assert_allclose(vector, first, atol=0.05)
    assert np.isnan(not_finite).all()  # so that it is rejected


def test_what_has_no_features_is_refused() -> None:
    with pytest.raises(UsageError, match="no published weights"):
        ModelEmbedder.of("lenet5")


def test_sifting_reads_scores_that_are_stored(dataset: Path, tmp_path: Path) -> None:
    measure(dataset, load_manifest(str(dataset)), "largest_std")
    [path] = (dataset / "_measures").glob("part-*.parquet")
    stored = pq.read_table(path)
    row = stored["key"].to_pylist().index("b/3.png")
    # A score that the pixels contradict shows which of the two is read.
    values = pa.array([0 if number == row else 1 for number in range(7)], stored["largest_std"].type)
    pq.write_table(stored.set_column(stored.column_names.index("largest_std"), "largest_std", values), path)
    manifest = load_manifest(str(dataset))
    task = ShardTask(str(tmp_path / "out"), "part-000000", manifest.shards[0].digest, 7)
    SiftJob(str(dataset), "not_blank").run(task, lambda _: None)
    kept = pq.read_table(tmp_path / "out" / "part-000000.parquet")[KEY].to_pylist()
    assert "b/3.png" not in kept
    assert "a/white.png" in kept


def test_sifting_keeps_the_keys_of_what_selectors_keep(dataset: Path, tmp_path: Path) -> None:
    kept, report = run(dataset, SiftJob(str(dataset), "not_blank"), tmp_path / "out")
    assert set(kept) == {f"{'ab'[row % 2]}/{row}.png" for row in range(6)}
    assert report.tally.dropped == {"blank": 1}
    assert report.tally.balanced
