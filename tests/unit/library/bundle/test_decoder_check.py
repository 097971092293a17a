"""A bundle says by how much the decoder of its training pictures differs from the CPU's, which it predicts with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.cli.app import run
from library.bundle.bundle import Bundle
from library.bundle.decoder_check import compare_decoders
from library.bundle.description import TrainedDecoder, decoder_notes, load_record
from library.bundle.ensemble import make_ensemble
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.pipeline.inputs import InputPipeline
from tests.bundles import make_bundle
from tests.picture_examples import encoded, scene

DECODER = TrainedDecoder(
    name="cuda",
    library="torchcodec 0.17.0",
    pictures=256,
    largest_pixel_difference=3,
    largest_probability_difference=0.0125,
)


def brighter(data: bytes, limits: Any = None, header: Any = None) -> NDArray[Any]:
    """Decodes JPEGs two levels brighter."""
    pixels = codec.decode(data)
    return pixels if codec.probe(data).format != "jpeg" else np.minimum(pixels, 253) + np.uint8(2)


def pictures(*kinds: str) -> list[dict[str, Any]]:
    return [
        {"key": str(number), "label": "china", "bytes": encoded(kind, 30 + number, 40)}
        for number, kind in enumerate(kinds)
    ]


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """A bundle that was trained on pictures from another decoder."""
    bundle = Bundle.load(make_bundle(tmp_path / "bundle"), "cpu")
    record = bundle.record.model_copy(update={"decoder": DECODER})
    Bundle.of_model(record, bundle.model, "cpu").save(str(tmp_path / "bundle"))
    return str(tmp_path / "bundle")


def test_an_input_pipeline_decodes_with_the_decoder_that_it_has() -> None:
    inputs = InputPipeline.parse("", 'resize([8, 8], mode="exact")', (8, 8), 3)
    data = encoded("jpeg", 8, 8)
    ours, theirs = inputs.prepare(data), replace(inputs, decode=brighter).prepare(data)
    assert np.array_equal(theirs, np.minimum(ours, 253) + 2)


def test_the_difference_is_that_of_the_worst_picture(tmp_path: Path) -> None:
    bundle = Bundle.load(make_bundle(tmp_path / "bundle"), "cpu")
    sample = pictures("jpeg", "png", "jpeg:60")
    found = compare_decoders(bundle, sample, brighter, "brighter 1.0")
    assert (found.pictures, found.largest_pixel_difference, found.library) == (3, 2, "brighter 1.0")
    data = [one["bytes"] for one in sample]
    ours = bundle.probabilities([bundle.prepare(one) for one in data])
    theirs = bundle.probabilities([bundle.prepare_pixels(brighter(one)) for one in data])
    assert found.largest_probability_difference == pytest.approx(np.abs(ours - theirs).max(), abs=1e-6)
    same = compare_decoders(bundle, sample, codec.decode, "the CPU's")
    assert (same.largest_pixel_difference, same.largest_probability_difference) == (0, 0.0)


def test_pictures_that_one_decoder_refuses_are_left_out(tmp_path: Path) -> None:
    bundle = Bundle.load(make_bundle(tmp_path / "bundle"), "cpu")
    bad = {"key": "bad", "label": "china", "bytes": b"no picture"}
    assert compare_decoders(bundle, [bad, *pictures("jpeg")], brighter, "brighter").pictures == 1
    with pytest.raises(StriateError, match="none of 1 training pictures can be decoded by both the CPU and brighter"):
        compare_decoders(bundle, [bad], brighter, "brighter")

    def narrow(data: bytes, limits: Any = None, header: Any = None) -> NDArray[Any]:
        return codec.decode(data)[:, 1:]

    with pytest.raises(StriateError, match="different shapes for '0'"):
        compare_decoders(bundle, pictures("jpeg"), narrow, "narrow")


def test_a_record_keeps_its_decoder_and_states_the_difference(trained: str) -> None:
    record = load_record(trained)
    assert record.decoder == DECODER
    (note,) = decoder_notes(trained, record)
    assert note.startswith(f"{trained} was trained on pictures that torchcodec 0.17.0 decoded on a GPU")
    assert "up to 3 of 255" in note
    assert "up to 0.013" in note


def test_an_ensembles_members_state_their_differences(trained: str, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", seed=1)
    make_ensemble([trained, other], str(tmp_path / "both"), None)
    uri = str(tmp_path / "both")
    (note,) = decoder_notes(uri, load_record(uri))
    assert note.startswith(f"{uri}/members/0 was trained on pictures")
    assert Bundle.load(uri, "cpu").decoder_note == f"member 0: {DECODER}"
    assert (Bundle.load(trained, "cpu").decoder_note, Bundle.load(other, "cpu").decoder_note) == (str(DECODER), None)


def test_predictions_say_that_the_decoder_is_another(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "one.jpg"
    picture.write_bytes(codec.encode(scene(), codec.Encoding("jpeg", 90))[0])
    assert run(["predict", trained, str(picture), "--json"]) == 0
    written = capsys.readouterr()
    assert len(json.loads(written.out)["predictions"]) == 1
    assert "a pixel differed by up to 3 of 255" in written.err
    assert run(["predict", make_bundle(tmp_path / "plain"), str(picture), "--json"]) == 0
    assert "differed" not in capsys.readouterr().err


def test_a_bad_picture_stays_bad_with_another_decoder() -> None:
    inputs = InputPipeline.parse("", 'resize([8, 8], mode="exact")', (8, 8), 3)
    with pytest.raises(BadPicture, match="starts with"):
        replace(inputs, decode=brighter).prepare(b"no picture")
