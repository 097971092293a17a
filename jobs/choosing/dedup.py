"""Finds pictures that are in a dataset more than once, and writes it without them: `striate dedup`."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cluster.connection.session import connect
from jobs import output
from jobs.choosing.measure import MEASURES_OPTION, ensure_measures, ensure_outputs
from jobs.choosing.selection import select_dataset
from jobs.progress.display import duration
from library import storage
from library.choosing.duplicates.fingerprints import CHECK_BITS, REASONS, Fingerprints, Rule, fingerprints
from library.choosing.duplicates.gallery import Summary, render_gallery, summarize
from library.choosing.duplicates.keeping import DISAGREEING, Disagreeing, Duplicates, choose
from library.choosing.duplicates.similarity import UnitVectors, check_pictures, unit_vectors
from library.choosing.measures.hashes import VERSION as HASH_VERSION
from library.choosing.measures.picture_models import EMBEDDING, PictureModel, check_embeds
from library.choosing.measures.side_table import check_folder
from library.dataset.destination import check_apart, check_claim
from library.dataset.manifest import DUPLICATES, VERSIONS, Job, Manifest, load_manifest
from library.dataset.shards import read_columns, read_rows, write_table
from library.errors import StriateError, UsageError
from library.evaluation.report.templates import PAGE, check_report

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: In the dataset of `--dropped`: why the others are not there.
KEPT = "not_a_duplicate"
_LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class DedupPlan:
    """What `striate dedup` does; from `plan_dedup`.

    Attributes:
        source: URI of the dataset that is read.
        destination: URI of the dataset that is written.
        manifest: of the source.
        job: what the destination's manifest records.
        rule: when two pictures are duplicates.
        disagreeing: what is done with groups whose labels disagree.
        model: computes the embeddings that are compared; None where none are.
        against: URI of a dataset whose pictures are dropped from the source; None for none.
        against_manifest: of that dataset.
        report: folder of the page; None for no page.
        measures: folder of the source's side table; None for the one below it.
        dropped: URI of the dataset that is written of the dropped pictures; None for none.
        overwrite: replace the output of another job at the destination.
    """

    source: str
    destination: str
    manifest: Manifest
    job: Job
    rule: Rule
    disagreeing: Disagreeing
    model: PictureModel | None = None
    against: str | None = None
    against_manifest: Manifest | None = None
    report: str | None = None
    measures: str | None = None
    dropped: str | None = None
    overwrite: bool = False

    @property
    def table(self) -> str:
        """URI of the table of pictures that have duplicates."""
        return storage.join(self.destination, DUPLICATES)

    @property
    def datasets(self) -> list[tuple[str, Manifest]]:
        """The source, then the dataset that it is compared with."""
        other = [(self.against, self.against_manifest)] if self.against and self.against_manifest else []
        return [(self.source, self.manifest), *other]

    def described(self) -> dict[str, Any]:
        """Returns the options, for --dry-run."""
        against = {"against": self.against} if self.against else {}
        rule = rule_text(self.rule, self.model)
        return {"source": self.source, "destination": self.destination, "duplicates": rule, **against}


@dataclass(frozen=True)
class Found:
    """The duplicates of a dataset.

    Attributes:
        pictures: key, label, format, width, height and num_bytes of every picture, those compared with last.
        prints: what was compared of them.
        duplicates: which of them stay.
        reference: how many of the pictures are of the dataset that was compared with.
    """

    pictures: pa.Table
    prints: Fingerprints
    duplicates: Duplicates
    reference: int

    @property
    def summary(self) -> Summary:
        """Numbers for the command and the page."""
        return summarize(self.duplicates, self.reference)


def plan_dedup(
    source: str,
    destination: str,
    *,
    near: int | None = 4,
    flips: bool = False,
    cosine: float | None = None,
    model: PictureModel | None = None,
    disagreeing: str = "keep",
    against: str | None = None,
    report: str | None = None,
    measures: str | None = None,
    dropped: str | None = None,
    overwrite: bool = False,
) -> DedupPlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the new dataset.
        near: the most bits in which hashes of near duplicates differ; None for exact duplicates only.
        flips: compare with mirrored pictures, too.
        cosine: the least cosine of the embeddings of duplicates; None for no comparison of embeddings.
        model: computes the embeddings.
        disagreeing: what is done with groups whose labels disagree: keep, best or drop.
        against: URI of a dataset; pictures that are also there are dropped.
        report: folder for a page with the groups.
        measures: folder of the source's side table; None for the one below it.
        dropped: URI of a dataset to write of the dropped pictures.
        overwrite: replace the results of another job at the destination.

    Raises:
        UsageError: when the request is not valid.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    rule = Rule.of_options(near, flips=flips, cosine=cosine)
    _check_embeddings(cosine, model)
    choices: dict[str, Disagreeing] = {choice: choice for choice in DISAGREEING}
    if disagreeing not in choices:
        raise UsageError(f"--disagreeing {disagreeing}: choose from {', '.join(DISAGREEING)}")
    manifest = load_manifest(source)
    other = None
    if against is not None:
        against = storage.normalize(against)
        if against == source:
            raise UsageError(f"--against {against} is the source itself; name another dataset")
        other = load_manifest(against)
    if cosine is not None:
        check_pictures(manifest.rows + (0 if other is None else other.rows))
    options = {
        "near": near,
        "flips": flips,
        "disagreeing": disagreeing,
        "hashes": None if near is None else HASH_VERSION,
        "cosine": cosine,
        "model": None if model is None else model.digest,
        "against": against,
        "against_digest": None if other is None else other.digest,
    }
    job = Job(kind="dedup", source=source, source_digest=manifest.digest, options=options)
    check_apart(source, destination)
    check_claim(destination, job, overwrite=overwrite)
    if dropped is not None:
        dropped = storage.normalize(dropped)
        check_apart(source, dropped)
        check_apart(destination, dropped)
        check_claim(dropped, _dropped_job(job), overwrite=overwrite)
    if measures is not None:
        measures = storage.normalize(measures)
        check_folder(measures, source, manifest.shards, MEASURES_OPTION)
        if model is not None:
            check_folder(measures, source, manifest.shards, MEASURES_OPTION, model.name)
    if report is not None:
        report = storage.normalize(report)
        check_report(report, [source, destination], "striate dedup")
    return DedupPlan(
        source,
        destination,
        manifest,
        job,
        rule,
        choices[disagreeing],
        model=model,
        against=against,
        against_manifest=other,
        report=report,
        measures=measures,
        dropped=dropped,
        overwrite=overwrite,
    )


def find_duplicates(plan: DedupPlan, *, workers: str = "auto", address: str | None = None) -> Found:
    """Measures what is not measured yet, finds the duplicates, and writes the page if one is asked for.

    Args:
        plan: from `plan_dedup`.
        workers: number of workers that measure; `auto` is one per CPU.
        address: address of the Ray cluster; not used if everything is measured.

    Raises:
        UsageError: when another command is measuring the dataset.
        StriateError: when a shard fails, or the dataset was changed meanwhile.
    """
    columns = plan.rule.columns
    tables: list[pa.Table] = []
    for dataset, manifest in plan.datasets:
        folder = plan.measures if dataset == plan.source else None
        measured = ensure_measures(dataset, columns, manifest=manifest, folder=folder, workers=workers, address=address)
        tables.append(_with_labels(dataset, manifest, measured))
    pictures = pa.concat_tables(tables)
    embeddings = None
    if plan.model is not None:
        embeddings = _embeddings(plan, plan.model, pictures["key"], workers, address)
    prints = fingerprints(pictures, plan.rule, embeddings)
    reference = plan.against_manifest.rows if plan.against_manifest else 0
    progress = ComparisonLines(pictures.num_rows)
    duplicates = choose(pictures, prints, plan.disagreeing, reference, progress, DecisionLines())
    facts = pictures.select(["key", "label", "format", "width", "height", "num_bytes"])
    found = Found(facts, prints, duplicates, reference)
    if plan.report is not None:
        _write_page(plan, plan.report, found)
    return found


class ComparisonLines:
    """Prints how far the comparison of embeddings is, at most every ten seconds, on stderr.

    Args:
        pictures: number of pictures, of which every pair is compared.
    """

    def __init__(self, pictures: int) -> None:
        self._pairs = pictures * (pictures - 1) // 2
        self._start = self._printed = time.monotonic()

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self._printed >= _LINE_EVERY_S and 0 < share < 1:
            self._printed = now
            output.stderr.print(self.line(share, now - self._start), markup=False)

    def line(self, share: float, seconds: float) -> str:
        """Returns `dedup: 38% of 4,999,950,000 pairs of embeddings compared, 152 million/s, 20 s left`."""
        rate = share * self._pairs / max(seconds, 1e-6)
        left = duration((1 - share) * self._pairs / rate)
        done = f"dedup: {share:.0%} of {self._pairs:,} pairs of embeddings compared"
        return f"{done}, {rate / 1e6:,.0f} million/s, {left} left"


class DecisionLines:
    """Prints how far the choice in groups of many pictures is, at most every ten seconds, on stderr."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._printed = 0.0
        self._before = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None:  # the first block is decided, in a time that is not known
            self._start = self._printed = now
            self._before = done
        elif now - self._printed >= _LINE_EVERY_S and done < total:
            self._printed = now
            output.stderr.print(self.line(done, total, now - self._start), markup=False)

    def line(self, done: int, total: int, seconds: float) -> str:
        """Returns `dedup: 12,000 of 60,000 pictures of large groups decided, 1,200/s, 40 s left`."""
        rate = (done - self._before) / max(seconds, 1e-6)
        left = duration((total - done) / max(rate, 1e-6))
        return f"dedup: {done:,} of {total:,} pictures of large groups decided, {rate:,.0f}/s, {left} left"


def dedup_dataset(plan: DedupPlan, *, workers: str = "auto", address: str | None = None) -> tuple[Manifest, Found]:
    """Writes the dataset without duplicates; called again, it resumes a killed job.

    Beside the shards lies `_duplicates.parquet` with every picture that has a duplicate: see `duplicates_table`.

    Args:
        plan: from `plan_dedup`.
        workers: number of workers; `auto` is one per CPU.
        address: address of the Ray cluster.

    Returns:
        The manifest of the destination, and what was found.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    with connect(address):
        found = find_duplicates(plan, workers=workers, address=address)
        own = plan.manifest.rows
        keys = found.pictures["key"].slice(0, own)
        reasons = [REASONS[reason] or None for reason in found.duplicates.reasons[:own].tolist()]

        def select(destination: str, job: Job, reasons: Sequence[str | None]) -> Manifest:
            return select_dataset(
                "dedup",
                plan.source,
                destination,
                plan.manifest,
                pa.table({"key": keys, "reason": pa.array(reasons, pa.string())}),
                job,
                workers=workers,
                address=address,
                overwrite=plan.overwrite,
            )

        manifest = select(plan.destination, plan.job, reasons)
        if plan.dropped is not None:
            others = [None if reason else KEPT for reason in reasons]
            select(plan.dropped, _dropped_job(plan.job), others)
    write_table(plan.table, duplicates_table(plan, found))
    return manifest, found


def _dropped_job(job: Job) -> Job:
    """Returns the job that writes the dropped pictures."""
    return job.model_copy(update={"options": {**job.options, "dropped": True}})


def duplicates_table(plan: DedupPlan, found: Found) -> pa.Table:
    """Returns a row for each picture that has a duplicate, group by group, those that stay first.

    Columns: `group` (a number), `key`, `label`, `width`, `height`, `num_bytes`, `reason` (why it is dropped; null where
    it stays), `kept` (key of the picture that stays in its place), `distance` (bits between the two), `cosine` (of
    their embeddings; null where they are not compared), `labels_disagree` (of the group) and `dataset` (URI of where
    the picture is).
    """
    choice = found.duplicates
    rows = np.flatnonzero(choice.sizes > 1)
    rows = rows[np.lexsort((rows, choice.distances[rows], choice.reasons[rows] > 0, choice.groups[rows]))]
    part = found.pictures.take(pa.array(rows)).drop_columns(["format"])
    partners, distances = choice.partners[rows], choice.distances[rows].astype(np.int16)
    kept = found.pictures["key"].take(pa.array(np.maximum(partners, 0)))
    datasets = [plan.against if row >= plan.manifest.rows else plan.source for row in rows.tolist()]
    columns: dict[str, Any] = {
        "group": pa.array(choice.groups[rows]),
        **{name: part[name] for name in part.column_names},
        "reason": pa.array([REASONS[reason] or None for reason in choice.reasons[rows].tolist()], pa.string()),
        "kept": _compute.if_else(pa.array(partners >= 0), kept, pa.scalar(None, pa.string())),
        "distance": pa.array(distances, mask=(partners < 0) | (distances == 255)),
        "cosine": pa.array(choice.cosines[rows], mask=np.isnan(choice.cosines[rows])),
        "labels_disagree": pa.array(choice.disagreeing[rows]),
        "dataset": pa.array(datasets, pa.string()),
    }
    return pa.table(columns)


def rule_text(rule: Rule, model: PictureModel | None = None) -> str:
    """Returns one phrase that says which pictures count as duplicates.

    Args:
        rule: when two pictures are duplicates.
        model: whose embeddings are compared.
    """
    phrases = ["equal files, or equal pixels"]
    if rule.near is not None:
        mirrored = ", also mirrored" if rule.flips else ""
        phrases.append(f"pHash within {rule.near} and dHash within {rule.near + CHECK_BITS} of 64 bits{mirrored}")
    if rule.cosine is not None and model is not None:
        phrases.append(f"embeddings of {model.call or model.uri} with a cosine of at least {rule.cosine:g}")
    return ", or ".join(phrases)


def as_json(plan: DedupPlan, found: Found) -> dict[str, Any]:
    """Returns the options and the numbers of a search, for --json."""
    summary = asdict(found.summary)
    summary["by_distance"] = {str(bits): pictures for bits, pictures in found.summary.by_distance.items()}
    if plan.rule.cosine is None:
        del summary["by_cosine"]
    if plan.against is None:
        del summary["leaks_kept"]
    return {**plan.described(), **summary}


def _with_labels(dataset: str, manifest: Manifest, measures: pa.Table) -> pa.Table:
    """Returns measures with the label and format of each picture."""
    names = ("label", "format")
    if not manifest.shards:
        none = pa.array([], pa.string())
        return measures.append_column("label", none).append_column("format", none)
    stored = read_columns(dataset, ["key", *names], [shard.name for shard in manifest.shards])
    if not stored["key"].equals(measures["key"]):
        raise StriateError(f"the measures of {dataset} are not those of its pictures; run the same command again")
    for name in names:
        measures = measures.append_column(name, stored[name].cast(pa.string()))
    return measures


def _check_embeddings(cosine: float | None, model: PictureModel | None) -> None:
    if cosine is None and model is not None:
        raise UsageError("a model has no effect without --cosine, such as --cosine 0.98")
    if cosine is not None:
        if not 0 < cosine <= 1:
            raise UsageError(f"--cosine {cosine:g}: must be above 0 and at most 1")
        if model is None:
            raise UsageError("--cosine compares embeddings: name --bundle BUNDLE, or --model with --weights or --card")
        check_embeds(model)


def _embeddings(
    plan: DedupPlan, model: PictureModel, keys: pa.ChunkedArray, workers: str, address: str | None
) -> UnitVectors:
    """Returns the embedding of every picture, computed first where it is missing."""

    def parts() -> Iterator[Any]:
        first = 0
        for dataset, _ in plan.datasets:
            folder = plan.measures if dataset == plan.source else None
            for part in ensure_outputs(dataset, model, [EMBEDDING], folder=folder, workers=workers, address=address):
                if not keys.slice(first, part.num_rows).equals(part["key"]):
                    raise StriateError(
                        f"the embeddings of {dataset} are not those of its pictures; run the same command again"
                    )
                yield part[EMBEDDING]
                first += part.num_rows

    return unit_vectors(parts(), len(keys))


def _write_page(plan: DedupPlan, report: str, found: Found) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = render_gallery(
        plan.source,
        rule_text(plan.rule, plan.model),
        found.pictures,
        found.prints,
        found.duplicates,
        lambda rows: _read_pictures(plan, rows),
        reference=found.reference,
        reference_name=plan.against or "",
        footer=f"made {now} by striate {VERSIONS['striate']}",
    )
    storage.write_bytes(storage.join(report, PAGE), page.encode("utf-8", "replace"))


def _read_pictures(plan: DedupPlan, rows: Sequence[int]) -> list[bytes]:
    """Reads encoded pictures by their rows, counted over the source and the dataset that it is compared with."""
    by_row: dict[int, bytes] = {}
    first = 0
    for dataset, manifest in plan.datasets:
        inside = [row for row in rows if first <= row < first + manifest.rows]
        if inside:
            table = read_rows(dataset, manifest.shards, [row - first for row in inside])
            images: Sequence[Mapping[str, Any]] = table["image"].to_pylist()
            by_row |= {row: image["bytes"] or b"" for row, image in zip(inside, images, strict=True)}
        first += manifest.rows
    return [by_row[row] for row in rows]
