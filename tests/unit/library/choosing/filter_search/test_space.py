"""The candidates of a filter search."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from library.choosing.filter_search.space import IDENTITY, Candidate, Space
from library.choosing.filter_search.trials import Unit, UnitResult, halves
from library.errors import UsageError
from library.pipeline import Pipeline


def test_every_single_of_the_default_space_is_a_recipe_that_parses() -> None:
    singles = Space.default().singles()
    assert len({one.name for one in singles}) == len(singles)
    for one in singles:
        Pipeline.parse(one.input_steps("grayscale | resize(32)"), refuse="augmentation")
        Pipeline.parse(one.augment("flip"), refuse="selector")
        assert Candidate.from_json(one.to_json()) == one


def test_each_filter_of_the_default_space_has_two_strengths_if_it_has_any() -> None:
    strengths = Counter(Pipeline.parse(text).steps[0].name for text in Space.default().filters)
    assert {name for name, count in strengths.items() if count == 1} == {"equalize", "invert", "binarize"}
    assert len(Space.default().singles()) == 117, "docs/filter-search.md names the number"


def test_filters_come_before_the_recipes_steps_and_channels_after() -> None:
    assert Candidate("invert").input_steps("grayscale") == "invert | grayscale"
    assert Candidate("invert", "channels").input_steps("grayscale") == "grayscale | with_channels(invert)"
    sometimes = Candidate("invert", "sometimes", 0.25)
    assert sometimes.input_steps("grayscale") == "grayscale"
    assert sometimes.augment("flip") == "sometimes(0.25, invert) | flip"


def test_the_identity_and_placebos_leave_a_recipe_as_it_is() -> None:
    placebos = [Candidate(placebo=1), Candidate(placebo=2)]
    for one in (IDENTITY, *placebos):
        assert (one.input_steps("grayscale"), one.augment("flip")) == ("grayscale", "flip")
    assert len({one.seed(7) for one in (IDENTITY, *placebos)}) == 3
    assert Candidate("invert").seed(7) == IDENTITY.seed(7) == 7


def test_pairs_come_in_both_orders_without_two_strengths_of_one_step() -> None:
    space = Space(("median_blur(size=3)", "median_blur(size=5)", "invert", "equalize"))
    survivors = [Candidate(text) for text in space.filters] + [Candidate("invert", "channels"), Candidate(placebo=1)]
    names = {one.name for one in space.compose(survivors, 2)}
    assert {"invert | equalize", "equalize | invert"} <= names
    assert len(names) == 10
    assert not any(name.count("median") > 1 for name in names)
    assert len(space.compose(survivors, 3)) == 12


def test_a_space_is_narrowed_and_widened() -> None:
    text = "filters: [default, 'invert | median_blur(3)']\nwithout: [denoise, canny]\nplaces: [always]\nplacebos: 1"
    space = Space.parse(text)
    assert "invert | median_blur(size=3)" in space.filters
    assert not any("denoise" in filters or "canny" in filters for filters in space.filters)
    assert {one.place for one in space.singles()} == {"always"}
    assert space.singles()[-1].name == "placebo 1"


def test_all_mistakes_of_a_space_come_in_one_error() -> None:
    text = "filters: [medan_blur, not_blank, flip]\nlenght: 2\np: 3\nplaces: [always, nowhere]\nlength: 9\nplacebos: -1"
    with pytest.raises(UsageError) as raised:
        Space.parse(text, "space.yaml")
    message = str(raised.value)
    assert message.startswith("space.yaml is wrong:")
    for part in ("did you mean 'median_blur'", "drops pictures", "random", "did you mean 'length'", "p: 3 is not"):
        assert part in message
    assert "places: " in message
    assert "length: 9" in message
    assert "placebos: -1" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("length: 2.0", "length: 2.0 is not 1, 2 or 3"),
        ("placebos: 3.0", "placebos: 3.0 is not a number"),
        ("placebos: true", "placebos: True is not a number"),
        ("length: [1]", "length: (1,) is not"),
        ("p: 0.9\nplaces: [always]", "p: has no effect without the place `sometimes`"),
        ("places: [[always]]", "places: [['always']] is not a list"),
        ("filters: [3]", "filters: 3 is not the text of a pipeline"),
        ("filters: [[invert]]", "filters: ['invert'] is not the text of a pipeline"),
        ("filters: [invert]\nfilters: [equalize]", "line 2, column 1: 'filters' is given twice"),
        ("without: [canny, resize]", "without: 'resize' has no effect, as it is in none of the filters"),
        ("without: &a [canny]\nfilters: *a", "an alias (*) is not allowed"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(text: str, part: str) -> None:
    with pytest.raises(UsageError) as raised:
        Space.parse(text, "space.yaml")
    assert part in str(raised.value)


def test_a_result_is_read_back_as_it_was() -> None:
    correct = np.random.default_rng(0).random(37) < 0.6
    result = UnitResult(Unit(Candidate("invert"), 3, "proxy", "abc"), correct, 1.5, 0.25)
    again = UnitResult.from_json(result.to_json())
    assert again.unit == result.unit
    assert np.array_equal(again.correct, correct)
    assert again.accuracy == correct.mean()


def test_a_picture_stays_in_its_half_when_others_are_added() -> None:
    keys = [f"picture/{number}" for number in range(1000)]
    screening = halves(keys)
    assert 0.4 < screening.mean() < 0.6
    assert np.array_equal(halves(keys[:300]), screening[:300])


@pytest.mark.parametrize(
    ("candidate", "label"),
    [
        (IDENTITY, "identity"),
        (Candidate(placebo=2), "placebo 2"),
        (Candidate("median_blur(size=3)", "sometimes", 0.5), "sometimes(0.5, median_blur(size=3))"),
        (Candidate('gaussian_blur(sigma=0.7, border="reflect_101")'), "gaussian_blur(sigma=0.7)"),
        (Candidate('gaussian_blur(sigma=0.7, border="zeros")'), 'gaussian_blur(sigma=0.7, border="zeros")'),
        (Candidate("equalize | invert", "channels"), "with_channels(equalize | invert)"),
    ],
)
def test_a_label_leaves_out_words_that_have_their_default(candidate: Candidate, label: str) -> None:
    assert candidate.label == label


def test_a_label_of_a_kernel_has_its_first_number() -> None:
    short = Candidate(str(Pipeline.parse("convolve(kernel=[[0, 1, 0], [1, -4, 1], [0, 1, 0]])")))
    assert "kernel=[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]" in short.label
    planes = [[[0.015625 * (row - column) for column in range(5)] for row in range(5)] for _ in range(3)]
    long = Candidate(str(Pipeline.parse(f"convolve(kernel={planes})")))
    assert "kernel=[[[0.0, ...]]]" in long.label
    assert len(long.label) < 90
