"""The plan of a filter search: what is searched on which pictures, checked before Ray is started. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from jobs import output
from jobs.search.earlier_looks import EarlierLooks, read_looks
from jobs.search.script import Settings
from jobs.train.plan import check_trainable, model_inputs
from library import storage
from library.bundle.description import weights_digest, weights_file
from library.choosing.filter_search.answer import FEWEST_SEEDS, MARGIN, SEEDS
from library.choosing.filter_search.race import FINALISTS
from library.choosing.filter_search.space import MOST_CANDIDATES, Place, Space
from library.dataset.lease import LEASES
from library.dataset.manifest import VERSIONS, Manifest, digest_of, load_manifest
from library.dataset.shards import read_columns
from library.errors import UsageError
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.recipe.yaml_text import dump_yaml
from library.steps import REGISTRY, plugins
from library.steps.base import Step, with_nested
from library.training.augmenting.forms import steps_without_form
from library.training.in_memory import decode_rows
from library.training.rows import Rows, check_same_classes, read_rows

RECORD, ANSWER, RECIPE = "search.json", "answer.json", "recipe.yaml"
#: Raised when what units compute changes, so that files of older ones are not taken for theirs.
_VERSION = 2
_TRAINING_PACKAGES = ("torch", "timm", "scikit-learn", "scipy")
_PROBED = 32
#: Pictures up to this side get the small default recipe.
_SMALL_PX = 40
_LEAST_BUDGET_S = 5.0
#: Fewest pictures that a gain and its interval can be computed of.
FEWEST_IN_HALF = 2
_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class SearchPlan:
    """What is searched; from `plan_search`.

    Attributes:
        recipe: the finalists' recipe, without any candidate.
        recipe_name: its URI, or `default`.
        space: the candidates.
        train: training rows.
        val: validation rows; half of them screen, the other half confirms.
        test: test rows; None for no test.
        datasets: digests of the datasets, by role.
        budget_s: seconds for everything.
        seeds: paired seeds of the confirmation.
        margin: differences up to this fraction do not matter.
        cost_weight: percentage points of accuracy that a millisecond a picture is worth.
        out: URI of the folder.
        used_plugins: plugins of the candidates and the recipe.
        device: that trainings run on, `cpu` or `cuda`; known when the search runs.
    """

    recipe: Recipe
    recipe_name: str
    space: Space
    train: Rows
    val: Rows
    test: Rows | None
    datasets: dict[str, str]
    budget_s: float
    seeds: int
    margin: float
    cost_weight: float
    out: str
    used_plugins: tuple[plugins.Plugin, ...]
    device: str = "cpu"

    @cached_property
    def context(self) -> str:
        """Digest of all that the result of a unit depends on, but its candidate, seed and stage."""
        compared = {role: digest for role, digest in self.datasets.items() if role != "test"}
        recipe = self.recipe.located()
        parts = [compared, recipe.digest, weights_digest(recipe.weights), plugins.digests(self.used_plugins)]
        return digest_of(["search", _VERSION, versions(), self.device, *parts])

    @property
    def test_context(self) -> str | None:
        """The same for units that are judged on the test pictures; None without a test."""
        return None if self.test is None else digest_of([self.context, self.datasets["test"]])

    @property
    def question(self) -> str:
        """Digest of what the search asks of its pictures: what it trains and compares, and how it decides."""
        context = replace(self, device="cpu").context
        return digest_of([context, self.space.to_json(), self.seeds, self.margin, self.cost_weight])

    def looks(self) -> EarlierLooks:
        """Returns what earlier searches in the folder have judged on which pictures."""
        datasets = {"confirmation": self.datasets["val"]}
        if self.test is not None:
            datasets["test"] = self.datasets["test"]
        return EarlierLooks(self.question, datasets, read_looks(storage.join(self.out, RECORD)))

    def settings(self, workers: int, first_seed: int) -> Settings:
        """Returns what the stages decide by."""
        return Settings(
            self.space,
            self.context,
            self.budget_s,
            self.seeds,
            first_seed,
            self.margin,
            self.cost_weight,
            workers,
            self.test_context,
            compares_heads(self.recipe),
        )

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run and the first lines of a run."""
        singles = self.space.singles()
        return {
            "train": f"{self.train.dataset}, {len(self.train):,} pictures of {len(self.train.classes)} classes",
            "val": f"{self.val.dataset}, {len(self.val):,} pictures",
            "test": "none" if self.test is None else f"{self.test.dataset}, {len(self.test):,} pictures",
            "recipe": f"{self.recipe_name}: {self.recipe.model}",
            "filters": len(self.space.filters),
            "places": list(self.space.places),
            "candidates": len(singles),
            "placebos": self.space.placebos,
            "longest_sequence": self.space.length,
            "finalists": f"at most {FINALISTS}, and a placebo",
            "seeds": self.seeds,
            "budget_s": self.budget_s,
            "margin_points": round(100 * self.margin, 6),
            "cost_weight": self.cost_weight,
            "out": self.out,
        }


def plan_search(
    train: str,
    val: str,
    *,
    out: str,
    test: str | None = None,
    budget: str = "30m",
    space: str | None = None,
    recipe: str | None = None,
    cost_weight: float = 0.0,
    seeds: int = SEEDS,
    margin_points: float = 100 * MARGIN,
) -> SearchPlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        train: URI of the training set.
        val: URI of the validation set.
        out: URI of the folder of results; a killed search resumes from it.
        test: URI of a test set that is looked at once, at the end.
        budget: time for everything, such as 30m, 90s or 1h30m.
        space: URI of a YAML file that narrows or widens what is searched.
        recipe: URI of the recipe that finalists are confirmed on; its datasets are replaced by these. None for a small
            one by the pictures' size.
        cost_weight: percentage points of accuracy that a millisecond a picture is worth.
        seeds: paired seeds of the confirmation, at least 8.
        margin_points: differences up to this many percentage points do not matter.

    Raises:
        UsageError: when the request is not valid.
    """
    budget_s = seconds_of(budget)
    if seeds < FEWEST_SEEDS:
        raise UsageError(f"--seeds {seeds}: at least {FEWEST_SEEDS}; with fewer, no difference can be certain")
    if not (margin_points > 0 and math.isfinite(margin_points)):
        raise UsageError(f"--margin {margin_points:g}: must be more than 0 percentage points")
    if not (cost_weight >= 0 and math.isfinite(cost_weight)):
        raise UsageError(f"--cost-weight {cost_weight:g}: must be 0 or more percentage points a millisecond")
    uris = {"train": storage.normalize(train), "val": storage.normalize(val)}
    if test is not None:
        uris["test"] = storage.normalize(test)
    if len(set(uris.values())) < len(uris):
        raise UsageError(f"{' and '.join(uris)} must be different datasets; see `striate split`")
    manifests = {role: load_manifest(uri) for role, uri in uris.items()}
    train_rows = read_rows(uris["train"], None)
    loaded = _recipe(recipe, uris, train_rows, manifests["train"])
    if loaded.data.classes != "all":
        train_rows = read_rows(uris["train"], loaded.data.classes)
    others: dict[str, Rows] = {}
    for role in ("val", "test"):
        if role in uris:
            if loaded.data.classes == "all":
                check_same_classes(train_rows, manifests[role], uris[role])
            others[role] = read_rows(uris[role], train_rows.classes)
            fewest = 2 * FEWEST_IN_HALF if role == "val" else FEWEST_IN_HALF
            if len(others[role]) < fewest:
                had = output.counted(len(others[role]), "picture")
                raise UsageError(f"{uris[role]} has {had}; a search needs at least {fewest} for --{role}")
    chosen = _space(space, loaded)
    steps = (*model_inputs(loaded).steps.steps, *_steps_of(loaded.augment), *_candidate_steps(chosen))
    _check_inputs(loaded, {uris[role]: manifest for role, manifest in manifests.items()})
    check_trainable(loaded, model_inputs(loaded), train_rows.classes, len(train_rows))
    _check_memory([train_rows, *others.values()], loaded)
    where = storage.normalize(out)
    _check_out(where, list(uris.values()))
    plan = SearchPlan(
        loaded,
        recipe or "default",
        chosen,
        train_rows,
        others["val"],
        others.get("test"),
        {role: manifest.digest for role, manifest in manifests.items()},
        budget_s,
        seeds,
        margin_points / 100,
        cost_weight,
        where,
        plugins.used_by(steps),
    )
    plan.looks().check_test(uris.get("test", ""), where)
    return plan


def compares_heads(recipe: Recipe) -> bool:
    """Whether a cheap training fits a linear head on features of the recipe's frozen backbone.

    Its seeds are then replicates of a bootstrap. Any other recipe has a small network that is trained from scratch.
    """
    return recipe.freeze == "all" and recipe.weights is not None


def versions() -> dict[str, str]:
    """Returns the versions of all packages that decide what a training gets right."""
    return {**VERSIONS, **{name: version(name) for name in _TRAINING_PACKAGES}}


def seconds_of(budget: str) -> float:
    """Returns the seconds of a text such as `30m`, `90s` or `1h30m`.

    Raises:
        UsageError: it is not such a text, or under five seconds.
    """
    match = _BUDGET.fullmatch(budget.strip())
    parts = match.groups() if match else ()
    if not any(parts):
        raise UsageError(f"--budget '{budget}': write hours, minutes or seconds, such as 30m, 90s or 1h30m")
    seconds = sum(float(part) * size for part, size in zip(parts, (3600, 60, 1), strict=True) if part)
    if seconds < _LEAST_BUDGET_S:
        raise UsageError(f"--budget {budget}: at least {_LEAST_BUDGET_S:.0f} seconds")
    return seconds


def default_recipe(train: str, val: str, pictures: int, side: int, channels: int) -> Recipe:
    """Returns the recipe of a search without `--recipe`: LeNet-5 for small pictures, else a narrow ResNet-9.

    Args:
        train: URI of the training set.
        val: URI of the validation set.
        pictures: of the training set; fewer ones are seen more often.
        side: median of the longer sides, in pixels.
        channels: of the pictures.
    """
    lines = [dump_yaml({"data": {"train": train, "val": val}})]
    if side <= _SMALL_PX:
        # As in lenet-mnist.yaml, without its augmentation.
        epochs = min(max(round(40_000 / pictures), 3), 30)
        lines += [f"model: lenet5(in_chans={channels})", "batch_size: 64"]
        lines += ["optimizer: {name: adamw, lr: 3e-3, weight_decay: 0.01}"]
    else:
        epochs = min(max(round(8_000 / pictures), 5), 20)
        lines += [f"model: resnet9(width=16, in_chans={channels})", "batch_size: 32", "augment: flip"]
        lines += ["optimizer: {name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5e-4}"]
        steps = {1: "grayscale", 3: "rgb"}.get(channels)
        lines += [f"input: {{size: 64, steps: {steps}}}" if steps else "input: {size: 64}"]
    lines += [f"epochs: {epochs}", "schedule: {name: cosine, warmup_epochs: 1}"]
    return Recipe.parse("\n".join(lines), where="the default recipe")


def _recipe(uri: str | None, uris: dict[str, str], rows: Rows, manifest: Manifest) -> Recipe:
    if uri is None:
        sides = read_columns(uris["train"], ["width", "height"], [rows.shards[0]])
        longest = np.maximum(sides["width"].to_numpy(), sides["height"].to_numpy())
        stored = [int(kind) for kind, count in manifest.tally.channels.items() if count]
        channels = stored[0] if len(stored) == 1 else 3
        return default_recipe(uris["train"], uris["val"], len(rows), int(np.median(longest)), channels)
    overrides = [f"data.train={uris['train']}", f"data.val={uris['val']}", "data.val_fraction=null"]
    recipe = Recipe.load(uri, overrides)
    if recipe.data.labels is not None:
        raise UsageError(f"{uri}: data.labels gives several classes, and a search needs one a picture")
    inputs = model_inputs(recipe)
    for name, steps in (("steps", inputs.steps.steps), ("fit", inputs.fit.steps)):
        for step in with_nested(steps):
            if step.kind == "selector" or step.may_drop():
                raise UsageError(f"{uri}: input.{name} drops pictures ({step}); apply it first, with `striate filter`")
    if inputs.columns:
        raise UsageError(f"{uri}: input.steps needs the column '{inputs.columns[0]}', which a search does not read")
    return recipe


def _space(uri: str | None, recipe: Recipe) -> Space:
    if uri is None:
        added = [name for name in REGISTRY if _is_plugin(name)]
        space = Space.default(added)
    else:
        where = storage.normalize(uri)
        if not storage.exists(where):
            raise UsageError(f"{where} does not exist; name a YAML file, see docs/filter-search.md")
        space = Space.parse(storage.read_bytes(where, 2**20).decode(errors="replace"), where)
    reason = _never_sometimes(recipe, space) if "sometimes" in space.places else None
    if reason is not None:
        places: tuple[Place, ...] = tuple(place for place in space.places if place != "sometimes")
        if uri is not None:
            others = f"write `places: [{', '.join(places)}]`" if places else "name other places"
            raise UsageError(f"{uri}: places: {reason}, so filters cannot be put at `sometimes`; {others}")
        space = replace(space, places=places)
    if len(space.singles()) > MOST_CANDIDATES:
        raise UsageError(f"{len(space.singles()):,} candidates; at most {MOST_CANDIDATES:,}")
    return space


def _never_sometimes(recipe: Recipe, space: Space) -> str | None:
    """Returns why filters cannot be an augmentation of this recipe; None if they can."""
    if recipe.cache_features and recipe.augment is None:  # once, so nothing can be drawn anew in each epoch
        return "the recipe caches features without augment"
    if recipe.augment_on != "device":
        return None
    missing = dict.fromkeys(step.name for step in steps_without_form(_candidate_steps(space)))
    if not missing:
        return None
    return f"the recipe has `augment_on: device`, and these have no batched form: {', '.join(missing)}"


def _is_plugin(name: str) -> bool:
    """Whether a step is a filter of a plugin that can be made without parameters."""
    if REGISTRY[name].kind != "filter":
        return False
    try:
        step = Pipeline.parse(name).steps[0]
    except Exception:  # it needs parameters, so the space has to name it
        return False
    return bool(plugins.used_by([step])) and not step.columns()


def _steps_of(text: str | None) -> Sequence[Step]:
    return Pipeline.parse(text).steps if text else ()


def _candidate_steps(space: Space) -> list[Step]:
    return [step for text in space.filters for step in Pipeline.parse(text).steps]


def _raw_inputs() -> InputPipeline:
    """Returns the input pipeline that only decodes."""
    return InputPipeline(Pipeline(), Pipeline(), (0, 0), 0)


def _check_inputs(recipe: Recipe, manifests: dict[str, Manifest]) -> None:
    """Refuses weights that are none, and datasets of pictures that the recipe's model cannot take."""
    weights_file(recipe.located().weights)
    for dataset, manifest in manifests.items():
        model_inputs(recipe).check_channels(dataset, manifest.tally.channels)


def _check_memory(splits: Sequence[Rows], recipe: Recipe) -> None:
    """Refuses pictures that do not fit into memory when decoded, from the size of the first ones of each split."""
    needed = sum(map(_decoded_mb, splits))
    if needed > recipe.data.max_resident_mb:
        raise UsageError(
            f"the decoded pictures of {', '.join(rows.dataset for rows in splits)} take {needed:,.0f} MiB, more than "
            f"data.max_resident_mb ({recipe.data.max_resident_mb:,}) of the recipe: search on a part of them (`striate "
            "filter ... --steps 'sample(0.1)'`), make them smaller, or raise the limit"
        )


def _decoded_mb(rows: Rows) -> float:
    shard = int(np.flatnonzero(rows.counts)[0])
    decoded = decode_rows(rows, (shard, 0, min(int(rows.counts[shard]), _PROBED)), _raw_inputs(), fitted=False)
    if not len(decoded):
        raise UsageError(f"none of the first {_PROBED} pictures of {rows.dataset} can be decoded")
    return decoded.flat.nbytes / len(decoded) * len(rows) / 2**20


def _check_out(out: str, datasets: Sequence[str]) -> None:
    for dataset in datasets:
        if storage.contains(dataset, out) or storage.contains(out, dataset):
            raise UsageError(f"--out {out} and the dataset {dataset} contain one another; choose another folder")
    files = [file.path for file in storage.list_files(out)]
    # A search that was killed before it wrote its record, or runs there now, has left these; `hold` tells which.
    others = [path for path in files if not (path.startswith(f"{LEASES}/") or _is_temporary(path))]
    if others and RECORD not in files:
        raise UsageError(f"{out} contains other files ({others[0]}); choose another folder")
    storage.check_writable(out)


def _is_temporary(path: str) -> bool:
    return storage.name_of(path).startswith(storage.TEMPORARY_PREFIX)
