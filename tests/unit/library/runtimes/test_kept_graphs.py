"""Exported graphs are kept, found again and checked before they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from library.bundle.bundle import Bundle
from library.bundle.description import load_record
from library.errors import StriateError
from library.imaging import codec
from library.runtimes import kept_graphs
from library.runtimes.graph import onnx_graph
from library.runtimes.kept_graphs import found, kept
from library.runtimes.onnx_session import open_graph
from library.runtimes.parity import TOLERANCE, samples
from library.runtimes.without_torch import GraphClassifier, exported_graph
from tests.bundles import make_bundle

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "striate" / "graphs"


def never() -> bytes:
    pytest.fail("exported again")


def test_a_graph_is_exported_once_for_each_bundle(folder: Path) -> None:
    assert kept("a", lambda: b"graph of a") == b"graph of a"
    assert kept("b", lambda: b"graph of b") == b"graph of b"
    assert (kept("a", never), kept("b", never)) == (b"graph of a", b"graph of b")
    assert found("c") is None
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_graph_is_exported_again(folder: Path) -> None:
    kept("a", lambda: b"graph")
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert found("a") is None
    assert kept("a", lambda: b"graph") == b"graph"
    assert kept("a", never) == b"graph"


def test_the_graphs_used_last_stay_when_room_is_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_graphs, "_MAX_BYTES", 2 * 132)
    for number, name in enumerate("abc"):
        kept(name, lambda: bytes(100))
        for file in folder.iterdir():
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 10**9))
        if number:
            assert found("a") is not None
    assert found("b") is None
    assert found("c") is not None


def test_without_a_folder_to_write_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert kept("a", lambda: b"graph") == b"graph"
    assert found("a") is None


def test_an_exported_graph_answers_as_its_bundle_does(tmp_path: Path) -> None:
    uri = make_bundle(tmp_path / "bundle")
    bundle, record = Bundle.load(uri, "cpu"), load_record(uri)
    graph = exported_graph(uri, bundle.id)
    assert graph == onnx_graph(bundle)  # two exports are the same bytes
    classifier = GraphClassifier(uri, record, graph, threads=1)
    assert 0 <= classifier.difference <= TOLERANCE
    picture = codec.encode(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8), codec.Encoding("png"))[0]
    np.testing.assert_array_equal(classifier.prepare(picture), bundle.prepare(picture))
    prepared = samples(bundle, 5)
    # Pictures of other dtypes go to the network itself.
    prepared[1] = np.asarray(prepared[1]).astype(np.uint16) * 257
    rows = classifier.probabilities(prepared)
    np.testing.assert_allclose(rows, bundle.probabilities(samples(bundle, 5)), rtol=0, atol=TOLERANCE)
    assert classifier.ranked(rows, 2) == bundle.ranked(rows, 2)
    np.testing.assert_array_equal(classifier.features(prepared[:1])[0], bundle.features(prepared[:1])[0])


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ('lenet5(in_chans=3, activation="relu", pooling="max")', 28),
        ("mlp(hidden=[30, 20], in_chans=3)", 28),
        ("resnet9(width=8)", 32),
    ],
)
def test_an_own_networks_graph_is_traced_and_takes_any_batch(tmp_path: Path, model: str, size: int) -> None:
    bundle = Bundle.load(make_bundle(tmp_path / "bundle", model=model, size=size), "cpu")
    graph = onnx_graph(bundle)
    assert str(ROOT).encode() not in graph
    compute = open_graph(graph, len(bundle.classes), bundle.probabilities, 1).compute
    for pictures in (samples(bundle, 1), samples(bundle, 13)):
        np.testing.assert_allclose(compute(pictures), bundle.probabilities(pictures), rtol=0, atol=TOLERANCE)


def test_the_graph_of_an_own_network_needs_no_onnxscript(tmp_path: Path) -> None:
    uri = make_bundle(tmp_path / "bundle")
    code = (
        "import sys\n"
        "from library.bundle.bundle import Bundle\n"
        "from library.runtimes.graph import onnx_graph\n"
        f"onnx_graph(Bundle.load({uri!r}, 'cpu'))\n"
        "print('onnxscript' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_graph_that_answers_otherwise_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    import onnx

    uri = make_bundle(tmp_path / "bundle")
    model = onnx.load_from_string(exported_graph(uri, load_record(uri).id))
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = np.zeros(len(weights.raw_data) // 4, np.float32).tobytes()
    with pytest.raises(StriateError, match=r"runtime 'onnx': .* differs by"):
        GraphClassifier(uri, load_record(uri), model.SerializeToString(), threads=1)
    with pytest.raises(StriateError, match="ONNX Runtime cannot load it"):
        GraphClassifier(uri, load_record(uri), b"no graph", threads=1)
