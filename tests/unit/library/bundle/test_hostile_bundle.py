"""Untrusted bundles: each is refused in one sentence that names the file, before it can fill the memory."""

from __future__ import annotations

import hashlib
import json
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord, checked_record
from library.errors import StriateError
from tests.bundles import make_bundle

MODEL = "lenet5(in_chans=3)"
Header = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_bundle(tmp_path_factory.mktemp("good") / "lenet"))


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """Limits memory to 4 GiB more than is in use, so that an allocation of 10^9 numbers fails."""
    statistics = Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if statistics.exists():
        pages = int(statistics.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def changed(good: Path, folder: Path, weights: bytes | None = None, **record: Any) -> Path:
    """The good bundle with changed fields in its record and, if given, other weights, with their digest."""
    weights = (good / "model.safetensors").read_bytes() if weights is None else weights
    content = json.loads((good / "bundle.json").read_text())
    digest = hashlib.sha256(weights).hexdigest()
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps(content | {"weights_digest": digest} | record))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def refused(folder: Path) -> str:
    """The error message of loading a bundle; it must be one line."""
    with pytest.raises(StriateError) as error:
        Bundle.load(str(folder), "cpu")
    message = str(error.value)
    assert type(error.value) is StriateError, message
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"input_size": [10**9, 10**9]}, "input_size.0"),
        ({"input_size": [16384, 16384]}, "input_size and channels"),
        ({"input_size": [0, 28]}, "input_size and channels"),
        ({"input_size": [-1, 28]}, "input_size.0"),
        ({"input_size": [27, 27]}, "27x27"),
        ({"channels": 10**9}, "channels"),
        ({"channels": 1}, "N x 3 x height x width"),
        ({"head": [10**9, 10**9]}, "head.0"),
        ({"head": [2**20, 2**20]}, "head.0.weight"),
        ({"head": [1] * 1000}, "head"),
        ({"classes": [f"class {number}" for number in range(10**6)]}, "classes"),
        ({"classes": ["cat", "dog", "cat"]}, "'cat' is listed twice"),
        ({"classes": ["cat", "dog", ""]}, "classes.2"),
        ({"classes": ["cat", "dog", "x" * 10**6]}, "classes.2"),
        ({"classes": ["cat", "dog"]}, "head.0.weight"),
        ({"classes": []}, "classes"),
        ({"model": "resnet50(in_chans=10**9)"}, "plain value"),
        ({"model": "resnet50(in_chans=1000000000)"}, "in_chans"),
        ({"model": "vgg19"}, "cannot take pictures"),
        ({"model": f"mlp(hidden=[{'1048576, ' * 999} 1])", "channels": 1}, "does not fit"),
        ({"model": f"mlp(hidden=[{'1048576, ' * 1800} 1], in_chans=3)"}, "missing"),
        ({"model": 'timm("resnet18", layers=[1000000000, 2, 2, 2])'}, "layers"),
        ({"model": 'timm("resnet18", layers=[1000000, 2, 2, 2])'}, "parts"),
        ({"model": 'timm("convnext_tiny", depths=[1000000, 2, 2, 2])'}, "parts"),
        ({"model": 'timm("vit_tiny_patch16_224", img_size=1000000)'}, "cannot take pictures"),
        ({"model": 'timm("vit_tiny_patch16_224", in_chans=1000000)'}, "in_chans"),
        ({"model": 'timm("vit_tiny_patch16_224", num_heads=0)'}, "timm cannot build"),
        ({"model": 'timm("resnet18", checkpoint_path="/etc/passwd")'}, "checkpoint_path"),
        ({"model": 'timm("no_such_model")'}, "no_such_model"),
        ({"model": "__import__('os').system('true')"}, "bundle.json"),
        ({"model": "lenet5(" * 5000}, "bundle.json"),
        ({"model": ""}, "no model is named"),
        ({"steps": "grayscale | " * 10**6}, "bundle.json"),
        ({"steps": "no_such_step"}, "no_such_step"),
        ({"fit": "resize([1000000000, 1000000000])"}, "bundle.json"),
        ({"members": [{"id": "0" * 64, "weight": 1.0}] * 1000}, "members"),
        ({"members": [{"id": "0" * 64, "weight": float("inf")}]}, "members.0.weight"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_a_record_that_claims_too_much_is_refused(
    good: Path, tmp_path: Path, record: dict[str, Any], part: str
) -> None:
    folder = changed(good, tmp_path / "hostile", **record)
    message = refused(folder)
    assert str(folder) in message
    assert part in message


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800", "[" * 10**6, '{"classes": ' * 10**5, "null"])
def test_a_file_that_is_not_a_record_is_refused(good: Path, tmp_path: Path, text: str) -> None:
    folder = changed(good, tmp_path / "hostile")
    (folder / "bundle.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert "bundle.json" in refused(folder)


def test_a_record_of_gigabytes_is_refused_unread(good: Path, tmp_path: Path) -> None:
    folder = changed(good, tmp_path / "hostile")
    with open(folder / "bundle.json", "r+b") as file:
        file.truncate(2**33)
    assert "bundle.json is larger than" in refused(folder)


def split_weights(good: Path) -> tuple[Header, bytes]:
    whole = (good / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def weights_of(header: Header, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        ({"dtype": "C64"}, "C64"),
        ({"dtype": "I32"}, "I32"),
        ({"dtype": "F64"}, "F64"),
        ({"dtype": ["F32"] * 10**5}, "should be F32"),
        ({"shape": [10**9, 10**9]}, "1000000000"),
        ({"shape": [-1]}, "[-1]"),
        ({"shape": "x" * 10**6}, "should be F32"),
        ({"shape": None}, "None"),
        ({"data_offsets": [0, 2**62]}, "model.safetensors"),
        ({"data_offsets": [0, 4]}, "model.safetensors"),
        ({"data_offsets": [8, 4]}, "model.safetensors"),
        ({"data_offsets": None}, "model.safetensors"),
    ],
)
def test_a_tensor_that_is_not_the_models_is_refused(good: Path, tmp_path: Path, facts: Header, part: str) -> None:
    header, data = split_weights(good)
    header["head.0.bias"] |= facts
    message = refused(changed(good, tmp_path / "hostile", weights_of(header, data)))
    assert "model.safetensors" in message
    assert part in message


def test_tensors_that_share_their_bytes_are_refused(good: Path, tmp_path: Path) -> None:
    header, data = split_weights(good)
    header["mean"]["data_offsets"] = header["std"]["data_offsets"]
    assert "model.safetensors" in refused(changed(good, tmp_path / "hostile", weights_of(header, data)))


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\xff" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 10**6) + b"[" * 10**6,
        struct.pack("<Q", 2) + b"{}",
        weights_of({"head.0.bias": 7, "x": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4]}}, b""),
    ],
)
def test_a_file_that_does_not_hold_the_models_weights_is_refused(good: Path, tmp_path: Path, weights: bytes) -> None:
    assert "model.safetensors" in refused(changed(good, tmp_path / "hostile", weights))


def test_extra_and_missing_tensors_are_refused(good: Path, tmp_path: Path) -> None:
    header, data = split_weights(good)
    more = header | {"x\x1b[31m": {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}}
    assert "that the model does not have" in refused(changed(good, tmp_path / "more", weights_of(more, data + b"1234")))
    fewer = {name: facts for name, facts in header.items() if name != "std"}
    assert "'std' is missing" in refused(changed(good, tmp_path / "fewer", weights_of(fewer, data)))


def test_a_file_of_terabytes_behind_a_good_header_is_not_read(good: Path, tmp_path: Path) -> None:
    folder = changed(good, tmp_path / "hostile")
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(2**40)
    assert "its tensors need" in refused(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("std", 0.0), ("std", -1.0), ("std", float("nan")), ("mean", float("inf"))]
)
def test_an_invalid_normalisation_is_refused(good: Path, tmp_path: Path, name: str, value: float) -> None:
    header, data = split_weights(good)
    first, last = header[name]["data_offsets"]
    data = data[:first] + struct.pack("<f", value) * ((last - first) // 4) + data[last:]
    assert "mean or deviation" in refused(changed(good, tmp_path / "hostile", weights_of(header, data)))


# -- ensembles --------------------------------------------------------------------------------------------------------


def wrapped(inner: Path, folder: Path, classes: tuple[str, ...] | None = None) -> Path:
    """An ensemble of one bundle, twice."""
    record = BundleRecord.model_validate_json((inner / "bundle.json").read_text())
    members = [{"id": record.id, "weight": 1.0}] * 2
    (folder / "members").mkdir(parents=True)
    for number in range(2):
        (folder / "members" / str(number)).symlink_to(inner)
    outer = BundleRecord.model_validate({"classes": classes or record.classes, "members": members})
    (folder / "bundle.json").write_text(outer.model_dump_json())
    return folder


def test_ensembles_nested_too_deep_are_refused(good: Path, tmp_path: Path) -> None:
    folder = good
    for depth in range(3):
        folder = wrapped(folder, tmp_path / str(depth))
    assert len(Bundle.load(str(folder), "cpu").members) == 2
    deeper = wrapped(folder, tmp_path / "deeper")
    assert "ensemble" in refused(deeper)
    with pytest.raises(StriateError, match="ensemble"):
        checked_record(str(deeper))


def test_an_ensemble_that_contains_itself_is_refused(good: Path, tmp_path: Path) -> None:
    folder = wrapped(good, tmp_path / "self")
    (folder / "members" / "0").unlink()
    (folder / "members" / "0").symlink_to(folder)
    assert "not the bundle that the ensemble was made of" in refused(folder)


def test_members_of_other_classes_are_refused(good: Path, tmp_path: Path) -> None:
    folder = wrapped(good, tmp_path / "others", ("cat", "dog", "hen"))
    assert "other classes" in refused(folder)


def test_a_good_bundle_is_loaded_within_the_memory_limit(good: Path) -> None:
    torch.manual_seed(0)
    assert Bundle.load(str(good), "cpu").classes
