"""The command `striate`: its commands, how their errors are reported, and how signals stop them."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import entry_points
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.connection.session import own_process
from cluster.console import encode_anything, say
from cluster.submit.client import is_job
from jobs import output
from jobs.cli import (
    auditing,
    choosing,
    classifiers,
    datasets,
    exchange,
    filter_learning,
    inspecting,
    listings,
    searching,
    training,
)
from library.errors import StriateError
from library.extras import missing_package


class _Stopped(StriateError):
    """Ends a command at Ctrl-C, SIGTERM or `striate stop`."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number  # as a shell reports it
        by = "SIGTERM" if number == signal.SIGTERM else "`striate stop`" if is_job() else "Ctrl-C"
        super().__init__(f"stopped by {by}; run the same command again to resume")


class _Commands(TyperGroup):
    """Commands that report why a signal stopped them; Typer's own end silently."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped(_stopped_by) from None


_stopped_by: int = signal.SIGINT


def _terminate(number: int, _frame: FrameType | None) -> None:
    # The exception does not carry the signal: Ray raises a new KeyboardInterrupt where it was waiting.
    global _stopped_by
    _stopped_by = number
    raise KeyboardInterrupt


app = typer.Typer(
    name="striate",
    cls=_Commands,
    help="Filter pictures into Parquet shards, train image classifiers on them, and serve the classifiers, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from library.dataset.manifest import VERSIONS

        say(f"striate {VERSIONS['striate']}")
        raise typer.Exit


def main() -> None:
    """Runs the command line and exits: 0 on success, 1 on failure, 2 on misuse, 130 at Ctrl-C, 143 at SIGTERM."""
    encode_anything()
    signal.signal(signal.SIGTERM, _terminate)
    arguments = sys.argv[1:]
    own_process(lambda message: _fail(message, StriateError.exit_code, "--json" in arguments))
    code = run(arguments)
    # The work is over: one more signal skips what Python does at exit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    as_json = "--json" in arguments
    try:
        # Typer returns the code of `typer.Exit`, or None when a command returns.
        return int(app(arguments, prog_name="striate", standalone_mode=False) or 0)
    except StriateError as error:
        return _fail(str(error), error.exit_code, as_json)
    except typer.Abort:  # a prompt was left unanswered
        return _fail("stopped", 130, as_json)
    except ImportError as error:
        command = next((argument for argument in arguments if not argument.startswith("-")), "")
        advice = missing_package(error, command)
        if advice is None:
            raise
        return _fail(str(advice), advice.exit_code, as_json)
    except Exception as error:
        # Click's usage errors carry an exit code and can format themselves.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _fail(misuse(error), 2, as_json)
        raise


def misuse(error: Any) -> str:
    """Returns the message for a wrong option or a missing argument, with the usage of its command."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if context is None:
        return message
    # `--only one two` gives one value and an argument too many.
    repeatable = [each for each in context.command.params if getattr(each, "multiple", False)]
    given = [each.opts[0] for each in repeatable if context.params.get(each.name)]
    if given and "unexpected extra argument" in message:
        message += f"\nif it is another value of {' or '.join(given)}, give the option again before it"
    return f"{message}\n{context.get_usage()}\nsee `{context.command_path} --help`"


def _fail(message: str, code: int, as_json: bool) -> int:
    if as_json:
        output.emit_json({"error": message, "exit_code": code})
    say(f"striate: {message}", file=sys.stderr)
    return code


for _name, _function in {
    "ingest": datasets.ingest_command,
    "filter": datasets.filter_command,
    "augment": datasets.augment_command,
    "merge": exchange.merge_command,
    "convert": exchange.convert_command,
    "remove": exchange.remove_command,
    "trace": exchange.trace_command,
    "info": datasets.info_command,
    "show": datasets.show_command,
    "measure": choosing.measure_command,
    "dedup": choosing.dedup_command,
    "split": choosing.split_command,
    "audit": auditing.audit_command,
    "ablate": auditing.ablate_command,
    "search": searching.search_command,
    "learn-filter": filter_learning.learn_filter_command,
    "steps": listings.steps_command,
    "models": listings.models_command,
    "train": training.train_command,
    "plan": training.plan_command,
    "ensemble": training.ensemble_command,
    "predict": classifiers.predict_command,
    "evaluate": classifiers.evaluate_command,
    "export": classifiers.export_command,
    "inspect": inspecting.inspect_command,
    "demo": datasets.demo_command,
    "tour": datasets.tour_command,
}.items():
    app.command(_name)(_function)
for _point in sorted(entry_points(group="striate.commands"), key=lambda point: point.name):
    _command = _point.load()
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_point.name)
    else:
        app.command(_point.name)(_command)


if __name__ == "__main__":
    main()
