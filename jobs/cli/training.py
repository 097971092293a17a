"""Commands that make classifiers: train, ensemble, and plan, which measures a training beforehand."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, Gpu, Plugins, Size, check_size
from library.extras import check_installed


def train_command(
    recipe: Annotated[
        str, typer.Argument(help="Recipe: a YAML file, on disk or in a store; jobs/recipes/ has examples.")
    ],
    out: Annotated[
        str, typer.Option(help="Folder or s3:// of the bundle to write; logs and checkpoints go there too.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field: data.train=out/raw, optimizer.lr=0.01, ... Repeatable."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Number of training workers, or a range such as 1-8 for as many as there are resources for.",
            show_default="1",
        ),
    ] = None,
    gpu: Gpu = None,
    cpus_per_worker: Annotated[
        float | None,
        typer.Option(help="Logical CPUs of each worker; the other CPUs decode.", show_default="half of all CPUs"),
    ] = None,
    size: Size = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another training wrote there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan.")] = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Train a classifier by a recipe and write it as a bundle, for predict, evaluate, export and serve.

    A killed training resumes from its last checkpoint when the same command is run again.

        striate train jobs/recipes/lenet-digits.yaml --out out/lenet

        striate train jobs/recipes/lenet-mnist.yaml --set data.train=s3://b/mnist/train --out s3://b/lenet --workers 2
    """
    check_installed("torch", "striate train")
    from library.recipe import Recipe

    check_size(size, {"--workers": workers, "--gpu/--no-gpu": gpu, "--cpus-per-worker": cpus_per_worker})
    loaded = Recipe.load(recipe, overrides=set_ or ())
    from jobs.train.driver import train
    from jobs.train.plan import plan_train

    plan = plan_train(loaded, out, overwrite=overwrite)
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    for name, value in plan.described().items():
        output.stderr.print(f"{name.replace('_', ' '):16} {value}", markup=False, soft_wrap=True)
    result = train(plan, workers=workers or "1", gpu=gpu, cpus_per_worker=cpus_per_worker, size=size, address=address)
    metrics = result.bundle.metrics
    if json:
        # The bundle's metrics have `seconds` too: those of its epoch.
        output.emit_json(
            metrics
            | {
                "bundle": result.out,
                "id": result.bundle.id,
                "resumed": result.resumed,
                "seconds": round(result.seconds, 1),
                "compile_seconds": round(result.compile_seconds, 1),
                "times": asdict(result.times),
                "workers_by_node": result.workers_by_node,
            }
        )
        return
    state = "already trained" if result.resumed else f"trained in {result.seconds:.1f} s"
    say(f"{result.out}: {state}, bundle {result.bundle.id[:12]}")
    if "val_top1" in metrics:
        say(f"  top-1 {metrics['val_top1']:.2%}, loss {metrics['val_loss']:.4f} on the validation set")
    if "val_f1" in metrics:
        say(f"  F1 {metrics['val_f1']:.2%}, loss {metrics['val_loss']:.4f} on the validation set")
    bundle = shlex.quote(result.out)
    say(f"  striate evaluate {bundle} DATASET   striate predict {bundle} PICTURE")


def ensemble_command(
    bundles: Annotated[list[str], typer.Argument(help="Two or more bundles of the same classes.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// of the bundle to write.")],
    weights: Annotated[
        str | None, typer.Option(help="Weight of each bundle, e.g. 2,1.", show_default="equal weights")
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Combine several bundles into one that averages their probabilities.

    striate ensemble out/inception out/resnet --out out/both --weights 2,1
    """
    from library.bundle.ensemble import make_ensemble

    record = make_ensemble(bundles, out, weights)
    if json:
        output.emit_json(
            {"bundle": out, "id": record.id, "members": [member.model_dump() for member in record.members]}
        )
    else:
        say(f"{out}: an ensemble of {len(record.members)}, bundle {record.id[:12]}")


def plan_command(
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, on disk or in a store.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field: data.train=out/raw, ... Repeatable.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.3, help="Duration of the whole measurement in seconds.")] = 30.0,
    device: Annotated[str, typer.Option(help="Device that trains the model: auto, cpu or cuda.")] = "auto",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Measure how fast this machine decodes, augments and trains, and how many CPUs keep one training device busy.

    It also says where pictures are augmented and why there, for example which step has no form for whole batches.

    striate plan jobs/recipes/cifar10-fast.yaml --set data.train=out/cifar10/train
    """
    from jobs.probe import probe
    from library.recipe import Recipe

    loaded = Recipe.load(recipe, overrides=set_ or ())
    rates = probe(loaded, seconds=seconds, device=device)
    if json:
        output.emit_json(asdict(rates))
        return
    say(f"decode    {rates.decode_pictures_per_s:>12,.0f} pictures/s on one CPU, with the input pipeline")
    say(f"train     {rates.step_pictures_per_s:>12,.0f} pictures/s on {rates.device}")
    feeds = (("pictures streamed from shards", rates.streamed), ("decoded pictures in memory", rates.resident))
    for name, feed in feeds:
        say(f"{name}:")
        if feed.augment_on:
            say(f"  augmented on {feed.augment_on}")
        if feed is rates.resident and loaded.augment is None:
            say("  no work for the CPUs: resized once, before the first epoch")
        else:
            work = "which draws the parameters for the GPU" if feed.only_drawn else "with resizing for the model"
            stage = "resize" if loaded.augment is None else "augment"
            say(f"  {stage:7} {feed.augment_pictures_per_s:>12,.0f} pictures/s on one CPU, {work}")
            say(f"  {feed.cpus_per_device:.2f} CPUs keep this device busy")
