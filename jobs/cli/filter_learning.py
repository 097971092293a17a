"""The command learn-filter."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, DryRun, Gpu
from library import storage
from library.extras import check_installed


def learn_filter_command(
    train: Annotated[str, typer.Argument(help="Training set: a dataset, in a folder or s3://bucket/prefix.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// of the page, the filters and the training.")],
    val: Annotated[
        str | None,
        typer.Option(help="Validation set; without one a tenth of the training set is held out.", show_default=False),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of a kernel in pixels: 3, 5, 7, 9 or 11.")] = 5,
    count: Annotated[int, typer.Option(help="Number of kernels.")] = 8,
    grey: Annotated[bool, typer.Option("--grey", help="Learn kernels for pictures in grey.")] = False,
    gates: Annotated[
        bool,
        typer.Option("--gates", help="Also learn how much each of a dozen filters should weigh before the kernels."),
    ] = False,
    epochs: Annotated[float, typer.Option(help="Epochs of training.")] = 10,
    picture_px: Annotated[
        int | None,
        typer.Option(help="Side of the pictures that the network sees.", show_default="their own, up to 64"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    gpu: Gpu = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another training wrote there.")] = False,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Learn filters: train a small network, and take the kernels of its first layer.

    The page shows each kernel beside the textbook's that it resembles most (Sobel, Prewitt, Laplacian, Gabor,
    Gaussian), with the cosine, and pictures filtered by it. `filters.txt` holds a filter a line for `striate filter`;
    `space.yaml` is a space for a filter search. A killed training resumes when the same command is run again.

        striate learn-filter out/cifar10/train --out out/learned

        striate learn-filter out/mnist/train --size 7 --count 6 --gates --out out/learned-digits

        striate filter out/cifar10/test out/edges --steps "$(sed -n 1p out/learned/filters.txt)"
    """
    check_installed("torch", "striate learn-filter")
    from jobs.search.learning import FILTERS, plan_learn, run_learn
    from library.evaluation.report.templates import PAGE

    plan = plan_learn(
        train,
        out,
        val=val,
        size=size,
        count=count,
        grey=grey,
        gates=gates,
        epochs=epochs,
        picture_px=picture_px,
        seed=seed,
        overwrite=overwrite,
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    learned, result = run_learn(plan, gpu=gpu, address=address)
    page = storage.join(plan.out, PAGE)
    if json:
        output.emit_json(learned.summary() | {"page": page, "bundle": result.out, "id": result.bundle.id})
        return
    if "val_top1" in learned.metrics:
        say(f"the network that learned them: top-1 {learned.metrics['val_top1']:.2%} on held-out pictures")
    for number, kernel in enumerate(learned.kernels, start=1):
        match = kernel.match
        note = "" if match.cosine > learned.chance else ", no more than chance"
        say(f"{number:3}  {match.cosine:.2f}  {match.reference}; {match.colour}{note}")
    say(f"95% of random kernels as smooth and as coloured stay below a cosine of {learned.chance:.2f}")
    if learned.pipeline is not None:
        text = learned.pipeline or "the unchanged picture"
        say(f"the heaviest gate, {learned.gates[learned.pipeline]:.1%}: {text}")
    say(f"open {page} in a browser; the filters are in {storage.join(plan.out, FILTERS)}")
