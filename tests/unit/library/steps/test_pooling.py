import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import BadPicture
from library.steps import AvgPool, MaxPool
from tests.step_examples import DTYPES, picture, step


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(pixels.astype(np.float64), 2, 0).copy())


@given(st.integers(2, 6), st.integers(1, 7), st.sampled_from(DTYPES), st.sampled_from([1, 3, 7]), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_pooling_equals_pytorchs(size: int, stride: int, dtype: str, channels: int, seed: int) -> None:
    pixels = picture(dtype, channels, 13, 18, seed)
    greatest = torch.nn.functional.max_pool2d(planes(pixels), size, stride).numpy()
    np.testing.assert_array_equal(MaxPool(size, stride)(pixels), np.moveaxis(greatest, 0, 2))
    mean = np.moveaxis(torch.nn.functional.avg_pool2d(planes(pixels), size, stride).numpy(), 0, 2)
    if dtype == "float32":
        np.testing.assert_allclose(AvgPool(size, stride)(pixels), mean, rtol=1e-5)
    else:
        np.testing.assert_array_equal(AvgPool(size, stride)(pixels), np.rint(mean))


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_the_default_stride_is_the_size(name: str) -> None:
    assert str(step(f"{name}(3)")) == f"{name}(size=3, stride=3)"
    assert step(f"{name}(3)")(picture(height=11, width=9)).shape == (3, 3, 3)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_a_window_larger_than_the_picture_is_refused(name: str) -> None:
    with pytest.raises(BadPicture, match="too_small"):
        step(f"{name}(4)")(picture(height=3, width=9))


def test_max_pool_passes_nan_on_like_pytorch() -> None:
    pixels = picture("float32").copy()
    pixels[3, 3, 1] = np.nan
    assert np.argwhere(np.isnan(step("max_pool(2)")(pixels))).tolist() == [[1, 1, 1]]
