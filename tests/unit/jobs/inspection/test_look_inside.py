"""`striate inspect` writes a page and a PNG for each part, for every kind of bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.cli.app import run
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.dataset.lease import hold
from library.imaging import codec
from library.models.build import create
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, write_files


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """UMAP compiles itself for half a minute; a machine without it is the usual one."""
    if request.node.get_closest_marker("faults") is None:
        monkeypatch.setattr("library.evaluation.inside.embedding.has_umap", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Twelve pictures of three classes, one of which the bundles do not know."""
    files = {f"{label}/{n}.png": encoded("png", 30 + n, 40) for label in ("china", "flower", "odd") for n in range(4)}
    ingest(write_files(tmp_path / "raw", files), tmp_path / "data")
    return str(tmp_path / "data")


def picture(path: Path, channels: int = 3, dtype: type = np.uint8) -> str:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (40, 40, channels), dtype)
    path.write_bytes(codec.encode(pixels, codec.Encoding("tiff" if channels > 3 else "png"))[0])
    return str(path)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["inspect", *arguments, "--no-gpu", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_page_and_its_files_show_every_part(capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path) -> None:
    bundle, out = make_bundle(tmp_path / "bundle"), tmp_path / "out"
    numbers = inspect(capsys, bundle, picture(tmp_path / "a<b>.png"), "--data", data, "--out", str(out))
    parts = {re.sub(r"^a-b-", "", name) for name in numbers["files"]}
    wanted = {"kernels", "embedding-pca", "confused", "patches", "heat", "trust", "maps", "fields"}
    assert parts == {f"{part}.png" for part in wanted}
    for name in numbers["files"]:
        assert codec.decode((out / name).read_bytes()).shape[2] == 3
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(wanted)
    assert "a&lt;b&gt;.png" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=.?https?:", page)
    (explained,) = numbers["pictures"]
    shares = [one["probability"] for one in explained["classes"]]
    assert explained["explained"] == explained["classes"][0]["class"]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert set(explained["trust"]) == {"Grad-CAM", "occlusion"}
    assert numbers["data"]["pictures"] == 12
    assert [stage["stage"] for stage in numbers["networks"][0]["stages"]] == ["c1", "c3", "c5", "f6"]
    assert {pair["label"] for pair in numbers["data"]["confused"]} <= {"china", "flower"}
    # Run again, it replaces its own page and files, and leaves others alone.
    (out / "photo.png").write_bytes(b"mine")
    inspect(capsys, bundle, "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"index.html", "kernels.png", "photo.png"}
    # An old name in other letters is the new drawing where a disk ignores case.
    page = (out / "index.html").read_text()
    (out / "index.html").write_text(page.replace(">kernels.png<", ">Kernels.png<"))
    (out / "Kernels.png").write_bytes(b"old")
    inspect(capsys, bundle, "--out", str(out))
    assert {path.name for path in out.iterdir()} >= {"index.html", "kernels.png", "Kernels.png"}


@pytest.mark.faults
def test_umap_is_drawn_where_it_is_installed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = {f"{label}/{n}.png": encoded("png", 30 + n, 40) for label in ("china", "flower") for n in range(10)}
    ingest(write_files(tmp_path / "raw", files), tmp_path / "data")
    numbers = inspect(
        capsys, make_bundle(tmp_path / "bundle"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")
    )
    assert [one["method"] for one in numbers["data"]["embeddings"]] == ["PCA", "UMAP"]
    assert codec.decode((tmp_path / "out" / "embedding-umap.png").read_bytes()).std() > 1
    assert "umap-learn" not in (tmp_path / "out" / "index.html").read_text()


def test_without_pictures_some_of_the_dataset_are_explained(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", model="mlp(hidden=[8], in_chans=3)")
    options = ("--data", data, "--out", str(tmp_path / "out"), "--class", "hopper", "--limit", "9", "--road")
    numbers = inspect(capsys, bundle, *options)
    assert numbers["data"]["pictures"] == 9
    assert len(numbers["pictures"]) == 3
    for one in numbers["pictures"]:
        assert one["explained"] == "hopper"
        assert set(one["trust"]) == {"occlusion"}  # an mlp has no maps
        assert one["hidden_by"] == "neighbours"
    assert (tmp_path / "out" / "index.html").read_text().count("are filled in from their neighbours") == 3


def test_an_ensembles_members_are_drawn_one_by_one(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path
) -> None:
    members = [
        Bundle.load(make_bundle(tmp_path / "a"), "cpu"),
        Bundle.load(make_bundle(tmp_path / "b", model="resnet9(width=8)", size=32), "cpu"),
    ]
    ensemble(members, [3, 1]).save(str(tmp_path / "both"))
    files = inspect(capsys, str(tmp_path / "both"), "--data", data, "--out", str(tmp_path / "out"))["files"]
    for part in ("kernels", "patches"):
        assert {f"{part}-1.png", f"{part}-2.png"} <= set(files)
    assert len([name for name in files if name.endswith("maps-2.png")]) == 3
    assert len(files) == len(set(files))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files, "index.html"}
    # A drawing of the whole ensemble has no number, whatever its picture is called.
    named = picture(tmp_path / "member.png")
    files = inspect(capsys, str(tmp_path / "both"), named, "--out", str(tmp_path / "named"))["files"]
    assert {"member-heat.png", "member-trust.png", "member-maps-1.png", "member-fields-2.png"} <= set(files)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint16), (5, np.uint8), (5, np.uint16)])
def test_pictures_of_many_bands_and_16_bits_are_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, channels: int, dtype: type
) -> None:
    torch.manual_seed(0)
    call = f"lenet5(in_chans={channels})"
    record = BundleRecord(
        model=call,
        classes=("a", "b"),
        multilabel=channels > 1,
        fit='resize([28, 28], mode="exact")',
        input_size=(28, 28),
        channels=channels,
    )
    Bundle.of_model(record, create(call, num_classes=2), "cpu").save(str(tmp_path / "bundle"))
    file = picture(tmp_path / "p.tif", channels, dtype)
    numbers = inspect(capsys, str(tmp_path / "bundle"), file, "--out", str(tmp_path / "out"))
    assert numbers["networks"][0]["first_kernels"][1] == channels
    assert len(numbers["files"]) == 5


def test_labels_of_several_classes_come_from_their_column(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [["a", "b"], ["a"], [], ["b"]]
    images = [{"bytes": encoded("png", 30, 30 + number), "path": None} for number in range(len(names))]
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.table({"image": images, "tags": names}), tmp_path / "raw" / "rows.parquet")
    ingest(str(tmp_path / "raw"), tmp_path / "data")
    record = BundleRecord(
        model="lenet5(in_chans=3)",
        classes=("a", "b"),
        multilabel=True,
        fit='resize([28, 28], mode="exact")',
        input_size=(28, 28),
        channels=3,
    )
    Bundle.of_model(record, create(record.model, num_classes=2), "cpu").save(str(tmp_path / "bundle"))
    options = ("--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    numbers = inspect(capsys, str(tmp_path / "bundle"), *options, "--labels", "tags")
    pairs = {(pair["label"], pair["predicted"]): pair["pictures"] for pair in numbers["data"]["confused"]}
    assert pairs == {("a", "b"): 1, ("b", "a"): 1}
    for given, message in ((["--labels", "key"], "--labels: the column 'key'"), ([], "add --labels COLUMN")):
        assert message in inspect(capsys, str(tmp_path / "bundle"), *options, *given, code=2)["error"]


def test_an_unusable_picture_is_reported_and_the_others_are_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle, good = make_bundle(tmp_path / "bundle"), picture(tmp_path / "good.png")
    bad, gone = tmp_path / "bad.png", str(tmp_path / "gone.png")
    bad.write_bytes(b"not a picture")
    numbers = inspect(capsys, bundle, str(bad), gone, good, "--out", str(tmp_path / "out"), code=1)
    assert [one["file"] for one in numbers["pictures"]] == [good]
    assert {one["file"]: one["reason"] for one in numbers["failed"]} == {str(bad): "not_an_image", gone: "cannot_read"}


def test_a_step_that_fails_is_no_fault_of_the_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", steps='blur_background(mask_column="mask")')
    answer = inspect(capsys, bundle, picture(tmp_path / "p.png"), "--out", str(tmp_path / "out"), code=1)
    assert "has no column 'mask'" in answer["error"]


def test_a_folder_that_another_command_writes_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle, out = make_bundle(tmp_path / "bundle"), tmp_path / "out"
    with hold(str(out), tidy=print):
        assert "is being written by process" in inspect(capsys, bundle, "--out", str(out), code=2)["error"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "5"], "--limit has no effect without --data"),
        (["--labels", "tags"], "--labels has no effect without --data"),
        (["--road"], "--road has no effect without a picture or --data"),
        (["--class", "china"], "--class has no effect without a picture or --data"),
        (["DATA", "--labels", "tags"], "gives a picture one class; leave it out"),
        (["DATA", "--limit", "1"], "--limit 1: must be from 2 to 2,000"),
        (["DATA", "--limit", "2001"], "--limit 2001: must be from 2 to 2,000"),
        (["DATA", "--class", "cow"], "has no such class; it has china, flower, hopper"),
        (["a.png", "a.png"], "a.png is given twice"),
        (["DATA AS A PICTURE"], "is a dataset, not a picture; name it with --data"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_computed(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path, options: list[str], message: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    named = {"DATA": ("--data", data), "DATA AS A PICTURE": (data,)}
    given = [part for one in options for part in named.get(one, (one,))]
    out = tmp_path / "out"
    assert message in inspect(capsys, bundle, *given, "--out", str(out), code=2)["error"]
    assert not out.exists()


def test_a_page_of_something_else_and_the_bundle_itself_are_left_alone(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path
) -> None:
    bundle, other = make_bundle(tmp_path / "bundle"), tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    for out, message in ((other, "page (index.html) of something else"), (data, "inside"), (bundle, "is the bundle")):
        error = inspect(capsys, bundle, "--data", data, "--out", str(out), code=2)["error"]
        assert error.startswith("--out ")
        assert message in error
