"""Trains a network for the kernels of its first layer, and writes them as filters: `striate learn-filter`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.train.driver import TrainResult, train
from jobs.train.plan import TrainPlan, plan_train
from library import storage
from library.choosing.learned_filters.kernel_filters import (
    LearnedKernel,
    filter_list,
    kernel_filters,
    scaled_to_pictures,
    search_space,
)
from library.choosing.learned_filters.learned_page import COMMAND, LearnedFilters, draw_kernels, render_learned
from library.choosing.learned_filters.references import chance, nearest
from library.dataset.destination import remove_temporary
from library.dataset.lease import hold
from library.dataset.manifest import VERSIONS, Manifest, load_manifest
from library.dataset.shards import read_columns
from library.errors import UsageError
from library.evaluation.report.templates import PAGE, check_report
from library.imaging import codec
from library.recipe import Recipe
from library.recipe.yaml_text import dump_yaml
from library.training.in_memory import PackedPictures, decode_rows

PICTURE, FILTERS, SPACE, PIPELINE, NUMBERS = "kernels.png", "filters.txt", "space.yaml", "pipeline.txt", "learned.json"
TRAINING = "training"
SIZES = (3, 5, 7, 9, 11)
EPOCHS = 10
#: Larger pictures are scaled down for the network, which learns as well from them and faster.
_MOST_PX, _LEAST_PX = 64, 8
_VAL_FRACTION = 0.1
_SAMPLE = 200
_SHOWN = 5


@dataclass(frozen=True)
class LearnPlan:
    """What is learned from what; from `plan_learn`.

    Attributes:
        out: folder of the page and the filters; the training has a folder below it.
        first: steps that come before the kernels, such as `grayscale`; empty for none.
        side_px: side of the pictures that the network sees.
        training: the plan of the training.
    """

    out: str
    first: str
    side_px: int
    training: TrainPlan

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run."""
        return {
            "learns": self.training.recipe.model,
            "from": f"{len(self.training.train):,} pictures, {self.side_px} x {self.side_px} pixels",
            "epochs": f"{self.training.recipe.epochs:g}",
            "seed": self.training.recipe.seed,
            **{name: value for name, value in self.training.described().items() if name not in ("model", "out")},
            "out": self.out,
            "already_trained": self.training.finished,
        }


def plan_learn(
    dataset: str,
    out: str,
    *,
    val: str | None = None,
    size: int = 5,
    count: int = 8,
    grey: bool = False,
    gates: bool = False,
    epochs: float = EPOCHS,
    picture_px: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> LearnPlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        dataset: URI of the training set.
        out: URI of the folder to write.
        val: URI of the validation set; None validates on a tenth of the training set.
        size: side of a kernel in pixels, one of `SIZES`.
        count: number of kernels, up to 256.
        grey: whether the kernels see pictures in grey.
        gates: whether the network also learns weights of filters.
        epochs: of the training.
        picture_px: side of the pictures that the network sees; None for their own, up to 64.
        seed: of the training.
        overwrite: whether another training in `out` is replaced.

    Raises:
        UsageError: the request is not valid.
    """
    dataset, out = storage.normalize(dataset), storage.normalize(out)
    if size not in SIZES:
        raise UsageError(f"--size {size}: must be one of {', '.join(map(str, SIZES))}, so that a kernel has a middle")
    if not 1 <= count <= 256:
        raise UsageError(f"--count {count}: must be 1 to 256 kernels")
    if picture_px is not None and picture_px < _LEAST_PX:
        raise UsageError(f"--picture-px {picture_px}: must be at least {_LEAST_PX}")
    manifest = load_manifest(dataset)
    check_report(out, [dataset] if val is None else [dataset, storage.normalize(val)], COMMAND, "--out")
    first, channels = _channels(dataset, manifest, grey=grey)
    side = picture_px or _side_of(dataset, manifest)
    recipe = Recipe.parse(
        dump_yaml(
            {
                "data": {"train": dataset, **({"val_fraction": _VAL_FRACTION} if val is None else {"val": val})},
                "input": {"size": side, **({"steps": first} if first else {})},
                "model": f"filter_net(count={count}, kernel_size={size}, gates={gates}, in_chans={channels})",
                "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4},
                "schedule": {"name": "cosine", "warmup_epochs": min(1.0, epochs / 4)},
                "batch_size": 128,
                "epochs": epochs,
                "seed": seed,
            }
        )
    )
    training = plan_train(recipe, storage.join(out, TRAINING), overwrite=overwrite)
    return LearnPlan(out, first, side, training)


def run_learn(
    plan: LearnPlan, *, gpu: bool | None = None, address: str | None = None
) -> tuple[LearnedFilters, TrainResult]:
    """Trains, or resumes a killed training, and writes the page, the picture and the filters; the page last.

    Args:
        plan: from `plan_learn`.
        gpu: whether to train on a GPU; None to use one if there is any.
        address: address of the Ray cluster.

    Raises:
        StriateError: when the training fails.
    """
    result = train(plan.training, gpu=gpu, address=address)
    sample = _sample(plan)
    learned = learned_from(plan, result, sample)
    labels = sample.labels.tolist()
    shown = [sample[labels.index(label)] for label in list(dict.fromkeys(labels))[:_SHOWN]]
    written = {
        FILTERS: filter_list(learned.kernels),
        SPACE: search_space(learned.kernels, learned.pipeline or ""),
        NUMBERS: json.dumps(learned.summary(), ensure_ascii=False, allow_nan=False, indent=1) + "\n",
        **({} if learned.pipeline is None else {PIPELINE: f"{learned.pipeline}\n"}),
    }
    with hold(plan.out, tidy=remove_temporary):
        if learned.pipeline is None:  # of an earlier training with gates
            storage.remove([storage.join(plan.out, PIPELINE)])
        for name, text in written.items():
            storage.write_bytes(storage.join(plan.out, name), text.encode())
        sheet = codec.encode(draw_kernels(learned), codec.Encoding("png"))[0]
        storage.write_bytes(storage.join(plan.out, PICTURE), sheet)
        storage.write_bytes(storage.join(plan.out, PAGE), render_learned(learned, shown).encode("utf-8", "replace"))
    return learned, result


def learned_from(plan: LearnPlan, result: TrainResult, sample: PackedPictures) -> LearnedFilters:
    """Reads the kernels of a trained bundle, and compares them with those of the textbook.

    Args:
        plan: of the training.
        result: of the training.
        sample: prepared training pictures, to whose values the kernels are scaled.
    """
    from library.bundle.bundle import Bundle

    network: Any = Bundle.load(result.out, device="cpu").model
    kernels = network.net.kernels.weight.detach().double().numpy()
    pictures = [sample[number] for number in range(len(sample))]
    scaled = scaled_to_pictures(kernels, pictures)
    learned = [
        LearnedKernel(weights, match, *kernel_filters(weights, plan.first))
        for weights, match in zip(scaled, nearest(scaled), strict=True)
    ]
    gates: Mapping[str, float] = {}
    if network.net.gates is not None:
        from library.models.filter_gates import GATED

        gates = dict(zip(GATED, network.net.gates.gates.tolist(), strict=True))
    metrics = {name: float(value) for name, value in result.bundle.metrics.items() if name.startswith("val_")}
    recipe = plan.training.recipe
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return LearnedFilters(
        kernels=learned,
        chance=chance(kernels),
        side_px=plan.side_px,
        channels=kernels.shape[1],
        metrics=metrics,
        gates=gates,
        facts={
            "network": recipe.model,
            "training set": plan.training.train.dataset,
            "pictures": f"{len(plan.training.train):,}",
            "epochs": f"{recipe.epochs:g}",
            "seed": str(recipe.seed),
            "bundle": f"{TRAINING}/, {result.bundle.id[:12]}",
        },
        footer=f"made {now} by striate {VERSIONS['striate']}",
    )


def _sample(plan: LearnPlan) -> PackedPictures:
    rows, inputs = plan.training.train, plan.training.inputs
    parts: list[PackedPictures] = []
    for shard, selected in enumerate(rows.counts.tolist()):
        parts.append(decode_rows(rows, (shard, 0, min(selected, _SAMPLE)), inputs, fitted=True))
        if sum(map(len, parts)) >= _SAMPLE:
            break
    return PackedPictures.concatenate(parts)


def _channels(dataset: str, manifest: Manifest, *, grey: bool) -> tuple[str, int]:
    """Returns the steps before the kernels, and the channels that the kernels see."""
    stored = sorted(int(channels) for channels, pictures in manifest.tally.channels.items() if pictures)
    if grey:
        if stored == [1]:
            raise UsageError(f"--grey has no effect: all pictures of {dataset} are grey")
        return "grayscale", 1
    if len(stored) == 1:
        return "", stored[0]
    if stored and stored[-1] <= 4:
        return "rgb", 3
    raise UsageError(f"the pictures of {dataset} have {', '.join(map(str, stored))} channels; use --grey")


def _side_of(dataset: str, manifest: Manifest) -> int:
    """Returns the usual short side of the pictures, from those of one shard; at most 64."""
    if not manifest.shards:
        raise UsageError(f"{dataset} has no pictures")
    sizes = read_columns(dataset, ["width", "height"], [manifest.shards[0].name])
    short = np.minimum(*(sizes[name].to_numpy() for name in ("width", "height")))
    return int(np.clip(np.median(short), _LEAST_PX, _MOST_PX))
