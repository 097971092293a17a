"""A finished classifier: kept, read again, asked, and joined with others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord, Prediction, load_record
from library.bundle.ensemble import ensemble
from library.errors import BadPicture, StriateError, UsageError
from library.imaging import codec
from library.models.build import create
from tests.bundles import PROBABILITY_TOLERANCE, near
from tests.picture_examples import heic_bytes, pil_bytes


def bundle(seed: int, classes: tuple[str, ...] = ("ant", "bee", "cat"), **fields: object) -> Bundle:
    """An untrained LeNet; the seed makes its weights."""
    torch.manual_seed(seed)
    record = BundleRecord(
        model="lenet5",
        classes=classes,
        steps="grayscale",
        fit='resize([28, 28], mode="exact")',
        input_size=(28, 28),
        channels=1,
    ).model_copy(update=fields)
    return Bundle.of_model(record, create("lenet5", num_classes=len(classes)), device="cpu")


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    return codec.encode(pixels, codec.Encoding("png"))[0]


PICTURES = [picture(number) for number in range(6)]


def test_a_bundle_read_again_has_the_same_id_and_predicts_the_same(tmp_path: Path) -> None:
    made = bundle(0)
    made.save(str(tmp_path / "made"))
    read = Bundle.load(str(tmp_path / "made"), device="cpu")
    assert read.id == made.id
    for answer, wanted in zip(read.predict_many(PICTURES), made.predict_many(PICTURES), strict=True):
        assert isinstance(answer, Prediction)
        assert isinstance(wanted, Prediction)
        assert list(answer.classes) == near(wanted.classes)


def test_reading_a_bundle_draws_no_random_numbers() -> None:
    made = bundle(0)
    before = torch.get_rng_state()
    Bundle.of_model(made.record, made.network.model, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_of_our_own_predicts_without_timm_and_torchs_compiler(tmp_path: Path) -> None:
    bundle(0).save(str(tmp_path))
    (tmp_path / "picture.png").write_bytes(PICTURES[0])
    code = (
        "import sys; from pathlib import Path; from library.bundle.bundle import Bundle;"
        "Bundle.load(sys.argv[1], 'cpu').predict(Path(sys.argv[1], 'picture.png').read_bytes());"
        "print(sorted({'timm', 'torchvision', 'torch._dynamo'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_id_hangs_on_the_weights_and_on_what_is_said_of_them() -> None:
    assert bundle(0).id == bundle(0).id
    assert len({bundle(0).id, bundle(1).id, bundle(0, steps="grayscale | invert").id}) == 3


@pytest.mark.parametrize(
    ("call", "channels", "side"), [("lenet5", 1, 28), ("resnet9(width=8)", 3, 32), ("resnet18", 3, 64)]
)
def test_any_batch_gives_the_probabilities_that_a_picture_gets_alone(call: str, channels: int, side: int) -> None:
    torch.manual_seed(0)
    record = BundleRecord(model=call, classes=("a", "b", "c"), input_size=(side, side), channels=channels)
    made = Bundle.of_model(record, create(call, num_classes=3), device="cpu")
    pictures = list(np.random.default_rng(0).integers(0, 256, (19, side, side, channels), np.uint8))
    alone = np.concatenate([made.probabilities([one]) for one in pictures])
    for size in (2, 8, 19):
        parts = [made.probabilities(pictures[first : first + size]) for first in range(0, 19, size)]
        np.testing.assert_allclose(np.concatenate(parts), alone, rtol=0, atol=PROBABILITY_TOLERANCE)
    assert made.probabilities([]).shape == (0, 3)


def test_answers_are_ranked_and_cut_to_what_is_asked() -> None:
    answer = bundle(0).predict(PICTURES[0], top_k=2)
    assert len(answer.classes) == 2
    assert answer.classes[0][1] >= answer.classes[1][1]
    assert answer.best == answer.classes[0][0]


def test_a_bad_picture_in_a_batch_keeps_its_place_and_its_reason() -> None:
    answers = bundle(0).predict_many([PICTURES[0], b"nonsense", PICTURES[1]])
    assert isinstance(answers[1], BadPicture)
    assert answers[1].reason == "not_an_image"
    assert isinstance(answers[0], Prediction)
    assert isinstance(answers[2], Prediction)


def test_a_picture_whose_answer_is_not_a_number_is_refused_and_stops_no_other() -> None:
    made = bundle(0)
    good, bad = (
        codec.encode(np.full((28, 28, 1), value, np.float32), codec.Encoding("npy"))[0] for value in (0.5, np.nan)
    )
    first, second = made.predict_many([bad, good])
    assert isinstance(first, BadPicture)
    assert first.reason == "not_finite"
    assert isinstance(second, Prediction)
    with pytest.raises(BadPicture, match="not_finite"):
        made.predict(bad)


def test_pictures_of_phones_and_of_archives_are_predicted_as_their_pixels_are() -> None:
    made = bundle(0)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    expected = made.predict(codec.encode(pixels, codec.Encoding("png"))[0])
    for data in (heic_bytes(pixels), pil_bytes(Image.fromarray(pixels), "jpeg2000")):
        assert dict(made.predict(data).classes) == pytest.approx(dict(expected.classes), abs=1e-6)
    deep = made.predict(heic_bytes(pixels.astype(np.uint16) * 257))
    assert dict(deep.classes) == pytest.approx(dict(expected.classes), abs=1e-2)


def test_an_ensemble_is_the_weighted_mean_whatever_the_order_of_the_members_classes(tmp_path: Path) -> None:
    one, two = bundle(1), bundle(2, classes=("cat", "ant", "bee"))
    both = ensemble([one, two], [3, 1])
    both.save(str(tmp_path / "both"))
    read = Bundle.load(str(tmp_path / "both"), device="cpu")
    assert read.id == both.id
    for data in PICTURES:
        shares = [dict(member.predict(data).classes) for member in (one, two)]
        for name, share in read.predict(data).classes:
            assert share == pytest.approx(0.75 * shares[0][name] + 0.25 * shares[1][name], abs=1e-6)


def test_an_ensemble_may_be_a_member_of_another() -> None:
    inner = ensemble([bundle(1), bundle(2)])
    outer = ensemble([inner, bundle(3)], [2, 1])
    equal = ensemble([bundle(number) for number in (1, 2, 3)])
    for data in PICTURES:
        assert dict(outer.predict(data).classes) == pytest.approx(dict(equal.predict(data).classes), abs=1e-6)


@pytest.mark.parametrize(
    ("others", "weights", "problem"),
    [
        ([], None, "at least two"),
        ([("ant", "bee", "dog")], None, "these differ: cat, dog"),
        ([("ant", "bee", "cat")], [1.0], "as many weights"),
        ([("ant", "bee", "cat")], [1.0, 0.0], "above 0"),
    ],
)
def test_what_cannot_be_an_ensemble_is_refused(others: list, weights: list | None, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        ensemble([bundle(0), *(bundle(1, classes=classes) for classes in others)], weights)


def test_damage_is_told_and_not_served(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    bundle(0).save(str(folder))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StriateError, match="damaged"):
        Bundle.load(str(folder))
    weights.write_bytes(whole)
    record = json.loads((folder / "bundle.json").read_bytes())
    (folder / "bundle.json").write_text(json.dumps(record | {"classes": []}))
    with pytest.raises(StriateError, match="classes"):
        load_record(str(folder))
    with pytest.raises(UsageError, match="not a bundle"):
        Bundle.load(str(tmp_path))


def test_a_selector_sees_the_stored_file_and_columns_may_have_any_name() -> None:
    made = bundle(0, steps='keep_formats(["png"]) | file_size_between(min_bytes=10) | grayscale')
    assert isinstance(made.prepare(PICTURES[0], data=1, limits=2, pixels=3, key="k"), np.ndarray)
    jpeg = codec.encode(codec.decode(PICTURES[0]), codec.Encoding("jpeg"))[0]
    for classifier in (made, ensemble([made, bundle(1)])):
        with pytest.raises(BadPicture, match="keep_formats"):
            classifier.prepare(jpeg)


def test_features_come_with_the_same_probabilities_and_an_ensemble_has_none() -> None:
    made = bundle(0)
    pictures = [made.prepare(data) for data in PICTURES]
    features, probabilities = made.features(pictures)
    np.testing.assert_allclose(probabilities, made.probabilities(pictures), rtol=0, atol=PROBABILITY_TOLERANCE)
    assert (features.dtype, features.shape) == (np.float32, (len(PICTURES), 84))
    alone = np.concatenate([made.features([picture])[0] for picture in pictures])
    np.testing.assert_allclose(features, alone, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match=r"an ensemble has no features of its own"):
        ensemble([made, bundle(1)]).features([(picture, picture) for picture in pictures])


def test_pictures_of_several_dtypes_in_one_batch_get_what_they_get_alone() -> None:
    made = bundle(0)
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (28, 28, 1), np.uint8) for _ in range(5)]
    pictures[1:1] = [rng.integers(0, 65536, (28, 28, 1), np.uint16), rng.random((28, 28, 1), np.float32)]
    alone = np.concatenate([made.probabilities([picture]) for picture in pictures])
    np.testing.assert_allclose(made.probabilities(pictures), alone, rtol=0, atol=PROBABILITY_TOLERANCE)
