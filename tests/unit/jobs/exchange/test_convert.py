"""Datasets in the formats of other tools, read by those tools, and brought back by ingest."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.exchange.convert import ConvertResults, plan_convert
from jobs.ingest import plan_ingest
from library import storage
from library.dataset.destination import claim, finish
from library.dataset.manifest import Job, load_manifest
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.dataset.task import ShardOutput, ShardTask, Tally
from library.dataset.totals import Totals
from library.errors import UsageError
from library.exchange.exports import TARGETS, Target, claim_export, find_record, json_bytes
from library.exchange.names import are_unique
from library.imaging import codec
from library.sources import Options
from tests.datasets import rows
from tests.exports import convert
from tests.picture_examples import encoded, kinds, write_files

KEYS = (
    *("cat/1.jpg", "cat/1", "1.jpg", "a.b.c.png", "dir.with.dots/x", "train/cat/7", "test/cat/8"),
    *("Ünïcode/猫 é.jpg", "..", "./x", "a//b", "/rooted", "README", "LICENSE.md", "thumbs.db", "_x", ".hidden"),
    *("100%", "50%2F", 'q"uo?te*s<>|', "back\\slash", "ends.", "ends ", "x" * 300, "y" * 299 + ".jpg", "A", "a"),
)
LABELS = ("cat", "dog", None, "train", "a/b", "Größe 猫", "_unlabelled", "..", "7", " spaced ")


def _write(folder: Path, records: list[ImageRecord], extras: list[pa.Field[Any]], shards: int = 3) -> str:
    """Writes a finished dataset of some shards."""
    dataset, schema = str(folder), dataset_schema(extras)
    job = Job(kind="ingest", source="made in a test")
    claim(dataset, [job], overwrite=False)
    totals = Totals()
    for number in range(shards):
        part = records[number::shards]
        task = ShardTask(dataset, f"part-{number:06d}", str(number), len(part))
        with ShardOutput(task, schema) as output:
            output.add(table_of(part, schema), table_of([], schema), Tally(rows_in=len(part)))
        totals.add(output.commit("made"))
    finish(dataset, [job], totals)
    return dataset


def _records(pictures: dict[str, bytes], **extras: list[Any]) -> list[ImageRecord]:
    return [
        ImageRecord(
            key,
            data,
            key.rpartition("/")[2],
            LABELS[number % len(LABELS)],
            codec.probe(data),
            {name: values[number % len(values)] for name, values in extras.items()},
        )
        for number, (key, data) in enumerate(pictures.items())
    ]


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every kind of picture, every difficult key and label, and columns of text and numbers."""
    data = [*kinds().values()]
    pictures = {key: data[number % len(data)] for number, key in enumerate(KEYS)}
    pictures |= {f"kinds/{name}": picture for name, picture in kinds().items()}
    extras: dict[str, list[Any]] = {
        "names": [["a", "猫"], None, ["b"]],
        "age": [3, None, -5],
        "score": [0.5, 1.0, 1e300],
        "note": ['a "b"\n', None, "猫"],
        "seen": [True, False],
    }
    types = (pa.list_(pa.string()), pa.int64(), pa.float64(), pa.string(), pa.bool_())
    fields = [pa.field(name, type_) for name, type_ in zip(extras, types, strict=True)]
    return _write(tmp_path_factory.mktemp("data") / "kinds", _records(pictures, **extras), fields)


def _in_order(dataset: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(Path(dataset, shard.name)) for shard in load_manifest(dataset).shards])


def _back(source: Path, destination: Path) -> pa.Table:
    """Ingests without Ray."""
    plan = plan_ingest(str(source), str(destination), options=Options())
    assert plan.datasets == [str(destination)], "no split is invented"
    claim(str(destination), [plan.job], overwrite=False)
    totals = Totals.of(plan.work.run(task, lambda _: None) for task in plan.tasks)
    assert finish(str(destination), [plan.job], totals).tally.rejected == {}
    return rows(destination)


def _content(table: pa.Table) -> dict[str, Any]:
    """Every row by its key, without the file name in the picture's struct, which is the end of the key or a path."""
    return {row["key"]: row | {"image": row["image"]["bytes"]} for row in table.to_pylist()}


@pytest.mark.parametrize("to", TARGETS)
def test_a_round_trip_keeps_bytes_keys_labels_and_columns(every_kind: str, tmp_path: Path, to: Target) -> None:
    record = convert(every_kind, tmp_path / "there", to)
    before = rows(every_kind)
    assert len(load_manifest(every_kind).tally.formats) == 10
    assert (record.complete, record.rows) == (True, before.num_rows)
    after = _back(tmp_path / "there", tmp_path / "back")
    assert _content(after) == _content(before)
    assert {field.name: field.type for field in after.schema} == {field.name: field.type for field in before.schema}


@pytest.mark.parametrize("to", TARGETS)
def test_converted_pictures_stand_in_the_order_of_the_dataset(every_kind: str, tmp_path: Path, to: Target) -> None:
    convert(every_kind, tmp_path / "there", to)
    if to == "webdataset":
        keys = [json.loads(data)["key"] for name, data in _members(tmp_path / "there") if name.endswith(".json")]
    elif to == "folders":
        lines = (tmp_path / "there" / "metadata.jsonl").read_text("utf-8").split("\n")[:-1]
        keys = [json.loads(line)["key"] for line in lines]
    elif to == "coco":
        images = json.loads((tmp_path / "there" / "annotations.json").read_bytes())["images"]
        assert [image["id"] for image in images] == list(range(1, len(images) + 1))
        keys = [image["key"] for image in images]
    else:
        files = sorted((tmp_path / "there" / "data").glob("*.parquet"))
        keys = pa.concat_tables([pq.read_table(file) for file in files])["key"].to_pylist()
    assert keys == _in_order(every_kind)["key"].to_pylist()


def _members(folder: Path) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                found.append((member.name, file.read()))
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PNG and JPEG pictures of two classes, one without a class, with a column of bytes."""
    pictures = {
        f"{n % 2}/{n}.{'jpg' if n % 3 else 'png'}": encoded("jpeg" if n % 3 else "png", 20 + n) for n in range(9)
    }
    records = _records(pictures, mask=[b"\0mask", None], age=[1, 2, 3])
    records = [
        ImageRecord(one.key, one.data, one.path, ("cat", "dog", None)[n % 3], one.header, one.extras)
        for n, one in enumerate(records)
    ]
    fields = [pa.field("mask", pa.binary()), pa.field("age", pa.int64())]
    return _write(tmp_path_factory.mktemp("data") / "photos", records, fields)


def test_the_webdataset_package_reads_the_samples(photos: str, tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    convert(photos, tmp_path / "wds", "webdataset")
    urls = [str(path) for path in sorted((tmp_path / "wds").glob("*.tar"))]
    raw: list[Any] = [*WebDataset(urls, shardshuffle=False)]
    decoding: Any = WebDataset(urls, shardshuffle=False).decode("rgb8")
    decoded: list[Any] = [*decoding]
    classes = (tmp_path / "wds" / "classes.txt").read_text().split()
    expected = _in_order(photos).to_pylist()
    assert len(raw) == len(decoded) == len(expected) == 9
    for sample, read, row in zip(raw, decoded, expected, strict=True):
        suffix = row["key"][-3:]
        assert sample["__key__"] == row["key"][:-4]
        assert sample[suffix] == row["image"]["bytes"]
        np.testing.assert_array_equal(read[suffix], codec.decode(row["image"]["bytes"]))
        assert (classes[read["cls"]] if "cls" in read else None) == row["label"]
        assert read["json"] == {"striate": 1, "key": row["key"], "label": row["label"], "age": row["age"]}
        assert sample.get("mask") == row["mask"]
    assert _content(_back(tmp_path / "wds", tmp_path / "back")) == _content(rows(photos))


def test_hugging_face_reads_images_and_class_labels(photos: str, tmp_path: Path) -> None:
    import datasets

    convert(photos, tmp_path / "hub", "huggingface")
    loaded: Any = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["label"].names == ["cat", "dog"]
    for read, row in zip(loaded, _in_order(photos).to_pylist(), strict=True):
        assert read["key"] == row["key"]
        expected = None if row["label"] is None else ["cat", "dog"].index(row["label"])
        assert (read["label"], read["mask"], read["age"]) == (expected, row["mask"], row["age"])
        np.testing.assert_array_equal(np.asarray(read["image"]), codec.decode(row["image"]["bytes"]))


def _plain(folder: Path) -> str:
    pictures = {f"{n}.jpg": encoded("jpeg", 20 + n) for n in range(4)}
    records = [ImageRecord(key, data, key, "cat", codec.probe(data), {"age": 1}) for key, data in pictures.items()]
    return _write(folder, records, [pa.field("age", pa.int64())], 2)


def test_hugging_faces_imagefolder_reads_folders(tmp_path: Path) -> None:
    import datasets

    source = _plain(tmp_path / "data")
    convert(source, tmp_path / "folders", "folders")
    loaded: Any = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "folders"), split="train", cache_dir=str(tmp_path / "cache")
    )
    expected = {row["key"]: row for row in rows(source).to_pylist()}
    assert {read["key"] for read in loaded} == set(expected)
    for read in loaded:
        row = expected[read["key"]]
        assert (read["label"], read["age"]) == (row["label"], row["age"])
        np.testing.assert_array_equal(np.asarray(read["image"]), codec.decode(row["image"]["bytes"]))


def test_coco_has_an_annotation_for_each_label_and_files_where_it_says(photos: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the column 'mask' \(binary\) cannot be written as coco"):
        plan_convert(photos, str(tmp_path / "coco"), "coco")
    convert(_plain(tmp_path / "data"), tmp_path / "coco", "coco")
    document = json.loads((tmp_path / "coco" / "annotations.json").read_bytes())
    assert document["categories"] == [{"id": 1, "name": "cat"}]
    assert [one["image_id"] for one in document["annotations"]] == [1, 2, 3, 4]
    for image in document["images"]:
        picture = Image.open(io.BytesIO((tmp_path / "coco" / image["file_name"]).read_bytes()))
        assert picture.size == (image["width"], image["height"])


def test_boxes_become_annotations_of_coco_and_come_back(tmp_path: Path) -> None:
    boxes = [
        [{"x": 1.0, "y": 2.0, "w": 3.5, "h": 4.0, "label": "wheel"}, {"x": 0.0, "y": 0.0, "w": 9.0, "h": 9.0}],
        [],
        None,
        [{"x": 1.0, "y": 1.0, "w": 2.0, "h": 2.0, "label": "wheel"}],
        [{"x": 1.0, "y": 1.0, "w": 2.0, "h": 2.0}],
    ]
    type_ = pa.list_(pa.struct([*((side, pa.float64()) for side in "xywh"), ("label", pa.string())]))
    data = encoded("png", 20, 30)
    records = [
        ImageRecord(str(number), data, None, None if number == 4 else "car", codec.probe(data), {"boxes": one})
        for number, one in enumerate(boxes)
    ]
    source = _write(tmp_path / "data", records, [pa.field("boxes", type_)], shards=1)
    record = convert(source, tmp_path / "coco", "coco")
    assert record.boxes_left_out == 1, "it has no name, and its picture no label"
    document = json.loads((tmp_path / "coco" / "annotations.json").read_bytes())
    assert document["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "wheel"}]
    found = [(one["image_id"], one["category_id"], one.get("bbox"), one.get("area")) for one in document["annotations"]]
    # A box without a name has the class of its picture; a class that no box has gets an annotation of its own.
    assert found == [
        *((1, 2, [1, 2, 3.5, 4], 14), (1, 1, [0, 0, 9, 9], 81)),
        *((2, 1, None, None), (3, 1, None, None), (4, 2, [1, 1, 2, 2], 4), (4, 1, None, None)),
    ]
    assert [one.get("iscrowd") for one in document["annotations"]] == [0, 0, None, None, 0, None]
    after = _back(tmp_path / "coco", tmp_path / "back")
    assert _content(after) == _content(rows(source))
    assert after.schema.field("boxes").type == type_


def test_several_labels_pass_through_coco_to_another_tool_and_back(tmp_path: Path) -> None:
    data = encoded("png")
    lists = [["cat", "dog"], ["dog"], [], None, ["owl", "cat"]]
    records = [
        ImageRecord(f"{number}.png", data, None, "cat" if number == 4 else None, codec.probe(data), {"labels": names})
        for number, names in enumerate(lists)
    ]
    source = _write(tmp_path / "data", records, [pa.field("labels", pa.list_(pa.string()))], 1)
    convert(source, tmp_path / "coco", "coco")
    assert _content(_back(tmp_path / "coco", tmp_path / "back")) == _content(rows(source))
    document = json.loads((tmp_path / "coco" / "annotations.json").read_bytes())
    # As another tool writes it: one folder, and no fields of its own.
    names = {image["id"]: image["key"] for image in document["images"]}
    document["images"] = [{"id": number, "file_name": name} for number, name in names.items()]
    write_files(tmp_path / "other", {**dict.fromkeys(names.values(), data), "annotations.json": json_bytes(document)})
    after = {row["key"]: row for row in _back(tmp_path / "other", tmp_path / "again").to_pylist()}
    assert [after[f"{number}.png"]["labels"] for number in range(5)] == [
        *(["cat", "dog"], ["dog"], [], [], ["cat", "owl"])
    ]
    assert [after[f"{number}.png"]["label"] for number in range(5)] == [None, "dog", None, None, None]


@pytest.mark.parametrize("to", TARGETS)
def test_a_killed_conversion_resumes_to_the_same_bytes(tmp_path: Path, to: Target) -> None:
    source = _plain(tmp_path / "data")
    record = convert(source, tmp_path / "out", to)
    whole = _files(tmp_path / "out")
    plan = plan_convert(source, str(tmp_path / "again"), to)
    claim_export(plan.destination, list(plan.jobs), overwrite=False)
    plan.work.run(plan.tasks[0], lambda _: None)
    (tmp_path / "again" / "_tmp-00ff").write_bytes(b"of a writer that was killed")
    assert len(ConvertResults().resume(plan)) == 1
    found = find_record(plan.destination)
    assert found is not None
    assert not found.complete
    again = convert(source, tmp_path / "again", to)
    assert again.digest == record.digest
    assert _files(tmp_path / "again") == whole


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".striate" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_another_export_is_replaced_only_with_overwrite_and_wholly(tmp_path: Path) -> None:
    source, out = _plain(tmp_path / "data"), tmp_path / "out"
    convert(source, out, "folders")
    (out / "mine.txt").write_text("not ours")
    with pytest.raises(UsageError, match=r"holds .* as folders; choose another destination"):
        plan_convert(source, str(out), "webdataset")
    plan = plan_convert(source, str(out), "webdataset", overwrite=True)
    claim_export(plan.destination, list(plan.jobs), overwrite=True)
    assert set(_files(out)) == {"mine.txt"}
    assert set(_files(tmp_path / "data")) > {"part-000000.parquet"}, "the dataset is untouched"


def test_a_finished_export_is_written_again_with_overwrite(tmp_path: Path) -> None:
    source, out = _plain(tmp_path / "data"), tmp_path / "out"
    convert(source, out, "folders")
    whole = _files(out)
    (out / "cat" / "0.jpg").write_bytes(whole["cat/0.jpg"][::-1])  # as long as before, so no report tells
    assert plan_convert(source, str(out), "folders").described()["shards_to_do"] == 0
    plan = plan_convert(source, str(out), "folders", overwrite=True)
    assert plan.described()["shards_to_do"] == 2
    claim_export(plan.destination, list(plan.jobs), overwrite=True)
    plan.work.run(plan.tasks[0], lambda _: None)
    assert len(ConvertResults().resume(plan)) == plan.described()["shards_to_do"] == 1, "a killed one resumes"
    convert(source, out, "folders", overwrite=True)
    assert _files(out) == whole


@pytest.mark.parametrize("to", ["folders", "coco", "webdataset"])
def test_names_that_some_disks_do_not_tell_apart_are_made_different(tmp_path: Path, to: Target) -> None:
    data = encoded("png")
    pictures = (("cat/a", "cat"), ("cat/A", "cat"), ("Cat/b", "Cat"), ("caf\u00e9", None), ("cafe\u0301", None))
    records = [ImageRecord(key, data, "x", label, codec.probe(data)) for key, label in pictures]
    source = _write(tmp_path / "data", records, [], 1)
    convert(source, tmp_path / "out", to)
    members = [name for name, _ in _members(tmp_path / "out") if name.endswith(".png")]
    names = members or [name for name in _files(tmp_path / "out") if name.endswith(".png")]
    assert len(names) == 5
    assert are_unique(names)
    assert members or len({unicodedata.normalize("NFC", name.lower()).rpartition("/")[0] for name in names}) == 3
    assert _content(_back(tmp_path / "out", tmp_path / "back")) == _content(rows(source))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    source = _plain(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"is not empty and was not written by `striate convert`"):
        plan_convert(source, str(tmp_path / "out"), "webdataset")


def test_columns_of_other_types_are_named_before_anything_is_written(tmp_path: Path) -> None:
    data = encoded("png")
    records = [ImageRecord("a", data, "a", "cat", codec.probe(data), {"n": 3, "tags": [1, 2]})]
    fields = [pa.field("n", pa.int16()), pa.field("tags", pa.list_(pa.int64()))]
    source = _write(tmp_path / "data", records, fields, 1)
    notes = plan_convert(source, str(tmp_path / "out"), "webdataset").notes
    assert [note.partition(";")[0].partition(",")[0] for note in notes] == [
        "the column 'n' (int16) becomes a number of 64 bits",
        "the column 'tags' (list<element: int64>) becomes JSON",
    ]
    convert(source, tmp_path / "hub", "huggingface")
    back = _back(tmp_path / "hub", tmp_path / "back")
    assert back.to_pylist() == rows(source).to_pylist()
    assert back.schema.field("n").type == pa.int16()


@pytest.mark.parametrize("to", TARGETS)
def test_a_shard_without_pictures_is_no_obstacle(tmp_path: Path, to: Target) -> None:
    data = encoded("png")
    records = [
        ImageRecord("a", data, "a", "cat", codec.probe(data)),
        ImageRecord("b", data, "b", None, codec.probe(data)),
    ]
    source = _write(tmp_path / "data", records, [], 3)
    assert [shard.rows for shard in load_manifest(source).shards] == [1, 1, 0]
    assert convert(source, tmp_path / "out", to).rows == 2
    assert _content(_back(tmp_path / "out", tmp_path / "back")) == _content(rows(source))


def test_an_empty_label_or_key_stays_below_the_destination(tmp_path: Path) -> None:
    data = encoded("png")
    pictures = (("", "cat"), ("a", ""), ("/b", "/"), ("..", ".."))
    records = [ImageRecord(key, data, "x", label, codec.probe(data)) for key, label in pictures]
    source = _write(tmp_path / "data", records, [], 1)
    convert(source, tmp_path / "outer" / "out", "folders")
    assert {path.name for path in (tmp_path / "outer").iterdir()} == {"out"}
    assert len(_files(tmp_path / "outer" / "out")) == 5
    assert _content(_back(tmp_path / "outer" / "out", tmp_path / "back")).keys() == {key for key, _ in pictures}


@pytest.mark.parametrize("written", range(1, 6))
def test_overwriting_a_killed_export_leaves_none_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    out, real = tmp_path / "out", storage.write_bytes
    plan = plan_convert(_plain(tmp_path / "data"), str(out), "folders")
    claim_export(plan.destination, list(plan.jobs), overwrite=False)
    left = [written]

    def write(uri: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            _ = [plan.work.run(task, lambda _: None) for task in plan.tasks]
    data = encoded("png")
    other = _write(tmp_path / "other", [ImageRecord("owl", data, "owl", "owl", codec.probe(data))], [], 1)
    convert(other, out, "folders", overwrite=True)
    convert(other, tmp_path / "fresh", "folders")
    assert _files(out) == _files(tmp_path / "fresh")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "fresh").iterdir()}


@pytest.mark.parametrize("absolute", [True, False])
def test_overwriting_a_foreign_export_removes_nothing_elsewhere(tmp_path: Path, absolute: bool) -> None:
    source, out, mine = _plain(tmp_path / "data"), tmp_path / "out", tmp_path / "mine" / "x.jpg"
    convert(source, out, "webdataset")
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    (out / "link").symlink_to(mine.parent)
    names = [str(mine) if absolute else "../mine/x.jpg", "link/x.jpg"]
    for number, name in enumerate(names):
        (out / ".striate" / "names" / f"part-00000{number}.json").write_text(json.dumps([name]))
        report = out / ".striate" / "_reports" / f"part-00000{number}.json"
        report.write_text(json.dumps(json.loads(report.read_text()) | {"files": {name: 4}}))
    convert(source, out, "coco", overwrite=True)
    assert mine.read_bytes() == b"mine"
