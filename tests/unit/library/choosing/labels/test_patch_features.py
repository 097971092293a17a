import numpy as np

from library.choosing.labels.patch_features import SIDE_PX, PatchFilters, patch_inputs
from library.imaging import codec


def pictures(channels: int, number: int = 12) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (number, SIDE_PX, SIDE_PX, channels), np.uint8))


def test_features_have_the_stated_length_and_are_never_negative() -> None:
    for channels in (1, 3):
        filters = PatchFilters.learn(pictures(channels), filters=10)
        features = filters.encode(pictures(channels)[0])
        assert features.shape == (filters.dimensions,) == (80,)
        assert features.dtype == np.float32
        assert (features >= 0).all()


def test_the_same_pictures_give_the_same_filters() -> None:
    one, other = PatchFilters.learn(pictures(1), filters=8), PatchFilters.learn(pictures(1), filters=8)
    np.testing.assert_array_equal(one.filters, other.filters)
    assert (PatchFilters.learn(pictures(1), filters=8, seed=1).filters != one.filters).any()


def test_brightness_and_contrast_hardly_change_the_features() -> None:
    filters = PatchFilters.learn(pictures(1), filters=16)
    picture = pictures(1)[3]
    changed = (picture * 0.5 + 60).astype(np.uint8)
    one, other = filters.encode(picture), filters.encode(changed)
    assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one)


def test_any_picture_is_prepared_for_the_filters() -> None:
    data = codec.encode(np.zeros((50, 70, 3), np.uint8), codec.Encoding("png"))[0]
    assert patch_inputs(1).prepare(data).shape == (SIDE_PX, SIDE_PX, 1)
    assert patch_inputs(3).prepare(data).shape == (SIDE_PX, SIDE_PX, 3)
