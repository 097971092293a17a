"""Exported files give the bundle's answers, or are not written."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from jobs.cli.app import run
from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.errors import StriateError, UsageError
from library.models.build import create
from library.runtimes import export as exporting
from library.runtimes.export import FACTS, destination, export
from library.runtimes.parity import samples
from tests import ROOT
from tests.bundles import make_bundle

_CLASSES = ("ant", "bee", "chat été")
_FIT = 'resize([28, 28], mode="exact")'


def untrained(
    model: str = "lenet5", seed: int = 0, classes: tuple[str, ...] = _CLASSES, steps: str = "grayscale"
) -> Bundle:
    torch.manual_seed(seed)
    record = BundleRecord(model=model, classes=classes, steps=steps, fit=_FIT, input_size=(28, 28), channels=1)
    return Bundle.of_model(record, create(model, num_classes=len(classes)), device="cpu")


def session(data: bytes) -> Any:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def test_an_onnx_file_gives_the_bundles_answers_and_has_its_metadata() -> None:
    bundle = untrained()
    exported = export(bundle, "onnx")
    assert exported.difference <= exported.allowed
    loaded = session(exported.data)
    (pixels,), (output,) = loaded.get_inputs(), loaded.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["batch", 28, 28, 1])
    assert (output.name, output.type, output.shape) == ("probabilities", "tensor(float)", ["batch", 3])
    pictures = samples(bundle, 5)
    for count in (1, 5):
        (rows,) = loaded.run(None, {"pixels": np.stack(pictures[:count])})
        assert rows == pytest.approx(bundle.probabilities(pictures[:count]), abs=1e-4)
    metadata = loaded.get_modelmeta().custom_metadata_map
    assert metadata["striate.bundle_id"] == bundle.id
    assert json.loads(metadata["striate.classes"]) == list(_CLASSES)
    assert json.loads(metadata["striate.inputs"]) == [
        {
            "name": "pixels",
            "dtype": "uint8",
            "layout": "NHWC",
            "steps": "grayscale",
            "fit": _FIT,
            "size": [28, 28],
            "channels": 1,
        }
    ]
    onnx.checker.check_model(onnx.load_from_string(exported.data), full_check=True)


def test_an_onnx_file_holds_no_paths_of_the_machine_that_wrote_it() -> None:
    data = export(untrained(), "onnx").data
    assert str(ROOT).encode() not in data
    assert b"site-packages" not in data


def test_a_pt2_file_gives_the_bundles_answers_and_holds_no_pickle(tmp_path: Path) -> None:
    bundle = untrained()
    exported = export(bundle, "torch-export")
    path = tmp_path / "lenet.pt2"
    path.write_bytes(exported.data)
    extra = {FACTS: ""}
    program: Any = torch.export.load(path, extra_files=extra).module()
    pictures = samples(bundle, 5)
    for count in (1, 5):
        rows = program(torch.from_numpy(np.stack(pictures[:count])))
        assert rows.detach().numpy() == pytest.approx(bundle.probabilities(pictures[:count]), abs=1e-4)
    assert json.loads(extra[FACTS])["striate.bundle_id"] == bundle.id
    with zipfile.ZipFile(io.BytesIO(exported.data)) as archive:
        for name in archive.namelist():
            assert not _is_pickle(archive.read(name)), name
            if name.endswith(".json"):
                assert b'"use_pickle": true' not in archive.read(name)


def _is_pickle(data: bytes) -> bool:
    if data[:2] == b"PK":  # as torch.save writes
        return True
    if not data or data[0] != 0x80:
        return False
    try:
        return any(op.name == "STOP" for op, _, _ in pickletools.genops(data))
    except ValueError:
        return False


@pytest.mark.parametrize("file_format", ["onnx", "torch-export"])
def test_an_ensemble_is_one_graph_with_an_input_per_input_pipeline(file_format: str) -> None:
    alike = ensemble([untrained(seed=1), untrained("mlp", seed=2, classes=("bee", "chat été", "ant"))], [3, 1])
    exported = export(alike, file_format)
    assert [one.name for one in exported.inputs] == ["pixels"]
    other = ensemble([alike, untrained(seed=3, steps="grayscale | invert")])
    exported = export(other, file_format)
    assert [(one.name, one.steps) for one in exported.inputs] == [
        ("pixels_0", "grayscale"),
        ("pixels_1", "grayscale | invert"),
    ]
    if file_format == "onnx":
        pictures = [np.stack(samples(untrained(), 3)), 255 - np.stack(samples(untrained(), 3))]
        (rows,) = session(exported.data).run(None, {"pixels_0": pictures[0], "pixels_1": pictures[1]})
        prepared = [((one, one), two) for one, two in zip(*pictures, strict=True)]
        assert rows == pytest.approx(other.probabilities(prepared), abs=1e-4)


@pytest.mark.parametrize("file_format", ["onnx", "torch-export"])
def test_a_file_with_other_answers_is_not_written(
    file_format: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_bundle(tmp_path / "made")
    other = Bundle.load(make_bundle(tmp_path / "other", seed=1), "cpu")
    # The exporter writes other weights.
    writer = "_onnx" if file_format == "onnx" else "_torch"
    original_writer = getattr(exporting, writer)
    monkeypatch.setattr(exporting, writer, lambda bundle: original_writer(other))
    out = tmp_path / "out" / "file"
    assert run(["export", folder, "--format", file_format, "--out", str(out)]) == 1
    assert "does not answer as the bundle does, so nothing is written" in capsys.readouterr().err
    assert not out.parent.exists()


def test_the_command_uses_the_bundles_name_and_prints_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(tmp_path / "photos")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(["export", folder]) == 0
    assert "largest difference of a probability" in capsys.readouterr().out
    assert run(["export", folder, "--format", "torch-export", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == str(tmp_path / "here" / "photos.pt2")
    assert report["largest_difference"] <= report["allowed_difference"] == 1e-4
    assert report["bytes"] == (tmp_path / "here" / "photos.pt2").stat().st_size
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["photos.onnx", "photos.pt2"]


def test_a_destination_that_cannot_hold_an_export_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "made")
    for out, problem in (
        (f"{folder}/made.onnx", "is inside the bundle"),
        (str(tmp_path), "is a folder; name a file"),
        (str(tmp_path / "made.pt2"), "of the format torch-export, but the format asked for is onnx"),
    ):
        with pytest.raises(UsageError, match=problem):
            destination(folder, "onnx", out)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="no format 'tflite'; there are onnx, torch-export"):
        export(untrained(), "tflite")


def test_a_network_that_cannot_be_traced_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = untrained()
    forward = bundle.model.net.forward
    monkeypatch.setattr(bundle.model.net, "forward", lambda x: forward(x) if float(x.sum()) else x)
    for file_format, problem in (("onnx", "cannot be written as ONNX"), ("torch-export", "cannot be written by torch")):
        with pytest.raises(StriateError, match=problem):
            export(bundle, file_format)


def test_a_missing_package_of_the_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_onnxscript(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(torch.onnx, "export", without_onnxscript)
    with pytest.raises(ModuleNotFoundError, match="onnxscript"):
        export(untrained(), "onnx")


def test_a_bundle_in_s3_can_be_exported_to_s3(bucket: str) -> None:
    untrained().save(f"{bucket}/models/digits")
    assert run(["export", f"{bucket}/models/digits", "--out", f"{bucket}/files/digits.onnx"]) == 0
    assert session(storage.read_bytes(f"{bucket}/files/digits.onnx")).get_modelmeta().custom_metadata_map
    with pytest.raises(UsageError, match="is inside the bundle"):
        destination(f"{bucket}/models/digits", "onnx", f"{bucket}/models/digits/digits.onnx")
