"""The command line, `striate`. Each command is a thin shell round a function in jobs/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import output
from library.errors import StriateError

app = typer.Typer(
    name="striate",
    help="Raw pictures to filtered shards on Ray, on disk or in S3.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; the rest goes to stderr.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on; RAY_ADDRESS does the same. Default: this machine.", show_default=False),
]
Workers = Annotated[str, typer.Option(help="How many shards are worked on at once: a number, or auto (one a CPU).")]
Steps = Annotated[str, typer.Option(help="""The pipeline, e.g. "grayscale | gaussian_blur(sigma=1.5)".""")]


def main() -> None:
    """Entry point of the `striate` command: exit code 0, 1 for a failure, 2 for misuse, 130 for Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    as_json = "--json" in arguments
    try:
        # Typer gives back the code of `typer.Exit`, and None when a command ends by itself.
        return int(app(arguments, prog_name="striate", standalone_mode=False) or 0)
    except StriateError as error:
        return _fail(str(error), error.exit_code, as_json)
    except typer.Abort:
        return _fail("stopped; what is done stays, the same command goes on from there", 130, as_json)
    except KeyboardInterrupt:
        return _fail("stopped; what is done stays, the same command goes on from there", 130, as_json)
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
    print(f"striate: {message}", file=sys.stderr)
    return code


@app.command("filter")
def filter_command(
    source: Annotated[str, typer.Argument(help="Dataset to read: a folder or s3://bucket/prefix.")],
    destination: Annotated[str, typer.Argument(help="Dataset to make.")],
    steps: Steps = "",
    encode: Annotated[str, typer.Option(help="How changed pictures are stored: keep, jpeg:95, png, webp:90, tiff, npy.")] = "keep",
    workers: Workers = "auto",
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures, to try a pipeline out.")] = None,
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
    from jobs.filter import filter_dataset, plan_filter

    plan = plan_filter(source, destination, steps, encode=encode, limit=limit, overwrite=overwrite)
    if dry_run:
        facts = plan.described()
        if json:
            output.emit_json(facts)
        else:
            for name, value in facts.items():
                print(f"{name.replace('_', ' '):16} {value}")
        return
    manifest = filter_dataset(plan, workers=workers, overwrite=overwrite, address=address)
    output.finished(plan.destination, manifest, as_json=json)
