"""Computes the units of a search in a worker: a cheap training, a training of the recipe, or its test."""

from __future__ import annotations

import functools
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.search.prefix_files import PREFIXES, PrefixFiles
from jobs.search.preparing import FilterFailed, Preparer
from jobs.search.script import RecipeLimit, RecipeTooLong
from jobs.search.search_plan import compares_heads
from jobs.train.plan import model_inputs
from library import storage
from library.choosing.filter_search.space import IDENTITY, Candidate
from library.choosing.filter_search.trials import Unit, UnitResult
from library.errors import BadPicture, StorageError, StriateError, UsageError
from library.imaging.picture import Pixels
from library.models import parse_call
from library.models.call import ModelCall
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.steps.plugins import Plugin, install
from library.training.in_memory import PackedPictures
from library.training.rows import rejected_text

UNITS = "units"
KindT = TypeVar("KindT")
#: Shares of a worker's memory for filtered pictures; training pictures are used more often.
_TRAIN_SHARE, _JUDGED_SHARE = 0.8, 0.1
#: Pictures on which robustness is measured.
ROBUST_PICTURES = 200
#: What it may take, as it is in no estimate: a share of its training, of which there are eight or more, or of the
#: budget, of which more is kept back.
_ROBUST_TRAINING_SHARE, _ROBUST_BUDGET_SHARE = 0.5, 0.005


@dataclass(frozen=True)
class UnitTask:
    """What all units of a search have in common; plain data.

    Attributes:
        recipe: as JSON, with absolute paths.
        classes: class names in the order of the outputs.
        out: URI of the search's folder.
        proxy_train: numbers of the training pictures of cheap trainings.
        screening: numbers of the validation pictures that they are judged on.
        confirmation: numbers of the validation pictures that trainings of the recipe are judged on.
        threads: of torch in each worker.
        gpu: whether a worker has a GPU.
        used_plugins: plugins of the candidates and the recipe.
        context: digest of all that units depend on but candidate, seed and stage.
        cache_bytes: of filtered pictures that a worker keeps.
        limit: for the first training of the recipe.
        test_context: of units that are judged on the test pictures; None where there are none.
    """

    recipe: str
    classes: tuple[str, ...]
    out: str
    proxy_train: NDArray[np.int64]
    screening: NDArray[np.int64]
    confirmation: NDArray[np.int64]
    threads: int
    gpu: bool
    used_plugins: tuple[Plugin, ...]
    context: str
    cache_bytes: int
    limit: RecipeLimit
    test_context: str | None = None


@dataclass(frozen=True)
class FileStore:
    """The files of units below a search's folder. A store that fails for a while is waited for.

    Attributes:
        out: URI of the folder.
        sleep: waits for so many seconds.
    """

    out: str
    sleep: Callable[[float], None] = time.sleep

    def uri(self, unit: Unit) -> str:
        """URI of a unit's file."""
        return storage.join(self.out, UNITS, unit.file_name)

    def read(self, unit: Unit) -> UnitResult | None:
        """Returns the result of a unit; None if it has no file, or one that cannot be read."""
        data = self._read(self.uri(unit))
        try:
            return None if data is None else UnitResult.from_json(json.loads(data))
        except (ValueError, KeyError, TypeError):
            return None

    def write(self, result: UnitResult) -> None:
        """Writes a unit's file."""
        self._write(self.uri(result.unit), result.to_json())

    def robustness(self, unit: Unit) -> Mapping[str, float]:
        """Returns accuracy by corruption, `clean` among them; empty where it was not measured."""
        data = self._read(self._robustness_uri(unit))
        return {} if data is None else json.loads(data)

    def write_robustness(self, unit: Unit, accuracies: Mapping[str, float]) -> None:
        """Writes the file that `robustness` reads."""
        self._write(self._robustness_uri(unit), accuracies)

    def _robustness_uri(self, unit: Unit) -> str:
        return storage.join(self.out, UNITS, f"robust-{unit.file_name}")

    def _read(self, uri: str) -> bytes | None:
        return storage.patiently(lambda: storage.read_bytes(uri) if storage.exists(uri) else None, self.sleep)

    def _write(self, uri: str, document: Mapping[str, Any]) -> None:
        data = (json.dumps(document) + "\n").encode()
        storage.patiently(lambda: storage.write_bytes(uri, data), self.sleep)


def with_candidate(recipe: Recipe, candidate: Candidate, sample: NDArray[Any], seed: int) -> Recipe:
    """Returns a recipe with the candidate's filters, the channels that they give, and the seed of this training.

    Args:
        recipe: without the candidate.
        candidate: where its filters are put.
        sample: a decoded picture, from which the number of channels is found.
        seed: of the pair; a placebo trains with another one.

    Raises:
        FilterFailed: the filters cannot take the picture.
    """
    inputs = model_inputs(recipe)
    steps = candidate.input_steps(str(inputs.steps) if inputs.steps.steps else "")
    updated: dict[str, Any] = {"seed": candidate.seed(seed)}
    if candidate.place == "sometimes":
        updated["augment"] = candidate.augment(recipe.augment or "")
    if candidate.filters and candidate.place != "sometimes":
        updated["input"] = recipe.input.model_copy(update={"steps": steps})
        try:
            channels = Pipeline.parse(steps).apply(sample).shape[2]
        except (MemoryError, StorageError):  # not the candidate's fault
            raise
        except Exception as error:
            raise FilterFailed(f"{candidate.label}: {type(error).__name__}: {error}") from error
        if channels != inputs.channels:
            call = parse_call(recipe.model)
            updated["model"] = str(ModelCall(call.name, {**call.parameters, "in_chans": channels}))
    try:
        return Recipe.parse(recipe.model_copy(update=updated).dump())
    except UsageError as error:
        raise FilterFailed(f"{candidate.label}: {error}") from error


class UnitComputer:
    """Computes units and writes their files; keeps decoded and prepared pictures from one to the next.

    Args:
        task: what they have in common.
        train: decoded training pictures, as stored.
        val: decoded validation pictures.
        test: decoded test pictures; None where there are none.
        sleep: waits for so many seconds, for a store that fails for a while.
    """

    def __init__(
        self,
        task: UnitTask,
        train: PackedPictures,
        val: PackedPictures,
        test: PackedPictures | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import cv2
        import torch

        # Here, so that the first unit is not measured with the seconds that these imports take.
        for module in ("proxy", "recipe_trial"):
            importlib.import_module(f"jobs.search.{module}")

        install(task.used_plugins)
        cv2.setNumThreads(1)
        torch.set_num_threads(task.threads)
        self._task, self._recipe = task, Recipe.model_validate_json(task.recipe)
        self._store, self._sleep = FileStore(task.out, sleep), sleep
        self._sample = train[0]
        self._train = self._preparer(train, "train", task.context, _TRAIN_SHARE)
        self._val = self._preparer(val, "val", task.context, _JUDGED_SHARE)
        self._test, self._test_pictures = None, test
        if test is not None and task.test_context is not None:
            self._test = self._preparer(test, "test", task.test_context, _JUDGED_SHARE)
        self._labels = train.labels
        self._val_pictures = val
        self._all_train = np.arange(len(train))
        self._latest: dict[str, tuple[str, Any]] = {}
        self._measured_ms: dict[str, float] = {}
        self._device = torch.device("cuda" if task.gpu else "cpu")

    def __call__(self, units: Sequence[str]) -> None:
        """Computes units, given as JSON; those with a file are left out."""
        for text in units:
            unit = Unit.from_json(json.loads(text))
            if self._store.read(unit) is None:
                # Reads the recipe's weights.
                result = storage.patiently(functools.partial(self.compute, unit), self._sleep)
                of, tested = self._latest.pop("tested", ("", None))
                if of == unit.digest:
                    self._store.write(tested)
                self._store.write(result)
                self._measure_robustness(result)

    def _preparer(self, pictures: PackedPictures, role: str, context: str, share: float) -> Preparer:
        files = PrefixFiles(storage.join(self._task.out, PREFIXES), context, role)
        return Preparer(pictures, int(share * self._task.cache_bytes), files)

    def compute(self, unit: Unit) -> UnitResult:
        """Trains and judges. A candidate that cannot be trained gives a result with the reason."""
        start = time.perf_counter()
        try:
            recipe = with_candidate(self._recipe, unit.candidate, self._sample, unit.seed)
            inputs = model_inputs(recipe)
            filters = Pipeline.parse(unit.candidate.filters) if unit.candidate.filters else Pipeline()
            milliseconds = self._milliseconds(unit.candidate, filters)
            if unit.stage == "proxy":
                correct = self._proxy(unit, recipe, inputs)
            elif unit.stage == "recipe":
                correct = self._trained(unit, recipe, inputs)
            else:
                correct = self._tested(unit, recipe, inputs)
        except FilterFailed as error:  # anything else, such as a store that fails, is not the candidate's fault
            return UnitResult(unit, np.zeros(0, np.bool_), time.perf_counter() - start, 0.0, str(error))
        return UnitResult(unit, correct, time.perf_counter() - start, round(milliseconds, 4))

    def _milliseconds(self, candidate: Candidate, filters: Pipeline) -> float:
        """Time of a candidate's filters for a picture, measured once; 0 where nothing is filtered in use."""
        if candidate.place == "sometimes":
            return 0.0
        if candidate.filters not in self._measured_ms:
            self._measured_ms[candidate.filters] = self._train.milliseconds(filters, self._task.proxy_train)
        return self._measured_ms[candidate.filters]

    def _proxy(self, unit: Unit, recipe: Recipe, inputs: InputPipeline) -> NDArray[np.bool_]:
        from jobs.search import proxy

        seed = unit.candidate.seed(unit.seed)
        if compares_heads(recipe):
            return self._on_features(unit.candidate, recipe, inputs, seed)
        side = proxy.proxy_side(inputs.size)
        if (side, side) != inputs.size:
            resize = Pipeline.parse(f'resize([{side}, {side}], mode="exact")')
            inputs = InputPipeline(inputs.steps, resize, (side, side), inputs.channels)
        train, val = self._proxy_pictures(unit.candidate, inputs)
        return proxy.train_small_cnn(train, val, len(self._task.classes), seed)

    def _proxy_pictures(self, candidate: Candidate, inputs: InputPipeline) -> tuple[Any, PackedPictures]:
        """The pictures of a cheap training; those of the last candidate are kept for its other seeds."""
        from jobs.search import proxy

        known = self._latest.get("proxy")
        if known is not None and known[0] == candidate.name:
            return known[1]
        self._latest.clear()  # also the pictures of the recipe's trainings
        rows, val_rows = self._task.proxy_train, self._task.screening
        train: Any = self._train.pack(inputs, rows)
        if candidate.place == "sometimes" and candidate.p is not None:
            filters = Pipeline.parse(candidate.filters).steps
            filtered = InputPipeline(
                Pipeline((*inputs.steps.steps, *filters)), inputs.fit, inputs.size, inputs.channels
            )
            train = proxy.Mixture(train, self._train.pack(filtered, rows), candidate.p)
        pictures = train, self._val.pack(inputs, val_rows)
        self._latest["proxy"] = candidate.name, pictures
        return pictures

    def _on_features(self, candidate: Candidate, recipe: Recipe, inputs: InputPipeline, seed: int) -> NDArray[np.bool_]:
        from jobs.search import proxy

        known = self._latest.get("features")
        if known is None or known[0] != candidate.name:
            train, val = self._proxy_pictures(candidate, inputs)
            backbone = self._backbone(recipe)
            plain = train.plain if isinstance(train, proxy.Mixture) else train
            features = proxy.features_of(backbone, plain, self._device)
            other = proxy.features_of(backbone, train.filtered, self._device) if plain is not train else None
            known = candidate.name, (features, other, plain.labels, val, proxy.features_of(backbone, val, self._device))
            self._latest["features"] = known
        features, other, labels, val, val_features = known[1]
        if other is not None:
            drawn = np.random.default_rng(seed).random(len(features)) < (candidate.p or 0)
            features = np.where(drawn[:, None], other, features)
        return proxy.train_head(features, labels, val, val_features, seed)

    def _backbone(self, recipe: Recipe) -> Any:
        import torch

        from library.bundle.description import weights_file
        from library.models.build import create

        torch.manual_seed(self._recipe.seed)
        return create(recipe.model, num_classes=len(self._task.classes), weights=weights_file(recipe.weights))

    def _trained(self, unit: Unit, recipe: Recipe, inputs: InputPipeline) -> NDArray[np.bool_]:
        from jobs.search.recipe_trial import correct_of

        model = self._trained_model(unit, recipe, inputs)
        correct = correct_of(model, self._confirmation(unit.candidate, inputs), self._device, recipe.precision)
        if self._task.test_context is not None and unit.candidate.placebo is None:
            # Now, as the network is not kept. Nothing reads its file before the answer is known.
            tested = Unit(unit.candidate, unit.seed, "test", self._task.test_context)
            self._latest["tested"] = unit.digest, self._test_result(tested, model, recipe, inputs)
        if unit.seed == first_confirmation_seed(self._recipe):
            self._latest["robustness"] = unit.digest, (model, inputs, recipe.precision)
        return correct

    def _trained_model(self, unit: Unit, recipe: Recipe, inputs: InputPipeline) -> Any:
        from jobs.search.recipe_trial import Setting, train_here

        candidate, augments = unit.candidate, recipe.augment is not None
        known = self._latest.get("recipe")
        if known is None or known[0] != candidate.name:
            self._latest.clear()  # first, as these are all training pictures
            train = self._train.pack(inputs, self._all_train, fitted=not augments)
            known = candidate.name, (train, self._val.pack(inputs, self._task.screening))
            self._latest["recipe"] = known
        train, val = known[1]
        counts = np.bincount(train.labels, minlength=len(self._task.classes)).tolist()
        classes = dict(zip(self._task.classes, counts, strict=True))
        first_seed = first_confirmation_seed(self._recipe)
        is_first = unit.stage == "recipe" and candidate == IDENTITY and recipe.seed == first_seed
        limit = self._task.limit if is_first else None
        watch = None if limit is None else limit.check
        try:
            if recipe.cache_features:
                begun = time.perf_counter()
                train, val = self._cached(recipe, inputs, train, val, limit)
                if watch is not None:
                    watch = functools.partial(watch, before_s=time.perf_counter() - begun)
            return train_here(Setting(recipe, inputs, classes, self._device, watch=watch), train, val)
        except (StorageError, RecipeTooLong):  # not the candidate's fault
            raise
        except StriateError as error:
            raise FilterFailed(f"{candidate.label}: {error}") from error

    def _cached(
        self,
        recipe: Recipe,
        inputs: InputPipeline,
        train: PackedPictures,
        val: PackedPictures,
        limit: RecipeLimit | None,
    ) -> tuple[PackedPictures, PackedPictures]:
        """Features in place of pictures, in as many augmented passes as the recipe caches, within the limit."""
        from jobs.search import proxy

        backbone = self._backbone(recipe)
        augmenter = Augmenter(Pipeline.parse(recipe.augment), recipe.seed) if recipe.augment else None
        passes, begun = list[PackedPictures](), time.perf_counter()
        copies = recipe.copies or 1 if augmenter else 1
        for copy in range(copies):
            pictures = train if augmenter is None else _augmented(train, inputs, augmenter, copy)
            # Within a pass, what comes after it is not counted.
            before_s = time.perf_counter() - begun
            watch = None if limit is None else functools.partial(limit.check, before_s=before_s)
            passes.append(_of_features(proxy.features_of(backbone, pictures, self._device, watch), pictures))
            if limit is not None:
                limit.check(time.perf_counter() - begun, (copy + 1) / copies)
        return PackedPictures.concatenate(passes), _of_features(proxy.features_of(backbone, val, self._device), val)

    def _confirmation(self, candidate: Candidate, inputs: InputPipeline) -> PackedPictures:
        known = self._latest.get("confirmation")
        if known is None or known[0] != candidate.name:
            known = candidate.name, self._val.pack(inputs, self._task.confirmation)
            self._latest["confirmation"] = known
        return known[1]

    def _tested(self, unit: Unit, recipe: Recipe, inputs: InputPipeline) -> NDArray[np.bool_]:
        """Trains again, where the training was before there was a test."""
        result = self._test_result(unit, self._trained_model(unit, recipe, inputs), recipe, inputs)
        if result.failure is not None:
            raise FilterFailed(result.failure)
        return result.correct

    def _test_result(self, unit: Unit, model: Any, recipe: Recipe, inputs: InputPipeline) -> UnitResult:
        """Judges a network on the test pictures; its seconds are counted with the training."""
        from jobs.search.recipe_trial import correct_of

        assert self._test is not None
        assert self._test_pictures is not None
        try:
            known = self._latest.get("test")
            if known is None or known[0] != unit.candidate.name:
                pictures = self._test.pack(inputs, np.arange(len(self._test_pictures)))
                known = self._latest["test"] = unit.candidate.name, pictures
        except FilterFailed as error:
            return UnitResult(unit, np.zeros(0, np.bool_), 0.0, 0.0, str(error))
        return UnitResult(unit, correct_of(model, known[1], self._device, recipe.precision), 0.0, 0.0)

    def _measure_robustness(self, result: UnitResult) -> None:
        """Writes accuracy on corrupted pictures of the confirmation half; the corruption comes before the filters.

        Only for the first seed of the confirmation, after its result: this is no part of the training.
        """
        from jobs.search.recipe_trial import correct_of
        from library.evaluation.robustness import CORRUPTIONS, Corruption

        trained, kept = self._latest.pop("robustness", ("", None))
        if trained != result.unit.digest:
            return
        model, inputs, precision = kept
        rows = self._task.confirmation[:ROBUST_PICTURES]
        data = self._val_pictures
        keys, labels = [str(data.keys[row]) for row in rows.tolist()], data.labels[rows].tolist()
        clean = [data[row] for row in rows.tolist()]

        def accuracy(corruption: Corruption | None) -> float | None:
            pictures = clean if corruption is None else [corruption(p, k) for p, k in zip(clean, keys, strict=True)]
            packed = PackedPictures.pack(pictures, labels, keys, data.rejected.copy())
            try:
                prepared = Preparer(packed, most_bytes=0).pack(inputs, np.arange(len(rows)))
            except FilterFailed:
                return None
            return float(correct_of(model, prepared, self._device, precision).mean())

        limit_s = max(_ROBUST_TRAINING_SHARE * result.seconds, _ROBUST_BUDGET_SHARE * self._task.limit.budget_s)
        corrupted = {f"{each.name} {each.strength}": each for each in CORRUPTIONS}
        expected_s = result.filter_ms / 1000 * len(rows)
        accuracies = measured_in_time({"clean": None, **corrupted}, accuracy, limit_s, expected_s)
        self._store.write_robustness(result.unit, accuracies)


def measured_in_time(
    kinds: Mapping[str, KindT],
    measure: Callable[[KindT], float | None],
    limit_s: float,
    expected_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Measures kinds of pictures, in order, as long as there is time; those without a number are left out.

    Args:
        kinds: by name.
        measure: returns the number of a kind; None where there is none.
        limit_s: no kind is begun that would end later.
        expected_s: seconds of the first kind; the others are expected to take as long as the longest before them.
        clock: returns seconds.
    """
    numbers: dict[str, float] = {}
    start = clock()
    for name, kind in kinds.items():
        begun = clock()
        if begun - start + expected_s > limit_s:
            break
        number = measure(kind)
        if number is not None:
            numbers[name] = number
        expected_s = max(expected_s, clock() - begun)
    return numbers


def first_confirmation_seed(recipe: Recipe) -> int:
    """The first seed of trainings of the recipe: none of the race's, which count from 0."""
    return recipe.seed + 1000


def _augmented(train: PackedPictures, inputs: InputPipeline, augmenter: Augmenter, copy: int) -> PackedPictures:
    """Returns one pass of pictures in the model's size, without those that augmentation rejects, which it counts.

    Raises:
        StriateError: no picture is left.
    """
    pixels: list[Pixels] = []
    rows: list[int] = []
    rejected = Counter[str]()
    for row in range(len(train)):
        try:
            pixels.append(inputs.fitted(augmenter.apply(train[row], copy, str(train.keys[row]))))
            rows.append(row)
        except BadPicture as bad:
            rejected[bad.reason] += 1
    if not rows:
        raise StriateError(f"no picture can be used after the augmentation: {rejected_text(rejected)}")
    rejected += train.rejected
    return PackedPictures.pack(pixels, train.labels[rows].tolist(), train.keys[rows].tolist(), rejected)


def _of_features(features: NDArray[np.float32], like: PackedPictures) -> PackedPictures:
    return PackedPictures.pack(list(features), like.labels.tolist(), like.keys.tolist(), like.rejected.copy())


@dataclass(frozen=True)
class ComputerFactory:
    """Makes a `UnitComputer` in a worker, from pictures in Ray's object store.

    Attributes:
        task: of the computer.
        pictures: references to training, validation and test pictures.
    """

    task: UnitTask
    pictures: tuple[Any, ...]

    def __call__(self) -> UnitComputer:
        """Fetches the pictures; arrays of one machine's workers share their memory."""
        import ray

        return UnitComputer(self.task, *ray.get(list(self.pictures)))
