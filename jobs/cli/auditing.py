"""Commands that judge datasets by classifiers: audit and ablate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, DryRun, Gpu, Plugins, Workers, near_bits
from library import storage
from library.errors import UsageError
from library.extras import check_installed

if TYPE_CHECKING:
    from library.choosing.labels.findings import ClassBalance

#: Classes that a line names.
_MOST_NAMED = 12

_FeaturesBundle = Annotated[
    str | None, typer.Option("--bundle", help="Bundle whose features are used.", show_default=False)
]
_FeaturesModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Instead of a bundle: a model with published weights, e.g. resnet18, or `patches`, which needs none and "
        "is good enough for digits and small pictures.",
        show_default=False,
    ),
]


def audit_command(
    folder: Annotated[str, typer.Argument(help="Dataset, or folder of splits: a folder or s3://bucket/prefix.")],
    bundle: _FeaturesBundle = None,
    model: _FeaturesModel = None,
    full: Annotated[
        str | None,
        typer.Option(
            help="Instead of features: train this recipe without each fold of the first split, to judge its labels.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(help="Folder or s3:// for a page with pictures and `findings.parquet`.", show_default=False),
    ] = None,
    near: Annotated[
        int | None, typer.Option(help="The most bits of 64 in which near duplicates differ.", show_default="4")
    ] = None,
    no_near: Annotated[bool, typer.Option("--no-near", help="Only equal files and equal pixels leak.")] = False,
    flips: Annotated[bool, typer.Option("--flips", help="Mirrored pictures are near duplicates, too.")] = False,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Folds for the classifiers that judge labels; 5 if not given.", show_default=False),
    ] = None,
    workers: Workers = "auto",
    gpu: Gpu = None,
    dry_run: DryRun = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Find what is wrong with splits: leaks between them, wrong labels, outliers, extreme scores, odd sizes, imbalance.

    Without --bundle, --model or --full only what needs no classifier is looked at. Labels are judged by classifiers
    that were trained without the picture and its duplicates (confident learning). Measures and features are kept beside
    each dataset, so a killed or repeated audit computes only what is missing.

        striate audit out --bundle model --report page

        striate audit out/mnist --model patches --report page

        striate audit out/mnist --full jobs/recipes/lenet-mnist.yaml --report page
    """
    if bundle is not None or full is not None:
        check_installed("torch", "striate audit")
    from jobs.choosing.audit import plan_audit, run_audit
    from jobs.choosing.vectors import uses_no_network
    from library.evaluation.report.templates import PAGE

    bits = near_bits(near, no_near=no_near)
    _check_networks(uses_no_network(bundle, full, model), gpu, plugin, "give --bundle, --model or --full")
    plan = plan_audit(folder, bundle=bundle, model=model, near=bits, flips=flips, folds=folds, report=report, full=full)
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    audit = run_audit(plan, workers=workers, gpu=gpu, address=address)
    page = storage.join(plan.report, PAGE) if plan.report is not None else None
    if json:
        output.emit_json(audit.summary() | ({"report": page} if page else {}))
        return
    for kind, by_split in audit.counts().items():
        if any(by_split.values()):
            say(f"{kind.replace('_', ' '):12} {output.ranked({name: n for name, n in by_split.items() if n})}")
        else:
            say(f"{kind.replace('_', ' '):12} none")
    if audit.wrong_share is not None:
        say(f"about {audit.wrong_share:.1%} of the labels are wrong; the classifiers agree with {audit.accuracy:.1%}")
    for line in _balance_lines(audit.balance):
        say(line)
    for line in audit.skipped:
        say(f"not looked at: {line}")
    if page is not None:
        say(f"open {page} in a browser; all findings are in {storage.join(plan.report or '', 'findings.parquet')}")


def _balance_lines(balance: ClassBalance) -> Iterator[str]:
    if balance.ratio is not None:
        unequal = f"the largest class has {balance.ratio:.3g} times as many pictures as the smallest"
        yield "all classes have equally many pictures" if balance.ratio == 1 else unequal
    if balance.rare:
        yield f"rare, with fewer than a fifth of the median: {_few(balance.rare)}"
    for split, names in balance.absent.items():
        if names:
            yield f"{split} has no picture of: {_few(names)}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (" ..." if len(names) > _MOST_NAMED else "")


def ablate_command(
    folder: Annotated[str, typer.Argument(help="Folder with the datasets train, and val or test.")],
    drop: Annotated[str, typer.Option(help='Selectors whose dropped pictures are left out: "not_blurry".')],
    bundle: _FeaturesBundle = None,
    model: _FeaturesModel = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Train this recipe on every set, instead of a linear head on features.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions of every training, at least 5.")] = 8,
    margin: Annotated[float, typer.Option(help="Differences up to this many percentage points do not matter.")] = 0.3,
    out: Annotated[
        str | None,
        typer.Option(help="Folder or s3:// of the results, from which a killed run resumes.", show_default=False),
    ] = None,
    workers: Workers = "auto",
    gpu: Gpu = None,
    dry_run: DryRun = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Measure whether leaving pictures out of the training set helps, with intervals and tests.

    Trains on all pictures, on those that selectors keep, on those they drop, and on random sets of both sizes, with the
    same seeds; accuracy is that on val, or on test without one. "No difference larger than the margin" is an answer,
    too.

    By default a linear head is trained on features: of a bundle, a model, or patches, the default. Its seeds are
    replicates of a bootstrap of training and validation pictures, whose spread is the uncertainty: more seeds do not
    make the intervals narrower, more pictures do. With --recipe the seeds are repeated trainings on the same pictures,
    tested by flipping signs; the intervals then cover other seeds only. P-values have Holm's correction.

        striate ablate out --drop "not_blurry | min_entropy(3)"

        striate ablate out --drop "min_size(64)" --recipe jobs/recipes/cifar10-cpu.yaml --out out/ablation --seeds 6
    """
    if recipe is not None or bundle is not None:
        check_installed("torch", "striate ablate")
    from jobs.choosing.ablate import plan_ablate, run_ablate
    from jobs.choosing.vectors import uses_no_network

    _check_networks(uses_no_network(bundle, recipe, model), gpu, [], "give --bundle, --model or --recipe")
    plan = plan_ablate(
        folder, drop, bundle=bundle, model=model, recipe=recipe, seeds=seeds, margin_points=margin, out=out
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    result = run_ablate(plan, workers=workers, gpu=gpu, address=address)
    if json:
        output.emit_json(result.summary())
        return
    for name, values in result.accuracies.items():
        mean = sum(values) / len(values)
        say(f"{name.replace('_', ' '):15} {output.counted(result.sizes[name], 'picture')}, accuracy {mean:.2%}")
    for answer in result.answers:
        say(answer.sentence())
    say(f"the intervals cover {result.covers}")
    for line in result.skipped:
        say(f"not trained on {line}")


def _check_networks(none_used: bool, gpu: bool | None, plugin: list[str] | None, advice: str) -> None:
    """Refuses options that are for networks where none is used.

    Raises:
        UsageError: such an option is given.
    """
    for given, name in ((gpu is not None, "--gpu/--no-gpu"), (bool(plugin), "--plugin")):
        if none_used and given:
            raise UsageError(f"{name} is for networks, and none is used here; {advice}, or leave it out")
