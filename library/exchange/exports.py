"""A folder in the format of another tool: its record, the reports of its shards, and how it is claimed and finished.

The record and the reports are in `.striate/` below the folder, which the readers of other tools skip. The reports are
the commits, as in a dataset: a killed export resumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

import pydantic

from library import storage
from library.dataset.lease import LEASES
from library.dataset.manifest import Job, Report
from library.errors import StriateError, UsageError

#: What a dataset can be written as.
Target: TypeAlias = Literal["webdataset", "folders", "huggingface", "coco"]
TARGETS: tuple[Target, ...] = get_args(Target)

STATE = ".striate"
RECORD = "export.json"
#: Folder of the lists of files of each shard, in the state.
NAMES = "names"

_MAX_RECORD_BYTES = 64 * 2**20
_TEMPORARY = re.compile(rf"(.*/)?{storage.TEMPORARY_PREFIX}[0-9a-f]+")
_BEFORE_CLAIM = re.compile(rf"{LEASES}/.*|{_TEMPORARY.pattern}")


def _inside(path: str) -> str:
    """Returns a path that a record names; refuses one that leads out of the folder, as the folder may be foreign."""
    if path.startswith("/") or {"", ".", ".."} & set(path.split("/")) or path.split("/")[0] == STATE:
        raise ValueError(f"'{path}' is not the path of a picture below the folder")
    return path


_Inside = Annotated[str, pydantic.AfterValidator(_inside)]
_PATHS = pydantic.TypeAdapter(list[_Inside])


class ExportReport(Report):
    """The report of one shard.

    Attributes:
        files: size in bytes of every file that was written for it, by path below the folder.
        digest: SHA-256 over the names and the contents of these files.
    """

    files: dict[_Inside, int]
    digest: str

    @property
    def bytes_written(self) -> int:
        """Size in bytes of all files."""
        return sum(self.files.values())


class ExportRecord(pydantic.BaseModel):
    """What a folder holds, and where it came from.

    Attributes:
        complete: false while it is being written, and after a kill.
        jobs: the history of the dataset, and then this conversion.
        classes: the names of the classes; a class's number is its place here.
        rows: pictures.
        files: number of files.
        bytes: of all files.
        boxes_left_out: of COCO, boxes without numbers, or without a name on a picture without a label.
        digest: over the digests of all shards.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    complete: bool
    jobs: list[Job]
    classes: list[str] = []
    rows: int = 0
    files: int = 0
    bytes: int = 0
    boxes_left_out: int = 0
    digest: str = ""


def json_bytes(value: Any) -> bytes:
    """Returns a value as JSON in UTF-8, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def lines_uri(folder: str, stem: str) -> str:
    """Returns the URI of the JSON lines that describe the pictures of a shard, for the formats that need them."""
    return storage.join(state_folder(folder), "lines", f"{stem}.jsonl")


def save_names(folder: str, stem: str, names: Sequence[str]) -> None:
    """Writes which files a shard gets, before the first of them: a killed writer leaves files that no report names."""
    storage.write_bytes(storage.join(state_folder(folder), NAMES, f"{stem}.json"), json_bytes(list(names)))


def state_folder(folder: str) -> str:
    """Returns the URI of the folder of records and reports."""
    return storage.join(folder, STATE)


def find_record(folder: str) -> ExportRecord | None:
    """Returns the record of an export; None where there is none.

    Raises:
        StriateError: it is damaged.
    """
    uri = storage.join(state_folder(folder), RECORD)
    if not storage.exists(uri):
        return None
    try:
        return ExportRecord.model_validate_json(storage.read_bytes(uri, max_bytes=_MAX_RECORD_BYTES))
    except pydantic.ValidationError as error:
        raise StriateError(f"{uri} is damaged or was written by another version: {error.errors()[0]['msg']}") from None


def save_record(folder: str, record: ExportRecord) -> None:
    """Writes the record of an export."""
    text = record.model_dump_json(indent=1) + "\n"
    storage.write_bytes(storage.join(state_folder(folder), RECORD), text.encode())


def check_export(folder: str, job: Job, *, overwrite: bool) -> None:
    """Checks that `job` may write to `folder`; changes nothing.

    Raises:
        UsageError: it holds other files, or the export of another dataset or in another format.
    """
    record = find_record(folder)
    if record is None:
        if any(not _BEFORE_CLAIM.fullmatch(file.path) for file in storage.list_files(folder)):
            raise UsageError(f"{folder} is not empty and was not written by `striate convert`; choose an empty folder")
        return
    if record.jobs[-1] != job and not overwrite:
        before = record.jobs[-1]
        changed = before.model_copy(update={"source_digest": job.source_digest}) == job
        raise UsageError(
            f"{folder} holds {before.source} as {before.options.get('to')}"
            + (", before that dataset was changed" if changed else "")
            + "; choose another destination, or replace it with --overwrite"
        )


def claim_export(folder: str, jobs: list[Job], *, overwrite: bool) -> None:
    """Claims a folder for an export; with `overwrite`, first removes what a finished or another conversion wrote there.

    Raises:
        UsageError: as `check_export`.
    """
    check_export(folder, jobs[-1], overwrite=overwrite)
    storage.check_writable(folder)
    record = find_record(folder)
    if record is not None and record.jobs == jobs and not (overwrite and record.complete):
        return
    if record is not None:
        # Before anything is removed: a kill in between must not leave a record that calls the rest complete.
        save_record(folder, record.model_copy(update={"complete": False}))
        _clear(folder)
    save_record(folder, ExportRecord(complete=False, jobs=jobs))


def _clear(folder: str) -> None:
    """Removes the files of an earlier export, also of shards that were not finished; the lists of them last."""
    files = {file.path: file.uri for file in storage.list_files(folder)}  # none behind a link to another folder
    state = storage.list_files(state_folder(folder))
    lists = [file for file in state if file.path.startswith(f"{NAMES}/")]
    names = {name for names in FINAL_FILES.values() for name in names}
    for data in storage.read_many([storage.Span(file.uri) for file in lists]):
        names.update(_load_names(data))
    storage.remove(files[name] for name in sorted(names & files.keys()))
    for parent in sorted({name.rpartition("/")[0] for name in names} - {""}):
        storage.remove_empty_folder(storage.join(folder, parent))  # readers take a folder for a class
    storage.remove(file.uri for file in state if file.path != RECORD and file not in lists)
    storage.remove(file.uri for file in lists)


def _load_names(data: bytes | Exception) -> list[str]:
    """Returns the paths in a list of a shard's files; none where it is damaged or names files elsewhere."""
    if isinstance(data, Exception):
        return []
    try:
        return _PATHS.validate_json(data)
    except pydantic.ValidationError:
        return []


def remove_temporary(folder: str) -> None:
    """Removes temporary files that killed writers left."""
    storage.remove(file.uri for file in storage.list_files(folder) if _TEMPORARY.fullmatch(file.path))


#: The files that are written once all shards are done, by format.
FINAL_FILES: dict[Target, tuple[str, ...]] = {
    "webdataset": ("classes.txt",),
    "folders": ("metadata.jsonl",),
    "huggingface": ("README.md",),
    "coco": ("annotations.json",),
}
