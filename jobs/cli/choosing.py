"""Commands that find out which pictures should stay: measure, dedup and split."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import (
    Address,
    Destination,
    DryRun,
    Overwrite,
    Size,
    Source,
    Workers,
    WorkersUnlessSize,
    check_size,
    near_bits,
)
from library import storage
from library.errors import UsageError

_Card = Annotated[
    str | None,
    typer.Option("--card", help="YAML file that says size, mean, std and outputs of an ONNX file.", show_default=False),
]
_Weights = Annotated[
    str | None,
    typer.Option("--weights", help="File with the weights of --model; none are downloaded.", show_default=False),
]


def measure_command(
    dataset: Annotated[str, typer.Argument(help="Dataset to measure: a folder or s3://bucket/prefix.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder of the side table, for a dataset that cannot be written to.",
            show_default="DATASET/_measures",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Measures to compute, separated by commas, e.g. brightness,phash; `all` for every one.",
            show_default="all but those of mirrored pictures",
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Bundle whose embeddings and class probabilities are stored instead of measures.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="ONNX file with --card, whose outputs are stored; or a call such as timm('resnet18') with --weights, "
            "whose embeddings are stored: class scores need a bundle or a card.",
            show_default=False,
        ),
    ] = None,
    card: _Card = None,
    weights: _Weights = None,
    report: Annotated[
        str | None,
        typer.Option(
            help="Folder for a page with histograms of the scores and the pictures at both ends.", show_default=False
        ),
    ] = None,
    workers: WorkersUnlessSize = None,
    size: Size = None,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Measure every picture of a dataset: size, brightness, contrast, entropy, sharpness, colourfulness and hashes.

    The measures are columns of a side table, `DATASET/_measures/part-*.parquet`, that DuckDB and others can read.
    Columns that are there and up to date are not computed again. A damaged picture has a reason instead of scores.

        striate measure out/raw --report out/measures

        striate measure s3://bucket/raw --columns phash,dhash,phash_flipped,dhash_flipped

        striate measure out/raw --model aesthetics.onnx --card aesthetics.yaml
    """
    check_size(size, {"--workers": workers})
    from jobs.choosing.measure import measure_dataset, plan_measure
    from library.choosing.measures.measuring import MEASURES
    from library.choosing.measures.picture_models import picture_model
    from library.evaluation.report.templates import PAGE

    names = list(MEASURES) if columns == "all" else [name.strip() for name in (columns or "").split(",") if name]
    if columns is not None and not names:
        raise UsageError(f"--columns names none; the measures are {', '.join(MEASURES)}, or `all`")
    chosen = picture_model(bundle, model, card, weights)
    plan = plan_measure(dataset, names, model=chosen, folder=out, report=report)
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    result = measure_dataset(plan, workers=workers or "auto", size=size, address=address)
    if json:
        numbers = {**plan.described(), "rows": result.rows, "rejected": result.rejected, "run": result.run}
        output.emit_json(numbers | ({"report": storage.join(plan.report, PAGE)} if plan.report else {}))
        return
    columns = plan.facts.get("columns")
    what = "the outputs" if columns is None else output.counted(len(columns), "measure")
    say(f"{plan.folder}: {what} of {output.counted(result.rows, 'picture')}")
    if result.rejected:
        say(f"  {output.reasons('not measured', result.rejected)}")
    if plan.report is not None:
        say(f"report: {storage.join(plan.report, PAGE)}")
    done = len(plan.tasks) - len(plan.todo)
    if done:
        say(f"{done:,} of {output.counted(len(plan.tasks), 'shard')} were measured before")
    output.print_time([result.run])


def dedup_command(
    source: Source,
    destination: Destination,
    near: Annotated[
        int | None,
        typer.Option(
            min=0, max=12, help="Most bits in which the hashes of near duplicates differ, of 64.", show_default="4"
        ),
    ] = None,
    no_near: Annotated[bool, typer.Option("--no-near", help="Drop only equal files and equal pixels.")] = False,
    flips: Annotated[bool, typer.Option("--flips", help="Compare with mirrored pictures, too.")] = False,
    cosine: Annotated[
        float | None,
        typer.Option(
            help="Pictures whose embeddings have at least this cosine are duplicates, too, e.g. 0.98; needs a model.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Bundle whose embeddings are compared.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Instead of a bundle: an ONNX file with --card, or a call such as timm('resnet18') with --weights.",
            show_default=False,
        ),
    ] = None,
    card: _Card = None,
    weights: _Weights = None,
    disagreeing: Annotated[
        str,
        typer.Option(
            help="What to do with groups whose labels disagree: keep (all of each), best (one, as elsewhere) or drop "
            "(all of each)."
        ),
    ] = "keep",
    against: Annotated[
        str | None,
        typer.Option(
            help="Dataset, e.g. the test set; pictures that are also there are dropped. Its own pictures stay as they "
            "are, but it is measured, into `_measures/` below it. A group with two labels stays whole all the same, "
            "unless --disagreeing says otherwise.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="Folder for a page that shows the groups as pictures.", show_default=False)
    ] = None,
    dropped: Annotated[
        str | None,
        typer.Option(help="Dataset to write of the dropped pictures; `striate merge` undoes it.", show_default=False),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            help="Folder of the side table, for a source that cannot be written to.", show_default="SOURCE/_measures"
        ),
    ] = None,
    workers: Workers = "auto",
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Find the duplicates and write --report, but no dataset.", show_default=False),
    ] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Write a dataset without its duplicates: equal files, equal pixels, nearly equal hashes, similar embeddings.

    Of each group the picture with the most pixels stays, of those the one with the most bytes. Groups whose labels
    disagree stay whole. Every picture that has a duplicate is listed in `DESTINATION/_duplicates.parquet`. What is not
    measured yet is measured first, as `striate measure` does; that also happens with --dry-run.

        striate dedup out/raw out/unique --near 4 --report out/duplicates --dry-run

        striate dedup out/train s3://bucket/train --against out/test --disagreeing drop

        striate dedup out/raw out/unique --cosine 0.98 --bundle out/model --report out/duplicates --dry-run
    """
    from jobs.choosing.dedup import as_json, dedup_dataset, find_duplicates, plan_dedup
    from library.choosing.measures.picture_models import picture_model
    from library.evaluation.report.templates import PAGE

    plan = plan_dedup(
        source,
        destination,
        near=near_bits(near, no_near=no_near),
        flips=flips,
        cosine=cosine,
        model=picture_model(bundle, model, card, weights),
        disagreeing=disagreeing,
        against=against,
        report=report,
        measures=measures,
        dropped=dropped,
        overwrite=overwrite,
    )
    page = storage.join(plan.report, PAGE) if plan.report else None
    if dry_run:
        found = find_duplicates(plan, workers=workers, address=address)
        facts = {**as_json(plan, found), **({"report": page} if page else {})}
        if not json and found.summary.by_distance:
            facts["by_distance"] = {f"{bits} bits:": number for bits, number in found.summary.by_distance.items()}
        output.facts(facts, as_json=json)
        return
    manifest, found = dedup_dataset(plan, workers=workers, address=address)
    if json:
        summary = output.summaries({plan.destination: manifest})
        output.emit_json({**summary, "duplicates": as_json(plan, found), **({"report": page} if page else {})})
        return
    output.finished({plan.destination: manifest}, as_json=False)
    numbers = found.summary
    groups = output.counted(numbers.groups, "group")
    say(f"{groups} of duplicates, {numbers.disagreeing:,} of them with labels that disagree: {plan.table}")
    if numbers.leaks_kept:
        kept = output.counted(numbers.leaks_kept, "picture")
        say(f"kept in groups with pictures of {plan.against}, as their labels disagree: {kept}; see --disagreeing")
    if plan.dropped:
        say(f"dropped pictures: {plan.dropped}")
    if page:
        say(f"report: {page}")


def split_command(
    dataset: Annotated[str, typer.Argument(help="Dataset to divide: a folder or s3://bucket/prefix.")],
    out: Annotated[str, typer.Argument(help="Folder to write; each split becomes a dataset in it.")],
    split: Annotated[
        str | None,
        typer.Option(help="Fractions of each class: train=0.8,val=0.1,test=0.1.", show_default=False),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Number of folds instead: a copy of the dataset for each, OUT/fold-N/train and OUT/fold-N/val.",
            show_default=False,
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Column whose equal values stay on one side, e.g. patient.", show_default=False),
    ] = None,
    near: Annotated[
        int | None,
        typer.Option(help="Near duplicates stay on one side: the most bits of 64 that differ.", show_default="4"),
    ] = None,
    no_near: Annotated[bool, typer.Option("--no-near", help="Only exact duplicates stay on one side.")] = False,
    flips: Annotated[bool, typer.Option("--flips", help="Mirrored pictures are near duplicates, too.")] = False,
    no_stratify: Annotated[
        bool,
        typer.Option(
            "--no-stratify",
            help="Assign each group by the hash of its name alone: a group moves only if its name changes, and the "
            "sizes of the splits are left to chance.",
        ),
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(help="Folder with an earlier split, whose pictures stay where they are.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the assignment.")] = 0,
    workers: Workers = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Divide a dataset into splits or folds, so that duplicates and equal values of a column are never on both sides.

    Every class is divided by the fractions as well as whole groups allow. Run again on a dataset that has grown, every
    picture stays in its split; --like does the same for another destination. A new picture that joins two splits is
    left out. OUT/_assignment.parquet holds the key, group and split of every picture.

        striate split out/unique out/splits --split train=0.8,val=0.1,test=0.1 --group-by patient

        striate split out/grown s3://bucket/splits --split train=0.8,test=0.2 --like out/splits

        striate split out/unique out/folds --folds 5
    """
    bits = near_bits(near, no_near=no_near)
    from jobs.choosing import split as splitting

    plan = splitting.plan_split(
        dataset,
        out,
        split=split,
        folds=folds,
        near=bits,
        flips=flips,
        group_by=group_by,
        seed=seed,
        stratify=not no_stratify,
        like=like,
        overwrite=overwrite,
    )
    if dry_run:
        output.facts(splitting.dry_run(plan), as_json=json)
        return
    assignment, manifests = splitting.split_dataset(plan, workers=workers, address=address)
    described = assignment.described()
    if json:
        output.emit_json({"assignment": described, **output.summaries(manifests)})
        return
    output.finished(manifests, as_json=False)
    left_out = f"; {described['left_out']:,} left out, as they join several splits" if described["left_out"] else ""
    pictures, groups = (output.counted(described[name], name.removesuffix("s")) for name in ("pictures", "groups"))
    say(f"{pictures} in {groups}, at most {described['largest_group']:,} in one{left_out}")
    for line in assignment.missed(plan.fractions):
        say(f"{line}: groups and classes stay whole")
