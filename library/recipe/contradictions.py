"""Rules about fields that contradict each other; a field that has no effect beside the others is an error too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.recipe.fields import BETAS, WITH_EPS, WITH_MOMENTUM
from library.recipe.schema import RecipeFields


@dataclass(frozen=True)
class Problem:
    """An error in one field.

    Attributes:
        field: its path, e.g. `data.val`.
        text: follows the field's value in the message: `has no effect without ...`.
        others: paths of the fields that it contradicts.
    """

    field: str
    text: str
    others: tuple[str, ...] = ()


class Contradictions(ValueError):
    """Carries all problems of a recipe out of a pydantic validator."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.text}" for problem in problems))


def contradictions(recipe: RecipeFields) -> Iterator[Problem]:
    """Yields all contradictions of a recipe."""
    for rules in (
        _length,
        _validation,
        _augmentation,
        _freezing,
        _cached_features,
        _optimizer,
        _schedule,
        _classes,
        _several_labels,
        _batch,
    ):
        yield from rules(recipe)


def _length(recipe: RecipeFields) -> Iterator[Problem]:
    if recipe.epochs is not None and recipe.steps is not None:
        yield Problem("steps", "cannot be combined with epochs; set one of them to null", ("epochs",))
    if recipe.epochs is None and recipe.steps is None:
        yield Problem("epochs", "is missing; give epochs or steps", ("steps",))


def _validation(recipe: RecipeFields) -> Iterator[Problem]:
    data = recipe.data
    if data.val is not None and data.val_fraction is not None:
        text = "cannot be combined with data.val; set one of them to null"
        yield Problem("data.val_fraction", text, ("data.val",))
    if data.val == data.train:
        yield Problem("data.val", "is the training set; validation needs other pictures", ("data.train",))
    measured: list[tuple[str, str]] = []
    if recipe.best_metric is not None:
        measured.append(("best_metric", recipe.best_metric))
    stopping = recipe.early_stopping
    if stopping is not None:
        measured.append(("early_stopping.metric", stopping.metric))
        if recipe.epochs is not None and stopping.patience >= recipe.epochs:
            text = f"has no effect: training ends after {recipe.epochs:g} epochs anyway"
            yield Problem("early_stopping.patience", text, ("epochs", "early_stopping"))
    for field, metric in measured:
        if metric == "train_loss":
            if not recipe.has_validation:
                yield Problem(field, "has no effect without validation, where the training loss chooses; leave it out")
        elif not recipe.has_validation:
            yield Problem(field, "needs data.val or data.val_fraction", ("data.val", "data.val_fraction"))
        elif metric == "val_top5" and data.classes != "all" and len(data.classes) <= 5:
            text = f"is always 1 with {len(data.classes)} classes; use val_top1 or val_loss"
            yield Problem(field, text, ("data.classes",))


def _augmentation(recipe: RecipeFields) -> Iterator[Problem]:
    if recipe.augment_on == "auto":
        return
    if recipe.augment is None:
        yield Problem("augment_on", "has no effect without augment", ("augment",))
    elif recipe.cache_features:
        text = "has no effect with cache_features: true, whose pictures are augmented one by one"
        yield Problem("augment_on", text, ("cache_features",))


def _freezing(recipe: RecipeFields) -> Iterator[Problem]:
    if recipe.layer_decay is not None and recipe.freeze == "all" and not recipe.unfreeze:
        yield Problem("layer_decay", "has no effect with freeze: all; only the head learns", ("freeze", "unfreeze"))
    if not recipe.unfreeze:
        return
    if recipe.freeze == "none":
        yield Problem("unfreeze", "has no effect without freeze: all or a number of stages", ("freeze",))
    frozen = recipe.freeze if isinstance(recipe.freeze, int) else None
    for epoch, stages in sorted(recipe.unfreeze.items()):
        if recipe.epochs is not None and epoch >= recipe.epochs:
            text = f"has no effect from epoch {epoch}: epochs are numbered 0 to {recipe.epochs - 1:g}"
            yield Problem("unfreeze", text, ("epochs",))
        remaining = 0 if stages == "none" else stages
        if frozen is not None and remaining >= frozen:
            text = f"freezes {remaining} stages from epoch {epoch}, but {frozen} were frozen before; choose fewer"
            yield Problem("unfreeze", text, ("freeze",))
        frozen = remaining


def _cached_features(recipe: RecipeFields) -> Iterator[Problem]:
    if not recipe.cache_features:
        if recipe.copies is not None:
            yield Problem("copies", "has no effect without cache_features: true", ("cache_features",))
        return
    if recipe.freeze != "all":
        text = "needs freeze: all; the features of a backbone change while it is trained"
        yield Problem("cache_features", text, ("freeze",))
    if recipe.unfreeze:
        yield Problem("unfreeze", "cannot be combined with cache_features: true", ("cache_features",))
    if recipe.augment is not None and recipe.copies is None:
        text = (
            "has no effect on features that are cached once; cache N augmented passes with copies: N, or set it to null"
        )
        yield Problem("augment", text, ("cache_features", "copies"))
    if recipe.augment is None and recipe.copies is not None:
        yield Problem("copies", "has no effect without augment; every pass would cache the same features", ("augment",))
    for name in ("mixup", "cutmix"):
        if getattr(recipe, name):
            yield Problem(
                name, "mixes pictures, but with cache_features: true training sees only features", ("cache_features",)
            )
    if recipe.compile is True:
        yield Problem(
            "compile", "has no effect with cache_features: true, as only the head is trained", ("cache_features",)
        )


def _optimizer(recipe: RecipeFields) -> Iterator[Problem]:
    settings = recipe.optimizer
    name = settings.name
    if settings.momentum is not None and name not in WITH_MOMENTUM:
        instead = "; it has betas" if name in BETAS else ""
        yield Problem("optimizer.momentum", f"has no effect with {name}{instead}", ("optimizer.name",))
    if settings.momentum == 0 and name in ("sgd", "sgdw"):
        text = f"cannot be used with {name}, which has Nesterov momentum; use optimizer.name: momentum for none"
        yield Problem("optimizer.momentum", text, ("optimizer.name",))
    if settings.betas is not None and name not in BETAS:
        instead = "; it has momentum" if name in WITH_MOMENTUM else ""
        yield Problem("optimizer.betas", f"has no effect with {name}{instead}", ("optimizer.name",))
    elif settings.betas is not None and len(settings.betas) != BETAS[name]:
        yield Problem("optimizer.betas", f"should be {BETAS[name]} numbers for {name}", ("optimizer.name",))
    if settings.eps is not None and name not in WITH_EPS:
        yield Problem("optimizer.eps", f"has no effect with {name}", ("optimizer.name",))


def _schedule(recipe: RecipeFields) -> Iterator[Problem]:
    schedule = recipe.schedule
    field, name = "schedule.name", schedule.name
    if name == "onecycle" and not schedule.warmup_epochs:
        text = "needs schedule.warmup_epochs for its rise; without warm-up use cosine"
        yield Problem(field, text, ("schedule.warmup_epochs",))
    if name == "step" and schedule.step_epochs is None:
        yield Problem(field, "needs schedule.step_epochs", ("schedule.step_epochs",))
    for other in ("step_epochs", "gamma"):
        if name != "step" and getattr(schedule, other) is not None:
            yield Problem(f"schedule.{other}", f"has no effect with {field}: {name}; it belongs to step", (field,))
    if name in ("step", "constant") and schedule.min_lr is not None:
        text = f"has no effect with {field}: {name}; it belongs to cosine, linear and onecycle"
        yield Problem("schedule.min_lr", text, (field,))
    elif schedule.min_lr is not None and schedule.min_lr >= recipe.optimizer.lr:
        text = f"should be below optimizer.lr, {recipe.optimizer.lr:g}"
        yield Problem("schedule.min_lr", text, ("optimizer.lr",))
    for other in ("warmup_epochs", "step_epochs"):
        epochs = getattr(schedule, other)
        if recipe.epochs is not None and epochs is not None and epochs >= recipe.epochs:
            yield Problem(f"schedule.{other}", f"should be below epochs, {recipe.epochs:g}", ("epochs", field))


def _classes(recipe: RecipeFields) -> Iterator[Problem]:
    weights = recipe.loss.class_weights
    if weights is None:
        return
    field = "loss.class_weights"
    if recipe.sampling == "balanced" and weights == "balanced":
        yield Problem(
            field, "corrects the classes a second time, after sampling: balanced; use only one of them", ("sampling",)
        )
    for name in ("mixup", "cutmix"):
        if getattr(recipe, name):
            yield Problem(name, f"cannot be combined with {field}, as a mixed picture has two classes", (field,))
    if weights != "balanced" and recipe.data.classes != "all":
        missing = sorted(set(recipe.data.classes) - set(weights))
        unknown = sorted(set(weights) - set(recipe.data.classes))
        if missing:
            yield Problem(field, f"should name every class; missing: {', '.join(missing)}", ("data.classes",))
        if unknown:
            yield Problem(field, f"names classes that are not in data.classes: {', '.join(unknown)}", ("data.classes",))


def _several_labels(recipe: RecipeFields) -> Iterator[Problem]:
    several, field = recipe.data.labels is not None, "data.labels"
    measured = {"best_metric": recipe.best_metric}
    if recipe.early_stopping is not None:
        measured["early_stopping.metric"] = recipe.early_stopping.metric
    for name, metric in measured.items():
        if several and metric in ("val_top1", "val_top5"):
            yield Problem(name, f"needs one class a picture; with {field} use val_f1 or val_loss", (field,))
        elif not several and metric == "val_f1":
            yield Problem(name, f"needs {field}; with one class a picture use val_top1", (field,))
    if not several:
        return
    text = f"needs one class a picture, so it cannot be combined with {field}"
    wrong = {
        "loss.label_smoothing": recipe.loss.label_smoothing > 0,
        "loss.class_weights": recipe.loss.class_weights is not None,
        "sampling": recipe.sampling == "balanced",
        "mixup": recipe.mixup > 0,
        "cutmix": recipe.cutmix > 0,
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        yield Problem(name, text, (field,))


def _batch(recipe: RecipeFields) -> Iterator[Problem]:
    size = recipe.batch_size
    if size == "auto":
        return
    if recipe.accumulate > size:
        yield Problem("accumulate", f"should not be above batch_size, {size}", ("batch_size",))
    for name in ("mixup", "cutmix"):
        if getattr(recipe, name) and size < 2:
            yield Problem(name, "mixes pictures of one batch; batch_size should be 2 or more", ("batch_size",))
        elif getattr(recipe, name) and size // recipe.accumulate < 2:
            text = f"mixes pictures of one part of a batch; accumulate should be {size // 2} or less"
            yield Problem(name, text, ("batch_size", "accumulate"))
