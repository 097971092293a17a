"""Bundles: saved, loaded, predicting, and combined into ensembles."""

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
from library.bundle.description import BundleRecord, Prediction, load_record, ranked, weights_bundle
from library.bundle.ensemble import ensemble, make_ensemble
from library.dataset.lease import hold
from library.errors import BadPicture, StriateError, UsageError
from library.imaging import codec
from library.models.build import create
from tests.bundles import PROBABILITY_TOLERANCE, near
from tests.picture_examples import heic_bytes, pil_bytes


def make_lenet(seed: int, classes: tuple[str, ...] = ("ant", "bee", "cat"), **fields: object) -> Bundle:
    """An untrained LeNet; the seed decides its weights."""
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


def test_the_best_classes_are_those_of_a_stable_sort_of_all() -> None:
    rng = np.random.default_rng(0)
    record = BundleRecord(classes=tuple(f"class {number}" for number in range(50)))
    for levels in (2, 5, 1000):  # few levels make many ties
        rows = (rng.integers(0, levels, (40, 50)) / levels).astype(np.float32)
        for top_k in (0, 1, 3, 49, 50, 99):
            for row, prediction in zip(rows, ranked(record, "id", rows, top_k), strict=True):
                order = np.argsort(-row, kind="stable")[: max(top_k, 1)]
                assert prediction.classes == tuple((record.classes[i], float(row[i])) for i in order)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    return codec.encode(pixels, codec.Encoding("png"))[0]


PICTURES = [picture(number) for number in range(6)]


def test_a_saved_and_loaded_bundle_has_the_same_id_and_answers(tmp_path: Path) -> None:
    bundle = make_lenet(0)
    bundle.save(str(tmp_path / "lenet"))
    loaded = Bundle.load(str(tmp_path / "lenet"), device="cpu")
    assert loaded.id == bundle.id
    for answer, expected in zip(loaded.predict_many(PICTURES), bundle.predict_many(PICTURES), strict=True):
        assert isinstance(answer, Prediction)
        assert isinstance(expected, Prediction)
        assert list(answer.classes) == near(expected.classes)


def test_loading_a_bundle_draws_no_random_numbers() -> None:
    bundle = make_lenet(0)
    before = torch.get_rng_state()
    Bundle.of_model(bundle.record, bundle.network.model, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_our_own_networks_predict_without_timm_and_torch_dynamo(tmp_path: Path) -> None:
    make_lenet(0).save(str(tmp_path))
    (tmp_path / "picture.png").write_bytes(PICTURES[0])
    code = (
        "import sys; from pathlib import Path; from library.bundle.bundle import Bundle;"
        "Bundle.load(sys.argv[1], 'cpu').predict(Path(sys.argv[1], 'picture.png').read_bytes());"
        "print(sorted({'timm', 'torchvision', 'torch._dynamo'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_weights_are_those_of_a_bundle_by_its_folder_or_its_file(tmp_path: Path) -> None:
    folder = str(tmp_path / "bundle")
    make_lenet(0).save(folder)
    identity = load_record(folder).id
    assert weights_bundle(folder) == weights_bundle(f"{folder}/model.safetensors") == (folder, identity)
    (tmp_path / "model.safetensors").write_bytes(b"of another program")
    assert weights_bundle(str(tmp_path / "model.safetensors")) is None
    assert weights_bundle("pretrained") is weights_bundle(None) is None


def test_the_id_depends_on_the_weights_and_on_the_record() -> None:
    assert make_lenet(0).id == make_lenet(0).id
    assert len({make_lenet(0).id, make_lenet(1).id, make_lenet(0, steps="grayscale | invert").id}) == 3


@pytest.mark.parametrize(
    ("call", "channels", "side"), [("lenet5", 1, 28), ("resnet9(width=8)", 3, 32), ("resnet18", 3, 64)]
)
def test_probabilities_do_not_depend_on_the_batch(call: str, channels: int, side: int) -> None:
    torch.manual_seed(0)
    record = BundleRecord(model=call, classes=("a", "b", "c"), input_size=(side, side), channels=channels)
    bundle = Bundle.of_model(record, create(call, num_classes=3), device="cpu")
    pictures = list(np.random.default_rng(0).integers(0, 256, (19, side, side, channels), np.uint8))
    alone = np.concatenate([bundle.probabilities([one]) for one in pictures])
    for size in (2, 8, 19):
        parts = [bundle.probabilities(pictures[first : first + size]) for first in range(0, 19, size)]
        np.testing.assert_allclose(np.concatenate(parts), alone, rtol=0, atol=PROBABILITY_TOLERANCE)
    assert bundle.probabilities([]).shape == (0, 3)


def test_predictions_are_ranked_and_cut_to_top_k() -> None:
    answer = make_lenet(0).predict(PICTURES[0], top_k=2)
    assert len(answer.classes) == 2
    assert answer.classes[0][1] >= answer.classes[1][1]
    assert answer.best == answer.classes[0][0]


def test_a_bad_picture_in_a_batch_is_its_own_result_with_its_reason() -> None:
    answers = make_lenet(0).predict_many([PICTURES[0], b"nonsense", PICTURES[1]])
    assert isinstance(answers[1], BadPicture)
    assert answers[1].reason == "not_an_image"
    assert isinstance(answers[0], Prediction)
    assert isinstance(answers[2], Prediction)


def test_a_picture_with_a_nan_answer_is_refused_and_the_others_pass() -> None:
    bundle = make_lenet(0)
    good, bad = (
        codec.encode(np.full((28, 28, 1), value, np.float32), codec.Encoding("npy"))[0] for value in (0.5, np.nan)
    )
    first, second = bundle.predict_many([bad, good])
    assert isinstance(first, BadPicture)
    assert first.reason == "not_finite"
    assert isinstance(second, Prediction)
    with pytest.raises(BadPicture, match="not_finite"):
        bundle.predict(bad)


def test_heic_and_jpeg_2000_pictures_get_the_answers_of_their_pixels() -> None:
    bundle = make_lenet(0)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    expected = bundle.predict(codec.encode(pixels, codec.Encoding("png"))[0])
    for data in (heic_bytes(pixels), pil_bytes(Image.fromarray(pixels), "jpeg2000")):
        assert dict(bundle.predict(data).classes) == pytest.approx(dict(expected.classes), abs=1e-6)
    deep = bundle.predict(heic_bytes(pixels.astype(np.uint16) * 257))
    assert dict(deep.classes) == pytest.approx(dict(expected.classes), abs=1e-2)


def test_an_ensemble_is_the_weighted_mean_for_any_order_of_classes(tmp_path: Path) -> None:
    one, two = make_lenet(1), make_lenet(2, classes=("cat", "ant", "bee"))
    both = ensemble([one, two], [3, 1])
    both.save(str(tmp_path / "both"))
    loaded = Bundle.load(str(tmp_path / "both"), device="cpu")
    assert loaded.id == both.id
    for data in PICTURES:
        shares = [dict(member.predict(data).classes) for member in (one, two)]
        for name, share in loaded.predict(data).classes:
            assert share == pytest.approx(0.75 * shares[0][name] + 0.25 * shares[1][name], abs=1e-6)


def test_an_ensemble_may_be_a_member_of_another() -> None:
    inner = ensemble([make_lenet(1), make_lenet(2)])
    outer = ensemble([inner, make_lenet(3)], [2, 1])
    equal = ensemble([make_lenet(number) for number in (1, 2, 3)])
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
def test_bundles_that_do_not_fit_together_cannot_be_an_ensemble(
    others: list, weights: list | None, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        ensemble([make_lenet(0), *(make_lenet(1, classes=classes) for classes in others)], weights)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "lenet"
    make_lenet(0).save(str(folder))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StriateError, match="damaged"):
        Bundle.load(str(folder))
    weights.write_bytes(content)
    record = json.loads((folder / "bundle.json").read_bytes())
    (folder / "bundle.json").write_text(json.dumps(record | {"classes": []}))
    with pytest.raises(StriateError, match="classes"):
        load_record(str(folder))
    with pytest.raises(UsageError, match="not a bundle"):
        Bundle.load(str(tmp_path))


def test_selectors_see_the_stored_file_and_columns_may_have_any_name() -> None:
    bundle = make_lenet(0, steps='keep_formats(["png"]) | file_size_between(min_bytes=10) | grayscale')
    assert isinstance(bundle.prepare(PICTURES[0], data=1, limits=2, pixels=3, key="k"), np.ndarray)
    jpeg = codec.encode(codec.decode(PICTURES[0]), codec.Encoding("jpeg"))[0]
    for classifier in (bundle, ensemble([bundle, make_lenet(1)])):
        with pytest.raises(BadPicture, match="keep_formats"):
            classifier.prepare(jpeg)


def test_features_come_with_probabilities_and_an_ensemble_has_none() -> None:
    bundle = make_lenet(0)
    pictures = [bundle.prepare(data) for data in PICTURES]
    features, probabilities = bundle.features(pictures)
    np.testing.assert_allclose(probabilities, bundle.probabilities(pictures), rtol=0, atol=PROBABILITY_TOLERANCE)
    assert (features.dtype, features.shape) == (np.float32, (len(PICTURES), 84))
    alone = np.concatenate([bundle.features([picture])[0] for picture in pictures])
    np.testing.assert_allclose(features, alone, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match=r"an ensemble has no features of its own"):
        ensemble([bundle, make_lenet(1)]).features([(picture, picture) for picture in pictures])


def test_pictures_of_several_dtypes_can_share_a_batch() -> None:
    bundle = make_lenet(0)
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (28, 28, 1), np.uint8) for _ in range(5)]
    pictures[1:1] = [rng.integers(0, 65536, (28, 28, 1), np.uint16), rng.random((28, 28, 1), np.float32)]
    alone = np.concatenate([bundle.probabilities([picture]) for picture in pictures])
    np.testing.assert_allclose(bundle.probabilities(pictures), alone, rtol=0, atol=PROBABILITY_TOLERANCE)


def test_an_ensemble_is_not_written_where_another_command_writes(tmp_path: Path) -> None:
    members = [str(tmp_path / name) for name in ("one", "two")]
    for seed, member in enumerate(members):
        make_lenet(seed).save(member)
    out = str(tmp_path / "both")
    with hold(out, tidy=print), pytest.raises(UsageError, match="is being written by"):
        make_ensemble(members, out)
    record = make_ensemble(members, out)
    assert Bundle.load(out, device="cpu").id == record.id
    assert not (tmp_path / "both" / "_leases").exists()
    with pytest.raises(UsageError, match="holds a bundle already"):
        make_ensemble(members, out)
