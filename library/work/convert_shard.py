"""What one worker does with one shard of `striate convert`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, Protocol

import pyarrow as pa

from library import storage
from library.dataset.manifest import VERSIONS, Tally, digest_of, save_report
from library.dataset.shards import SUFFIX, ShardReader, ShardWriter, batches
from library.dataset.task import Progress, ShardTask, image_bytes, row_counts
from library.exchange.exports import ExportReport, Target, json_bytes, lines_uri, save_names, state_folder
from library.exchange.names import Naming, file_path, sample_key, suffix
from library.exchange.tables import fields_of, hub_schema, hub_table
from library.sources.tables.sidecars import MARK

_HUB = "data"  # folder of the Parquet files
_BATCH_ROWS = 64
_PARALLEL_WRITES = 16


class _Writer(AbstractContextManager[Any], Protocol):
    """Writes the pictures of one shard; its files are complete when the block ends without an error."""

    def add(self, table: pa.Table) -> None:
        """Writes some rows."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Size in bytes of each file by its path; known once the block has ended."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents; known once the block has ended."""
        ...


@dataclass(frozen=True)
class ConvertJob:
    """Writes the shards of a dataset in the format of another tool; encoded pictures are not changed.

    Attributes:
        source: URI of the dataset.
        destination: URI of the folder that is written.
        to: the format.
        classes: the names of the classes, in the order of their numbers.
        naming: how pictures are named, so that names are unique in this dataset.
    """

    source: str
    destination: str
    to: Target
    classes: Sequence[str] = field(default_factory=tuple[str, ...])
    naming: Naming = "long"

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["convert", self.to, list(self.classes), self.naming, task.max_rows, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ExportReport:
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows, rows=task.rows)
        schema = reader.schema()
        tallies: list[Tally] = []
        start = perf_counter()
        save_names(self.destination, task.stem, self._names(task, reader))
        with _writer(self, task.stem, schema) as output:
            for table in batches(reader, _BATCH_ROWS):
                output.add(table)
                tallies.append(Tally(rows_in=table.num_rows, image_bytes_in=image_bytes(table), **row_counts(table)))
                progress(tallies[-1])
        spent = perf_counter() - start
        report = ExportReport(
            stem=task.stem,
            input_digest=task.input_digest,
            work_digest=self.work_digest(task),
            tally=Tally.total(tallies),
            files=dict(output.files),
            digest=output.digest,
            seconds={"read": round(reader.waited_s, 4), "write": round(spent - reader.waited_s, 4)},
        )
        save_report(state_folder(self.destination), report)
        return report

    def _names(self, task: ShardTask, reader: ShardReader) -> list[str]:
        """Returns the paths of the files that the shard gets."""
        if self.to == "webdataset":
            return [_tar_path(task.stem)]
        if self.to == "huggingface":
            return [_hub_path(task.stem)]
        rows = reader.columns(["key", "label", "format"]).slice(0, task.max_rows).to_pylist()
        return [self.path_of(row["key"], row["label"], row["format"]) for row in rows]

    def path_of(self, key: str, label: str | None, format_: str) -> str:
        """Returns the path of a picture, in the formats that have a file for each."""
        below = "images/" if self.to == "coco" else ""
        return below + file_path(key, label, format_, self.naming)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each class."""
        return {name: number for number, name in enumerate(self.classes)}


def _tar_path(stem: str) -> str:
    return f"{stem}.tar"


def _hub_path(stem: str) -> str:
    return f"{_HUB}/{stem}{SUFFIX}"


def _writer(job: ConvertJob, stem: str, schema: pa.Schema) -> _Writer:
    if job.to == "webdataset":
        return _TarWriter(job, stem, schema)
    return _HubWriter(job, stem, schema) if job.to == "huggingface" else _FileWriter(job, stem, schema)


class _TarWriter:
    """One WebDataset shard: for each picture its bytes, `.cls` with the number of its class, and `.json`.

    Columns of bytes are members of their own. The archive depends on the rows alone: no times, owners or modes.
    """

    def __init__(self, job: ConvertJob, stem: str, schema: pa.Schema) -> None:
        self._name = _tar_path(stem)
        self._target = storage.writer(storage.join(job.destination, self._name))
        self._numbers = job.numbers
        self._naming: Naming = job.naming
        self._schema = schema

    def __enter__(self) -> _TarWriter:
        self._file = self._target.__enter__()
        # Closed in `__exit__`, which the file below it needs to outlive.
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.PAX_FORMAT)  # type: ignore[call-overload]
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            if raised[0] is None:
                self._tar.close()
        except BaseException:  # such as a full disk: what was written is removed
            self._target.__exit__(*sys.exc_info())
            raise
        self._target.__exit__(*raised)

    def add(self, table: pa.Table) -> None:
        for row, fields in zip(table.to_pylist(), fields_of(table, self._schema), strict=True):
            name = sample_key(row["key"], row["format"], self._naming)
            members = {suffix(row["format"], row["key"]): row["image"]["bytes"]}
            if row["label"] is not None:
                members["cls"] = str(self._numbers[row["label"]]).encode()
            members["json"] = json_bytes({MARK: 1, "key": row["key"], "label": row["label"], **fields.values})
            for ending, data in {**members, **fields.parts}.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size, member.mode = len(data), 0o644
                self._tar.addfile(member, io.BytesIO(data))

    @property
    def files(self) -> Mapping[str, int]:
        return {self._name: self._file.size}

    @property
    def digest(self) -> str:
        return digest_of({self._name: self._file.digest})


class _FileWriter:
    """A file for each picture, in the folder of its class, and a line of JSON for each below the state."""

    def __init__(self, job: ConvertJob, stem: str, schema: pa.Schema) -> None:
        self._job, self._stem, self._schema = job, stem, schema
        self._digests: dict[str, str] = {}
        self._lines: list[bytes] = []
        self.files: dict[str, int] = {}

    def __enter__(self) -> _FileWriter:
        threads = storage.is_remote(self._job.destination)
        self._pool = ThreadPoolExecutor(_PARALLEL_WRITES) if threads else nullcontext()
        self._pool.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._pool.__exit__(*raised)
        if raised[0] is None:
            self._write(lines_uri(self._job.destination, self._stem), b"".join(self._lines))

    def add(self, table: pa.Table) -> None:
        contents: dict[str, bytes] = {}
        for row, fields in zip(table.to_pylist(), fields_of(table, self._schema), strict=True):
            name = self._job.path_of(row["key"], row["label"], row["format"])
            contents[name] = row["image"]["bytes"]
            known = {"file_name": name, MARK: 1, "key": row["key"], "label": row["label"]}
            if self._job.to == "coco":
                known |= {"width": row["width"], "height": row["height"]}
            self._lines.append(json_bytes({**known, **fields.values}) + b"\n")
        self.files |= {name: len(data) for name, data in contents.items()}
        self._digests |= {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        uris = [storage.join(self._job.destination, name) for name in contents]
        run: Callable[..., Any] = self._pool.map if isinstance(self._pool, ThreadPoolExecutor) else map
        list(run(self._write, uris, contents.values()))

    def _write(self, uri: str, data: bytes) -> None:
        storage.write_bytes(uri, data)

    @property
    def digest(self) -> str:
        return digest_of([self._digests, hashlib.sha256(b"".join(self._lines)).hexdigest()])


class _HubWriter:
    """One Parquet file with the features of Hugging Face: `image` is an Image and `label` a ClassLabel."""

    def __init__(self, job: ConvertJob, stem: str, schema: pa.Schema) -> None:
        self._job, self._path = job, _hub_path(stem)
        self._columns = hub_schema(schema, job.classes)
        self._writer = ShardWriter(storage.join(job.destination, _HUB), f"{stem}{SUFFIX}", self._columns)

    def __enter__(self) -> _HubWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._writer.__exit__(*raised)

    def add(self, table: pa.Table) -> None:
        self._writer.add(hub_table(table, self._columns, self._job.numbers))

    @property
    def files(self) -> Mapping[str, int]:
        return {self._path: self._writer.entry.bytes}

    @property
    def digest(self) -> str:
        return digest_of({self._path: self._writer.entry.digest})
