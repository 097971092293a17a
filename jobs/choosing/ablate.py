"""Measures whether training without some pictures is better: `striate ablate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.connection.session import connect
from jobs import output
from jobs.choosing.selected_training import TrainablePictures
from jobs.choosing.vectors import Judging, Vectors, ensure_side_shards, ensure_vectors, patches_of, plan_embedder
from jobs.shards.pool_size import pool_for_classifiers, pool_for_shards
from library import storage
from library.choosing.labels.ablation import (
    COVERS,
    FEWEST_SEEDS,
    Answer,
    Seeds,
    SetName,
    answers,
    questions_of,
    sets_of,
    weights_of,
)
from library.choosing.labels.embedders import Embedder
from library.choosing.labels.linear_head import LinearHead
from library.dataset.lease import hold
from library.dataset.manifest import VERSIONS, Manifest, digest_of, load_manifest, splits_below
from library.errors import StriateError, UsageError
from library.pipeline import Pipeline
from library.recipe import Recipe
from library.steps import plugins
from library.work.embed_shard import KEY, SiftJob

RESULTS = "ablation.json"
SEEDS, MARGIN_POINTS = 8, 0.3
#: A set with fewer pictures of each class than this, on average, is not trained on.
_FEWEST_EACH = 2
_MOST_NAMED = 5


@dataclass(frozen=True)
class AblatePlan:
    """What is compared; from `plan_ablate`.

    Attributes:
        train: URI of the training set.
        val: URI of the pictures on which accuracy is measured, the same for all sets.
        manifests: of both.
        pipeline: the selectors whose dropped pictures are left out.
        embedder: computes the features of a linear head; None where a recipe trains.
        recipe: trained on each set; None for a linear head.
        seeds: how many repetitions.
        margin: differences up to this fraction do not matter.
        out: folder of the results and trainings; None for none.
    """

    train: str
    val: str
    manifests: tuple[Manifest, Manifest]
    pipeline: Pipeline
    embedder: Embedder | None
    recipe: Recipe | None
    seeds: int
    margin: float
    out: str | None

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run."""
        return {
            "train": self.train,
            "val": self.val,
            "drop": str(self.pipeline),
            "trains": self._trains(),
            "seeds": self.seeds,
            "trainings": 5 * self.seeds,
            "margin_points": 100 * self.margin,
            "out": self.out or "none",
        }

    def _trains(self) -> str:
        if self.recipe is not None:
            return self.recipe.model
        return "" if self.embedder is None else f"a linear head on {self.embedder.name}"

    @property
    def repeats(self) -> Seeds:
        """What the seeds are: trainings of a recipe, or replicates of a bootstrap for a linear head."""
        return "replicates" if self.recipe is None else "repetitions"

    @property
    def digest(self) -> str:
        """Identifies what is measured for each seed and set."""
        return digest_of(
            [
                "ablate",
                self.repeats,
                VERSIONS,
                [manifest.digest for manifest in self.manifests],
                self.pipeline.digest,
                plugins.digests(plugins.used_by(self.pipeline.steps)),
                None if self.embedder is None else list(self.embedder.identity),
                None if self.recipe is None else self.recipe.digest,
            ]
        )


@dataclass(frozen=True)
class Ablation:
    """The result.

    Attributes:
        plan: what was compared.
        sizes: pictures of each set.
        accuracies: of each set, one for each seed.
        answers: to the questions that could be asked.
        skipped: sets that were not trained on, and why.
    """

    plan: AblatePlan
    sizes: Mapping[SetName, int]
    accuracies: Mapping[SetName, Sequence[float]]
    answers: Sequence[Answer]
    skipped: Sequence[str]

    @property
    def covers(self) -> str:
        """What the intervals cover, in words."""
        return COVERS[self.plan.repeats]

    def summary(self) -> dict[str, Any]:
        """Returns the numbers for --json."""
        return {
            **self.plan.described(),
            "intervals_cover": self.covers,
            "pictures": dict(self.sizes),
            "accuracy": {name: list(values) for name, values in self.accuracies.items()},
            "answers": [
                {
                    "first": answer.first,
                    "second": answer.second,
                    "question": answer.question,
                    "verdict": answer.difference.verdict,
                    **{
                        name: value if np.all(np.isfinite(np.asarray(value, np.float64))) else None
                        for name, value in dataclasses.asdict(answer.difference).items()
                    },
                }
                for answer in self.answers
            ],
            "skipped": list(self.skipped),
        }


def plan_ablate(
    folder: str,
    drop: str,
    *,
    bundle: str | None = None,
    model: str | None = None,
    recipe: str | None = None,
    seeds: int = SEEDS,
    margin_points: float = MARGIN_POINTS,
    out: str | None = None,
) -> AblatePlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        folder: URI of a folder with the dataset `train`, and `val` or `test`.
        drop: selectors; what they drop of `train` is left out.
        bundle: URI of a bundle whose features the linear head uses.
        model: instead, a model's call with pretrained weights, or `patches`, which is the default.
        recipe: instead of a linear head, the recipe that is trained on each set.
        seeds: how many repetitions, at least 5.
        margin_points: differences up to this many percentage points do not matter.
        out: folder of the results; a killed run resumes from it.

    Raises:
        UsageError: when the request is not valid.
    """
    uri = storage.normalize(folder)
    splits = {storage.name_of(split): split for split in splits_below(uri)}
    if "train" not in splits or not splits.keys() & {"val", "test"}:
        present = ", ".join(splits) or "no datasets"
        raise UsageError(f"{uri} needs the datasets train, and val or test; it has {present}; see `striate split`")
    pipeline = Pipeline.parse(drop, refuse="augmentation")
    changing = [step for step in pipeline.steps if step.kind != "selector"]
    if changing:
        raise UsageError(f"--drop takes selectors, such as not_blurry; {changing[0]} changes pictures")
    if seeds < FEWEST_SEEDS:
        raise UsageError(f"--seeds {seeds}: at least {FEWEST_SEEDS}, as fewer say nothing about chance")
    if not margin_points > 0:
        raise UsageError(f"--margin {margin_points:g}: must be more than 0 percentage points")
    if recipe is not None and (bundle is not None or model is not None):
        raise UsageError("--recipe trains whole networks, so --bundle and --model have no effect; use only one of them")
    if recipe is not None and out is None:
        raise UsageError("--recipe needs --out, the folder of its trainings")
    train, val = splits["train"], splits["val" if "val" in splits else "test"]
    manifests = load_manifest(train), load_manifest(val)
    known = set(manifests[0].tally.classes) & set(manifests[1].tally.classes)
    if len(known) < 2:
        raise UsageError(f"{train} and {val} have {len(known)} labelled classes in common; two are needed")
    loaded = None
    if recipe is not None:
        loaded = Recipe.load(recipe, [f"data.train={train}", f"data.val={val}", "data.val_fraction=null"])
        if loaded.data.labels is not None:
            raise UsageError(f"{recipe}: data.labels gives several classes, and this needs one a picture")
    embedder = None if recipe is not None else plan_embedder(bundle, model, train) or patches_of(train)
    where = None if out is None else storage.normalize(out)
    if where is not None:
        if storage.contains(train, where) or storage.contains(val, where):
            raise UsageError(f"--out {where} lies in a dataset; choose another folder")
        storage.check_writable(where)
    return AblatePlan(train, val, manifests, pipeline, embedder, loaded, seeds, margin_points / 100, where)


def run_ablate(
    plan: AblatePlan, *, workers: str = "auto", gpu: bool | None = None, address: str | None = None
) -> Ablation:
    """Trains on every set with every seed; with `out`, what an earlier or killed run has measured is not repeated.

    Args:
        plan: from `plan_ablate`.
        workers: number of workers; `auto` is one per CPU or GPU.
        gpu: whether workers use GPUs; None to use them if there are any.
        address: address of the Ray cluster.

    Raises:
        UsageError: the selectors keep or drop everything, or another command is writing to `out`.
        StriateError: when a shard or a training fails.
    """
    train_manifest, val_manifest = plan.manifests
    with connect(address) as session:
        used = plugins.used_by(plan.pipeline.steps)
        sift = SiftJob(plan.train, str(plan.pipeline), plugins.digests(used))
        pool = pool_for_shards(session, workers, None)
        identity = [plan.pipeline.digest, plugins.digests(used)]
        tables, _ = ensure_side_shards("sift", plan.train, train_manifest, identity, sift, pool, used)
        kept = {key for table in tables for key in table[KEY].to_pylist()}
        if plan.embedder is not None:
            pool = pool_for_classifiers(session, workers, gpu, len(train_manifest.shards))
            judging = Judging.of(plan.manifests)
            trainer: HeadTrainer | RecipeTrainer = HeadTrainer.of(
                ensure_vectors(plan.train, train_manifest, plan.embedder, pool, judging),
                ensure_vectors(plan.val, val_manifest, plan.embedder, pool, judging),
            )
        else:
            trainer = RecipeTrainer.of(plan, gpu, address)
        is_kept = np.array([key in kept for key in trainer.keys], np.bool_)
        with nullcontext() if plan.out is None else hold(plan.out, tidy=lambda _: None):
            return measured(plan, trainer, is_kept)


def measured(plan: AblatePlan, trainer: HeadTrainer | RecipeTrainer, kept: NDArray[np.bool_]) -> Ablation:
    """Trains on every set with every seed, as `run_ablate`, where it is known which pictures are kept.

    Args:
        plan: from `plan_ablate`.
        trainer: trains on sets of its pictures.
        kept: for each of these, whether the selectors keep it.

    Raises:
        UsageError: the selectors keep or drop everything, or `out` holds another ablation.
        StriateError: a training fails.
    """
    if kept.all() or not kept.any():
        what = "keep every picture" if kept.all() else "keep no picture"
        raise UsageError(f"--drop '{plan.pipeline}': these selectors {what} of {plan.train}; nothing to compare")
    sizes: dict[SetName, int] = {name: len(rows) for name, rows in sets_of(kept, 0).items()}
    skipped = unusable_sets(trainer, kept, plan.seeds)
    asked = questions_of([name for name in sizes if name not in skipped])
    lines = [f"{name}: {reason}" for name, reason in skipped.items()]
    if not asked:
        raise UsageError(f"--drop '{plan.pipeline}': no sets can be compared; {'; '.join(lines)}")
    used = {name for pair in asked for name in pair}
    lines += [f"{name}: nothing to compare it with" for name in sizes if name not in used and name not in skipped]
    accuracies: dict[SetName, list[float]] = {name: [] for name in sizes if name in used}
    measured = _Results(plan)
    for seed in range(plan.seeds):
        sets = sets_of(kept, seed)
        for name, values in accuracies.items():
            known = measured.get(seed, name)
            if known is None:
                known = trainer.accuracy(name, sets[name], seed)
                measured.put(seed, name, known)
            values.append(known)
        line = ", ".join(f"{name} {values[-1]:.2%}" for name, values in accuracies.items())
        output.stderr.print(f"seed {seed + 1} of {plan.seeds}: {line}", markup=False)
    return Ablation(plan, sizes, accuracies, answers(accuracies, plan.margin, plan.repeats), lines)


def unusable_sets(trainer: HeadTrainer | RecipeTrainer, kept: NDArray[np.bool_], seeds: int) -> dict[SetName, str]:
    """Returns the sets that cannot be trained on with every seed, each with the reason."""
    reasons: dict[SetName, str] = {}
    for seed in range(seeds):
        for name, rows in sets_of(kept, seed).items():
            if name in reasons:
                continue
            if len(rows) < _FEWEST_EACH * trainer.classes:
                reasons[name] = f"{len(rows):,} pictures are too few"
            elif absent := trainer.absent_classes(rows):
                more = ", ..." if len(absent) > _MOST_NAMED else ""
                names = ", ".join(absent[:_MOST_NAMED]) + more
                reasons[name] = f"it has no picture of {names} with seed {seed}, and a recipe needs every class"
    return reasons


class _Results:
    """The accuracies that are measured already, in a file below the plan's folder; kept in memory without one."""

    def __init__(self, plan: AblatePlan) -> None:
        self._digest, self._values = plan.digest, dict[str, float]()
        self._uri = None if plan.out is None else storage.join(plan.out, RESULTS)
        if self._uri is not None and storage.exists(self._uri):
            try:
                stored = json.loads(storage.read_bytes(self._uri))
                found, values = stored["digest"], dict[str, float](stored["accuracy"])
            except (ValueError, KeyError, TypeError) as error:
                raise StriateError(f"{self._uri} is damaged ({error}); remove it and run the command again") from error
            if found != self._digest:
                raise UsageError(f"{plan.out} holds another ablation; choose another folder")
            self._values = values

    def get(self, seed: int, name: SetName) -> float | None:
        return self._values.get(f"{seed}/{name}")

    def put(self, seed: int, name: SetName, accuracy: float) -> None:
        self._values[f"{seed}/{name}"] = accuracy
        if self._uri is not None:
            text = json.dumps({"digest": self._digest, "accuracy": self._values}, indent=1)
            storage.write_bytes(self._uri, (text + "\n").encode())


@dataclass(frozen=True)
class HeadTrainer:
    """Fits linear heads on features of the training pictures.

    Attributes:
        keys: of the usable labelled training pictures.
        classes: number of classes.
    """

    keys: Sequence[str]
    classes: int
    train: tuple[NDArray[np.float32], NDArray[np.int64]]
    val: tuple[NDArray[np.float32], NDArray[np.int64]]

    @classmethod
    def of(cls, train: Vectors, val: Vectors) -> HeadTrainer:
        names = sorted({label for label in train.labels if label is not None})
        ids = {name: number for number, name in enumerate(names)}
        sides: list[tuple[list[int], NDArray[np.float32], NDArray[np.int64]]] = []
        for one in (train, val):
            rows = [row for row, label in enumerate(one.labels) if label in ids]
            labels = np.array([ids[str(one.labels[row])] for row in rows], np.int64)
            sides.append((rows, one.values if len(rows) == len(one.values) else one.values[rows], labels))
        (rows, *_), _ = sides
        return cls([train.keys[row] for row in rows], len(names), sides[0][1:], sides[1][1:])

    def absent_classes(self, rows: NDArray[np.int64]) -> Sequence[str]:
        """Returns no class: a linear head can be fitted without a picture of some."""
        return ()

    def accuracy(self, name: SetName, rows: NDArray[np.int64], seed: int) -> float:
        """Returns the share of validation pictures that a head fitted on these rows classifies correctly.

        The seed is a replicate of a bootstrap: it weights training and validation pictures, equally in all sets.
        """
        features, labels = self.train
        weights = weights_of(len(labels), seed)[rows]
        head = LinearHead.fit(features[rows], labels[rows], self.classes, sample_weights=weights, overwrite=True)
        correct = head.probabilities(self.val[0]).argmax(1) == self.val[1]
        return float(np.average(correct, weights=weights_of(len(correct), seed, of="val")))


@dataclass(frozen=True)
class RecipeTrainer:
    """Trains the recipe on selections of its training set, through `striate train`.

    Attributes:
        pictures: the training pictures that the recipe uses.
        out: folder of the trainings.
        gpu: whether to use a GPU; None to use one if there is any.
        address: address of the Ray cluster.
    """

    pictures: TrainablePictures
    out: str
    gpu: bool | None
    address: str | None

    @classmethod
    def of(cls, plan: AblatePlan, gpu: bool | None, address: str | None) -> RecipeTrainer:
        assert plan.recipe is not None
        assert plan.out is not None
        return cls(TrainablePictures.of(plan.recipe, plan.manifests[0]), plan.out, gpu, address)

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the pictures."""
        return self.pictures.keys

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.pictures.classes

    def absent_classes(self, rows: NDArray[np.int64]) -> Sequence[str]:
        """Returns the classes that have none of these rows; such a training is refused."""
        return self.pictures.absent_classes(rows)

    def accuracy(self, name: SetName, rows: NDArray[np.int64], seed: int) -> float:
        """Trains on these rows and returns the bundle's top-1 on the validation set; resumes a killed training."""
        result = self.pictures.train(
            rows, self.out, f"seed-{seed}-{name}", seed=seed, gpu=self.gpu, address=self.address
        )
        return float(result.bundle.metrics["val_top1"])
