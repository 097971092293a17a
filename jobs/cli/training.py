"""`striate train`, `striate plan` and `striate ensemble`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, Plugins, Size, check_size
from library.extras import check_installed


def train_command(
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, here or in a store; jobs/recipes/ has examples.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// of the bundle to make; logs and checkpoints go there too.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field: data.train=out/raw, optimizer.lr=0.01 ...")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Training workers: a number, or 1-8 for as many as find room.", show_default="1"),
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--no-gpu", help="A GPU a worker.", show_default="where there are any"),
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(help="Logical CPUs a worker; what is left decodes.", show_default="half of all")
    ] = None,
    size: Size = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another training left there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done.")] = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Train a classifier by a recipe; the finished bundle predicts, evaluates and serves.

    A killed training resumes from its last checkpoint when the same command is run again.

        striate train jobs/recipes/lenet-digits.yaml --out out/lenet

        striate train jobs/recipes/lenet-mnist.yaml --set data.train=out/mnist/train --set data.val=out/mnist/test --out
        out/lenet --workers 2
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
        output.emit_json(
            {
                "bundle": result.out,
                "id": result.bundle.id,
                "resumed": result.resumed,
                "seconds": round(result.seconds, 1),
                "workers_by_node": result.workers_by_node,
                **metrics,
            }
        )
        return
    state = "was trained before" if result.resumed else f"trained in {result.seconds:.1f} s"
    say(f"{result.out}: {state}, bundle {result.bundle.id[:12]}")
    if "val_top1" in metrics:
        say(f"  top-1 {metrics['val_top1']:.2%}, loss {metrics['val_loss']:.4f} on the validation set")
    say(f"  striate evaluate {result.out} DATASET   striate predict {result.out} PICTURE")


def ensemble_command(
    bundles: Annotated[list[str], typer.Argument(help="Two or more bundles of the same classes.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// of the bundle to make.")],
    weights: Annotated[
        str | None, typer.Option(help="What each counts, e.g. 2,1.", show_default="all the same")
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Make one bundle of several: the mean of their probabilities.

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
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, here or in a store.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: data.train=out/raw ...")] = None,
    seconds: Annotated[float, typer.Option(min=0.3, help="How long to measure, in all.")] = 30.0,
    device: Annotated[str, typer.Option(help="Where the model learns: auto, cpu, cuda.")] = "auto",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Measure how fast pictures are decoded and augmented and the model learns; say how many CPUs a device needs.

    striate plan jobs/recipes/cifar10-fast.yaml --set data.train=out/cifar10/train
    """
    from jobs.probe import probe
    from library.recipe import Recipe

    rates = probe(Recipe.load(recipe, overrides=set_ or ()), seconds=seconds, device=device)
    if json:
        output.emit_json(asdict(rates))
        return
    say(f"decode    {rates.decode_pictures_per_s:>12,.0f} pictures/s on one CPU, with the input pipeline")
    say(f"augment   {rates.augment_pictures_per_s:>12,.0f} pictures/s on one CPU, with the fit to its size")
    say(f"learn     {rates.step_pictures_per_s:>12,.0f} pictures/s on {rates.device}")
    say(f"streamed from shards, such a device is kept busy by {rates.cpus_per_device:.2f} CPUs")
    say(f"kept decoded in memory, by {rates.cpus_per_device_resident:.2f}")
