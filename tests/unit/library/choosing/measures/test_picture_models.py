"""Models that fill a side table: bundles, timm models, and ONNX files with a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from onnx import TensorProto, helper

from library.bundle.bundle import Bundle
from library.choosing.measures import picture_models
from library.choosing.measures.picture_models import OpenModel, open_model, picture_model, read_card
from library.dataset.manifest import Manifest
from library.dataset.shards import ShardReader
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.models.build import create
from library.models.classifier import Classifier
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, measure_with_model, outputs_of, scene, write_files

CARD = {
    "name": "means",
    "size": [6, 8],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.5, 1.0],
    "embedding": "channels",
    "scores": {"mean": ["all_together"]},
}
Graph = tuple[str, str]


def write_graph(folder: Path, batch: int | None = None, card: Mapping[str, object] = MappingProxyType({})) -> Graph:
    """Writes a graph of the mean of each channel and of their sum, and its card; `batch` pictures only if given."""
    folder.mkdir(exist_ok=True)
    size = "n" if batch is None else batch
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["channels"], axes=[2, 3], keepdims=0),
            helper.make_node("ReduceMean", ["channels"], ["mean"], axes=[1], keepdims=1),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 3, 6, 8])],
        [
            helper.make_tensor_value_info("channels", TensorProto.FLOAT, [size, 3]),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, [size, 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (folder / "means.onnx").write_bytes(model.SerializeToString())
    (folder / "card.yaml").write_text(yaml.safe_dump({**CARD, **card}))
    return str(folder / "means.onnx"), str(folder / "card.yaml")


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, Manifest]:
    files = {f"cat/{number}.png": encoded("png", 20 + number, 30) for number in range(5)}
    files["cat/damaged.jpg"] = encoded("jpeg", 40, 50)[:-300]
    return tmp_path / "raw", ingest(write_files(tmp_path / "files", files), tmp_path / "raw", shard_bytes=2_000)


def stored(dataset: Path, manifest: Manifest) -> dict[str, bytes]:
    tables = [ShardReader(str(dataset / shard.name)).columns(["key", "image"]) for shard in manifest.shards]
    return {row["key"]: row["image"]["bytes"] for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("batch", [None, 1])
def test_an_onnx_file_fills_the_columns_of_its_card(
    dataset: tuple[Path, Manifest], tmp_path: Path, batch: int | None
) -> None:
    folder, manifest = dataset
    model = picture_model(None, *write_graph(tmp_path / "model", batch), None)
    assert model is not None
    measure_with_model(folder, manifest, model)
    table = outputs_of(folder, manifest, "means", "embedding", "all_together")
    pictures = stored(folder, manifest)
    assert table["key"].to_pylist() == list(pictures)
    assert model.card is not None
    for row in table.to_pylist():
        if row["key"] == "cat/damaged.jpg":
            assert row["embedding"] is row["all_together"] is None
            continue
        pixels = model.card.inputs.prepare(pictures[row["key"]]).astype(np.float64)
        assert pixels.shape == (6, 8, 3)
        means = ((pixels / 255 - 0.5) / np.array([0.25, 0.5, 1.0])).mean(axis=(0, 1))
        assert row["embedding"] == pytest.approx(means, abs=1e-5)
        assert row["all_together"] == pytest.approx(means.mean(), abs=1e-5)


def test_two_bundles_of_one_name_have_tables_of_their_own(tmp_path: Path) -> None:
    uris = [make_bundle(tmp_path / run / "model", seed) for seed, run in enumerate(("first", "second"))]
    models = [picture_model(uri, None, None, None) for uri in uris]
    assert len({model.name for model in models if model is not None}) == 2


def test_a_bundle_fills_embedding_and_probabilities(dataset: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = dataset
    uri = make_bundle(tmp_path / "letters")
    model = picture_model(uri, None, None, None)
    assert model is not None
    measure_with_model(folder, manifest, model)
    table = outputs_of(folder, manifest, model.name, "embedding", "probabilities", "predicted", "score")
    bundle, pictures = Bundle.load(uri), stored(folder, manifest)
    for row in table.to_pylist():
        if row["key"] == "cat/damaged.jpg":
            assert row["predicted"] is None
            continue
        features, probabilities = bundle.features([bundle.prepare(pictures[row["key"]])])
        assert row["embedding"] == pytest.approx(features[0], abs=1e-4)
        assert row["probabilities"] == pytest.approx(probabilities[0], abs=1e-5)
        assert row["score"] == pytest.approx(max(probabilities[0]), abs=1e-5)
        assert row["predicted"] in bundle.classes


def open_by_call(folder: Path) -> tuple[OpenModel, Classifier]:
    torch.manual_seed(0)
    network = create("lenet5(in_chans=3)", num_classes=10).eval()
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    model = picture_model(None, "lenet5(in_chans=3)", None, str(folder / "weights.safetensors"))
    assert model is not None
    return open_model(model), network


def test_a_model_by_its_call_needs_a_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --weights FILE"):
        picture_model(None, "lenet5(in_chans=3)", None, None)
    opened, network = open_by_call(tmp_path)
    pixels = np.asarray(opened.prepare(codec.encode(scene(40, 40), codec.Encoding("png"))[0]))
    features = opened.compute([pixels])["embedding"]
    with torch.inference_mode():
        expected = network.features(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2))
    assert features[0] == pytest.approx(expected[0].numpy(), abs=1e-5)


def test_the_embedding_does_not_depend_on_the_other_pictures_of_a_batch(tmp_path: Path) -> None:
    opened, _ = open_by_call(tmp_path)
    kinds = {"8 bits": scene(40, 40), "16 bits": scene(40, 40).astype(np.uint16) * 257}
    pictures = [opened.prepare(codec.encode(pixels, codec.Encoding("png"))[0]) for pixels in kinds.values()]
    assert [np.asarray(picture).dtype for picture in pictures] == [np.uint8, np.uint16]
    together = opened.compute(pictures)["embedding"]
    for row, picture in enumerate(pictures):
        assert together[row] == pytest.approx(opened.compute([picture])["embedding"][0], abs=1e-5)


def test_another_version_of_the_input_counts_as_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.pth").write_bytes(b"read when it is opened")
    options = (None, "lenet5(in_chans=3)", None, str(tmp_path / "weights.pth"))
    before, again = picture_model(*options), picture_model(*options)
    monkeypatch.setattr(picture_models, "CALL_VERSION", picture_models.CALL_VERSION + 1)
    after = picture_model(*options)
    assert before is not None
    assert after is not None
    assert before == again
    assert (before.digest, before.name) != (after.digest, after.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size"),
        ({"size": [224, 5000]}, "less than or equal to 4096"),
        ({"std": [0.0]}, "std must be above 0"),
        ({"mean": [1.0, 2.0]}, "mean needs 1 or 3 numbers"),
        ({"embedding": None, "scores": {}}, "name an output"),
        ({"scores": {"mean": ["key"]}}, "named twice or reserved"),
        ({"scores": {"mean": ["red"], "sum": ["red"]}}, "'red' is named twice or reserved"),
        ({"scores": {"mean": ["a b"]}}, "scores"),
        ({"colour": "red"}, "colour"),
        ({"fit": "resise(3)"}, "unknown step 'resise'"),
        ({"name": "../elsewhere"}, "name"),
    ],
)
def test_a_wrong_card_is_refused_by_the_name_of_the_field(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**CARD, **change}))
    with pytest.raises(UsageError, match=message):
        read_card(str(tmp_path / "card.yaml"))


def test_a_card_that_is_not_yaml_or_no_mapping_is_refused(tmp_path: Path) -> None:
    for text in ("name: [", "!!python/object/apply:os.system ['true']", "3", "[" * 5000, "a: 2026-02-30"):
        (tmp_path / "card.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"card\.yaml"):
            read_card(str(tmp_path / "card.yaml"))


def test_a_graph_that_is_not_what_the_card_says_is_refused(tmp_path: Path) -> None:
    for change, message in (
        ({"embedding": "absent"}, "no output 'absent'; its outputs are channels, mean"),
        ({"scores": {"mean": ["one", "two"]}}, "has 1 numbers a picture, but the card names 2 columns"),
        ({"channels": 1, "mean": [0.5], "std": [0.5]}, "cannot be computed"),
    ):
        model = picture_model(None, *write_graph(tmp_path / "model", card=change), None)
        assert model is not None
        with pytest.raises(StriateError, match=message):
            open_model(model)
    (tmp_path / "model" / "means.onnx").write_bytes(b"not a graph")
    model = picture_model(None, str(tmp_path / "model" / "means.onnx"), str(tmp_path / "model" / "card.yaml"), None)
    assert model is not None
    with pytest.raises(StriateError, match="cannot be opened"):
        open_model(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("b", "m.onnx", None, None), "use one of them"),
        ((None, "lenet5", "card.yaml", None), "--card describes an ONNX file"),
        (("b", None, None, "w.pth"), "--weights is for a model's call"),
        ((None, "m.onnx", None, None), "needs --card"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        picture_model(*options)
