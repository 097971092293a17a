"""One shard of `striate evaluate`, without Ray; the classifiers are simple fakes that recognize dark and light."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from library import storage
from library.bundle.bundle import Bundle
from library.dataset.shards import ShardReader
from library.dataset.task import ShardTask
from library.errors import BadPicture, StriateError
from library.evaluation.robustness import CORRUPTIONS, order_of
from library.evaluation.sums import Pairs
from library.imaging import codec
from library.imaging.picture import Pixels
from library.work.evaluate_shard import EvaluateJob, ShardScorer, ShardScores
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, npy_array, write_files


class ByBrightness:
    """A fake bundle: the probability of `light` is the mean brightness; it drops pictures of 7 pixels."""

    classes: tuple[str, ...] = ("dark", "light")

    def prepare(self, data: bytes, **columns: Any) -> Pixels:
        return self.prepare_pixels(codec.decode(data), **columns)

    def prepare_pixels(self, pixels: Pixels, **columns: Any) -> Pixels:
        assert columns["key"]
        if pixels.shape[0] == 7:
            raise BadPicture("dropped:too_small", "")
        return np.asarray(pixels.mean(), np.float32) / (255 if pixels.dtype == np.uint8 else 1)

    def probabilities(self, pictures: list[Any]) -> NDArray[np.float32]:
        light = np.stack(pictures)
        return np.stack([1 - light, light], 1)


class Defective(ByBrightness):
    """A fake bundle whose step raises."""

    def prepare_pixels(self, pixels: Pixels, **columns: Any) -> Pixels:
        raise ZeroDivisionError("one over none")


def flat(value: int, side: int = 16) -> bytes:
    return codec.encode(np.full((side, side, 3), value, np.uint8), codec.Encoding("png"))[0]


FILES = {
    "dark/a.png": flat(30),
    "dark/b.png": flat(240),
    "dark/small.png": flat(30, 7),
    "light/c.png": flat(250),
    "light/d.png": flat(100),
    "light/e.jpg": encoded("jpeg", 400, 300)[:-300],
    "light/nan.npy": npy_array(np.full((16, 16, 1), np.nan, np.float32)),
    "odd/f.png": flat(30),
    "g.png": flat(30),
}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scoring")
    manifest = ingest(write_files(folder / "raw", FILES), folder / "made")
    assert [entry.rows for entry in manifest.shards] == [len(FILES)]
    return str(folder / "made" / manifest.shards[0].name)


def judge(shard: str, *bundles: ByBrightness, **options: Any) -> ShardScores:
    return scorer(*bundles, **options).score(shard, lambda _: None)


def scorer(*bundles: ByBrightness, **options: Any) -> ShardScorer:
    return ShardScorer([cast(Any, bundle) for bundle in bundles], **options)


def outcomes(shard: str, **options: Any) -> dict[str, tuple[int, float]]:
    """Returns the class id and the probability of `light` of every judged picture."""
    batches = [judged[0].outcomes for _, judged in scorer(ByBrightness(), **options).judged(shard)]
    return {
        key: (int(truth), float(row[1]))
        for one in batches
        for key, truth, row in zip(one.keys, one.truth, one.probabilities, strict=True)
    }


def test_every_picture_is_judged_dropped_or_rejected_with_its_reason(shard: str) -> None:
    scores = judge(shard, ByBrightness())
    (got,) = scores.sums
    assert got.pictures == scores.tally.rows_in == len(FILES)
    assert outcomes(shard) == {
        "dark/a.png": (0, pytest.approx(30 / 255)),
        "dark/b.png": (0, pytest.approx(240 / 255)),
        "light/c.png": (1, pytest.approx(250 / 255)),
        "light/d.png": (1, pytest.approx(100 / 255)),
    }
    assert (got.judged, got.top1, got.top5) == (4, 2, 4)
    # Class ids 0 dark, 1 light: of each class one picture is correct and one is predicted as the other.
    assert got.confusion == {0: 1, 1: 1, 2: 1, 3: 1}
    assert got.dropped == {"too_small": 1, "unknown_label": 1, "no_label": 1}
    assert got.rejected == {"truncated": 1, "not_finite": 1}
    assert got.unknown == {"odd": 1}
    assert scores.tally.image_bytes_in == sum(map(len, FILES.values()))
    assert (scores.tally.balanced, scores.tally.rows_out) == (True, 4)
    assert (scores.tally.dropped, scores.tally.rejected) == (got.dropped, got.rejected)


def test_several_threads_give_the_same_outcomes_as_one(shard: str) -> None:
    assert outcomes(shard, threads=4) == outcomes(shard)
    one, four = judge(shard, ByBrightness()), judge(shard, ByBrightness(), threads=4)
    assert (one.sums, one.tally) == (four.sums, four.tally)


def test_leaked_pictures_are_summed_up_separately_too(shard: str) -> None:
    plain = judge(shard, ByBrightness())
    scores = judge(
        shard, ByBrightness(), leaked=frozenset(["dark/a.png", "light/d.png", "dark/small.png", "elsewhere"])
    )
    assert (scores.sums, plain.leaked) == (plain.sums, [])
    (leaked,) = scores.leaked
    assert (leaked.judged, leaked.top1, leaked.confusion) == (2, 1, {0: 1, 2: 1})


def test_mistakes_are_kept_as_pictures_when_examples_are_requested(shard: str) -> None:
    (got,) = judge(shard, ByBrightness(), examples=True).sums
    assert [mistake.key for mistake in got.mistakes] == ["dark/b.png", "light/d.png"]
    pictures = {example.key: codec.decode(example.data) for example in got.examples}
    assert pictures.keys() == {"dark/b.png", "light/d.png"}
    np.testing.assert_array_equal(pictures["dark/b.png"], codec.decode(FILES["dark/b.png"]))
    (none,) = judge(shard, ByBrightness()).sums
    assert (none.examples, none.mistakes) == ([], got.mistakes)


def test_a_large_mistake_is_kept_as_a_small_jpeg(tmp_path: Path) -> None:
    manifest = ingest(
        write_files(tmp_path / "raw", {"dark/a.png": flat(250, 700), "light/b.png": flat(250)}), tmp_path / "made"
    )
    (got,) = judge(str(tmp_path / "made" / manifest.shards[0].name), ByBrightness(), examples=True).sums
    assert got.examples[0].format == "jpeg"
    assert codec.decode(got.examples[0].data).shape == (160, 160, 3)


def test_two_classifiers_judge_the_same_pictures_each_by_its_own_classes(shard: str) -> None:
    other = ByBrightness()
    other.classes = ("light", "odd")
    scores = judge(shard, ByBrightness(), other)
    first, second = scores.sums
    assert (first.judged, first.unknown) == (4, {"odd": 1})
    assert (second.judged, second.unknown) == (3, {"dark": 3})
    assert second.pictures == len(FILES)
    # Both have judged the two light pictures; the second predicts light pictures as odd.
    assert scores.pairs == Pairs(both=0, only_first=1, only_second=1, neither=0)
    assert judge(shard, ByBrightness()).pairs is None


def test_only_judged_pictures_are_judged_again_under_corruption(shard: str) -> None:
    (got,) = judge(shard, ByBrightness(), robust_fraction=1.0).sums
    robust = dict(got.robust)
    expected = {"dark/a.png": "1", "dark/b.png": "0", "light/c.png": "1", "light/d.png": "0"}
    assert robust.keys() == {order_of(key) for key in expected}
    # Contrast and blur do not change the brightness of a flat picture.
    unchanged = [0, *(column for column, one in enumerate(CORRUPTIONS, 1) if one.name in ("blur", "contrast"))]
    assert {key: {robust[order_of(key)][column] for column in unchanged} for key in expected} == {
        key: {outcome} for key, outcome in expected.items()
    }
    (few,) = judge(shard, ByBrightness()).sums
    assert few.robust == []


def test_an_error_in_a_step_names_the_picture(shard: str) -> None:
    with pytest.raises(StriateError, match=r"picture '.+': ZeroDivisionError: one over none"):
        judge(shard, Defective())


def test_progress_reports_the_counts_of_each_batch(tmp_path: Path) -> None:
    files = {f"{('dark', 'light')[number % 2]}/{number:03d}.png": flat(number) for number in range(100)}
    manifest = ingest(write_files(tmp_path / "raw", files), tmp_path / "made")
    uri = storage.join(str(tmp_path / "made"), manifest.shards[0].name)
    counts: list[int] = []
    scores = scorer(ByBrightness()).score(uri, lambda tally: counts.append(tally.rows_in))
    assert counts == [64, 36]
    assert scores.tally.rows_in == 100
    assert list(outcomes(uri)) == [key for table in ShardReader(uri) for key in table["key"].to_pylist()]
    assert set(scores.seconds) == {"read", "prepare", "infer"}


def test_a_job_sums_up_its_planned_bundles_and_refuses_others(shard: str, tmp_path: Path) -> None:
    uri = make_bundle(tmp_path / "bundle", 0, ("dark", "light", "odd"), "rgb")
    bundle = Bundle.load(uri, "cpu")
    dataset, _, name = shard.rpartition("/")
    task = ShardTask(dataset, name.removesuffix(".parquet"), "digest", len(FILES))
    job = EvaluateJob((uri,), (bundle.id,))
    report = job.run(task, lambda _: None)
    assert (report.stem, report.input_digest, report.work_digest) == (task.stem, "digest", job.work_digest(task))
    assert (report.sums, report.tally.rows_out) == (ShardScorer([bundle]).score(shard, lambda _: None).sums, 6)
    assert set(report.seconds) == {"load", "read", "prepare", "infer"}
    make_bundle(tmp_path / "bundle", 1, ("dark", "light", "odd"), "rgb")
    with pytest.raises(StriateError, match="bundle was replaced while this job ran"):
        EvaluateJob((uri,), (bundle.id,)).run(task, lambda _: None)


def test_the_work_digest_distinguishes_what_decides_the_sums() -> None:
    task = ShardTask("x", "part-000000", "digest", 1)
    jobs = [
        EvaluateJob(("b",), bundle_ids, robust_fraction, examples, device)
        for bundle_ids in (("1",), ("2",), ("1", "2"))
        for robust_fraction in (0.0, 0.5)
        for examples in (False, True)
        for device in ("cpu", "cuda")
    ]
    jobs += [dataclasses.replace(jobs[0], leaked=frozenset(keys)) for keys in ("", "a", "ab")]
    assert len({job.work_digest(task) for job in jobs}) == len(jobs)
    moved = dataclasses.replace(jobs[0], bundles=("s3://b/b",), threads=8)
    assert moved.work_digest(ShardTask("elsewhere", "part-000000", "digest", 1)) == jobs[0].work_digest(task)
