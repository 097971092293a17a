import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import BadPicture
from library.steps import Convolve
from tests.step_examples import DTYPES, WHITE, assert_close, frozen, picture, step

IDENTITIES = ("convolve([[1]])", "convolve([[0, 0, 0], [0, 1, 0], [0, 0, 0]])", "convolve([[0, 3, 0]], normalize=True)")


def by_torch(pixels: np.ndarray, convolution: Convolve) -> np.ndarray:
    planes = torch.from_numpy(np.moveaxis(pixels.astype(np.float64), 2, 0).copy())[:, None]
    kernel = torch.tensor(convolution.kernel, dtype=torch.float64)[None, None]
    if (
        convolution.padding == "same" and convolution.stride > 1
    ):  # not supported by torch: every stride-th pixel of "same"
        result = torch.nn.functional.conv2d(planes, kernel, padding="same", dilation=convolution.dilation)
        result = result[:, :, :: convolution.stride, :: convolution.stride]
    else:
        result = torch.nn.functional.conv2d(
            planes, kernel, stride=convolution.stride, padding=convolution.padding, dilation=convolution.dilation
        )
    return np.moveaxis(result[:, 0].numpy(), 0, 2)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolve:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    weights = np.random.default_rng(draw(st.integers(0, 2**32))).integers(-3, 5, (rows, columns))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 6)))
    return Convolve(
        kernel=tuple(map(tuple, (weights / draw(st.sampled_from([1, 4]))).tolist())),
        stride=draw(st.integers(1, 4)),
        padding=padding,
        dilation=draw(st.integers(1, 3)),
        border=None if padding in ("valid", 0) else "zeros",
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(convolutions(), st.sampled_from(DTYPES), st.sampled_from([1, 3, 7]), st.integers(0, 99))
@settings(deadline=None, max_examples=120)
def test_a_convolution_equals_pytorchs_conv2d(convolution: Convolve, dtype: str, channels: int, seed: int) -> None:
    pixels = picture(dtype, channels, 14, 17, seed)
    expected = by_torch(pixels, convolution)
    result = convolution(pixels)
    assert result.shape == expected.shape
    if dtype == "float32":
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    else:
        assert np.abs(result - np.clip(expected, 0, WHITE[dtype])).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", IDENTITIES)
def test_the_identity_kernel_is_the_identity(text: str, dtype: str) -> None:
    pixels = picture(dtype, channels=5)
    np.testing.assert_array_equal(step(text)(pixels), pixels)


@given(st.integers(0, 2**32), st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=30)
def test_a_kernel_and_its_mirror_commute_with_a_flip(seed: int, dtype: str) -> None:
    weights = np.random.default_rng(seed).integers(-2, 4, (3, 5)).tolist()
    kernel, mirrored = tuple(map(tuple, weights)), tuple(tuple(row[::-1]) for row in weights)
    pixels = picture(dtype)
    flipped = Convolve(mirrored)(pixels[:, ::-1])
    assert_close(flipped, np.ascontiguousarray(Convolve(kernel)(pixels)[:, ::-1]), steps=0)


def test_it_is_a_cross_correlation_that_does_not_flip_the_kernel() -> None:
    pixels = np.zeros((5, 5, 1), np.float32)
    pixels[2, 2] = 1
    result = step("convolve([[1, 2, 3], [4, 5, 6], [7, 8, 9]])")(frozen(pixels))
    np.testing.assert_array_equal(result[1:4, 1:4, 0], [[9, 8, 7], [6, 5, 4], [3, 2, 1]])


def test_dilation_puts_zeros_between_the_kernels_weights() -> None:
    pixels = picture()
    spread = step("convolve([[1, 0, 2], [0, 0, 0], [3, 0, 4]], normalize=True)")
    np.testing.assert_array_equal(
        step("convolve([[1, 2], [3, 4]], dilation=2, normalize=True)")(pixels), spread(pixels)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_kernel_is_as_exact_as_a_small_one(dtype: str) -> None:
    pixels = picture(dtype, channels=2, height=30, width=40)
    rows = [[(i * 7 + j * 3) % 5 for j in range(15)] for i in range(13)]
    convolution = Convolve(tuple(map(tuple, rows)), normalize=True, border="zeros")
    total = sum(map(sum, rows))
    expected = by_torch(pixels, Convolve(tuple(tuple(w / total for w in row) for row in rows)))
    assert np.abs(convolution(pixels) - expected).max() <= (0.501 if dtype != "float32" else 1e-5)


def test_a_kernel_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(BadPicture, match="too_small: a kernel of 5x1 pixels does not fit into a picture of 4x3"):
        step("convolve([[1, 1, 1, 1, 1]], padding='valid')")(picture(height=3, width=4))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integers_saturate_and_do_not_wrap(dtype: str) -> None:
    pixels = picture(dtype)
    assert (step("convolve([[9000]])")(pixels)[pixels > 10] == WHITE[dtype]).all()
    assert step("convolve([[-9000]])")(pixels).max() == 0


@st.composite
def deep_convolutions(draw: st.DrawFn) -> Convolve:
    channels, rows, columns = draw(st.sampled_from([1, 3, 7])), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    weights = np.random.default_rng(draw(st.integers(0, 2**32))).integers(-3, 5, (channels, rows, columns)) / 4
    padding = draw(st.one_of(st.just("valid"), st.integers(0, 4)))
    return Convolve(
        kernel=tuple(tuple(map(tuple, plane)) for plane in weights.tolist()),
        stride=draw(st.integers(1, 3)),
        padding=padding,
        dilation=draw(st.integers(1, 2)),
        offset=draw(st.sampled_from([0.0, 0.5, -0.25])),
        border=None if padding in ("valid", 0) else "zeros",
    )


@given(deep_convolutions(), st.sampled_from(DTYPES), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_plane_for_each_channel_equals_one_output_of_conv2d(deep: Convolve, dtype: str, seed: int) -> None:
    assert deep.channels is not None
    pixels = picture(dtype, deep.channels, 14, 17, seed)
    planes = torch.from_numpy(np.moveaxis(pixels.astype(np.float64), 2, 0).copy())[None]
    kernel, bias = torch.tensor(deep.kernel, dtype=torch.float64)[None], deep.offset * WHITE[dtype]
    padding = deep.padding if isinstance(deep.padding, int) else "valid"
    expected = torch.nn.functional.conv2d(planes, kernel, torch.tensor([bias]).double(), deep.stride, padding,
                                          deep.dilation)[0].numpy()  # fmt: skip
    result = deep(pixels)
    assert result.shape == (*expected.shape[1:], 1)
    if dtype == "float32":
        np.testing.assert_allclose(result[:, :, 0], expected[0], rtol=1e-4, atol=1e-4)
    else:
        assert np.abs(result[:, :, 0] - np.clip(expected[0], 0, WHITE[dtype])).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_deep_kernel_is_the_sum_of_its_planes(dtype: str) -> None:
    pixels = picture(dtype)
    grey = step("convolve([[[0.25]], [[0.5]], [[0.25]]])")(pixels)
    expected = pixels.astype(np.float64) @ [0.25, 0.5, 0.25]
    assert np.abs(grey[:, :, 0] - expected).max() <= (0.5 if dtype != "float32" else 1e-6)
    normalized = step("convolve([[[1]], [[2]], [[1]]], normalize=True)")(pixels)
    assert_close(normalized, grey)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_planes_for_other_channels_than_the_pictures_are_refused(channels: int) -> None:
    with pytest.raises(BadPicture, match=f"wrong_channels: .* 3 channels; the picture has {channels}"):
        step("convolve([[[1]], [[2]], [[1]]])")(picture(channels=channels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_offset_keeps_negative_sums_visible(dtype: str) -> None:
    pixels = picture(dtype, channels=2)
    difference = step("convolve([[-1, 0, 1]], offset=0.5)")(pixels)
    mirrored = step("convolve([[1, 0, -1]], offset=0.5)")(pixels)
    inside = (difference > 0) & (difference < WHITE[dtype])
    sums = (difference.astype(np.float64) + mirrored)[inside]
    np.testing.assert_allclose(sums, WHITE[dtype], atol=1 if dtype != "float32" else 1e-5)
    assert difference.min() < 0.4 * WHITE[dtype] < 0.6 * WHITE[dtype] < difference.max()
