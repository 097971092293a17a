"""Measures every picture of a dataset and keeps the results in a side table: `striate measure`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs.shards.dataset_job import shard_tasks
from jobs.shards.pool_size import WorkerPool, pool_for_shards
from jobs.shards.results import DatasetResults
from library import storage
from library.choosing.measures.measuring import DEFAULT, REASON, check_columns
from library.choosing.measures.picture_models import PictureModel
from library.choosing.measures.side_table import Origin, Parts, check_folder, folder_of, read_measures, read_origins
from library.dataset.lease import hold
from library.dataset.manifest import STEM, Manifest, load_manifest
from library.dataset.shards import SUFFIX
from library.dataset.task import ShardTask
from library.errors import UsageError
from library.evaluation.report.templates import PAGE, check_report
from library.extras import check_installed
from library.work.measure_shard import MeasureJob
from library.work.model_shard import ModelJob

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Files of the folder that --report names.
SUMMARY = "measures.json"
#: Gives the folder of the side table where another command measures first.
MEASURES_OPTION = "--measures"
_SHARD = re.compile(STEM + re.escape(SUFFIX))


@dataclass(frozen=True)
class MeasurePlan:
    """What `striate measure` does; from `plan_measure`.

    Attributes:
        dataset: URI.
        manifest: of the dataset.
        folder: URI of the side table.
        tasks: every shard.
        todo: the shards whose file lacks a column or is not up to date.
        work: what is done to each.
        report: URI of the folder of the page; None for no page.
    """

    dataset: str
    manifest: Manifest
    folder: str
    tasks: Sequence[ShardTask]
    todo: Sequence[ShardTask]
    work: MeasureJob | ModelJob
    report: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What is computed: the columns, or the model."""
        if isinstance(self.work, ModelJob):
            return {"model": self.work.model.uri, "model_digest": self.work.model.digest}
        return {"columns": list(self.work.columns)}

    @property
    def parts(self) -> Parts:
        """Reads the finished side table."""
        return Parts(self.folder, self.manifest.shards)

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run."""
        return {
            "dataset": self.dataset,
            "table": self.folder,
            **self.facts,
            "shards": len(self.tasks),
            "shards_done": len(self.tasks) - len(self.todo),
            "shards_to_do": len(self.todo),
            "pictures_to_do": sum(task.pictures for task in self.todo),
        }


@dataclass(frozen=True)
class MeasureResult:
    """The finished side table.

    Attributes:
        rows: pictures of the dataset.
        rejected: pictures whose pixels could not be measured, by reason.
        run: measurements of this run, as in a manifest.
    """

    rows: int
    rejected: Mapping[str, int]
    run: Mapping[str, Any]


def plan_measure(
    dataset: str,
    columns: Sequence[str] = (),
    *,
    model: PictureModel | None = None,
    folder: str | None = None,
    report: str | None = None,
    option: str = "--out",
) -> MeasurePlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        dataset: URI.
        columns: names of measures; empty for `DEFAULT`.
        model: computes its own columns in place of measures, in a folder of its name below the side table.
        folder: URI of the side table; None for `_measures/` below the dataset.
        report: URI of a folder for the page; None for no page.
        option: gives `folder`, for messages.

    Raises:
        UsageError: when the request is not valid.
    """
    dataset = storage.normalize(dataset)
    if model is not None and (columns or report is not None):
        raise UsageError("a model writes its own columns: leave out --columns and --report, or measure without a model")
    names = check_columns(columns or DEFAULT)
    manifest = load_manifest(dataset)
    where = folder_of(dataset) if folder is None else storage.normalize(folder)
    name = None if model is None else model.name
    checked = None if folder is None else check_folder(where, dataset, manifest.shards, option, name)
    if name is not None:
        where = storage.join(where, name)
    if report is not None:
        check_installed("matplotlib", "striate measure --report")  # draws the histograms
        report = storage.normalize(report)
        check_report(report, [dataset], "striate measure")
    tasks = shard_tasks(manifest, dataset, None) if manifest.shards else []
    origins = read_origins(where) if checked is None else checked
    work = MeasureJob(where, names) if model is None else ModelJob(where, model)
    todo = [
        task
        for task in tasks
        if (origin := origins.get(task.stem + SUFFIX)) is None or not _is_current(work, task, origin)
    ]
    return MeasurePlan(dataset, manifest, where, tasks, todo, work, report)


def _is_current(work: MeasureJob | ModelJob, task: ShardTask, origin: Origin) -> bool:
    if isinstance(work, ModelJob):
        return origin == Origin(task.input_digest, task.rows, {"model": work.made_by})
    return set(work.columns) <= origin.current(task.input_digest, task.rows)


def measure_dataset(
    plan: MeasurePlan, *, workers: str = "auto", size: str | None = None, address: str | None = None
) -> MeasureResult:
    """Carries out a plan; called again, it resumes a killed job.

    Args:
        plan: from `plan_measure`.
        workers: number of workers; `auto` is one per CPU.
        size: a named size instead of `workers`.
        address: address of the Ray cluster.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    if not plan.todo:
        if outdated_files(plan):
            with hold(plan.folder, tidy=lambda _: None):
                storage.remove(outdated_files(plan))
        return _result(plan, {})
    storage.check_writable(plan.folder)
    with hold(plan.folder, tidy=_remove_temporary), connect(address) as session:
        return measure_shards(plan, pool_for_shards(session, workers, size))


def measure_shards(plan: MeasurePlan, pool: WorkerPool) -> MeasureResult:
    """Carries out a plan with the Ray that is connected; see `measure_dataset`.

    Args:
        plan: from `plan_measure`.
        pool: the workers.
    """
    from jobs.shards.runner import run_shards

    reads = [plan.work.model.uri] if isinstance(plan.work, ModelJob) else []
    check_shared(reads=[plan.dataset, *reads], writes=[plan.folder])
    results = DatasetResults(pool)
    results.resumed[plan.dataset] = len(plan.tasks) - len(plan.todo)
    results.run = run_shards("measure", plan.work, plan.todo, pool, results, done=results.resumed)
    storage.remove(outdated_files(plan))
    _remove_temporary(plan.folder)
    return _result(plan, results.summary(plan.dataset))


def ensure_measures(
    dataset: str,
    columns: Sequence[str],
    *,
    manifest: Manifest | None = None,
    folder: str | None = None,
    workers: str = "auto",
    address: str | None = None,
) -> pa.Table:
    """Returns measures of a dataset as `read_measures` does; computes those that are missing first, on Ray.

    Args:
        dataset: URI.
        columns: names of measures.
        manifest: of the dataset, where it was read already.
        folder: URI of the side table; None for `_measures/` below the dataset.
        workers: number of workers; `auto` is one per CPU.
        address: address of the Ray cluster; not used if nothing is missing.

    Raises:
        UsageError: for a wrong request; for a dataset that cannot be written to, unless `folder` is given.
        StriateError: when a shard fails, or the dataset was changed meanwhile.
    """
    plan = plan_measure(dataset, columns, folder=folder, option=MEASURES_OPTION)
    if plan.todo:
        measure_dataset(plan, workers=workers, address=address)
    return read_measures(plan.dataset, manifest or plan.manifest, columns, plan.folder)


def ensure_outputs(
    dataset: str,
    model: PictureModel,
    columns: Sequence[str],
    *,
    folder: str | None = None,
    workers: str = "auto",
    address: str | None = None,
) -> Iterator[pa.Table]:
    """Yields what a model says about the pictures of each shard; computes what is missing first, on Ray.

    Args:
        dataset: URI.
        model: what computes it.
        columns: of the model; each table has `key`, too.
        folder: URI of the side table; None for `_measures/` below the dataset.
        workers: number of workers; `auto` is one per CPU.
        address: address of the Ray cluster; not used if nothing is missing.

    Raises:
        UsageError: another command is measuring the dataset.
        StriateError: when a shard fails.
    """
    plan = plan_measure(dataset, model=model, folder=folder, option=MEASURES_OPTION)
    if plan.todo:
        measure_dataset(plan, workers=workers, address=address)
    yield from plan.parts.read(["key", *columns])


def _result(plan: MeasurePlan, run: Mapping[str, Any]) -> MeasureResult:
    counts = Counter[str]()
    for table in plan.parts.read([REASON]):
        for item in _compute.value_counts(table[REASON]).to_pylist():
            if item["values"] is not None:
                counts[item["values"]] += item["counts"]
    rejected = dict(sorted(counts.items()))
    if plan.report is not None and isinstance(plan.work, MeasureJob):
        _write_report(plan, plan.report, plan.work.columns, rejected)
    return MeasureResult(plan.manifest.rows, rejected, run)


def _write_report(plan: MeasurePlan, folder: str, columns: Sequence[str], rejected: Mapping[str, int]) -> None:
    from library.choosing.measures.score_page import distributions_of, measures_page  # imports matplotlib

    measured = distributions_of(plan.parts, columns)
    page = measures_page(plan.dataset, plan.manifest, plan.folder, measured, rejected)
    numbers = {one.name: asdict(one) for one in measured}
    storage.write_bytes(storage.join(folder, SUMMARY), (json.dumps(numbers, ensure_ascii=False) + "\n").encode())
    storage.write_bytes(storage.join(folder, PAGE), page.encode("utf-8", "replace"))


def outdated_files(plan: MeasurePlan) -> list[str]:
    """Returns the files of shards that the dataset no longer has, whose rows DuckDB would read with the others.

    Below the dataset itself those that are damaged are among them; elsewhere such a file may be anything.
    The dataset may have new shards since the plan was made, which another command has measured, so it is read again.
    """
    known = {shard.name for manifest in (plan.manifest, load_manifest(plan.dataset)) for shard in manifest.shards}
    others = read_origins(plan.folder, leave_out=known)
    own = storage.contains(folder_of(plan.dataset), plan.folder)
    return [
        storage.join(plan.folder, name)
        for name, origin in others.items()
        if origin is not None or (own and _SHARD.fullmatch(name))
    ]


def _remove_temporary(folder: str) -> None:
    # Not those in the folder of a model, which another command may be writing.
    files = storage.list_files(folder)
    storage.remove(file.uri for file in files if file.path.startswith(storage.TEMPORARY_PREFIX))
