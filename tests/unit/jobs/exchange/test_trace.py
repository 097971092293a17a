"""Tracing pictures, datasets and bundles to their sources and to what was made from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.exchange.merge import plan_merge
from jobs.exchange.trace import print_trace, trace_subject
from jobs.filter import plan_filter
from jobs.predict import plan_predict
from library.bundle.bundle import Bundle
from library.bundle.description import load_record
from library.dataset.manifest import Job, Origin, load_manifest
from library.errors import UsageError
from library.exchange.lineage_tree import Node, trace
from library.exchange.provenance import Catalogue, around, find_below, first_keys
from library.sources.listing import MAX_BYTES
from tests.bundles import make_bundle
from tests.datasets import carry_out
from tests.exports import convert
from tests.picture_examples import encoded, ingest, write_files

FILES = {f"{label}/{n}.png": encoded("png", 40 + n, 50) for label in ("cat", "dog") for n in range(3)}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ingests, a filter, a merge with prefixes, and a bundle trained on the filtered pictures."""
    folder = tmp_path_factory.mktemp("lake")
    ingest(write_files(folder / "files", FILES), folder / "raw")
    ingest(
        write_files(folder / "others", {"owl/9.png": encoded("png", 44, 50), "ox/9.png": FILES["cat/0.png"]}),
        folder / "more",
    )
    carry_out(plan_filter(str(folder / "raw"), str(folder / "grey"), "grayscale", encode="png"))
    carry_out(plan_merge([str(folder / "raw"), str(folder / "more")], str(folder / "all"), on_clash="prefix"))
    bundle = Bundle.load(make_bundle(folder / "elsewhere" / "made"))
    digest = load_manifest(str(folder / "grey")).digest
    provenance = {"datasets": {"train": "/old/grey"}, "dataset_digests": {"train": digest}}
    Bundle.of_model(bundle.record.model_copy(update={"provenance": provenance}), bundle.model, "cpu").save(
        str(folder / "model")
    )
    return folder


def _nodes(roots: Any) -> Iterator[Node]:
    for node in roots:
        yield node
        yield from _nodes(node.children)


def test_a_key_leads_to_its_source_and_all_that_holds_it(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trace_subject("cat/1.png", [str(lake)])
    nodes = {(node.kind, Path(node.uri).name): node for node in _nodes(result.roots)}
    assert set(nodes) == {
        *(("source", "files"), ("dataset", "raw"), ("dataset", "grey"), ("dataset", "all"), ("bundle", "model"))
    }
    [root] = result.roots
    assert root.uri == str(lake / "files")
    [picture] = nodes["dataset", "raw"].facts["pictures"]
    digest = hashlib.sha256(FILES["cat/1.png"]).hexdigest()
    assert (picture["key"], picture["sha256"], picture["label"]) == ("cat/1.png", digest, "cat")
    [merged] = nodes["dataset", "all"].facts["pictures"]
    assert (merged["key"], merged["sha256"]) == ("raw/cat/1.png", digest)
    assert nodes["dataset", "grey"].facts["pictures"][0]["sha256"] != digest
    assert [node.kind for node in nodes["dataset", "grey"].children] == ["bundle"]
    print_trace(result)
    printed = capsys.readouterr().out
    file = f"file {lake}/files/cat/1.png, sha256 {digest[:12]}"
    assert printed.startswith(f"source {lake}/files\n│    {file}\n└─ dataset {lake}/raw  by ingest\n")
    assert f"sha256 {digest[:12]}" in printed


def test_a_source_that_cannot_be_read_is_a_note_below_the_tree(tmp_path: Path) -> None:
    ingest(write_files(tmp_path / "files", FILES), tmp_path / "raw")
    os.truncate(tmp_path / "files" / "cat" / "1.png", MAX_BYTES + 1)
    result = trace_subject("cat/1.png", [str(tmp_path)])
    assert [Path(node.uri).name for node in _nodes(result.roots)] == ["files", "raw"]
    assert result.roots[0].facts["files"] == {}
    [problem] = result.problems
    assert problem.startswith(f"the files in {tmp_path}/files were not all looked at: ")


def test_a_dataset_read_from_an_export_leads_back_through_it(lake: Path, tmp_path: Path) -> None:
    convert(str(lake / "more"), tmp_path / "wds", "webdataset")
    ingest(tmp_path / "wds", tmp_path / "back")
    result = trace_subject("owl/9.png", [str(lake), str(tmp_path)])
    assert [root.uri for root in result.roots] == [str(lake / "others")]
    names = [(node.kind, Path(node.uri).name) for node in _nodes(result.roots)]
    assert names.count(("export", "wds")) == 1
    assert names.index(("export", "wds")) + 1 == names.index(("dataset", "back"))


def test_the_key_of_a_merge_leads_to_the_same_tree(lake: Path) -> None:
    one, other = (trace_subject(key, [str(lake)]).described()["sources"] for key in ("cat/1.png", "raw/cat/1.png"))
    assert one == other


def test_a_bundle_leads_to_the_sources_of_its_datasets(lake: Path) -> None:
    identity = load_record(str(lake / "model")).id
    for subject in (str(lake / "model"), identity, identity[:12]):
        result = trace_subject(subject, [str(lake)])
        assert [Path(node.uri).name for node in _nodes(result.roots)] == ["files", "raw", "grey", "model"]
        assert [node.facts.get("subject") for node in _nodes(result.roots)][-1]


def test_a_bundle_stands_below_the_one_that_gave_its_weights(lake: Path, tmp_path: Path) -> None:
    first = load_record(str(lake / "model"))
    ingest(write_files(tmp_path / "own", {"ox/7.png": FILES["cat/0.png"]}), tmp_path / "mine")
    made = Bundle.load(str(lake / "model"))
    provenance = {
        "datasets": {"train": str(tmp_path / "mine")},
        "dataset_digests": {"train": load_manifest(str(tmp_path / "mine")).digest},
        "weights": {"bundle": "/old/model", "bundle_id": first.id},
    }
    tuned = str(tmp_path / "tuned")
    Bundle.of_model(made.record.model_copy(update={"provenance": provenance}), made.model, "cpu").save(tuned)
    folders = [str(lake), str(tmp_path)]
    for subject in ("cat/1.png", str(lake / "model"), tuned):
        nodes = [*_nodes(trace_subject(subject, folders).roots)]
        [model] = [node for node in nodes if node.uri == str(lake / "model")]
        assert [(node.uri, node.facts["role"]) for node in model.children] == [(tuned, "weights")], subject
    assert {Path(node.uri).name for node in nodes} == {"files", "raw", "grey", "model", "tuned", "own", "mine"}
    roots = trace_subject(tuned, [str(tmp_path)]).roots
    assert [(node.uri, node.found) for node in roots if node.kind == "bundle"] == [("/old/model", False)]


def test_predictions_lead_to_their_bundle_and_their_pictures(lake: Path, tmp_path: Path) -> None:
    predictions, bundle = str(tmp_path / "predictions"), str(lake / "model")
    carry_out(plan_predict(bundle, str(lake / "raw"), predictions))
    nodes = [*_nodes(trace_subject(predictions, [str(lake), str(tmp_path)]).roots)]
    assert [Path(node.uri).name for node in nodes] == ["files", "raw", "predictions"]
    assert nodes[-1].facts["bundle"] == bundle
    assert nodes[-1].facts["made_by"] == f"predict with bundle {load_record(bundle).id[:12]}"
    nodes = [*_nodes(trace_subject("dog/2.png", [str(lake / "raw"), str(tmp_path)]).roots)]
    [picture] = next(node for node in nodes if node.uri == predictions).facts["pictures"]
    assert picture["predicted"] in load_record(bundle).classes
    assert predictions in {node.uri for node in _nodes(trace_subject(bundle, [str(lake), str(tmp_path)]).roots)}


def test_a_dataset_leads_back_and_forward(lake: Path) -> None:
    result = trace_subject(str(lake / "raw"), [])
    names = {Path(node.uri).name for node in _nodes(result.roots)}
    assert names == {"files", "raw", "grey", "all", "model", "others", "more"}, "a merge has a second source"


def test_a_dataset_that_is_gone_stays_in_the_tree(lake: Path) -> None:
    catalogue = Catalogue(datasets={str(lake / "grey"): load_manifest(str(lake / "grey"))})
    nodes = [*_nodes(trace(str(lake / "grey"), catalogue).roots)]
    assert [(Path(node.uri).name, node.found) for node in nodes] == [("files", True), ("raw", False), ("grey", True)]


def test_what_is_nowhere_is_an_error_that_says_where_it_was_looked_for(lake: Path) -> None:
    with pytest.raises(UsageError, match=r"'nothing' is neither a bundle .* of the 4 finished datasets"):
        trace_subject("nothing", [str(lake)])
    with pytest.raises(UsageError, match=r"--in .*: there is no such folder"):
        trace_subject("cat/1.png", [str(lake / "absent")])


def test_a_key_in_no_readable_dataset_is_not_said_to_be_in_none(lake: Path, tmp_path: Path) -> None:
    manifest = ingest(lake / "files", tmp_path / "raw")
    ingest(lake / "others", tmp_path / "more")
    (tmp_path / "raw" / manifest.shards[0].name).write_bytes(b"no longer Parquet")
    with pytest.raises(UsageError) as raised:
        trace_subject("cat/1.png", [str(tmp_path)])
    sentence, problem = str(raised.value).split("\n", 1)
    assert "a key of one of the 1 finished datasets that were looked at" in sentence
    assert problem.startswith(f"{tmp_path / 'raw'} cannot be read, so it was not looked at: ")


def test_vectors_beside_a_dataset_are_no_datasets_of_their_own(lake: Path, tmp_path: Path) -> None:
    ingest(lake / "files", tmp_path / "raw")
    ingest(lake / "files", tmp_path / "raw" / "_features" / "0123")
    assert find_below([str(tmp_path)]).datasets.keys() == {str(tmp_path / "raw")}


def test_numbers_of_copies_are_cut_only_where_a_picture_may_be_a_copy() -> None:
    ingested, copied = Job(kind="ingest", source="a"), Job(kind="augment", source="a")
    origins = [
        Origin(source="/raw", digest="1", jobs=[ingested]),
        Origin(source="/copies", digest="2", jobs=[ingested, copied]),
    ]
    merge = Job(kind="merge", source="/raw", origins=origins, options={"on_clash": "keep-first"})
    assert first_keys(["page#3"], [merge]) == {"page#3", "page"}
    by_prefix = merge.model_copy(update={"options": {"on_clash": "prefix"}})
    assert first_keys(["raw/page#3"], [by_prefix]) == {"page#3"}
    assert first_keys(["copies/page#3"], [by_prefix]) == {"page"}


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [("/a/b/raw", "/a/b"), ("/raw", "/raw"), ("s3://lake/raw", "s3://lake/raw"), ("s3://lake/a/raw", "s3://lake/a")],
)
def test_a_whole_bucket_or_disk_is_not_searched(dataset: str, folder: str) -> None:
    assert around(dataset) == folder
