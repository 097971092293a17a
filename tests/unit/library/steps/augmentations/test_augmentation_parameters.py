"""Parameters of augmentations: what is refused, and equivalent forms."""

from __future__ import annotations

import pytest

from library.errors import GrammarError
from library.pipeline import Pipeline
from tests.step_examples import step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotate", "needs 'degrees'"),
        ("rotate(200)", "less than or equal to 180"),
        ("rotate([20, -20])", "[low, high], the low end first"),
        ("rotate(10, p=1.5)", "less than or equal to 1"),
        ("rotate(10, fill='mirror')", 'one of "edge", "reflect", "wrap"; got "mirror"'),
        ("rotate(10, fill=2)", "a constant from 0 to 1"),
        ("rotate(10, fill=True)", "a constant from 0 to 1"),
        ("rotate(10, fill=[0, 0])", "a constant from 0 to 1"),
        ("flip(direction='up')", "'horizontal', 'vertical' or 'both'"),
        ("shift(2)", "less than or equal to 1"),
        ("shear(85)", "less than or equal to 80"),
        ("zoom(1)", "less than 1"),
        ("zoom([0, 1])", "greater than or equal to 0.01"),
        ("brightness(-0.1)", "greater than or equal to 0"),
        ("contrast([2, 1])", "the low end first"),
        ("hue(0.6)", "less than or equal to 0.5"),
        ("random_crop(0)", "greater than or equal to 1"),
        ("random_resized_crop(9, scale=[0, 1])", "greater than 0"),
        ("random_resized_crop(9, ratio=[2, 1])", "the low end first"),
        ("random_erase(fill='grey')", "'noise'"),
        ("gaussian_noise(0)", "greater than 0"),
        ("random_blur(2)", "valid list"),
        ("jpeg_quality(90, 50)", "'low' should not be above 'high' (50)"),
        ("randaugment(magnitude=31)", "less than or equal to 30"),
        ("sometimes(2, invert)", "less than or equal to 1"),
        ("sometimes(0.5)", "needs 'steps'"),
        ("sometimes(0.5, 3)", "should be a filter or an augmentation, or several joined by '|'"),
        ("rotate(invert)", "valid number"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_would_work(text: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        Pipeline.parse(text)
    assert message in caught.value.message
    assert caught.value.message.startswith(text.split("(")[0])


def test_a_selector_inside_sometimes_is_refused_at_its_place() -> None:
    text = "flip | sometimes(0.5, invert | not_blank)"
    with pytest.raises(GrammarError, match="'not_blank' drops pictures") as caught:
        Pipeline.parse(text)
    assert text[caught.value.offset :].startswith("not_blank")


def test_steps_may_be_nested_deeply() -> None:
    text = "sometimes(0.5, sometimes(0.5, flip(p=1) | rotate(3)) | invert)"
    assert str(Pipeline.parse(text)) == (
        "sometimes(p=0.5, steps=sometimes(p=0.5, "
        'steps=flip(p=1.0, direction="horizontal") | rotate(degrees=3.0, p=1.0, fill=0.0)) | invert)'
    )


def test_a_fill_of_constant_means_0() -> None:
    assert step('rotate(10, fill="constant")') == step("rotate(10, fill=0)")
