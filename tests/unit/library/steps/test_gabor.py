import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.steps import Gabor
from tests.step_examples import DTYPES, WHITE, assert_close, flat, frozen, picture, step


def textbook(gabor: Gabor, phase: float) -> np.ndarray:
    """exp(-(x'^2 + (aspect y')^2) / 2 sigma^2) cos(2 pi x' / wavelength + phase), from Daugman's paper."""
    rows, columns = gabor.kernel(phase).shape
    y, x = np.mgrid[rows // 2 : -(rows // 2) - 1 : -1, columns // 2 : -(columns // 2) - 1 : -1].astype(np.float64)
    turn = math.radians(gabor.angle)
    across, along = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    envelope = np.exp(-(across**2 + (gabor.aspect * along) ** 2) / (2 * (gabor.sigma or 0) ** 2))
    wave = envelope * np.cos(2 * math.pi * across / gabor.wavelength + math.radians(phase))
    balanced = wave - envelope * wave.sum() / envelope.sum()
    return balanced / np.maximum(balanced, 0).sum()


gabors = st.builds(
    Gabor,
    wavelength=st.floats(2.5, 12),
    angle=st.floats(-180, 180),
    sigma=st.floats(0.5, 6),
    aspect=st.floats(0.3, 2),
)


@given(gabors, st.floats(-180, 180))
@settings(deadline=None, max_examples=60)
def test_the_kernel_follows_the_textbooks_formula(gabor: Gabor, phase: float) -> None:
    np.testing.assert_allclose(gabor.kernel(phase), textbook(gabor, phase), atol=1e-6)


@given(gabors)
@settings(deadline=None, max_examples=30)
def test_the_odd_kernel_is_opencvs_up_to_its_scale(gabor: Gabor) -> None:
    turn = math.radians(gabor.angle)
    kernel = cv2.getGaborKernel((0, 0), gabor.sigma or 0, turn, gabor.wavelength, gabor.aspect, math.pi / 2)
    positive = np.maximum(np.asarray(kernel), 0).sum()
    np.testing.assert_allclose(gabor.kernel(90), np.asarray(kernel) / positive, atol=1e-6)


@given(gabors, st.floats(-180, 180))
@settings(deadline=None, max_examples=30)
def test_the_weights_sum_to_0_and_the_positive_ones_to_1(gabor: Gabor, phase: float) -> None:
    weights = gabor.kernel(phase)
    assert weights.sum() == pytest.approx(0, abs=1e-9)
    assert np.maximum(weights, 0).sum() == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", ["gabor(4)", "gabor(6, angle=30, phase=0)", "gabor(3, phase=90, aspect=1)"])
def test_a_flat_picture_gives_black(text: str, dtype: str) -> None:
    assert step(text)(flat(0.6, dtype)).max() <= (0 if dtype != "float32" else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", [0, 30, 45, 90, 120])
def test_stripes_are_strongest_at_their_own_angle_and_wavelength(angle: int, dtype: str) -> None:
    y, x = np.mgrid[:48, :48]
    along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    stripes = frozen(((0.5 + 0.4 * np.sin(2 * math.pi * along / 6)) * WHITE[dtype]).astype(dtype)[:, :, None])

    def middle(wavelength: float, at: float) -> float:
        found = step(f"gabor({wavelength}, angle={at}, gain=1)")(stripes)[16:32, 16:32] / WHITE[dtype]
        assert found.std() < 0.05  # the length of both phases does not depend on where the stripes are
        return float(found.mean())

    own = middle(6, angle)
    assert own > 0.3
    assert own > 5 * middle(6, (angle + 90 + 180) % 360 - 180)
    assert own > 2 * max(middle(3, angle), middle(14, angle))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_picture_of_the_kernels_signs_gives_white(dtype: str) -> None:
    weights = step("gabor(5, angle=20, phase=0)").kernel(0)
    rows, columns = weights.shape
    signs = np.zeros((rows, columns, 1), dtype)
    signs[weights > 0] = WHITE[dtype]
    result = step("gabor(5, angle=20, phase=0, gain=1)")(frozen(signs))
    assert result[rows // 2, columns // 2, 0] == pytest.approx(WHITE[dtype], rel=1e-4)


@given(st.floats(-80, 80), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_a_mirrored_picture_is_mirrored_by_the_opposite_angle(angle: float, seed: int) -> None:
    pixels = picture("float32", channels=2, seed=seed)
    mirrored = Gabor(wavelength=5, angle=-angle)(frozen(pixels[:, ::-1].copy()))
    assert_close(mirrored, np.ascontiguousarray(Gabor(wavelength=5, angle=angle)(pixels)[:, ::-1]), rtol=1e-4)
