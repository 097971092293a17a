"""What a recipe holds. Fields and their meaning stand here once; docs/recipes.md is made from them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from library.recipe import fields
from library.recipe.fields import WITH_MOMENTUM


class _Group(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Group):
    """What is learned from."""

    train: Annotated[fields.Uri, Field(description="the training set", examples=["out/train"])]
    val: Annotated[fields.Uri | None, Field(description="the validation set; without one nothing is measured")] = None
    val_fraction: Annotated[
        fields.Between | None,
        Field(description="cut the validation set from `train`: this share of each class, by a hash of the key"),
    ] = None
    classes: Annotated[
        Literal["all"] | fields.Classes,
        Field(description="which classes; the pictures of others are left out"),
    ] = "all"
    max_resident_mb: Annotated[
        int,
        Field(
            ge=0,
            le=10**9,
            description="MiB: decoded pictures are kept in memory where they fit into this, else stored ones that come "
            "from S3 or the like; 0 for never",
        ),
    ] = 2048


class Input(_Group):
    """What the model sees of a picture; kept in the bundle."""

    steps: Annotated[fields.Steps | None, Field(description="what every picture goes through first")] = None
    fit: Annotated[
        fields.Fit | None,
        Field(description="gives a picture the model's size, after augmentation; without it an exact resize"),
    ] = None
    size: Annotated[
        fields.Pixels | tuple[fields.Pixels, fields.Pixels] | None,
        Field(description="pixels: one side or [height, width]; without it the model's own"),
    ] = None


class Optimizer(_Group):
    """How the weights move."""

    name: Annotated[fields.OptimizerName, Field(description="by timm's name", examples=["sgd"])]
    lr: Annotated[fields.Above0, Field(description="highest learning rate, for this `batch_size`", examples=[0.1])]
    weight_decay: Annotated[fields.Strength, Field(description="of weights; biases and norms are left alone")] = 0.0
    momentum: Annotated[fields.Share | None, Field(description="for those that take it; 0.9 where nothing is said")] = (
        None
    )
    betas: Annotated[
        tuple[fields.Share, ...] | None, Field(description="for Adam's family; without it the optimizer's own")
    ] = None
    eps: Annotated[
        fields.Above0 | None, Field(description="keeps a division finite; without it the optimizer's own")
    ] = None

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Optimizer:
        if self.momentum is None and self.name in WITH_MOMENTUM:
            object.__setattr__(self, "momentum", 0.9)
        return self


class Schedule(_Group):
    """How the learning rate goes, step by step."""

    name: Annotated[
        Literal["cosine", "step", "linear", "constant", "onecycle"],
        Field(description="down as half a cosine, in steps, straight, not at all; onecycle is cosine after a warm-up"),
    ] = "cosine"
    warmup_epochs: Annotated[fields.AtLeast0, Field(description="epochs in which the rate rises to `lr` first")] = 0.0
    min_lr: Annotated[fields.AtLeast0 | None, Field(description="where cosine, linear and onecycle end; 0")] = None
    step_epochs: Annotated[fields.Above0 | None, Field(description="for step: epochs between two steps")] = None
    gamma: Annotated[fields.Between | None, Field(description="for step: what the rate is multiplied by; 0.1")] = None

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Schedule:
        if self.min_lr is None and self.name in ("cosine", "linear", "onecycle"):
            object.__setattr__(self, "min_lr", 0.0)
        if self.gamma is None and self.name == "step":
            object.__setattr__(self, "gamma", 0.1)
        return self


class Loss(_Group):
    """What is made small: cross-entropy."""

    label_smoothing: Annotated[fields.Share, Field(description="share of the target spread over all classes")] = 0.0
    class_weights: Annotated[
        Literal["balanced"] | dict[fields.Text, fields.Above0] | None,
        Field(description="what a picture of a class counts; balanced: the rarer, the more"),
    ] = None


class EarlyStopping(_Group):
    """Stop when validation gets no better."""

    metric: Annotated[fields.Metric, Field(description="what is watched")] = "val_top1"
    patience: Annotated[fields.Count, Field(description="epochs without a better value")] = 5
    min_delta: Annotated[fields.AtLeast0, Field(description="by how much a value must be better to count")] = 0.0


class RecipeFields(_Group):
    """The fields of a recipe; none is about the cluster, which must not change what is learned."""

    data: Data
    input: Input = Input()
    augment: Annotated[
        fields.Augment | None,
        Field(description="at random, anew each epoch, between `input.steps` and `input.fit`"),
    ] = None
    model: Annotated[fields.Model, Field(description="`striate models` lists them", examples=["lenet5"])]
    weights: Annotated[fields.Weights | None, Field(description="what it starts from; without it random numbers")] = (
        None
    )
    freeze: Annotated[
        Literal["none", "all"] | fields.Count,
        Field(description="what does not learn: all but the head, or so many stages from the input's side"),
    ] = "none"
    unfreeze: Annotated[
        dict[fields.Count, Literal["none"] | fields.Count],
        Field(description="gradual unfreezing: from this epoch (the first is 0) only so many stages are frozen"),
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
        Field(description="pictures a step, over all workers; auto: what fits", examples=[128]),
    ]
    epochs: Annotated[fields.Above0 | None, Field(description="passes over the training set; or give `steps`")] = None
    steps: Annotated[fields.Batches | None, Field(description="batches in all; or give `epochs`")] = None
    loss: Loss = Loss()
    sampling: Annotated[
        Literal["natural", "balanced"],
        Field(description="balanced: every class is drawn equally often, so an epoch may repeat rare pictures"),
    ] = "natural"
    mixup: Annotated[fields.Strength, Field(description="alpha of MixUp (arXiv 1710.09412); 0 is off")] = 0.0
    cutmix: Annotated[fields.Strength, Field(description="alpha of CutMix (arXiv 1905.04899); 0 is off")] = 0.0
    ema: Annotated[
        fields.Between | None, Field(description="decay a step of an averaged copy, which is then the classifier")
    ] = None
    clip_grad: Annotated[fields.Above0 | None, Field(description="longest gradient (2-norm over all weights)")] = None
    accumulate: Annotated[fields.Count, Field(description="parts a worker takes its batch in, to save memory")] = 1
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Field(description="auto: bf16 autocast on CUDA, float32 on CPU")
    ] = "auto"
    compile: Annotated[bool, Field(description="torch.compile: minutes at the start, faster steps after")] = False
    channels_last: Annotated[Literal["auto"] | bool, Field(description="memory format; auto: on CUDA")] = "auto"
    early_stopping: EarlyStopping | None = None
    best_metric: Annotated[
        fields.Metric | None, Field(description="which checkpoint is kept as the best; val_top1 with a validation set")
    ] = None
    checkpoint_minutes: Annotated[
        fields.Above0 | None, Field(description="a checkpoint so often, besides the one of each epoch")
    ] = None
    seed: Annotated[fields.Seed, Field(description="of weights, order and augmentation")] = 0

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Self:
        if self.best_metric is None and self.has_validation:
            object.__setattr__(self, "best_metric", "val_top1")
        return self

    @property
    def has_validation(self) -> bool:
        """Whether anything is measured on pictures that are not learned from."""
        return self.data.val is not None or self.data.val_fraction is not None
