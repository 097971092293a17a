"""The fields of a recipe and their meaning; docs/recipes.md is generated from them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from library.recipe import fields
from library.recipe.fields import WITH_MOMENTUM

#: With `compile: auto` shorter trainings are not compiled, as compiling may take longer than it saves.
COMPILED_STEPS = 5000


class _Group(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Group):
    """The training and validation sets."""

    train: Annotated[fields.Uri, Field(description="the training set", examples=["out/train"])]
    val: Annotated[fields.Uri | None, Field(description="the validation set; without one nothing is validated")] = None
    val_fraction: Annotated[
        fields.Between | None,
        Field(description="validate on this fraction of each class of `train`, chosen by a hash of the key"),
    ] = None
    classes: Annotated[
        Literal["all"] | fields.Classes,
        Field(description="classes to learn; pictures of other classes are left out"),
    ] = "all"
    labels: Annotated[
        fields.Text | None,
        Field(
            description="column with a list of class names for each picture, where a picture may have any number of "
            "them: each class is then learned by itself (binary cross-entropy, the mean over the classes)"
        ),
    ] = None
    max_resident_mb: Annotated[
        int,
        Field(
            ge=0,
            le=10**9,
            description="MiB of memory to keep pictures in: decoded ones if they fit, else encoded ones of a remote "
            "store; 0 keeps none",
        ),
    ] = 2048


class Input(_Group):
    """How a picture is prepared for the model; stored in the bundle."""

    steps: Annotated[fields.Steps | None, Field(description="filters and selectors that are applied first")] = None
    fit: Annotated[
        fields.Fit | None,
        Field(description="filters that give a picture the model's size after augmentation; by default a resize"),
    ] = None
    size: Annotated[
        fields.Pixels | tuple[fields.Pixels, fields.Pixels] | None,
        Field(description="pixels: one side or [height, width]; the model's own by default"),
    ] = None
    decode: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(
            description="what decodes JPEGs for training: cuda is nvJPEG through TorchCodec, for pictures in memory; "
            "auto is cpu. The bundle records by how much cuda differs"
        ),
    ] = "auto"


class Optimizer(_Group):
    """How the weights are updated."""

    name: Annotated[fields.OptimizerName, Field(description="name of a timm optimizer", examples=["sgd"])]
    lr: Annotated[fields.Above0, Field(description="peak learning rate, for this `batch_size`", examples=[0.1])]
    weight_decay: Annotated[fields.Strength, Field(description="weight decay; not applied to biases and norms")] = 0.0
    momentum: Annotated[fields.Share | None, Field(description="for optimizers that take it; 0.9 by default")] = None
    betas: Annotated[
        tuple[fields.Share, ...] | None, Field(description="for Adam's family; the optimizer's own by default")
    ] = None
    eps: Annotated[
        fields.Above0 | None, Field(description="keeps a division finite; the optimizer's own by default")
    ] = None

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Optimizer:
        if self.momentum is None and self.name in WITH_MOMENTUM:
            object.__setattr__(self, "momentum", 0.9)
        return self


class Schedule(_Group):
    """How the learning rate changes from step to step."""

    name: Annotated[
        Literal["cosine", "step", "linear", "constant", "onecycle"],
        Field(description="decay as half a cosine, in steps, linear, or none; onecycle is cosine after a warm-up"),
    ] = "cosine"
    warmup_epochs: Annotated[fields.AtLeast0, Field(description="epochs in which the rate first rises to `lr`")] = 0.0
    min_lr: Annotated[
        fields.AtLeast0 | None, Field(description="last rate of cosine, linear, onecycle; 0 by default")
    ] = None
    step_epochs: Annotated[fields.Above0 | None, Field(description="for step: epochs between two steps")] = None
    gamma: Annotated[fields.Between | None, Field(description="for step: factor of each step; 0.1 by default")] = None

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Schedule:
        if self.min_lr is None and self.name in ("cosine", "linear", "onecycle"):
            object.__setattr__(self, "min_lr", 0.0)
        if self.gamma is None and self.name == "step":
            object.__setattr__(self, "gamma", 0.1)
        return self


class Loss(_Group):
    """The loss: cross-entropy; with `data.labels` binary cross-entropy, which takes none of these fields."""

    label_smoothing: Annotated[
        fields.Share, Field(description="fraction of the target that is spread over all classes")
    ] = 0.0
    class_weights: Annotated[
        Literal["balanced"] | dict[fields.Text, fields.Above0] | None,
        Field(description="weight of each class; balanced: rarer classes weigh more"),
    ] = None


class EarlyStopping(_Group):
    """Stops the training when validation no longer improves."""

    metric: Annotated[fields.Metric, Field(description="the metric that must improve; val_f1 with data.labels")] = (
        "val_top1"
    )
    patience: Annotated[fields.Count, Field(description="epochs without improvement")] = 5
    min_delta: Annotated[fields.AtLeast0, Field(description="least difference that counts as an improvement")] = 0.0


class RecipeFields(_Group):
    """The fields of a recipe; none is about the cluster, which must not change what is learned."""

    data: Data
    input: Input = Input()
    augment: Annotated[
        fields.Augment | None,
        Field(description="random augmentation, new in each epoch, between `input.steps` and `input.fit`"),
    ] = None
    augment_on: Annotated[
        Literal["auto", "cpu", "device"],
        Field(
            description="where `augment` runs: device: a batch at a time where the model is trained; cpu: picture by "
            "picture; auto: what is faster"
        ),
    ] = "auto"
    model: Annotated[fields.Model, Field(description="`striate models` lists them", examples=["lenet5"])]
    weights: Annotated[fields.Weights | None, Field(description="initial weights; random by default")] = None
    freeze: Annotated[
        Literal["none", "all"] | fields.Count,
        Field(description="what is not trained: all but the head, or this many stages from the input"),
    ] = "none"
    unfreeze: Annotated[
        dict[fields.Count, Literal["none"] | fields.Count],
        Field(description="gradual unfreezing: number of frozen stages from an epoch on; the first epoch is 0"),
    ] = {}
    head: Annotated[
        tuple[fields.Units, ...], Field(max_length=16, description="widths of dense layers before the classifier")
    ] = ()
    layer_decay: Annotated[
        fields.Between | None, Field(description="the learning rate of a stage, as a fraction of the next one's")
    ] = None
    cache_features: Annotated[
        bool, Field(description="run the frozen backbone over the pictures once, then train the head only")
    ] = False
    copies: Annotated[
        fields.Copies | None, Field(description="with `cache_features` and `augment`: augmented passes to cache")
    ] = None
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    batch_size: Annotated[
        Literal["auto"] | fields.Count,
        Field(description="pictures per step, over all workers; auto: what fits", examples=[128]),
    ]
    epochs: Annotated[fields.Above0 | None, Field(description="passes over the training set; or give `steps`")] = None
    steps: Annotated[fields.Batches | None, Field(description="number of batches; or give `epochs`")] = None
    loss: Loss = Loss()
    sampling: Annotated[
        Literal["natural", "balanced"],
        Field(description="balanced: every class is drawn equally often, so an epoch may repeat rare pictures"),
    ] = "natural"
    mixup: Annotated[fields.Strength, Field(description="alpha of MixUp (arXiv 1710.09412); 0 is off")] = 0.0
    cutmix: Annotated[fields.Strength, Field(description="alpha of CutMix (arXiv 1905.04899); 0 is off")] = 0.0
    ema: Annotated[
        fields.Between | None, Field(description="decay per step of averaged weights, which then are the classifier")
    ] = None
    clip_grad: Annotated[
        fields.Above0 | None, Field(description="largest gradient norm, over all weights (2-norm)")
    ] = None
    accumulate: Annotated[
        fields.Count, Field(description="parts into which a worker splits its batch, to save memory")
    ] = 1
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Field(description="auto: bf16 autocast on CUDA, float32 on CPU")
    ] = "auto"
    compile: Annotated[
        Literal["auto"] | bool,
        Field(
            description="torch.compile: takes up to minutes to start, then steps are faster; auto: on CUDA for "
            f"trainings of {COMPILED_STEPS:,} steps or more, if it works"
        ),
    ] = "auto"
    channels_last: Annotated[Literal["auto"] | bool, Field(description="memory format; auto: on CUDA")] = "auto"
    early_stopping: EarlyStopping | None = None
    best_metric: Annotated[
        fields.BestMetric | None,
        Field(
            description="metric that chooses the best checkpoint; val_top1 by default with a validation set, or val_f1 "
            "with data.labels; train_loss where the validation set must not choose, because it is the test set"
        ),
    ] = None
    checkpoint_minutes: Annotated[
        fields.Above0 | None, Field(description="minutes between checkpoints, besides the one after each epoch")
    ] = None
    seed: Annotated[fields.Seed, Field(description="seed of weights, order and augmentation")] = 0

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Self:
        if self.best_metric is None and self.has_validation:
            object.__setattr__(self, "best_metric", "val_f1" if self.data.labels is not None else "val_top1")
        stopping = self.early_stopping
        if stopping is not None and self.data.labels is not None and "metric" not in stopping.model_fields_set:
            object.__setattr__(self, "early_stopping", stopping.model_copy(update={"metric": "val_f1"}))
        return self

    @property
    def has_validation(self) -> bool:
        """Whether anything is measured on pictures that are not learned from."""
        return self.data.val is not None or self.data.val_fraction is not None
