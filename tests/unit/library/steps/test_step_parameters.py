"""Text, equality, pickling, and what is refused when a step is built."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import GrammarError
from library.pipeline import Pipeline
from library.steps import REGISTRY, BoxBlur, Convolve, Crop, Edges, GaussianBlur, KeepLabels, Resize
from tests.step_examples import AUGMENTATIONS, FILTERS, SELECTORS, step

EVERY = FILTERS + SELECTORS + AUGMENTATIONS


def test_every_registered_step_has_an_example() -> None:
    assert set(REGISTRY) == {step(text).name for text in EVERY}


@pytest.mark.parametrize("text", EVERY)
def test_the_canonical_text_is_read_back_as_an_equal_step(text: str) -> None:
    pipeline = Pipeline.parse(text)
    again = Pipeline.parse(str(pipeline))
    assert again == pipeline
    assert str(again) == str(pipeline)
    assert again.digest == pipeline.digest


@pytest.mark.parametrize("text", EVERY)
def test_a_step_can_be_pickled(text: str) -> None:
    example = step(text)
    assert pickle.loads(pickle.dumps(example)) == example
    assert hash(pickle.loads(pickle.dumps(example))) == hash(example)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_step_has_a_one_line_summary_and_described_parameters(name: str) -> None:
    cls = REGISTRY[name]
    first = (cls.__doc__ or "").splitlines()[0]
    assert 10 < len(first) < 120
    assert first.endswith(("`.", "."))
    for field in vars(cls)["__pydantic_fields__"].values():
        assert field.description


weights = st.floats(-50, 50, width=32)


@given(
    st.one_of(
        st.builds(GaussianBlur, sigma=st.floats(1e-3, 250)),
        st.builds(BoxBlur, size=st.integers(1, 500).map(lambda half: 2 * half + 1)),
        st.builds(Crop, *(st.integers(1, 65535) for _ in range(4))),
        st.builds(Edges, direction=st.sampled_from(["all", "vertical"]), gain=st.floats(0.1, 1000)),
        st.builds(KeepLabels, labels=st.lists(st.text(), min_size=1, max_size=4).map(tuple)),
        st.builds(Resize, size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)), mode=st.just("exact")),
        st.builds(
            Convolve,
            kernel=st.integers(1, 4).flatmap(
                lambda width: st.lists(st.tuples(*[weights] * width), min_size=1, max_size=4).map(tuple)
            ),
            stride=st.integers(1, 5),
            padding=st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 20)),
            dilation=st.integers(1, 5),
        ),
    )
)
@settings(deadline=None, max_examples=150)
def test_any_parameters_survive_the_text(example: object) -> None:
    assert Pipeline.parse(str(example)).steps == (example,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("box_blur(4)", "should be odd, so that the window has a middle pixel; try 3 or 5"),
        ("box_blur(1)", "greater than or equal to 3"),
        ("box_blur(True)", "valid integer"),
        ("median_blur(257)", "less than or equal to 255"),
        ("gaussian_blur", "needs 'sigma'"),
        ("gaussian_blur(0)", "greater than 0"),
        ("gaussian_blur('wide')", "valid number"),
        ("gaussian_blur(1e999)", "finite"),
        ("gaussian_blur(2, border='wrap')", "'reflect_101', 'reflect', 'replicate' or 'zeros'"),
        ("denoise(search_size=20)", "odd"),
        ("bilateral(sigma_color=0)", "greater than 0"),
        ("convolve", "needs 'kernel'"),
        ("convolve(3)", "valid list"),
        ("convolve([1, 2])", "valid list"),
        ("convolve([])", "at least one weight"),
        ("convolve([[]])", "at least one weight"),
        ("convolve([[1, 2], [3]])", "rows of equal length; they have 1 and 2"),
        ("convolve([[1, 'a']])", "valid number"),
        ("convolve([[1, -1]], normalize=True)", "the sum of the weights, which is 0"),
        ("convolve([[20000]])", "the limit is 10000"),
        ("convolve([[1, 1]], dilation=1000, stride=0)", "greater than or equal to 1"),
        ("convolve([[1, 1, 1]], dilation=900)", "covers 1801 pixels"),
        ("convolve([[1, [2]]])", "this mixes both"),
        ("convolve([[[1, 2]], [[1]]])", "rows of equal length; they have 1 and 2"),
        ("convolve([[[1]], [[1], [2]]])", "as many rows for each channel; they have 1 and 2"),
        ("convolve([[1]], offset=127)", "less than or equal to 1"),
        ("gabor", "needs 'wavelength'"),
        ("gabor(2)", "greater than or equal to 2.5"),
        ("gabor(4, sigma=0.1)", "greater than or equal to 0.5"),
        ("gabor(200, aspect=0.2)", "covers 3360 pixels; the limit is 1001"),
        ("erode(4)", "should be odd, so that the window has a middle pixel; try 3 or 5"),
        ("open(5, 'round')", "'square', 'disk' or 'cross'"),
        ("convolve([[1]], padding='full')", "'same' or 'valid'"),
        ("convolve([[1]], padding=-1)", "0 to 1001 pixels"),
        ("convolve([[1]], padding='valid', border='zeros')", "'border' has no effect"),
        ("edges(direction='up')", "'all', 'vertical' or 'horizontal'"),
        ("edges(direction='vertical', operator='laplacian')", "no direction"),
        ("canny(low=0.5, high=0.1)", "should not be above"),
        ("binarize('otsu', threshold=0.5)", "no effect"),
        ("binarize('fixed', size=3)", 'belongs to "adaptive"'),
        ("binarize('fixed', threshold=128)", "less than or equal to 1"),
        ("contrast_stretch(60, 40)", "should be below"),
        ("channels([])", "at least 1 item"),
        ("channels([-1])", "greater than or equal to 0"),
        ("rgb(background=[255, 255, 255])", "less than or equal to 1"),
        ("rgb(background=[1])", "background"),
        ("max_pool(1)", "greater than or equal to 2"),
        ("avg_pool(2, 0)", "greater than or equal to 1"),
        ("resize(0)", "greater than or equal to 1"),
        ("resize([224, 224])", "one number for the short side"),
        ("resize(8, 'exact', enlarge=False)", "no effect"),
        ("resize(8, interpolation='nearest', antialias=True)", "use one of them"),
        ("center_crop([1, 2, 3])", "size"),
        ("crop(-1, 0, 5, 5)", "greater than or equal to 0"),
        ("crop(0, 0, 0, 5)", "greater than or equal to 1"),
        ("pad_square('reflect', fill=0.5)", "no effect"),
        ("rotate90(4)", "1, 2 or 3"),
        ("blur_background(mask_column='mask', margin=0.2)", "belongs to GrabCut"),
        ("min_size", "'short_side' or 'long_side', or both"),
        ("aspect_ratio_between(2, 1)", "should not be above"),
        ("file_size_between(9, 8)", "should not be above"),
        ("brightness_between", "'low' or 'high', or both"),
        ("keep_labels('cat')", "valid list"),
        ("keep_labels([])", "at least 1 item"),
        ("keep_formats(['jpg'])", "did you mean 'jpeg'?"),
        ("sample(1.5)", "less than 1"),
        ("sample(0.5, seed=-1)", "greater than or equal to 0"),
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
