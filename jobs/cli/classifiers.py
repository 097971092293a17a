"""Commands that use a finished classifier: predict, evaluate, export."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len

from cluster.console import Json, say, visible
from jobs import output
from jobs.cli.options import (
    Address,
    Bundle,
    Gpu,
    LabelsColumn,
    Limit,
    Plugins,
    Size,
    check_size,
    near_bits,
)
from library import storage
from library.bundle.description import Prediction, decoder_notes, load_record
from library.errors import BadPicture, UsageError
from library.extras import check_installed
from library.runtimes import NAMES_TEXT

Workers = Annotated[
    str | None,
    typer.Option(help="Number of shards processed at the same time.", show_default="one per GPU, or one per CPU"),
]
_WIDEST_FILE = 80


def predict_command(
    bundle: Bundle,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="DATASET DEST | PICTURE...", help="A dataset and a destination; or pictures."),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Number of classes to rank.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="For a classifier of several labels: least probability of a predicted one.", show_default="0.5"
        ),
    ] = None,
    features: Annotated[
        bool | None,
        typer.Option("--features", help="Also store the input of the last layers.", show_default=False),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help=f"How the model runs: {NAMES_TEXT}.", show_default="onnx on a CPU, eager on a GPU"),
    ] = None,
    workers: Workers = None,
    gpu: Gpu = None,
    size: Size = None,
    limit: Limit = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite", help="Replace what another job wrote to the destination.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool | None,
        typer.Option("--dry-run", help="Print the plan without doing anything.", show_default=False),
    ] = None,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Predict the class of every picture of a dataset, or print the classes of a few pictures.

    With a dataset (a folder with `_manifest.json`, as `striate ingest` writes it) and a destination, every shard is
    written to the destination with the extra columns `predicted`, `score`, `top_classes` and `top_probabilities`. Run
    the same command again to resume a killed job. `striate filter --steps 'score_at_least("cat", 0.9)'` selects by
    these columns. A classifier of several labels adds `predicted_labels`.

        striate predict out/catsdogs out/raw out/scored

        striate predict s3://models/catsdogs s3://data/raw s3://data/scored --workers 8 --gpu --features

    Any other paths are pictures and folders of pictures; hidden files are ignored. An unusable file is reported with
    its reason, the others are still predicted, and the exit code is 1.

        striate predict out/lenet seven.png scans/ s3://bucket/more.jpg --top-k 3
    """
    check_installed("torch", "striate predict")
    _say_decoders(bundle)
    from jobs.predict import is_dataset_and_destination, plan_predict, predict_dataset

    for_datasets = {
        "--threshold": threshold,
        "--features": features,
        "--runtime": runtime,
        "--workers": workers,
        "--gpu/--no-gpu": gpu,
        "--size": size,
        "--limit": limit,
        "--overwrite": overwrite,
        "--dry-run": dry_run,
        "--address": address,
    }
    if not is_dataset_and_destination(bundle, paths):
        present = [name for name, value in for_datasets.items() if value is not None]
        if present:
            raise UsageError(
                f"{present[0]} needs a dataset and a destination, but {paths[0]} is not a dataset (it has no "
                "_manifest.json)"
            )
        _pictures(bundle, paths, top_k, as_json=json)
        return
    check_size(size, {"--workers": workers, "--gpu/--no-gpu": gpu})
    plan = plan_predict(
        bundle,
        *paths,
        top_k=top_k,
        threshold=threshold,
        features=bool(features),
        runtime=runtime,
        gpu=gpu,
        limit=limit,
        overwrite=bool(overwrite),
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    manifest = predict_dataset(plan, workers=workers or "auto", gpu=gpu, size=size, address=address)
    output.finished({plan.destination: manifest}, as_json=json)


def evaluate_command(
    bundles_and_data: Annotated[
        list[str],
        typer.Argument(metavar="BUNDLE [BUNDLE] DATASET", help="One bundle, or two to compare, and a dataset."),
    ],
    report: Annotated[
        str | None,
        typer.Option(
            help="Folder or s3:// for a page with all numbers and example pictures. Results of finished shards are "
            "stored there too, and a killed run resumes from them; without --report nothing is stored."
        ),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Also measure accuracy under blur, noise, JPEG artefacts and low contrast."),
    ] = False,
    robustness_pictures: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of pictures for --robustness.", show_default="1000")
    ] = None,
    without_leaks: Annotated[
        list[str] | None,
        typer.Option(
            help="Training set: also measure accuracy without the pictures of which it holds a copy, exact or near. "
            "`auto` is the one that the bundle names. Repeatable. Both datasets are measured first, into `_measures/` "
            "below each.",
            show_default=False,
        ),
    ] = None,
    near: Annotated[
        int | None,
        typer.Option(help="The most bits of 64 in which near copies differ, for --without-leaks.", show_default="4"),
    ] = None,
    no_near: Annotated[
        bool, typer.Option("--no-near", help="Look for equal files and equal pixels only, for --without-leaks.")
    ] = False,
    flips: Annotated[
        bool, typer.Option("--flips", help="Mirrored pictures are near copies, too, for --without-leaks.")
    ] = False,
    labels: LabelsColumn = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="For a classifier of several labels: least probability of a predicted one.", show_default="0.5"
        ),
    ] = None,
    workers: Workers = None,
    gpu: Gpu = None,
    size: Size = None,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Measure a classifier on a dataset: accuracy, loss, every class, calibration, with 95% intervals.

    Two bundles are evaluated on the same pictures and compared by McNemar's test. A classifier of several labels
    gets mean average precision, F1, the share of pictures whose labels are all right, and the same of every class.

        striate evaluate out/lenet out/mnist/test --report out/report

        striate evaluate out/lenet out/mlp out/mnist/test --robustness

        striate evaluate out/lenet out/mnist/test --without-leaks auto

        striate evaluate out/tagger out/photos/test --labels tags --threshold 0.3
    """
    if len(bundles_and_data) not in (2, 3):
        raise UsageError(f"{len(bundles_and_data)} arguments instead of BUNDLE DATASET or BUNDLE BUNDLE DATASET")
    if robustness_pictures is not None and not robustness:
        raise UsageError("--robustness-pictures has no effect without --robustness")
    given = {"--near": near is not None, "--no-near": no_near, "--flips": flips}
    for name in [name for name, is_given in given.items() if is_given and not without_leaks]:
        raise UsageError(f"{name} has no effect without --without-leaks")
    bits = near_bits(near, no_near=no_near)
    check_size(size, {"--workers": workers, "--gpu/--no-gpu": gpu})
    from jobs.cli.evaluation_table import print_evaluation
    from jobs.evaluate import ROBUSTNESS_PICTURES, plan_evaluate, run_evaluate
    from library.evaluation.report.content import summary
    from library.evaluation.report.templates import PAGE

    pictures = (robustness_pictures or ROBUSTNESS_PICTURES) if robustness else 0
    *bundles, dataset = bundles_and_data
    plan = plan_evaluate(
        bundles,
        dataset,
        report=report,
        robustness_pictures=pictures,
        without_leaks=without_leaks or (),
        near=bits,
        flips=flips,
        labels=labels,
        threshold=threshold,
    )
    _say_decoders(*bundles)
    content = run_evaluate(plan, workers=workers or "auto", gpu=gpu, size=size, address=address)
    page = storage.join(plan.report, PAGE) if plan.report is not None else None
    if json:
        output.emit_json(summary(content) | ({"report": page} if page else {}))
        return
    print_evaluation(content)
    if page is not None:
        say(f"open {page} in a browser")


def export_command(
    bundle: Bundle,
    file_format: Annotated[
        Literal["onnx", "torch-export"], typer.Option("--format", help="ONNX, or a .pt2 file for torch.export.load.")
    ] = "onnx",
    out: Annotated[
        str | None,
        typer.Option(
            help="File to write: a path or s3://.", show_default="NAME.onnx or NAME.pt2 in the current folder"
        ),
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Write a bundle as one file for other programs, after checking that it gives the same probabilities.

    The file's input is uint8 pictures of the model's size (N x height x width x channels), its output probabilities
    (N x classes). Its metadata holds the class names, the bundle's id and the input pipeline. If a probability differs
    from the bundle's by more than float32 rounding, no file is written and the exit code is 1.

        striate export out/catsdogs

        striate export out/catsdogs --format torch-export --out s3://models/catsdogs.pt2
    """
    from library.pipeline.inputs import InputPipeline
    from library.runtimes.export import write_export

    _say_decoders(bundle)
    written = write_export(bundle, file_format, out)
    if json:
        output.emit_json(written.described())
        return
    exported = written.exported
    say(f"wrote {written.path}: {exported.format}, {output.size(len(exported.data))}, bundle {written.bundle.id[:12]}")
    for entry in exported.inputs:
        inputs = InputPipeline.parse(entry.steps, entry.fit, entry.size, entry.channels)
        say(
            f"  {entry.name}: uint8, N x {entry.size[0]} x {entry.size[1]} x {entry.channels}, "
            f"pictures after {inputs.whole}"
        )
    say(f"  probabilities: float32, N x {len(written.bundle.classes)}")
    say(
        f"checked in batches of {', '.join(map(str, exported.batches))}: largest difference of a probability "
        f"{exported.difference:.2g}, allowed {exported.allowed:g}"
    )


def _say_decoders(*bundles: str) -> None:
    """Says how much the decoder that a classifier was trained with differs from the one that it predicts with."""
    for uri in bundles:
        for note in decoder_notes(uri, load_record(uri)):
            output.stderr.print(note, markup=False, soft_wrap=True)


def _pictures(bundle: str, paths: Sequence[str], top_k: int, *, as_json: bool) -> None:
    from jobs.predict import picture_files, predict_files

    # A wrong path is reported before PyTorch is imported.
    files = [file for path in paths for file in picture_files(path)]
    from library.bundle.bundle import Bundle

    loaded = Bundle.load(bundle)
    widths = (
        min(_widest([*map(visible, files), "file"]), _WIDEST_FILE),
        _widest([*map(visible, loaded.classes), "class"]),
    )
    failed, documents = False, list[Mapping[str, Any]]()
    if not as_json:
        say(_line(("file", "class"), widths, "probability  next"))
    for answer in predict_files(loaded, files, top_k=top_k):
        failed |= isinstance(answer.result, BadPicture)
        documents.append(answer.described())
        if not as_json:
            _print_answer(answer.file, answer.result, widths)
    if as_json:
        output.emit_json({"bundle": bundle, "bundle_id": loaded.id, "predictions": documents})
    else:
        say(f"bundle {loaded.id}")
    if failed:
        raise typer.Exit(1)


def _print_answer(file: str, result: Prediction | BadPicture, widths: Sequence[int]) -> None:
    if isinstance(result, BadPicture):
        say(f"{visible(file)}: {result}", file=sys.stderr)
        return
    (best, share), *others = result.classes
    following = ", ".join(f"{visible(name)} {probability:.2%}" for name, probability in others)
    say(_line((visible(file), visible(best)), widths, f"{share:11.2%}  {following}".rstrip()))


def _line(cells: Sequence[str], widths: Sequence[int], end: str) -> str:
    padded = (cell + " " * max(0, width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return "  ".join((*padded, end))


def _widest(cells: Sequence[str]) -> int:
    return max(map(cell_len, cells))
