"""The JSON files beside the shards: one report per shard, and one manifest per dataset.

A report commits its shard: it is written last. The manifest is written when a job starts (`complete` is false, so that
half a dataset is never read by mistake) and again when it ends. What differs from run to run (timings, workers) is
under `run` and not part of the digest, so two runs of the same job leave the same dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from library import storage
from library.errors import StriateError, UsageError

SCHEMA_VERSION = 1
MANIFEST = "_manifest.json"
REPORTS = "_reports"
REJECTS = "_rejects"
#: Folder of the decisions that a selection was made by: which pictures of each shard are kept, and why not the others.
DECISIONS = "_decisions"
#: Folder of feature vectors: a dataset of small tables, shard by shard, for each model.
FEATURES = "_features"
#: Table of the pictures that have duplicates, beside the shards that `striate dedup` wrote.
DUPLICATES = "_duplicates.parquet"

#: Versions of the packages that decide the bytes of a dataset.
VERSIONS = {
    name: version(name)
    for name in (
        "striate",
        "opencv-python-headless",
        "simplejpeg",
        "pillow",
        "pillow-heif",
        "tifffile",
        "imagecodecs",
        "numpy",
        "pyarrow",
    )
}

#: Files that ingest skips, by reason; a hidden folder on disk, or a link to a folder, counts once.
SKIPPED = {
    "beside": "of other types (texts, tables, programs)",
    "hidden": "hidden",
    "system": "of the operating system",
    "link": "links in an archive",
    "link_broken": "links to nothing",
    "link_folder": "links to folders that are read elsewhere",
    "link_outside": "links out of the folder to files that are not pictures",
    "repeated": "replaced by a later file of the same name in the archive",
    "special": "devices, pipes or the like",
    "sparse": "sparse members",
    "underscore": "with a name that begins with _",
}

_MAX_JSON_BYTES = 512 * 2**20


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


_Count = Annotated[int, pydantic.Field(ge=0)]

#: Pattern of a shard's name without its suffix.
# Names in a manifest become paths: a manifest from elsewhere must not lead out of its dataset.
STEM = r"part-\d{6,}"


class FileEntry(_Model):
    """One Parquet file: path below the dataset, rows, size in bytes, SHA-256 of its bytes."""

    name: str = pydantic.Field(pattern=rf"^({REJECTS}/)?{STEM}\.parquet$")
    rows: _Count
    bytes: _Count
    digest: str


class Tally(_Model):
    """Counts of pictures: `rows_in = rows_out + dropped + rejected`.

    Attributes:
        rows_in: pictures read.
        rows_out: pictures kept.
        dropped: pictures that a selector dropped, by reason.
        rejected: pictures that could not be used, by reason.
        noted: kept pictures that were not kept whole: `more_pages` (only the first page is read), `repaired` (stray
            bytes were cut out of the file), `boxes_dropped` (a step moved a box out of the picture).
        image_bytes_in: encoded bytes read.
        image_bytes_out: encoded bytes kept.
        classes: kept pictures by label; those without one are not counted here.
        formats: kept pictures by format.
        channels: kept pictures by number of channels.
        sides: kept pictures by longer side, rounded up to a power of two (pixels).
    """

    rows_in: _Count = 0
    rows_out: _Count = 0
    dropped: dict[str, _Count] = {}
    rejected: dict[str, _Count] = {}
    noted: dict[str, _Count] = {}
    image_bytes_in: _Count = 0
    image_bytes_out: _Count = 0
    classes: dict[str, _Count] = {}
    formats: dict[str, _Count] = {}
    channels: dict[str, _Count] = {}
    sides: dict[str, _Count] = {}

    @property
    def balanced(self) -> bool:
        """Whether no picture was lost or counted twice."""
        return self.rows_in == self.rows_out + sum(self.dropped.values()) + sum(self.rejected.values())

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Returns the sum of `tallies`."""
        counts: dict[str, Any] = {}
        for tally in tallies:
            for name, value in tally:
                if isinstance(value, int):
                    counts[name] = counts.get(name, 0) + value
                else:
                    counts.setdefault(name, Counter()).update(value)
        return cls.model_validate({n: v if isinstance(v, int) else dict(sorted(v.items())) for n, v in counts.items()})


class Report(_Model):
    """The result of one shard; its existence commits the shard.

    Attributes:
        stem: name of the shard without `.parquet`, the same for input and output.
        input_digest: digest of the bytes (or the plan) that the shard is made from.
        work_digest: digest of everything else that decides the result: steps, encoding, row limit, classifier.
        tally: counts of the pictures.
        seconds: time by stage (read, decode, each step, encode, write); differs from run to run.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    stem: str = pydantic.Field(pattern=f"^{STEM}$")
    input_digest: str
    work_digest: str
    tally: Tally
    seconds: dict[str, float] = {}

    @property
    def bytes_written(self) -> int:
        """Size in bytes of the files that were written for the shard."""
        return 0


class ShardReport(Report):
    """The report of a job that writes a shard.

    Attributes:
        output: the shard.
        rejects: the file of pictures that could not be used, where there are any.
        histograms: of the kept pictures, as `library.dataset.histograms` writes them; None where not measured.
    """

    output: FileEntry
    rejects: FileEntry | None = None
    histograms: dict[str, Any] | None = None

    @property
    def bytes_written(self) -> int:
        """Size of the shard and its rejects in bytes."""
        return self.output.bytes + (self.rejects.bytes if self.rejects else 0)


class Origin(_Model):
    """One of several datasets that a merge joined: where it was, what it held, and the jobs that led to it."""

    source: str
    digest: str
    jobs: list[Job]


class Job(_Model):
    """The job that wrote a dataset, and its source.

    Attributes:
        kind: the command that ran.
        source: URI of the source; of the first one for a merge.
        origins: for a merge, all of its sources in order, each with its history; empty for other jobs.
        source_digest: digest of the source's manifest; None where the source is not a dataset.
        pipeline: canonical text of the steps; empty for ingest and predict.
        pipeline_digest: SHA-256 of that text.
        encode: how changed pictures were stored.
        options: everything else that decides the output.
    """

    kind: Literal[
        "ingest", "filter", "augment", "predict", "dedup", "split", "merge", "remove", "convert", "features", "sift"
    ]
    source: str
    origins: list[Origin] = []
    source_digest: str | None = None
    pipeline: str = ""
    pipeline_digest: str = ""
    encode: str = "keep"
    options: dict[str, Any] = {}


class Manifest(_Model):
    """One dataset.

    Attributes:
        complete: false while a job is writing it, and after it was killed.
        jobs: the jobs that lead to it, from the first; the last wrote it.
        tally: sum over all shards; `classes` are the dataset's classes with counts.
        skipped: files of the source that were not read as pictures, by reason (ingest only).
        shards: in order of name.
        rejects: files below `_rejects/`.
        versions: versions of the packages that decide the bytes: striate and the codecs.
        histograms: of its pictures, as `library.dataset.histograms` writes them; None where not measured.
        run: timings and cluster; not part of the digest.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    complete: bool
    jobs: list[Job]
    tally: Tally = Tally()
    skipped: dict[str, int] = {}
    shards: list[FileEntry] = []
    rejects: list[FileEntry] = []
    versions: dict[str, str] = {}
    histograms: dict[str, Any] | None = None
    run: dict[str, Any] = {}

    @property
    def job(self) -> Job:
        """The job that wrote this dataset."""
        return self.jobs[-1]

    @property
    def rows(self) -> int:
        """Number of pictures."""
        return self.tally.rows_out

    @property
    def bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex; the same for every run of the same job on the same source."""
        return hashlib.sha256(_canonical(self.model_dump(exclude={"run"})).encode()).hexdigest()


_ModelT = TypeVar("_ModelT", bound=_Model)
ReportT = TypeVar("ReportT", bound=Report)


def skipped_text(counts: Mapping[str, int]) -> str:
    """Returns a line such as `skipped 5 files: 3 of other types (texts, tables, programs), 2 hidden`."""
    each = ", ".join(f"{count:,} {SKIPPED.get(reason, reason)}" for reason, count in sorted(counts.items()))
    total = sum(counts.values())
    if total == 0:
        return "skipped nothing"
    return f"skipped {total:,} {'file' if total == 1 else 'files'}: {each}"


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of the canonical JSON of plain data, in hex."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def no_dataset(uri: str) -> UsageError:
    """Returns the error for a URI that has no dataset."""
    if not storage.exists(uri):
        return UsageError(f"there is nothing at {uri}; create a dataset with `striate ingest`")
    return UsageError(f"{uri} is not a dataset: it has no {MANIFEST}; create one with `striate ingest`")


def load_manifest(dataset: str, *, must_be_complete: bool = True) -> Manifest:
    """Reads a dataset's manifest.

    Raises:
        UsageError: `dataset` is not a dataset, or is not finished.
        StriateError: the manifest is damaged, inconsistent or of another version.
    """
    manifest = find_manifest(dataset)
    if manifest is None:
        splits = splits_below(dataset)
        if splits:
            raise UsageError(f"{dataset} holds a dataset for each split; choose {' or '.join(splits)}")
        raise no_dataset(dataset)
    if must_be_complete and not manifest.complete:
        raise UsageError(f"{dataset} is not finished; run the command that writes it again, and it resumes")
    return manifest


def splits_below(folder: str) -> list[str]:
    """Returns the URIs of the datasets directly below `folder`: train, val and test first."""
    names = [path for path in datasets_inside(folder) if "/" not in path]
    order = {"train": 0, "val": 1, "test": 2}
    return [storage.join(folder, name) for name in sorted(names, key=lambda name: (order.get(name, 3), name))]


def datasets_inside(folder: str) -> list[str]:
    """Returns the paths of the datasets at any depth below `folder`, relative to it.

    Folders whose names begin with `_` belong to a dataset and are left out: `train/_features/...` holds features.
    """
    paths = [file.path for file in storage.list_files(folder) if file.path.endswith(f"/{MANIFEST}")]
    datasets = [path.removesuffix(f"/{MANIFEST}") for path in paths]
    return sorted(path for path in datasets if not any(part.startswith("_") for part in path.split("/")))


def find_manifest(dataset: str) -> Manifest | None:
    """Returns the manifest of `dataset`, complete or not, or None where there is none.

    Raises:
        StriateError: the manifest is damaged, inconsistent or of another version.
    """
    uri = manifest_uri(dataset)
    if not storage.exists(uri):
        return None
    manifest = _read(Manifest, uri)
    wrong = next(_wrong_sums(manifest), None)
    if wrong is not None:
        raise StriateError(
            f"{uri} is inconsistent: {wrong}. It was changed after it was written; copy the dataset again, or remove "
            "it and create it again"
        )
    return manifest


def _wrong_sums(manifest: Manifest) -> Iterator[str]:
    """Yields a phrase for each inconsistency of a manifest."""
    tally = manifest.tally
    dropped, rejected = sum(tally.dropped.values()), sum(tally.rejected.values())
    if not tally.balanced:
        parts = f"{tally.rows_out:,} out, {dropped:,} dropped and {rejected:,} rejected"
        yield f"{tally.rows_in:,} pictures in do not equal {parts}"
    for what, entries, rows in (("shards", manifest.shards, tally.rows_out), ("rejects", manifest.rejects, rejected)):
        held = sum(entry.rows for entry in entries)
        if held != rows:
            yield f"its {what} hold {held:,} pictures, but its total is {rows:,}"
        if len({entry.name for entry in entries}) < len(entries):
            yield f"its {what} name a file twice"
    for what in ("classes", "formats", "channels", "sides"):
        counted = sum(getattr(tally, what).values())
        if counted > tally.rows_out:
            yield f"its {what} hold {counted:,} pictures in all, but its total is {tally.rows_out:,}"


def save_manifest(dataset: str, manifest: Manifest) -> None:
    """Writes the manifest of `dataset`; on a local disk it survives a power cut afterwards."""
    storage.write_bytes(manifest_uri(dataset), _dumped(manifest))
    storage.flush([manifest_uri(dataset)])


def manifest_uri(dataset: str) -> str:
    """Returns the URI of the manifest of `dataset`."""
    return storage.join(dataset, MANIFEST)


def save_report(folder: str, report: Report) -> None:
    """Commits one shard: writes its report below a dataset, or below the folder of an evaluation."""
    storage.write_bytes(report_uri(folder, report.stem), _dumped(report))


def load_report(data: bytes | Exception, model: type[ReportT]) -> ReportT | None:
    """Parses a report; None where it is unreadable or of another version, so that its shard is processed again."""
    if isinstance(data, Exception):
        return None
    try:
        return model.model_validate_json(data)
    except pydantic.ValidationError:
        return None


def report_uri(dataset: str, stem: str) -> str:
    """Returns the URI of the report of the shard `stem`."""
    return storage.join(dataset, REPORTS, f"{stem}.json")


def _dumped(model: _Model) -> bytes:
    return (model.model_dump_json(indent=1) + "\n").encode()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _read(model: type[_ModelT], uri: str) -> _ModelT:
    data = storage.read_bytes(uri, max_bytes=_MAX_JSON_BYTES)
    try:
        return model.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StriateError(f"{uri} is damaged or was written by another version: {where}: {first['msg']}") from None
