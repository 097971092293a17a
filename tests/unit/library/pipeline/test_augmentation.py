"""Augmentation: the same picture, epoch and seed give the same pixels; and where random steps are refused."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.augment import plan_augment
from jobs.cli.app import run
from jobs.filter import plan_filter
from jobs.inspection.show import contact_sheet
from library.errors import BadPicture, GrammarError, StepError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter, parse_augmentation
from tests.picture_examples import encoded, ingest, scene, table, write_files

TEXT = "random_crop(24, padding=4) | flip | sometimes(0.5, gaussian_blur(sigma=1)) | rotate(20) | channel_shift(0.1)"


def augmenter(text: str = TEXT, seed: int = 0) -> Augmenter:
    return Augmenter(Pipeline.parse(text), seed)


def test_order_threads_and_new_objects_do_not_change_a_variant() -> None:
    pixels = scene(24, 24)
    calls = [(epoch, f"key {number}") for epoch in range(3) for number in range(20)]
    expected = {(epoch, key): augmenter().apply(pixels, epoch, key).tobytes() for epoch, key in calls}
    shuffled = random.Random(3).sample(calls, len(calls))
    shared = augmenter()
    with ThreadPoolExecutor(4) as pool:
        variants = pool.map(lambda where: shared.apply(pixels, *where).tobytes(), shuffled)
        assert dict(zip(shuffled, variants, strict=True)) == expected


def test_another_epoch_key_or_seed_gives_another_variant() -> None:
    pixels = scene(24, 24)
    variants = [
        augmenter(seed=seed).apply(pixels, epoch, key).tobytes()
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for key in ("a", "b", "a\x1fb")
    ]
    assert len(set(variants)) == len(variants)


def test_the_variants_of_a_seed_never_change() -> None:
    # These values must never change: augmenting a dataset again must give the same pictures.
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    moved = [augmenter("shift(x=0.5, y=0.4) | flip", 7).apply(pixels, epoch, "cat/a.jpg") for epoch in (2, 5)]
    assert [variant[:, :, 0].tolist() for variant in moved] == [
        [[2, 3, 0, 0], [6, 7, 0, 0], [10, 11, 0, 0]],
        [[0, 0, 0, 0], [0, 3, 2, 1], [0, 7, 6, 5]],
    ]


def test_filters_run_and_unchanged_pictures_are_the_very_same_array() -> None:
    pixels = scene(24, 24)
    np.testing.assert_array_equal(augmenter("invert | flip(p=0)").apply(pixels, 0, "a"), 255 - pixels)
    assert augmenter("flip(p=0) | sometimes(0, invert)").apply(pixels, 0, "a") is pixels


def test_a_failing_step_names_the_picture_and_the_epoch() -> None:
    broken: Any = np.zeros((4, 4, 3), np.complex64)
    with pytest.raises(StepError, match=r"step 'brightness\(amount=0.5\)' failed on picture 'cat/a' in epoch 3: "):
        augmenter("brightness(0.5)").apply(broken, 3, "cat/a")
    with pytest.raises(BadPicture, match="too_small"):
        augmenter("random_crop(9)").apply(scene(4, 4), 0, "a")


def test_selectors_and_filters_with_columns_cannot_augment() -> None:
    with pytest.raises(UsageError, match="'not_blank' drops pictures"):
        augmenter("flip | not_blank")
    with pytest.raises(UsageError, match="'blur_background' reads the column 'mask', but an augmentation has pixels"):
        augmenter('flip | sometimes(0.5, blur_background(mask_column="mask"))')
    with pytest.raises(UsageError, match=r"nothing in 'invert' is random, so all copies would be equal"):
        parse_augmentation("invert")
    with pytest.raises(GrammarError, match="'sample' drops pictures") as refused:
        parse_augmentation("flip | sample(0.5)")
    assert (refused.value.offset, refused.value.length) == (7, 6)


def test_filtering_refuses_augmentations(tmp_path: Path) -> None:
    for text in ("grayscale | rotate(15)", "sometimes(0.5, invert)"):
        with pytest.raises(
            GrammarError, match=r"is random, but a filter must give the same result.*`striate augment`"
        ) as refused:
            plan_filter(str(tmp_path / "a"), str(tmp_path / "b"), text)
        assert text[refused.value.offset :].startswith(("rotate", "sometimes"))
        with pytest.raises(TypeError, match=r"is random and needs a seed; use library.pipeline.augmentation.Augmenter"):
            Pipeline.parse(text).apply(scene())
        with pytest.raises(TypeError, match=r"is random and needs a seed; use library.pipeline.augmentation.Augmenter"):
            Pipeline.parse(text)(table([encoded()]))


# -- striate show --augment, and refusals of striate augment -----------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("augment")
    pictures = {
        "cat/a.png": encoded("png", 64, 64),
        "cat/b.png": encoded("png", 20, 20, 1),
        "dog/c.jpg": encoded("jpeg", 64, 64)[:-400],
    }
    ingest(write_files(folder / "raw", pictures), folder / "made")
    return str(folder / "made")


def test_a_sheet_shows_each_picture_followed_by_its_variants(dataset: str) -> None:
    sheet = contact_sheet(dataset, "invert | flip(p=1)", keys=["cat/a.png"], augment=3, tile_px=64)
    drawn = codec.decode(sheet.png)
    assert drawn.shape[1] == 10 + 4 * (64 + 10)
    pixels = scene(64, 64)
    tiles = [drawn[33:97, left : left + 64] for left in range(10, drawn.shape[1], 74)]
    np.testing.assert_array_equal(tiles[0], pixels)
    for tile in tiles[1:]:
        np.testing.assert_array_equal(tile, 255 - pixels[:, ::-1])
    assert sheet.pictures[0]["variants"] == ["64x64x3"] * 3


def test_the_variants_on_a_sheet_follow_the_seed_and_rejects_say_why(dataset: str) -> None:
    sheet = contact_sheet(dataset, "random_crop(32)", augment=2)
    assert {fact["key"]: fact["variants"] for fact in sheet.pictures} == {
        "cat/a.png": ["32x32x3"] * 2,
        "cat/b.png": ["rejected: too_small"] * 2,
        "dog/c.jpg": ["rejected: truncated"] * 2,
    }
    assert contact_sheet(dataset, "random_crop(32)", augment=2, seed=0).png == sheet.png
    assert contact_sheet(dataset, "random_crop(32)", augment=2, seed=1).png != sheet.png


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        ("flip", {}, "is random: give the number of variants to draw, as in --augment 8"),
        ("", {"augment": 8}, "--augment needs random steps"),
        ("invert", {"augment": 8}, "nothing in 'invert' is random"),
        ("flip | not_blank", {"augment": 8}, "'not_blank' drops pictures"),
        ("flip", {"augment": 0}, "--augment takes 1 to 64 variants"),
        ("flip", {"augment": 8, "count": 100}, "100 pictures with 8 variants are 900"),
        ("flip", {"augment": 8, "seed": -1}, "--seed -1: must be at least 0"),
        ("invert", {"seed": 3}, "--seed has no effect without --augment"),
    ],
)
def test_invalid_options_of_show_augment_are_explained(
    dataset: str, steps: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        contact_sheet(dataset, steps, **options)  # type: ignore[arg-type] -- one table of several options


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        ("flip", {"copies": 0}, "--copies 0: must be from 1 to 10,000"),
        ("flip", {"copies": 2, "seed": -1}, "--seed -1: must be at least 0"),
        ("flip", {"copies": 2, "limit": 0}, "--limit 0: must be at least 1"),
        ("flip", {"copies": 2, "encode": "gif"}, "unknown encoding 'gif'"),
        ("invert", {"copies": 2}, "nothing in 'invert' is random"),
        ("", {"copies": 2}, "write at least one step"),
        ("flip | sample(0.5)", {"copies": 2}, "'sample' drops pictures"),
    ],
)
def test_invalid_options_of_augment_are_explained_before_writing(
    dataset: str, tmp_path: Path, steps: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_augment(dataset, str(tmp_path / "out"), steps, **options)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_copies(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["augment", dataset, str(tmp_path / "out"), "--steps", "flip", "--copies", "4", "--keep-original"]
    assert run([*command, "--dry-run"]) == 0
    assert "copies to do     15" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
