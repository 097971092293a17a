"""The command line, `striate`. Each command is a thin shell round a function in jobs/."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.connection.session import own_process
from cluster.console import Json, encode_anything, say
from jobs import output
from jobs.cli import augmenting, catalogs, evaluating, exporting, predicting, training
from jobs.cli.options import Address, Measure, Size, Steps, Workers, WorkersUnlessSize, check_size
from library import storage
from library.errors import StriateError, UsageError
from library.extras import missing_package


class _Stopped(StriateError):
    """Ctrl-C or SIGTERM has ended the command."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number  # as a shell says it
        by = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        super().__init__(f"stopped by {by}; run the same command again to resume")


class _Commands(TyperGroup):
    """The commands, each of which ends in the same way at Ctrl-C and SIGTERM; Typer's own say nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped(_stopped_by) from None


_stopped_by: int = signal.SIGINT


def _terminate(number: int, _frame: object) -> None:
    # The exception itself cannot tell: Ray raises a new one where it was waited for.
    global _stopped_by
    _stopped_by = number
    raise KeyboardInterrupt


app = typer.Typer(
    name="striate",
    cls=_Commands,
    help="Raw pictures to filtered shards on Ray, on disk or in a store.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


_LINKS = "Lists of links (http:// and https://)"


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from library.dataset.manifest import VERSIONS

        say(f"striate {VERSIONS['striate']}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `striate` command: exit code 0, 1 for a failure, 2 for misuse, 130 for Ctrl-C, 143 for
    SIGTERM."""
    encode_anything()
    signal.signal(signal.SIGTERM, _terminate)
    arguments = sys.argv[1:]
    own_process(lambda message: _fail(message, StriateError.exit_code, "--json" in arguments))
    code = run(arguments)
    # All is said and tidied: who stops the command once more does not wait for what Python does at its exit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    as_json = "--json" in arguments
    try:
        # Typer gives back the code of `typer.Exit`, and None when a command ends by itself.
        return int(app(arguments, prog_name="striate", standalone_mode=False) or 0)
    except StriateError as error:
        return _fail(str(error), error.exit_code, as_json)
    except typer.Abort:  # a question that nobody answered
        return _fail("stopped", 130, as_json)
    except ImportError as error:
        command = next((argument for argument in arguments if not argument.startswith("-")), "")
        advice = missing_package(error, command)
        if advice is None:
            raise
        return _fail(str(advice), advice.exit_code, as_json)
    except Exception as error:
        # Click's own misuse errors carry an exit code and know how to show themselves.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _fail(misuse(error), 2, as_json)
        raise


def misuse(error: Any) -> str:
    """What a wrong option or a missing argument is told, with the usage of its command."""
    context = getattr(error, "ctx", None)
    usage = f"\n{context.get_usage()}\nsee `{context.command_path} --help`" if context else ""
    return f"{error.format_message()}{usage}"


def _fail(message: str, code: int, as_json: bool) -> int:
    if as_json:
        output.emit_json({"error": message, "exit_code": code})
    say(f"striate: {message}", file=sys.stderr)
    return code


@app.command("ingest")
def ingest_command(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, tar, tar.gz, zip, WebDataset, MNIST IDX, CIFAR, CSV/JSONL (paths, links), Parquet."
        ),
    ],
    destination: Annotated[str, typer.Argument(help="Dataset to make: a folder or s3://bucket/prefix.")],
    split: Annotated[
        str, typer.Option(help="`found` in the source, `none`, or fractions by class: train=0.8,val=0.1,test=0.1.")
    ] = "found",
    shard_mb: Annotated[
        float | None, typer.Option(help="Size of a shard in MiB.", show_default="128, less for a small source")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which pictures are stored.")] = 0,
    label_column: Annotated[str | None, typer.Option(help="Column (or JSON field) with the class name.")] = None,
    label_level: Annotated[
        int | None,
        typer.Option(
            help="The folder that is the class: 1 is the first below SOURCE, -1 the one a picture lies in, 0 none.",
            show_default="the first level that tells pictures apart",
        ),
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="Column with unique keys.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the picture, its path or its link.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every picture, not only its header.")] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Cut stray bytes out of JPEGs whose pixels are whole, instead of rejecting them; verifies."
        ),
    ] = False,
    measure: Measure = False,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Fail, after writing everything, past this share of rejects.")
    ] = 0.05,
    workers: Workers = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another job left there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    address: Address = None,
    json: Json = False,
    links_per_host: Annotated[int, typer.Option(help="Requests at once to one host.", rich_help_panel=_LINKS)] = 4,
    link_connections: Annotated[int, typer.Option(help="Requests at once in all.", rich_help_panel=_LINKS)] = 32,
    link_retries: Annotated[
        int, typer.Option(help="Further attempts after a failure that may pass.", rich_help_panel=_LINKS)
    ] = 3,
    link_timeout_s: Annotated[
        float, typer.Option(help="Longest time for one request, in seconds.", rich_help_panel=_LINKS)
    ] = 60,
    link_max_mb: Annotated[float, typer.Option(help="Largest picture in MiB.", rich_help_panel=_LINKS)] = 32,
    allow_address: Annotated[
        list[str] | None,
        typer.Option(
            help="A network that is not public but may be fetched from, as 10.0.0.0/8; may be given several times.",
            rich_help_panel=_LINKS,
        ),
    ] = None,
) -> None:
    """Turn pictures from any source into a dataset: shuffled Parquet shards and a manifest.

    The class of a picture is its folder at the first level that tells pictures apart, unless the source says
    otherwise. What cannot be used goes to `_rejects/` with its bytes and a reason.

        striate ingest cats-dogs.tar out/raw --split train=0.8,test=0.2

        striate ingest s3://bucket/list.csv s3://bucket/raw --label-column species --verify

        striate ingest links.csv out/raw --image-column url --links-per-host 2
    """
    from jobs.ingest import check_bad_fraction, ingest, plan_ingest
    from library.dataset.manifest import skipped_text
    from library.sources import LinkLimits, Options

    links = LinkLimits(
        connections=link_connections,
        per_host=links_per_host,
        retries=link_retries,
        timeout_s=link_timeout_s,
        max_bytes=int(link_max_mb * 2**20),
        allowed=tuple(allow_address or ()),
    )
    made = plan_ingest(
        source,
        destination,
        options=Options(label_column, key_column, image_column, label_level, links),
        shard_mb=shard_mb,
        seed=seed,
        split=split,
        verify=verify,
        repair=repair,
        measure=measure,
        overwrite=overwrite,
    )
    found = output.classes(made.listing.classes, made.listing.index.num_rows)
    output.stderr.print(
        f"{source}: {output.counted(made.listing.index.num_rows, 'picture')}, {found}", markup=False, soft_wrap=True
    )
    for note in made.listing.notes:
        output.stderr.print(f"note: {note}", markup=False, soft_wrap=True)
    if dry_run:
        described = made.described()
        if not json:
            del described["notes"]  # they were said
            described["skipped"] = skipped_text(made.listing.skipped).removeprefix("skipped ")
        output.facts(described, as_json=json)
        return
    manifests = ingest(made, workers=workers, address=address)
    if not json:
        output.finished(manifests, as_json=False, notes=made.listing.notes)
    check_bad_fraction(manifests, max_bad_fraction)
    if json:
        output.finished(manifests, as_json=True, notes=made.listing.notes)


@app.command("filter")
def filter_command(
    source: Annotated[str, typer.Argument(help="Dataset to read: a folder or s3://bucket/prefix.")],
    destination: Annotated[str, typer.Argument(help="Dataset to make.")],
    steps: Steps = "",
    encode: Annotated[
        str, typer.Option(help="How changed pictures are stored: keep, jpeg:95, png, webp:90, tiff, npy.")
    ] = "keep",
    workers: WorkersUnlessSize = None,
    size: Size = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures, to try a pipeline out.")] = None,
    measure: Measure = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another job left there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Put every picture of a dataset through a pipeline of filters and selectors.

    A killed job goes on where it was when the same command is run again, and leaves the same bytes.

        striate filter out/raw out/edges --steps "grayscale | gaussian_blur(sigma=1.5) | edges(direction='vertical')"

        striate filter out/raw s3://bucket/small --steps "min_size(64) | resize(224)" --encode jpeg:90
    """
    check_size(size, {"--workers": workers})
    from jobs.filter import filter_dataset, plan_filter

    plan = plan_filter(source, destination, steps, encode=encode, limit=limit, measure=measure, overwrite=overwrite)
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    manifest = filter_dataset(plan, workers=workers or "auto", size=size, address=address)
    output.finished({plan.destination: manifest}, as_json=json)


@app.command("info")
def info_command(
    dataset: Annotated[str, typer.Argument(help="Dataset, the folder of its splits, or what a training writes to.")],
    json: Json = False,
) -> None:
    """Show what a dataset holds: rows, bytes, classes, sizes, formats, what made it, and what was rejected.

    While a job is making it: how many shards and pictures are done, how fast it goes, and when the last one came. Of a
    training: its epochs and the last one's metrics. It asks the destination only, so it works from anywhere.

        striate info out/raw

        striate info s3://bucket/edges
    """
    from jobs.info import datasets_below, print_info
    from jobs.train.state import training_at

    training = training_at(dataset)
    if training is not None:
        output.facts(training, as_json=json)
        return
    found = datasets_below(dataset)
    if json:
        output.emit_json(output.summaries(found))
        return
    for uri, manifest in found.items():
        print_info(uri, manifest)


@app.command("show")
def show_command(
    dataset: Annotated[str, typer.Argument(help="Dataset to draw pictures of.")],
    out: Annotated[str, typer.Option(help="PNG file to write, here or in a store.")],
    steps: Steps = "",
    count: Annotated[
        int | None, typer.Option(help="How many pictures.", show_default="12, or 4 with --augment")
    ] = None,
    tile_px: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 160,
    key: Annotated[list[str] | None, typer.Option(help="Exactly this picture; may be given several times.")] = None,
    label: Annotated[str | None, typer.Option(help="Only pictures of this class.")] = None,
    augment: Annotated[
        int | None, typer.Option(help="So many random variants of each picture, by --steps.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the variants.", show_default="0")] = None,
    json: Json = False,
) -> None:
    """Draw a contact sheet; with --steps every picture before beside after, or before its random variants.

    striate show out/raw --out sheet.png --steps "grayscale | canny(low=0.1, high=0.2)"

    striate show out/raw --out sheet.png --steps "rotate(15) | flip" --augment 8
    """
    from jobs.show import contact_sheet

    sheet = contact_sheet(
        dataset, steps, count=count, tile_px=tile_px, keys=key or (), label=label, augment=augment, seed=seed
    )
    storage.write_bytes(storage.normalize(out), sheet.png)
    if json:
        output.emit_json({"sheet": out, "pictures": sheet.pictures})
    else:
        say(f"{out}: {len(sheet.pictures)} pictures")


@app.command("steps")
def steps_command(
    step: Annotated[str | None, typer.Argument(help="A step's name, or a call: clahe(clip_limit=4).")] = None,
    out: Annotated[str | None, typer.Option(help="PNG file for its example picture.", show_default="NAME.png")] = None,
    json: Json = False,
) -> None:
    """List every step with its parameters; or show one, with an example picture written to a file.

    striate steps

    striate steps "clahe(clip_limit=4)" --out clahe.png
    """
    from jobs.steps import describe, example_picture
    from library.steps.help import step_table

    if step is None:
        if out is not None:
            raise UsageError("--out goes with one step: striate steps clahe --out clahe.png")
        table = step_table()
        output.emit_json(table) if json else output.print_steps(table)
        return
    described = describe(step)
    png, verdict = example_picture(step)
    path = out or f"{described['name']}.png"
    storage.write_bytes(storage.normalize(path), png)
    described |= {"picture": path, "picture_result": verdict}
    output.emit_json(described) if json else output.print_step(described)


@app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Argument(help="Folder for the pictures, the datasets and the page.")] = Path(
        "out/demo"
    ),
    json: Json = False,
) -> None:
    """Run the main job on real pictures that come with scikit-learn and matplotlib; leave a page to look at.

    striate demo out/demo
    """
    from jobs.demo.demo import run_demo

    result = run_demo(folder)
    if json:
        output.emit_json(result)
    else:
        say(f"open {result['page']} in a browser")


app.command("augment")(augmenting.augment_command)
app.command("train")(training.train_command)
app.command("plan")(training.plan_command)
app.command("ensemble")(training.ensemble_command)
app.command("models")(catalogs.models_command)
app.command("evaluate")(evaluating.evaluate_command)
app.command("predict")(predicting.predict_command)
app.command("export")(exporting.export_command)
for _point in sorted(entry_points(group="striate.commands"), key=lambda point: point.name):
    _command = _point.load()
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_point.name)
    else:
        app.command(_point.name)(_command)


if __name__ == "__main__":
    main()
