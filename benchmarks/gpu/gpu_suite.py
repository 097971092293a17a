"""Measures training, batch prediction and serving on a GPU, in eight minutes and with one command.

It runs on a machine where Python, PyTorch and timm are installed and the other packages lie in folders (--packages);
Striate itself need not be installed, and no network is needed. Each part runs in its own process with a time limit.
A part that fails or is too slow is reported in the result file, and the next one runs. The file is written anew after
each part, so that a benchmark that is killed leaves what it had measured. benchmarks/README.md defines the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.command_line import make_parser, say, work_folder

_MINUTES = 8.0
_END_S = 20.0
#: Time that is kept for ending the last part and writing the file.
_RESERVE_S = 15.0
_MIN_PART_S = 20.0


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: its name in the result.
        module: the program that measures it.
        limit_s: longest time in seconds when all parts have eight minutes; it grows with `--minutes`.
    """

    name: str
    module: str
    limit_s: float


_TRAINING, _ANSWERING = "benchmarks.gpu.training", "benchmarks.gpu.answering"
#: In the order of their importance: what comes last is left out first when the time is over.
PARTS = (
    Part("prepare", "benchmarks.gpu.prepare", 90),
    Part("synthetic", _TRAINING, 60),
    Part("streamed", _TRAINING, 100),
    Part("serve", _ANSWERING, 120),
    Part("cifar10_fast", _TRAINING, 90),
    Part("resident", _TRAINING, 70),
    Part("predict", _ANSWERING, 70),
    Part("image_folder", _TRAINING, 60),
    Part("resident_augmented", _TRAINING, 80),
)


def main() -> int:
    """Returns the exit code: 0 if every part was measured, 1 if one was not, 2 for misuse."""
    parser = make_parser(__file__, __doc__, "", "--device cpu --smoke --out /tmp/results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cuda or cpu (cuda)")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, to try the benchmark out")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="time for all parts (8)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts to measure (all)")
    parser.add_argument(
        "--packages", type=Path, nargs="+", default=[], help="folders of packages that are not installed"
    )
    parser.add_argument("--work", type=Path, help="folder for about 3 GB of temporary data, removed at the end")
    parser.add_argument("--list", action="store_true", help="print the parts with their time limits, and end")
    options = parser.parse_args()
    if options.list:
        for part in PARTS:
            print(f"{part.name:20} at most {part.limit_s:g} s   python -m {part.module} {part.name}")
        return 0
    missing = [str(folder) for folder in options.packages if not folder.is_dir()]
    if missing:
        parser.error(f"--packages {' '.join(missing)}: no such folder")
    sys.path[:0] = [str(folder.resolve()) for folder in options.packages]
    with work_folder(options.work) as work, _interrupted_by_sigterm():
        return _measure(options, work)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Any:
    """Turns SIGTERM into KeyboardInterrupt, so that the part that runs is ended too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(options: argparse.Namespace, work: Path) -> int:
    environment = _environment(options, work)
    result, path = _new_result(options)
    deadline = time.monotonic() + 60 * options.minutes
    chosen = [part for part in PARTS if options.only is None or part.name in (*options.only, "prepare")]
    from benchmarks.common.result_file import write

    for part in chosen:
        limit_s = part.limit_s * max(1.0, options.minutes / _MINUTES)
        left_s = deadline - _RESERVE_S - time.monotonic()
        if result["parts"].get("prepare", {}).get("not_measured"):
            figures: dict[str, Any] = {"not_measured": "the part prepare failed"}
        elif left_s < min(_MIN_PART_S, limit_s):
            figures = {"not_measured": f"no time left: {options.minutes:g} minutes are over"}
        else:
            figures = _run(part, options, work / "data", environment, min(limit_s, left_s))
        result["parts"][part.name] = figures
        result["seconds"] = round(60 * options.minutes - (deadline - time.monotonic()), 1)
        result["ratios"] = _ratios(result["parts"])
        write(result, path)
        say(f"{part.name}: {json.dumps(figures)[:600]}")
    print(json.dumps(result["ratios"], indent=1))
    print(f"\n{path}")
    return int(any("not_measured" in figures for figures in result["parts"].values()))


def _new_result(options: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """Returns the fields that are known before, and the path of the result file."""
    # They import packages that may lie in the folders of --packages.
    from benchmarks.common.result_file import machine, new_path, torch_facts
    from benchmarks.gpu.settings import Settings

    described = machine(len(os.sched_getaffinity(0))) | {"device": torch_facts(options.device)["device"]}
    device = re.sub(r"[^A-Za-z0-9]+", "-", described["device"]).strip("-")
    settings = Settings.choose(options.device, smoke=options.smoke)
    result: dict[str, Any] = {
        "benchmark": f"gpu_suite-{device}" + "-smoke" * options.smoke,
        "machine": described,
        "parameters": settings.described() | {"minutes": options.minutes, "only": options.only},
        "parts": {},
    }
    return result, new_path(result, options.out)


def _run(
    part: Part, options: argparse.Namespace, data: Path, environment: dict[str, str], limit_s: float
) -> dict[str, Any]:
    """Runs one part; returns its figures, or `not_measured` with the reason."""
    data.mkdir(exist_ok=True)
    command = [sys.executable, "-m", part.module, part.name, "--work", str(data), "--device", options.device]
    command += ["--smoke"] * options.smoke
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        # A group of its own: whatever it has started can be ended with it.
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=out, stderr=errors, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        texts = [(file.seek(0), file.read())[1].strip() for file in (out, errors)]
    spent_s = round(time.monotonic() - start, 1)
    if code == 0 and texts[0]:
        return {**json.loads(texts[0].splitlines()[-1]), "part_s": spent_s}
    why = f"took longer than {limit_s:.0f} s" if code is None else f"ended with exit code {code}"
    return {"not_measured": f"{why}: {texts[1][-800:]}", "part_s": spent_s}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a part that still runs: SIGTERM and a bounded wait, then SIGKILL for it and for all that it started."""
    from benchmarks.common.process_tree import descendants

    if process.poll() is not None:
        return
    below = descendants(process.pid)[1:]
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _environment(options: argparse.Namespace, work: Path) -> dict[str, str]:
    """The variables of every part: where packages are found, and no cluster that runs on this machine."""
    folders = [str(folder.resolve()) for folder in options.packages]
    try:
        importlib.metadata.version("striate")
    except importlib.metadata.PackageNotFoundError:
        folders.append(str(_write_metadata(work / "striate")))
    before = os.environ.get("PYTHONPATH")
    paths = [str(REPOSITORY), *folders, *([before] if before else [])]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


def _write_metadata(folder: Path) -> Path:
    """Writes what an installation of this checkout adds to Python's packages: its version and its entry points."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = folder / f"striate-{project['version']}.dist-info"
    target.mkdir(parents=True)
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: striate\nVersion: {project['version']}\n")
    sections = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [
        line
        for group, points in sections.items()
        for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (target / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def _ratios(parts: dict[str, Any]) -> dict[str, float]:
    """Rates of Striate's parts in relation to the plain loop over synthetic tensors, and to ImageFolder."""
    rates = {name: figures.get("pictures_per_s") for name, figures in parts.items()}
    pairs = [
        (name, other)
        for name in ("resident", "resident_augmented", "streamed")
        for other in ("synthetic", "image_folder")
    ]
    return {
        f"{one} / {other}": round(rates[one] / rates[other], 3)
        for one, other in pairs
        if rates.get(one) and rates.get(other)
    }


if __name__ == "__main__":
    sys.exit(main())
