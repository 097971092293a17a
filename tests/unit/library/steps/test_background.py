import numpy as np
import pyarrow as pa
import pytest

from library.errors import BadPicture, Dropped, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.batch import run_batch
from tests.step_examples import DTYPES, frozen, picture, step


def disc(height: int = 60, width: int = 80) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 4) ** 2


def scene(dtype: str = "uint8", channels: int = 3) -> np.ndarray:
    """A bright disc in front of dark noise."""
    pixels = picture("float32", channels, 60, 80).copy() * 0.2
    pixels[disc()] = 0.8
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    return frozen((pixels * white).astype(dtype))


def png(mask: np.ndarray) -> bytes:
    return codec.encode(np.asarray(mask, np.uint8)[:, :, None] * 255, codec.Encoding.parse("png"))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_grabcut_keeps_the_subject_and_blurs_the_background(channels: int, dtype: str) -> None:
    pixels = scene(dtype, channels)
    result = step("blur_background(sigma=3)")(pixels)
    np.testing.assert_array_equal(result[disc()], pixels[disc()])
    corner = (slice(0, 15), slice(0, 15))
    assert result[corner].std(axis=(0, 1)).max() < 0.5 * pixels[corner].std(axis=(0, 1)).max()


def test_grabcut_keeps_the_subject_of_a_large_picture() -> None:
    large = step("resize([540, 720], mode='exact')")(scene())
    inside = disc(540, 720)
    result = step("blur_background")(large)
    assert (result == large).all(axis=2)[inside].mean() > 0.98


def test_a_mask_keeps_exactly_its_subject() -> None:
    pixels, subject = scene(), disc()
    blur = step('blur_background(sigma=4, mask_column="mask")')
    assert blur.columns() == ("mask",)
    result = blur(pixels, png(subject))
    np.testing.assert_array_equal(result[subject], pixels[subject])
    np.testing.assert_array_equal(blur(pixels, {"bytes": png(subject), "path": None}), result)


def test_the_subjects_colours_do_not_bleed_into_the_background() -> None:
    pixels, subject = scene(), disc()
    result = step('blur_background(sigma=4, mask_column="mask")')(pixels, png(subject))
    assert result[~subject].max() <= pixels[~subject].max()


def test_a_flat_background_stays_flat() -> None:
    pixels = np.full((60, 80, 3), 40, np.uint8)
    pixels[disc()] = 200
    np.testing.assert_array_equal(step('blur_background(mask_column="mask")')(frozen(pixels), png(disc())), pixels)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [(None, "no_mask"), ({"bytes": None, "path": "x"}, "no_mask"), (png(disc(60, 81)), "mask_size"), (b"", "empty")],
)
def test_an_unusable_mask_makes_a_bad_picture(mask: object, reason: str) -> None:
    with pytest.raises(BadPicture) as caught:
        step('blur_background(mask_column="mask")')(scene(), mask)
    assert caught.value.reason == reason


def test_a_mask_column_of_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="the column holds str"):
        step('blur_background(mask_column="mask")')(scene(), "subject.png")


NOISE = frozen(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("pixels", [NOISE, picture(height=7, width=90)], ids=["noise", "too small for GrabCut"])
def test_a_picture_without_a_subject_is_kept_unchanged_or_dropped(pixels: np.ndarray) -> None:
    assert step("blur_background")(pixels) is pixels
    with pytest.raises(Dropped, match="no_subject"):
        step('blur_background(no_subject="drop")')(pixels)


def test_a_mask_of_zeros_is_a_picture_without_a_subject() -> None:
    pixels, nothing = scene(), png(np.zeros((60, 80)))
    assert step('blur_background(mask_column="mask")')(pixels, nothing) is pixels
    with pytest.raises(Dropped, match="no_subject"):
        step('blur_background(mask_column="mask", no_subject="drop")')(pixels, nothing)


def test_pictures_without_a_subject_count_as_dropped() -> None:
    pictures = [codec.encode(pixels, codec.Encoding.parse("png"))[0] for pixels in (scene(), NOISE)]
    rows = pa.table({"key": ["scene", "noise", "none"], "image": [*pictures, b"no picture"]})
    for text, num_kept in (("blur_background", 2), ('blur_background(no_subject="drop")', 1)):
        result = run_batch([step(text)], rows)
        assert (result.table.num_rows, dict(result.dropped)) == (num_kept, {"no_subject": 1} if num_kept == 1 else {})
        assert dict(result.rejected) == {"not_an_image": 1}


def test_augmenting_refuses_a_filter_that_may_drop_a_picture() -> None:
    Augmenter(Pipeline.parse("flip | blur_background"), 0)
    with pytest.raises(UsageError, match="may drop a picture"):
        Augmenter(Pipeline.parse('flip | sometimes(0.5, blur_background(no_subject="drop"))'), 0)


def test_without_a_mask_no_column_is_needed() -> None:
    assert step("blur_background").columns() == ()
