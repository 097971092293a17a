"""`striate predict`: a dataset to a dataset with predictions, or a few pictures to a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from cluster.console import Json, say, visible
from jobs import output
from jobs.cli.options import Address, Size, check_size
from library.errors import BadPicture, UsageError
from library.extras import check_installed

if TYPE_CHECKING:  # it imports torch
    from jobs.predict import Answer

_WIDEST_FILE = 80


def predict_command(
    bundle: Annotated[str, typer.Argument(help="Bundle: a folder or s3://.")],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="DATASET DEST | PICTURE...", help="A dataset and the one to make; or pictures."),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to rank.")] = 5,
    features: Annotated[
        bool | None,
        typer.Option("--features", help="Keep the vector before the last layers too.", show_default=False),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="eager, compile or onnx: how it is computed.", show_default="onnx on a CPU, eager on a GPU"),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="How many shards are worked on at once.", show_default="one a GPU, or one a CPU")
    ] = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="A GPU a worker.", show_default="where there are any")
    ] = None,
    size: Size = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures of the dataset.")] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace what another job left there.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool | None,
        typer.Option("--dry-run", help="Say what would be done, and do nothing.", show_default=False),
    ] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Classify every picture of a dataset into a new dataset; or print the classes of a few pictures.

    Where the two paths after BUNDLE are a dataset (a folder with `_manifest.json`, such as `striate ingest` makes) and
    a destination, every shard is written again with the columns `predicted`, `score`, `top_classes` and
    `top_probabilities`: bytes, labels and all else stay. A killed job goes on where it was. `striate filter --steps
    'score_at_least("cat", 0.9)'` selects by them.

        striate predict out/catsdogs out/raw out/scored

        striate predict s3://models/catsdogs s3://data/raw s3://data/scored --workers 8 --gpu --features

    Any other paths are pictures and folders of pictures (hidden files are passed over). One that cannot be used gets
    its reason and stops no other; the exit code is then 1.

        striate predict out/lenet seven.png scans/ s3://bucket/more.jpg --top-k 3
    """
    check_installed("torch", "striate predict")
    from jobs.prediction_paths import is_dataset_and_destination

    for_datasets = {
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
        given = [name for name, value in for_datasets.items() if value is not None]
        if given:
            raise UsageError(
                f"{given[0]} goes with a dataset and a destination, and here pictures are named; {paths[0]} is no "
                "dataset (it has no _manifest.json)"
            )
        _pictures(bundle, paths, top_k, as_json=json)
        return
    check_size(size, {"--workers": workers, "--gpu/--no-gpu": gpu})
    from jobs.predict_dataset import plan_predict, predict_dataset

    plan = plan_predict(
        bundle,
        *paths,
        top_k=top_k,
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


def _pictures(bundle: str, paths: Sequence[str], top_k: int, *, as_json: bool) -> None:
    from jobs.prediction_paths import picture_files

    # Before PyTorch is imported: a wrong path is told at once.
    files = [file for path in paths for file in picture_files(path)]
    from jobs.predict import predict_files
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
        documents.append(_document(answer))
        if not as_json:
            _print_answer(answer, widths)
    if as_json:
        output.emit_json({"bundle": bundle, "bundle_id": loaded.id, "predictions": documents})
    else:
        say(f"bundle {loaded.id}")
    if failed:
        raise typer.Exit(1)


def _document(answer: Answer) -> Mapping[str, Any]:
    if isinstance(answer.result, BadPicture):
        return {"file": answer.file, "error": {"reason": answer.result.reason, "detail": answer.result.detail}}
    classes = [{"class": name, "probability": probability} for name, probability in answer.result.classes]
    return {"file": answer.file, "classes": classes}


def _print_answer(answer: Answer, widths: Sequence[int]) -> None:
    if isinstance(answer.result, BadPicture):
        say(f"{visible(answer.file)}: {answer.result}", file=sys.stderr)
        return
    (best, share), *others = answer.result.classes
    following = ", ".join(f"{visible(name)} {probability:.2%}" for name, probability in others)
    say(_line((visible(answer.file), visible(best)), widths, f"{share:11.2%}  {following}".rstrip()))


def _line(cells: Sequence[str], widths: Sequence[int], end: str) -> str:
    padded = (cell + " " * max(0, width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return "  ".join((*padded, end))


def _widest(cells: Sequence[str]) -> int:
    return max(map(cell_len, cells))
