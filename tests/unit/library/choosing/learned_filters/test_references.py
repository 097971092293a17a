import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from library.choosing.learned_filters.references import chance, describe_colour, nearest, references

SIZES = (3, 5, 7)
colours = st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda c: np.linalg.norm(c) > 0.1)


@pytest.mark.parametrize("size", SIZES)
def test_references_have_unit_length_and_names_of_their_own(size: int) -> None:
    known = references(size)
    assert len({one.name for one in known}) == len(known)
    for one in known:
        assert one.weights.shape == (size, size)
        assert np.linalg.norm(one.weights) == pytest.approx(1)
    families = {one.family: one for one in known}
    assert set(families) == {"edge", "line", "spot", "blur"}


@pytest.mark.parametrize("size", SIZES)
def test_edge_references_sum_to_0_and_mirror_to_their_negative(size: int) -> None:
    for one in references(size):
        if one.family == "edge":
            assert one.weights.sum() == pytest.approx(0, abs=1e-9)
            np.testing.assert_allclose(one.weights[::-1, ::-1], -one.weights, atol=1e-9)


@given(st.sampled_from(SIZES), st.integers(0, 200), colours, st.floats(0.01, 100), st.sampled_from([-1, 1]))
@settings(deadline=None, max_examples=40)
def test_a_reference_in_any_colour_and_sign_matches_itself(
    size: int, number: int, colour: list[float], scale: float, sign: int
) -> None:
    known = references(size)
    one = known[number % len(known)]
    kernel = np.multiply.outer(np.asarray(colour) * scale * sign, one.weights)
    (match,) = nearest(kernel[None])
    assert match.cosine == pytest.approx(1, abs=1e-6)
    expected = kernel / np.linalg.norm(kernel)
    np.testing.assert_allclose(match.weights, expected, atol=1e-6)
    assert match.channels[int(np.abs(match.channels).argmax())] > 0


def test_sobel_beside_the_middle_is_found_with_its_shift() -> None:
    sobel = np.zeros((1, 1, 5, 5))
    sobel[0, 0, 2:, :3] = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    (match,) = nearest(sobel)
    assert (match.reference, match.shift, match.family) == ("sobel x", (1, -1), "edge")
    assert match.cosine == pytest.approx(1)
    assert (match.colour, match.is_colour) == ("grey", False)


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=10)
def test_a_cosine_lies_between_0_and_1_for_any_kernel(seed: int) -> None:
    kernels = np.random.default_rng(seed).normal(size=(4, 3, 5, 5))
    for match, kernel in zip(nearest(kernels), kernels, strict=True):
        drawn = float((match.weights * kernel).sum() / np.linalg.norm(kernel))
        assert 0 < match.cosine < 1
        assert match.cosine == pytest.approx(drawn)


def test_a_kernel_of_zeros_matches_nothing() -> None:
    assert nearest(np.zeros((1, 1, 5, 5)))[0].cosine == 0


@pytest.mark.parametrize("sigma_px", [0, 0.8, 1.5])
def test_few_random_kernels_of_any_smoothness_exceed_chance(sigma_px: float) -> None:
    bound = chance(noise(200, 3, sigma_px, seed=0))
    above = sum(match.cosine > bound for match in nearest(noise(200, 3, sigma_px, seed=1)))
    assert 1 <= above <= 24  # 10 are expected


def noise(count: int, channels: int, sigma_px: float, *, seed: int) -> NDArray[np.float64]:
    """Random kernels of 5x5, blurred."""
    white = np.random.default_rng(seed).normal(size=(count, channels, 17, 17))
    blurred = gaussian_filter(white, (0, 0, sigma_px, sigma_px)) if sigma_px else white
    return blurred[:, :, 6:11, 6:11]


def test_chance_is_higher_for_smoother_and_for_fewer_numbers() -> None:
    white, smooth = noise(50, 3, 0, seed=0), noise(50, 3, 1, seed=0)
    assert chance(smooth) > chance(white) + 0.1
    assert chance(white[:, :1, 1:4, 1:4]) > chance(white[:, :1]) > chance(white)


def test_chance_depends_neither_on_size_nor_on_turning_of_kernels() -> None:
    kernels = noise(8, 3, 0.8, seed=2)
    scales = np.linspace(0.01, 100, 8)[:, None, None, None]
    assert chance(kernels * scales) == pytest.approx(chance(kernels), abs=0.01)
    assert chance(np.rot90(kernels, 1, (2, 3))) == pytest.approx(chance(kernels), abs=0.01)
    assert chance(np.zeros((2, 3, 5, 5))) == 0


@pytest.mark.parametrize(
    ("channels", "colour", "is_colour"),
    [
        ([1, 1, 1], "grey", False),
        ([-0.5, -0.5, -0.6], "grey", False),
        ([1], "grey", False),
        ([1, -1, 0], "pink against turquoise", True),
        ([1, 0, -1], "orange against azure", True),
        ([-0.5, -0.5, 1], "blue against yellow", True),
        ([1, 0.1, 0.1], "mostly red", True),
        ([1, 0, 0, -1], "band 0 against band 3", True),
    ],
)
def test_channels_are_named_by_the_hues_they_oppose(channels: list[float], colour: str, is_colour: bool) -> None:
    assert describe_colour(channels) == (colour, is_colour)
