import numpy as np
import pytest
from scipy import ndimage

from library.errors import BadPicture
from tests.step_examples import DTYPES, WHITE, assert_close, flat, frozen, picture, step

OPERATORS = ("sobel", "prewitt", "scharr")


def step_edge(dtype: str, height: float = 1.0) -> np.ndarray:
    """Dark left, bright right: a vertical edge between columns 7 and 8."""
    pixels = np.zeros((16, 16, 1))
    pixels[:, 8:] = height * WHITE[dtype]
    return frozen(pixels.astype(dtype))


@pytest.mark.parametrize("text", ["sharpen(amount=1)", "laplacian_sharpen"])
def test_sharpening_steepens_an_edge_that_a_blur_flattens(text: str) -> None:
    soft = step("gaussian_blur(1.5)")(step_edge("float32"))
    sharp = step(text)(soft)
    assert np.diff(sharp[8, :, 0]).max() > 1.1 * np.diff(soft[8, :, 0]).max()


def test_sharpen_follows_the_formula_of_the_unsharp_mask() -> None:
    pixels = picture("float32")
    blurred = step("gaussian_blur(2)")(pixels)
    expected = pixels + np.float32(0.7) * (pixels - blurred)
    assert_close(step("sharpen(amount=0.7, sigma=2)")(pixels), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_laplacian_sharpen_subtracts_the_laplacian(dtype: str) -> None:
    pixels = picture(dtype, channels=1)
    plane = pixels[:, :, 0].astype(np.float64)
    expected = plane - 0.25 * ndimage.laplace(plane, mode="mirror")
    if dtype != "float32":
        expected = np.rint(np.clip(expected, 0, WHITE[dtype]))
    assert_close(step("laplacian_sharpen(0.25)")(pixels), expected.astype(dtype)[:, :, None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_step_from_black_to_white_gives_white_with_every_operator(operator: str, dtype: str) -> None:
    result = step(f'edges(gain=1, operator="{operator}")')(step_edge(dtype))
    assert_close(result[:, 7:9], flat(1, dtype, channels=1, height=16, width=2), steps=0)
    assert result[:, :7].max() == result[:, 9:].max() == 0
    half = step(f'edges(gain=1, operator="{operator}")')(step_edge(dtype, 0.2))
    assert half.max() == pytest.approx(0.2 * WHITE[dtype], rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_direction_finds_only_edges_of_that_direction(operator: str, dtype: str) -> None:
    edge = step_edge(dtype)
    vertical = step(f'edges(gain=1, direction="vertical", operator="{operator}")')
    horizontal = step(f'edges(gain=1, direction="horizontal", operator="{operator}")')
    assert vertical(edge).max() == pytest.approx(WHITE[dtype])
    assert horizontal(edge).max() == 0
    turned = edge.swapaxes(0, 1)
    assert_close(horizontal(turned), np.ascontiguousarray(vertical(edge).swapaxes(0, 1)), steps=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_directions_give_the_gradients_length(dtype: str) -> None:
    pixels = picture(dtype)
    parts = [step(f'edges(gain=1, direction="{way}")')(pixels).astype(np.float64) for way in ("vertical", "horizontal")]
    expected = np.minimum(np.hypot(*parts), WHITE[dtype] if dtype != "float32" else np.inf)
    np.testing.assert_allclose(step("edges(gain=1)")(pixels), expected, atol=1.5 if dtype != "float32" else 1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_edges_turn_with_the_picture(operator: str) -> None:
    pixels = picture("float32")
    edges, turn = step(f'edges(gain=1, operator="{operator}")'), step("rotate90")
    assert_close(edges(turn(pixels)), turn(edges(pixels)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "text", ["edges", 'edges(gain=1, operator="laplacian")', 'edges(direction="vertical")', "canny"]
)
def test_a_flat_picture_has_no_edges(text: str, dtype: str) -> None:
    assert step(text)(flat(0.6, dtype)).max() == 0


def test_gain_multiplies_and_integers_saturate() -> None:
    edge = step_edge("uint8", 0.3)
    assert step("edges(gain=2)")(edge).max() == 2 * edge.max()
    assert step("edges(gain=10)")(edge).max() == 255
    assert step("edges(gain=10)")(step_edge("float32", 0.3)).max() == pytest.approx(3)


def test_the_laplacian_equals_scipys() -> None:
    pixels = picture("float32", channels=1)
    expected = np.abs(ndimage.laplace(pixels[:, :, 0], mode="mirror"))
    np.testing.assert_allclose(step('edges(gain=1, operator="laplacian")')(pixels)[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_canny_draws_one_thin_white_line_along_an_edge(dtype: str) -> None:
    result = step("canny")(step_edge(dtype))
    assert set(np.unique(result).tolist()) == {0, WHITE[dtype]}
    assert (np.count_nonzero(result, axis=1) == 1).all()


def test_canny_thresholds_are_in_the_units_of_edges() -> None:
    faint = step_edge("uint8", 0.3)
    assert step("canny(low=0.2, high=0.29)")(faint).any()
    assert not step("canny(low=0.2, high=0.32)")(faint).any()


def test_canny_refuses_nan() -> None:
    with pytest.raises(BadPicture, match="not_finite"):
        step("canny")(flat(np.nan, "float32"))
