"""The command line of a benchmark: its arguments, its progress lines, and the run that ends in a result file."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.result_file import code_digest, machine, save
from library.errors import StriateError, UsageError

_QUIET_LOAD = 0.5


def make_parser(program: str, description: str | None, *examples: str) -> argparse.ArgumentParser:
    """Returns a parser with `--out`, the folder of the result file.

    Args:
        program: `__file__` of the benchmark.
        description: its docstring.
        examples: arguments of the calls that `--help` shows.
    """
    command = f"  .venv/bin/python {Path(program).resolve().relative_to(REPOSITORY)} "
    parser = argparse.ArgumentParser(
        description=description,
        epilog="\n".join(["examples:", *((command + arguments).rstrip() for arguments in examples)])
        if examples
        else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results = REPOSITORY / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results, help="folder of the result file (benchmarks/results)")
    return parser


def add_photos(parser: argparse.ArgumentParser, disk_gb: float) -> None:
    """Adds `--tar` and `--work`, for `make_photos` and `work_folder`; the benchmark needs `disk_gb` GB on the disk."""
    parser.add_argument(
        "--tar",
        type=existing_file,
        help="tar of photos, repeated as needed (../shared/data/photos-500.tar if it exists, else synthetic photos)",
    )
    parser.add_argument(
        "--work", type=Path, help=f"folder for about {disk_gb:g} GB of temporary data, removed at the end"
    )


def add_cores(parser: argparse.ArgumentParser) -> None:
    """Adds `--cores`: `run_benchmark` restricts this process, and all that it starts, to that number of cores."""
    parser.add_argument("--cores", type=at_least(1), help="number of cores for all programs, load included (all)")


def at_least(minimum: int) -> Callable[[str], int]:
    """Returns an argument type: integers from `minimum` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not an integer") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small; the minimum is {minimum}")
        return value

    return parse


def existing_file(text: str) -> Path:
    """An argument type: the path of a file that exists."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return Path(text)


@contextmanager
def work_folder(parent: Path | None) -> Generator[Path]:
    """A temporary folder below `parent`, which is created; None takes the system's folder for temporary files."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="striate-bench-", dir=parent) as folder:
        yield Path(folder)


def run_benchmark(
    program: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    show: Callable[[Mapping[str, Any]], None],
    machine_facts: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None,
) -> int:
    """Parses the arguments, measures, prints the result and saves it with machine, commit and versions.

    Args:
        program: `__file__` of the benchmark.
        parser: from `make_parser`.
        measure: returns the fields of the result, by the options.
        show: prints a result.
        machine_facts: more facts about the machine, by the options; they replace those of `machine`.

    Returns:
        The exit code: 0, 1 for a failure, 2 for misuse. A goal that is not reached is not a failure.
    """
    options = parser.parse_args()
    name = Path(program).stem
    try:
        if "cores" in options:
            options.cores = _restrict_cores(options.cores)
        described = machine(len(os.sched_getaffinity(0))) | dict(machine_facts(options) if machine_facts else {})
        if described["load_1min_before"] > _QUIET_LOAD:
            say(f"warning: this machine is busy (load {described['load_1min_before']}), so measured times mean little")
        fields = measure(options)
        changed = code_digest() != described["code_digest"]
        if changed:
            say("warning: the code was changed during the measurement, so that the runs are not of one program")
        result = {"benchmark": name, "machine": described, "code_changed_meanwhile": changed, **fields}
        show(result)
        print(f"\n{save(result, options.out)}")
    except StriateError as error:
        say(f"{name}: {error}")
        return error.exit_code
    return 0


def _restrict_cores(number: int | None) -> int:
    """Restricts this process, and all that it starts, to `number` cores (None: all); returns the number."""
    if sys.platform != "linux":
        raise UsageError("this benchmark reads /proc and ties processes to cores, so it runs on Linux only")
    usable = sorted(os.sched_getaffinity(0))
    number = number or len(usable)
    if number > len(usable):
        raise UsageError(f"--cores {number}: this process can use at most {len(usable)} cores")
    # Inherited by all programs, also by those that use every core they see.
    os.sched_setaffinity(0, usable[:number])
    return number


def run_module(module: str, *arguments: str) -> dict[str, Any]:
    """Runs a Python module in a process of its own, so that its memory is its own; returns the JSON that it prints.

    Raises:
        StriateError: its exit code is not 0.
    """
    # Without the address of a cluster that runs on this machine.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise StriateError(f"python -m {module} {' '.join(arguments)} failed with exit code {done.returncode}")
    return json.loads(done.stdout)


def say(line: str) -> None:
    """Prints a line on stderr, where it does not mix with the result."""
    print(line, file=sys.stderr, flush=True)
