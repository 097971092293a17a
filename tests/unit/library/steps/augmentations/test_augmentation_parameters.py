"""Parameters of augmentations: what is refused, and equivalent forms."""

from __future__ import annotations

import pytest

from library.errors import GrammarError
from library.pipeline import Pipeline
from tests.step_examples import step


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
