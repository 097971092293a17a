"""Audits splits before a training trusts them: `striate audit`."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.connection.session import connect
from jobs import output
from jobs.choosing.measure import ensure_measures
from jobs.choosing.selected_training import TrainablePictures
from jobs.choosing.vectors import Judging, Vectors, ensure_vectors, plan_embedder
from jobs.shards.pool_size import pool_for_classifiers
from jobs.train.driver import TrainResult
from library import storage
from library.choosing.duplicates.fingerprints import Rule, fingerprints
from library.choosing.duplicates.groups import in_order_of_occurrence
from library.choosing.labels import findings
from library.choosing.labels.audit_page import AuditContent, ConfusedLabels, render_audit
from library.choosing.labels.confident_learning import LabelErrors, find_label_errors
from library.choosing.labels.embedders import Embedder, FoldEmbedder, write_folds
from library.choosing.labels.findings import EXTREMES, ClassBalance, Member, class_balance
from library.choosing.labels.linear_head import out_of_fold
from library.choosing.labels.outliers import neighbour_distances
from library.choosing.measures import side_table
from library.choosing.measures.measuring import REASON
from library.choosing.splits.assignment import assign_groups
from library.choosing.splits.grouping import name_groups
from library.choosing.splits.leaks import find_leaks
from library.dataset.destination import remove_temporary
from library.dataset.lease import hold
from library.dataset.manifest import VERSIONS, Manifest, find_manifest, load_manifest, splits_below
from library.dataset.shards import read_columns
from library.errors import UsageError
from library.evaluation.report.templates import PAGE, check_report
from library.recipe import Recipe

FINDINGS, SUMMARY, TRAININGS = "findings.parquet", "audit.json", "folds"
#: A picture counts as a near duplicate up to this many bits, as in `striate dedup`.
NEAR_BITS = 4
FOLDS = 5
_MOST_CONFUSED = 12


@dataclass(frozen=True)
class AuditPlan:
    """What is audited; from `plan_audit`.

    Attributes:
        datasets: URI of each split, the training set first.
        manifests: of each split.
        embedder: computes features; None to look only at what needs no classifier.
        rule: when two pictures are duplicates.
        folds: number of folds for out-of-fold probabilities.
        report: folder of the page; None for none.
        recipe: trained without each fold of the training set, instead of a linear head on features; None for none.
    """

    datasets: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    embedder: Embedder | None
    rule: Rule
    folds: int
    report: str | None
    recipe: Recipe | None = None

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run."""
        return {
            "splits": {name: manifest.rows for name, manifest in self.manifests.items()},
            "features": "none" if self.embedder is None else self.embedder.name,
            **({} if self.recipe is None else {"trains": f"{self.recipe.model}, {self.folds} times"}),
            "near": "off" if self.rule.near is None else f"{self.rule.near} bits{', also mirrored' * self.rule.flips}",
            "folds": self.folds,
            "report": self.report or "none",
            **({"not_looked_at": skipped} if (skipped := self.skipped()) else {}),
        }

    def skipped(self) -> list[str]:
        """What is not looked at, each with the reason."""
        lines: list[str] = []
        if self.recipe is not None:
            names = ", ".join(list(self.datasets)[1:])
            lines.append("outliers: they need features; --full has only probabilities")
            lines += [f"label errors of {names}: --full trains on {next(iter(self.datasets))} only"] if names else []
        elif self.embedder is None:
            lines.append("label errors and outliers: they need features; give --bundle, --model patches or --full")
        if len(self.datasets) == 1:
            lines.append("leaks: there is one dataset; name a folder with several splits")
        return lines


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        plan: what was audited.
        findings: all of them, as `FINDING_SCHEMA` says.
        balance: sizes of the classes.
        confused: pairs of classes whose labels are most often mixed up.
        wrong_share: estimated share of wrong labels; None where labels were not looked at.
        accuracy: share of labels with which classifiers that never saw them agree; None where no labels were judged.
        skipped: what was not looked at, and why.
    """

    plan: AuditPlan
    findings: pa.Table
    balance: ClassBalance
    confused: Sequence[ConfusedLabels] = ()
    wrong_share: float | None = None
    accuracy: float | None = None
    skipped: Sequence[str] = ()

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of findings by kind and split."""
        counts = {kind: dict.fromkeys(self.plan.datasets, 0) for kind in findings.KINDS}
        for kind, split in zip(*(self.findings[name].to_pylist() for name in ("kind", "split")), strict=True):
            counts[kind][split] += 1
        return counts

    def summary(self) -> dict[str, Any]:
        """Returns the numbers for --json."""
        return {
            "splits": {name: manifest.rows for name, manifest in self.plan.manifests.items()},
            "digests": {name: manifest.digest for name, manifest in self.plan.manifests.items()},
            "features": None if self.plan.embedder is None else self.plan.embedder.name,
            "findings": self.counts(),
            "label_noise": self.wrong_share,
            "out_of_fold_accuracy": self.accuracy,
            "class_ratio": self.balance.ratio,
            "rare_classes": list(self.balance.rare),
            "absent_classes": {split: list(names) for split, names in self.balance.absent.items() if names},
            "not_looked_at": list(self.skipped),
        }


def find_splits(uri: str) -> dict[str, str]:
    """Returns the URI of each dataset directly below a folder by name, the training set first; or the dataset itself.

    Raises:
        UsageError: there is none.
    """
    uri = storage.normalize(uri)
    if find_manifest(uri) is not None:
        return {storage.name_of(uri): uri}
    splits = splits_below(uri)
    if not splits:
        raise UsageError(f"{uri} is neither a dataset nor a folder of datasets; `striate ingest --split` makes one")
    return {storage.name_of(split): split for split in splits}


def plan_audit(
    folder: str,
    *,
    bundle: str | None = None,
    model: str | None = None,
    near: int | None = NEAR_BITS,
    flips: bool = False,
    folds: int | None = None,
    report: str | None = None,
    full: str | None = None,
) -> AuditPlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        folder: URI of a dataset, or of a folder of them.
        bundle: URI of a bundle whose features are used.
        model: instead, a model's call with pretrained weights, or `patches`.
        near: the most bits in which near duplicates differ; None for exact ones only.
        flips: mirrored pictures are near duplicates, too.
        folds: number of folds for out-of-fold probabilities; None for 5.
        report: folder of the page to write.
        full: instead of features, a recipe that is trained on the first split without each fold; needs `report`.

    Raises:
        UsageError: when the request is not valid.
    """
    datasets = find_splits(folder)
    manifests = {name: load_manifest(uri) for name, uri in datasets.items()}
    empty = [uri for name, uri in datasets.items() if not manifests[name].rows]
    if empty:
        raise UsageError(f"{empty[0]} holds no pictures")
    rule = Rule.of_options(near, flips=flips)
    if folds is not None and bundle is None and model is None and full is None:
        raise UsageError(f"--folds {folds} has no effect without --bundle, --model or --full, which judge labels")
    folds = FOLDS if folds is None else folds
    if folds < 2:
        raise UsageError(f"--folds {folds}: must be at least 2")
    if report is not None:
        report = storage.normalize(report)
        check_report(report, [*datasets.values()], "striate audit")
    first = next(iter(datasets.values()))
    if full is None:
        return AuditPlan(datasets, manifests, plan_embedder(bundle, model, first), rule, folds, report)
    if bundle is not None or model is not None:
        raise UsageError("--full trains whole networks, so --bundle and --model have no effect; use only one of them")
    if report is None:
        raise UsageError("--full needs --report, below which its trainings are kept")
    # Each training is validated on its own fold; the fraction stands in for it until then.
    recipe = Recipe.load(full, [f"data.train={first}", "data.val=null", "data.val_fraction=0.5"])
    if recipe.data.labels is not None:
        raise UsageError(f"{full}: data.labels gives several classes, and this needs one a picture")
    return AuditPlan(datasets, manifests, None, rule, folds, report, recipe)


def run_audit(plan: AuditPlan, *, workers: str = "auto", gpu: bool | None = None, address: str | None = None) -> Audit:
    """Audits; measures and features that an earlier or killed run has left beside the datasets are used.

    Args:
        plan: from `plan_audit`.
        workers: number of workers; `auto` is one per CPU or GPU.
        gpu: whether workers that compute features use GPUs; None to use them if there are any.
        address: address of the Ray cluster.

    Raises:
        StriateError: when a shard fails; finished ones are kept.
    """
    names = tuple(dict.fromkeys([*plan.rule.columns, *EXTREMES, "width", "height"]))
    vectors: dict[str, Vectors] = {}
    with connect(address) as session:
        measures = {name: _measured(uri, plan.manifests[name], names, workers) for name, uri in plan.datasets.items()}
        if plan.embedder is not None:
            shards = max(len(manifest.shards) for manifest in plan.manifests.values())
            pool = pool_for_classifiers(session, workers, gpu, shards)
            judging = Judging.of(plan.manifests.values())
            for name, uri in plan.datasets.items():
                vectors[name] = ensure_vectors(uri, plan.manifests[name], plan.embedder, pool, judging)
        judged = _train_folds(plan, measures, workers, gpu, address) if plan.recipe is not None else None
    audit = judge(plan, measures, vectors, judged)
    if plan.report is not None:
        with hold(plan.report, tidy=remove_temporary):
            write_audit(plan.report, audit)
    return audit


def _measured(dataset: str, manifest: Manifest, names: Sequence[str], workers: str) -> pa.Table:
    """Returns key, label, reason and measures of every picture, on the connected Ray."""
    table = ensure_measures(dataset, names, manifest=manifest, workers=workers)
    reasons = pa.concat_tables(side_table.Parts(side_table.folder_of(dataset), manifest.shards).read([REASON]))
    labels = read_columns(dataset, ["label"], [shard.name for shard in manifest.shards])
    return table.append_column(REASON, reasons[REASON]).append_column("label", labels["label"])


@dataclass(frozen=True)
class _Judged:
    """Out-of-fold probabilities of labelled pictures.

    Attributes:
        places: for each picture, the number of its split and its row there.
        ids: their class ids.
        probabilities: N x K.
        classes: class names by id.
    """

    places: Sequence[tuple[int, int]]
    ids: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    classes: Sequence[str]


def _train_folds(
    plan: AuditPlan, measures: Mapping[str, pa.Table], workers: str, gpu: bool | None, address: str | None
) -> _Judged:
    """Trains the recipe without each fold of the first split, and predicts the fold with it."""
    assert plan.recipe is not None
    assert plan.report is not None
    split, dataset = next(iter(plan.datasets.items()))
    manifest, folder = plan.manifests[split], storage.join(plan.report, TRAININGS)
    pictures = TrainablePictures.of(plan.recipe, manifest)
    groups = fingerprints(measures[split].select(["key", *plan.rule.columns]), plan.rule).groups()[pictures.positions]
    folds = _folds_of(groups, pictures.keys, pictures.labels, plan.folds)
    check_folds(pictures, folds, plan.folds)
    bundles: list[TrainResult] = []
    for fold in range(plan.folds):
        output.stderr.print(f"label errors: training without fold {fold + 1} of {plan.folds}", markup=False)
        chosen, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        bundles.append(pictures.train(chosen, folder, f"fold-{fold + 1}", held_out=held_out, gpu=gpu, address=address))
    uri = storage.join(folder, "folds.npz")
    write_folds(uri, pictures.keys, folds)
    embedder = FoldEmbedder(tuple(one.out for one in bundles), tuple(one.bundle.id for one in bundles), uri)
    with connect(address) as session:
        pool = pool_for_classifiers(session, workers, gpu, len(manifest.shards))
        vectors = ensure_vectors(dataset, manifest, embedder, pool, Judging(manifest.rows, 0))
    row_of = {key: row for row, key in enumerate(measures[split]["key"].to_pylist())}
    classes = bundles[0].bundle.classes
    ids = np.array([classes.index(str(label)) for label in vectors.labels], np.int64)
    return _Judged([(0, row_of[key]) for key in vectors.keys], ids, vectors.values, classes)


def check_folds(pictures: TrainablePictures, folds: NDArray[np.int64], number: int) -> None:
    """Refuses folds with which a training would fail, before the first one starts."""
    for fold in range(number):
        if not (folds == fold).any():
            raise UsageError(f"--folds {number}: fold {fold + 1} would be empty; take fewer, at least 2")
        if absent := pictures.absent_classes(np.flatnonzero(folds != fold)):
            names = ", ".join(absent[:5])
            raise UsageError(
                f"--folds {number}: all pictures of {names} are in fold {fold + 1}, as they are duplicates of one "
                "another or only one; leave such classes out with data.classes of the recipe"
            )


def judge(
    plan: AuditPlan,
    measures: Mapping[str, pa.Table],
    vectors: dict[str, Vectors],
    judged: _Judged | None = None,
) -> Audit:
    """Finds what deserves a look, without Ray.

    Args:
        plan: from `plan_audit`.
        measures: key, label, reason and measures of each split.
        vectors: of each split, which is taken out, so that it is in memory only once; empty where there is no embedder.
        judged: out-of-fold probabilities that were computed already; None to compute them from `vectors`.
    """
    members = {
        name: Member(name, table["key"].to_pylist(), table["label"].to_pylist()) for name, table in measures.items()
    }
    tables: list[pa.Table] = []
    splits = list(measures)
    for number, split in enumerate(splits):
        # A picture is reported where it leaks to: in the later of the two splits.
        for other in splits[:number]:
            found = find_leaks(measures[other], measures[split], plan.rule)
            tables.append(findings.leaks(split, other, found))
        member = members[split]
        tables.append(findings.extremes(member, measures[split]))
        tables.append(findings.odd_sizes(member, measures[split]))
        tables.append(findings.unreadable(member, measures[split][REASON].to_pylist()))
    balance = class_balance({name: manifest.tally.classes for name, manifest in plan.manifests.items()})
    skipped = plan.skipped()
    if vectors:
        output.stderr.print("comparing features", markup=False)
        pooled = _pool(plan, measures, members, vectors)
        tables += pooled.outliers()
        if len(pooled.classes) < 2:
            skipped.append(f"label errors: the pictures have {len(pooled.classes)} classes, and two are needed")
        else:
            judged = pooled.out_of_fold(plan.folds)
    if judged is None:
        return Audit(plan, findings.ranked(tables), balance, skipped=skipped)
    errors = find_label_errors(judged.ids, judged.probabilities)
    tables.append(findings.label_errors(list(members.values()), judged.places, errors, judged.classes))
    accuracy = float((judged.probabilities.argmax(1) == judged.ids).mean())
    confused = _confused(errors, judged.classes)
    return Audit(plan, findings.ranked(tables), balance, confused, errors.share, accuracy, skipped)


def _folds_of(
    groups: NDArray[np.int64], keys: Sequence[str], labels: Sequence[str | None], folds: int
) -> NDArray[np.int64]:
    """Returns the fold of each picture; groups of duplicates are never divided, and every class is, evenly."""
    numbers = in_order_of_occurrence(groups)
    fractions = {str(fold): 1 / folds for fold in range(folds)}
    return assign_groups(name_groups(numbers, keys), labels, fractions)[numbers]


@dataclass(frozen=True)
class _Pooled:
    """The vectors of all splits together, so that each picture is judged by those of all others.

    Attributes:
        members: the splits.
        places: for each vector, the number of its split and its row there.
        values: N x D.
        labelled: which of the N have a label.
        ids: class ids of those.
        classes: class names by id.
        groups: N group numbers; duplicates are one group.
    """

    members: Sequence[Member]
    places: Sequence[tuple[int, int]]
    values: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    ids: NDArray[np.int64]
    classes: Sequence[str]
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def outliers(self) -> list[pa.Table]:
        distances = neighbour_distances(self.values)
        tables: list[pa.Table] = []
        for number, member in enumerate(self.members):
            chosen = [place for place, (split, _) in enumerate(self.places) if split == number]
            rows = [self.places[place][1] for place in chosen]
            tables.append(findings.outliers(member, rows, distances[chosen]))
        return tables

    def out_of_fold(self, folds: int) -> _Judged:
        """Returns probabilities of the labelled pictures; duplicates of a picture never are among its teachers."""
        rows = np.flatnonzero(self.labelled)
        places = [self.places[int(row)] for row in rows]
        keys = [f"{self.members[split].split}/{self.members[split].keys[row]}" for split, row in places]
        labels: list[str | None] = [self.classes[int(number)] for number in self.ids]
        assigned = _folds_of(self.groups[rows], keys, labels, folds)
        values = self.values if self.labelled.all() else self.values[rows]
        result = np.zeros((len(rows), len(self.classes)), np.float32)
        for fold in range(folds):
            output.stderr.print(f"label errors: fold {fold + 1} of {folds}", markup=False)
            if (assigned == fold).any():
                result += out_of_fold(values, self.ids, len(self.classes), assigned, only=[fold])
        return _Judged(places, self.ids, result, self.classes)


def _pool(
    plan: AuditPlan, measures: Mapping[str, pa.Table], members: Mapping[str, Member], vectors: dict[str, Vectors]
) -> _Pooled:
    names = ["key", *plan.rule.columns]
    groups = fingerprints(pa.concat_tables([table.select(names) for table in measures.values()]), plan.rule).groups()
    places: list[tuple[int, int]] = []
    chosen: list[int] = []
    first = 0
    for number, (name, member) in enumerate(members.items()):
        row_of = {key: row for row, key in enumerate(member.keys)}
        rows = [row_of[key] for key in vectors[name].keys]
        places += [(number, row) for row in rows]
        chosen += [first + row for row in rows]
        first += len(member.keys)
    labels = [label for one in vectors.values() for label in one.labels]
    classes = sorted({label for label in labels if label is not None})
    numbers = {name: number for number, name in enumerate(classes)}
    labelled = np.array([label is not None for label in labels], np.bool_)
    ids = np.array([numbers[label] for label in labels if label is not None], np.int64)
    return _Pooled(list(members.values()), places, _joined(vectors), labelled, ids, classes, groups[chosen])


def _joined(vectors: dict[str, Vectors]) -> NDArray[np.float32]:
    """Returns the vectors of all splits; each is taken out as soon as it is copied."""
    if len(vectors) == 1:
        return vectors.popitem()[1].values
    widths = [one.values.shape for one in vectors.values()]
    values, first = np.empty((sum(rows for rows, _ in widths), widths[0][1]), np.float32), 0
    for name, (rows, _) in zip(list(vectors), widths, strict=True):
        values[first : first + rows] = vectors.pop(name).values
        first += rows
    return values


def _confused(errors: LabelErrors, classes: Sequence[str]) -> list[ConfusedLabels]:
    """Returns the pairs of classes with the most label errors: given label, probable class, pictures."""
    counts = errors.joint.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(place), len(classes)) for place in order]
    return [
        ConfusedLabels(classes[label], classes[true], float(counts[label, true]))
        for label, true in pairs
        if counts[label, true] >= 0.5
    ]


def write_audit(folder: str, audit: Audit) -> None:
    """Writes the table of findings, the numbers and the page; the page last."""
    table = io.BytesIO()
    pq.write_table(audit.findings, table)
    storage.write_bytes(storage.join(folder, FINDINGS), table.getvalue())
    numbers = json.dumps(audit.summary(), ensure_ascii=False, allow_nan=False)
    storage.write_bytes(storage.join(folder, SUMMARY), (numbers + "\n").encode())
    plan = audit.plan
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    content = AuditContent(
        datasets=plan.datasets,
        manifests=plan.manifests,
        findings=audit.findings,
        counts=audit.counts(),
        balance=audit.balance,
        confused=audit.confused,
        wrong_share=audit.wrong_share,
        accuracy=audit.accuracy,
        skipped=audit.skipped,
        features=(
            f"none; {plan.recipe.model} trained without each of {plan.folds} folds"
            if plan.recipe is not None
            else None
            if plan.embedder is None
            else plan.embedder.name
        ),
        footer=f"made {now} by striate {VERSIONS['striate']}",
    )
    storage.write_bytes(storage.join(folder, PAGE), render_audit(content).encode("utf-8", "replace"))
