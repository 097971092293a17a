"""The files of an export that describe all of its pictures, written once its shards are done, and its final record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from library import storage
from library.dataset.manifest import Job, Tally, digest_of
from library.exchange.exports import (
    FINAL_FILES,
    ExportRecord,
    ExportReport,
    Target,
    json_bytes,
    lines_uri,
    remove_temporary,
    save_record,
)
from library.sources.tables.coco import LABELS

_WRITE_BYTES = 2**22


def finish_export(
    folder: str, jobs: Sequence[Job], to: Target, classes: Sequence[str], totals: ExportTotals
) -> ExportRecord:
    """Writes the files that describe all pictures, and then the record, which completes the export.

    Args:
        folder: URI.
        jobs: the history of the dataset, and then the conversion.
        to: the format.
        classes: the names of the classes, in the order of their numbers.
        totals: of all shards.
    """
    remove_temporary(folder)
    sizes: dict[str, int] = {}
    [name] = FINAL_FILES[to]
    with storage.writer(storage.join(folder, name)) as file:
        for part in _joined(_final(folder, to, classes, totals)):
            file.write(part)
    sizes[name] = file.size
    record = ExportRecord(
        complete=True,
        jobs=list(jobs),
        classes=list(classes),
        rows=totals.tally.rows_out,
        files=totals.files + len(sizes),
        bytes=totals.bytes + sum(sizes.values()),
        boxes_left_out=totals.boxes_left_out,
        digest=digest_of([totals.digests[stem] for stem in sorted(totals.digests)] + [file.digest]),
    )
    save_record(folder, record)
    return record


class ExportTotals:
    """The sum of the reports of an export's shards.

    Attributes:
        digests: of each shard, by its stem.
        files: number of files.
        bytes: of all files.
        boxes_left_out: boxes that the format cannot hold; counted while the final file is written.
    """

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.files = self.bytes = self.boxes_left_out = 0
        self._tallies: list[Tally] = []

    def add(self, report: ExportReport) -> None:
        """Adds the report of one shard."""
        self.digests[report.stem] = report.digest
        self.files += len(report.files)
        self.bytes += report.bytes_written
        self._tallies.append(report.tally)

    @property
    def tally(self) -> Tally:
        """Counts over all pictures."""
        return Tally.total(self._tallies)


def _final(folder: str, to: Target, classes: Sequence[str], totals: ExportTotals) -> Iterator[bytes]:
    """Yields the content of the file that describes all pictures."""
    lines = (
        storage.read_bytes(lines_uri(folder, stem)) for stem in sorted(totals.digests) if to in ("folders", "coco")
    )
    if to == "webdataset":
        yield "".join(f"{name}\n" for name in classes).encode()
    elif to == "folders":
        yield from lines
    elif to == "coco":
        yield from _coco(lines, classes, totals)
    else:
        yield _card(classes, totals).encode()


def _coco(shards: Iterable[bytes], classes: Sequence[str], totals: ExportTotals) -> Iterator[bytes]:
    """Yields a COCO document: an image for each picture, and annotations; counts the boxes that it cannot hold.

    Format: https://cocodataset.org/#format-data - ids count from 1, in the order of the pictures. A picture has an
    annotation with a `bbox` for each of its boxes, and one without for each of its classes that no box has: its label
    and the names in the column `labels`.
    """
    yield b'{"info":{"description":"written by striate convert"},"images":['
    annotations: list[tuple[int, str, Mapping[str, Any]]] = []
    image_id = 0
    for lines in shards:
        for line in lines.splitlines():
            picture: Mapping[str, Any] = json.loads(line)
            image_id += 1
            boxes = _boxes(picture)
            boxed = [(name, box) for name, box in boxes if name is not None]
            totals.boxes_left_out += len(boxes) - len(boxed)
            names = _names(picture) - {name for name, _ in boxed}
            annotations += [(image_id, name, box) for name, box in (*boxed, *((name, {}) for name in sorted(names)))]
            yield (b",\n" if image_id > 1 else b"\n") + json_bytes({"id": image_id, **picture})
    known = set(classes)
    names = [*classes, *sorted({name for _, name, _ in annotations if name not in known})]
    numbers = {name: number for number, name in enumerate(names, 1)}
    yield b'\n],"annotations":['
    for number, (image, category, box) in enumerate(annotations, 1):
        start = b",\n" if number > 1 else b"\n"
        yield start + json_bytes({"id": number, "image_id": image, "category_id": numbers[category], **box})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    yield b'\n],"categories":' + json_bytes(categories) + b"}\n"


def _names(picture: Mapping[str, Any]) -> set[str]:
    """Returns the classes of a picture: its label, and the names in the column `labels` where that holds a list."""
    listed = picture.get(LABELS)
    names = {picture["label"], *(listed if isinstance(listed, list) else ())}
    return {name for name in names if isinstance(name, str)}


def _boxes(picture: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Returns the category and the further fields of the annotation of each box; None where a box cannot have one.

    A box without a name has the label of its picture.
    """
    boxes = picture.get("boxes")
    if not (isinstance(boxes, list) and all(isinstance(box, dict) and set("xywh") <= box.keys() for box in boxes)):
        return []
    fields_of_boxes: list[tuple[str | None, Mapping[str, Any]]] = []
    for box in boxes:
        name = box.get("label") or picture["label"]
        sides = [box[side] for side in "xywh"]
        if isinstance(name, str) and None not in sides:
            crowd = int(str(box.get("iscrowd") or 0) in ("1", "True", "true"))
            fields_of_boxes.append((name, {"bbox": sides, "area": sides[2] * sides[3], "iscrowd": crowd}))
        else:
            fields_of_boxes.append((None, {}))
    return fields_of_boxes


def _card(classes: Sequence[str], totals: ExportTotals) -> str:
    """Returns a dataset card, which tells Hugging Face's readers where the Parquet files are."""
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n\n"
        f"{totals.tally.rows_out:,} pictures of {len(classes):,} classes, written by `striate convert`.\n"
    )


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the parts in larger pieces."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _WRITE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
