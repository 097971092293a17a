"""A shard through classifiers, with one that is made in code: it tells dark pictures from light ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_examples import encoded, ingest, npy_array, write_files

from library import codec, storage
from library.errors import BadPicture, StriateError
from library.picture import Pixels
from library.robustness import CORRUPTIONS
from library.scoring import ShardScorer, ShardScores
from library.shards import ShardReader


class ByBrightness:
    """As a bundle, but light: the probability of `light` is the mean brightness; pictures of 7 pixels it drops."""

    classes = ("dark", "light")

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
    """Its own code fails."""

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
    made = ingest(write_files(folder / "raw", FILES), folder / "made")
    assert [entry.rows for entry in made.shards] == [len(FILES)]
    return str(folder / "made" / made.shards[0].name)


def judge(shard: str, *bundles: ByBrightness, **options: Any) -> list[ShardScores]:
    return ShardScorer([cast(Any, bundle) for bundle in bundles], **options).score(shard, lambda _: None)


def test_every_picture_is_judged_dropped_or_rejected_with_its_reason(shard: str) -> None:
    (got,) = judge(shard, ByBrightness())
    assert got.rows == len(FILES)
    said = dict(zip(got.keys, np.concatenate(got.probabilities)[:, 1].tolist(), strict=True))
    assert said == {
        "dark/a.png": pytest.approx(30 / 255),
        "dark/b.png": pytest.approx(240 / 255),
        "light/c.png": pytest.approx(250 / 255),
        "light/d.png": pytest.approx(100 / 255),
    }
    assert [("dark", "light")[label] for label in got.truth] == [key.split("/")[0] for key in got.keys]
    assert got.dropped == {"too_small": 1, "unknown_label": 1, "no_label": 1}
    assert got.rejected == {"truncated": 1, "not_finite": 1}
    assert got.unknown == {"odd": 1}
    assert got.image_bytes == sum(map(len, FILES.values()))


def test_several_threads_give_what_one_gives(shard: str) -> None:
    (one,), (four,) = judge(shard, ByBrightness()), judge(shard, ByBrightness(), threads=4)
    assert (one.keys, one.truth, one.dropped, one.rejected) == (four.keys, four.truth, four.dropped, four.rejected)
    np.testing.assert_array_equal(np.concatenate(one.probabilities), np.concatenate(four.probabilities))


def test_the_most_confident_mistakes_come_as_pictures(shard: str) -> None:
    (got,) = judge(shard, ByBrightness(), examples=1)
    assert [example.key for example in got.examples] == ["dark/b.png"]
    np.testing.assert_array_equal(codec.decode(got.examples[0].data), codec.decode(FILES["dark/b.png"]))
    (none,) = judge(shard, ByBrightness())
    assert none.examples == []


def test_a_large_mistake_comes_as_a_small_jpeg(tmp_path: Path) -> None:
    made = ingest(
        write_files(tmp_path / "raw", {"dark/a.png": flat(250, 700), "light/b.png": flat(250)}), tmp_path / "made"
    )
    (got,) = judge(str(tmp_path / "made" / made.shards[0].name), ByBrightness(), examples=3)
    assert got.examples[0].format == "jpeg"
    assert codec.decode(got.examples[0].data).shape == (160, 160, 3)


def test_two_classifiers_judge_the_same_pictures_each_by_its_own_classes(shard: str) -> None:
    turned = ByBrightness()
    turned.classes = ("light", "odd")
    first, second = judge(shard, ByBrightness(), turned)
    assert len(first.keys) == 4
    assert {key.split("/")[0] for key in second.keys} == {"light", "odd"}
    assert second.unknown == {"dark": 3}
    assert second.rows == len(FILES)


def test_under_corruption_a_judged_picture_is_judged_again_and_no_other(shard: str) -> None:
    (got,) = judge(shard, ByBrightness(), robust_fraction=1.0)
    assert set(got.robust) == set(got.keys)
    # Contrast and blur leave a flat picture as bright as it was.
    plain = [place for place, one in enumerate(CORRUPTIONS) if one.name in ("blur", "contrast")]
    wanted = {"dark/a.png": 1, "dark/b.png": 0, "light/c.png": 1, "light/d.png": 0}
    assert {key: set(right[plain].tolist()) for key, right in got.robust.items()} == {
        key: {right} for key, right in wanted.items()
    }
    (few,) = judge(shard, ByBrightness())
    assert few.robust == {}


def test_a_defect_in_a_step_names_the_picture(shard: str) -> None:
    with pytest.raises(StriateError, match=r"picture '.+': ZeroDivisionError: one over none"):
        judge(shard, Defective())


def test_progress_tells_how_far_it_is(tmp_path: Path) -> None:
    files = {f"{('dark', 'light')[number % 2]}/{number:03d}.png": flat(number) for number in range(100)}
    made = ingest(write_files(tmp_path / "raw", files), tmp_path / "made")
    uri = storage.join(str(tmp_path / "made"), made.shards[0].name)
    told: list[int] = []
    scorer = ShardScorer([cast(Any, ByBrightness())])
    (got,) = scorer.score(uri, lambda scores: told.append(scores[0].rows))
    assert told == [64, 100]
    assert got.keys == [key for table in ShardReader(uri) for key in table["key"].to_pylist()]
    assert set(scorer.seconds) == {"read", "prepare", "infer"}
