"""Runs `striate search` where the answer is known, and on real photos, and records what it says with its intervals.

noise: MNIST with 30% salt-and-pepper noise, where a median must be found. contrast: MNIST squeezed into 8 to 40 levels,
where equalize, clahe or contrast_stretch must be found. clean: MNIST as it is, where the answer must be "no filter
helps" ("undecided" is not as expected). edges: pictures whose label depends only on a faint vertical edge below
horizontal stripes, where a filter for vertical edges is expected. photos: cats and dogs, where nothing is known.

Each search has a folder below --work, named by the code and the settings too, and resumes there. So a killed benchmark
continues, and a search of other code is never taken for one of this.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import REPOSITORY
from benchmarks.choosing import search_data
from benchmarks.common.command_line import at_least, make_parser, run_benchmark, say
from benchmarks.common.report import print_table
from benchmarks.common.result_file import code_digest
from library.dataset.manifest import digest_of
from library.errors import StriateError
from library.pipeline import Pipeline

_DATA = REPOSITORY.parent / "shared" / "data"
#: Filters of which the winner must have one; empty where "no filter helps" is the truth, None where nothing is known.
EXPECTED: dict[str, tuple[str, ...] | None] = {
    "noise": ("median_blur",),
    "contrast": ("equalize", "clahe", "contrast_stretch"),
    "clean": (),
    "edges": ('edges(direction="vertical"', "gabor(wavelength=4.0, angle=0.0"),
    "photos": None,
}
_RESULT, _SECONDS = "printed.json", "seconds.json"


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__, __doc__, "", "--cases noise clean --pictures 600 --budget 3m --out /tmp/results --work /tmp/truth"
    )
    parser.add_argument("--cases", nargs="+", choices=list(EXPECTED), default=list(EXPECTED), help="which ones (all)")
    parser.add_argument("--mnist", type=Path, default=_DATA / "mnist", help="MNIST (../shared/data/mnist)")
    parser.add_argument("--photos", type=Path, default=_DATA / "cats-dogs-1000.tar", help="an archive of photos")
    parser.add_argument("--photo-px", type=at_least(32), default=128, help="longer side of the photos (128)")
    parser.add_argument("--pictures", type=at_least(100), default=3_000, help="pictures of train, val and test (3,000)")
    parser.add_argument("--budget", default="10m", help="of each search (10m)")
    parser.add_argument("--photos-budget", help="of the search on photos (as --budget)")
    parser.add_argument("--margin", type=float, default=0.3, help="percentage points that do not matter (0.3)")
    parser.add_argument("--draw", type=at_least(0), default=0, help="number of the random draw, but for photos (0)")
    parser.add_argument("--space", help="YAML of a smaller space (every filter)")
    parser.add_argument("--recipe", help="of the finalists, instead of the default of the search")
    parser.add_argument("--workers", default="auto", help="trainings at the same time (auto)")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "search-truth", help="folder that is kept")
    return run_benchmark(__file__, parser, _measure, _show)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cases: dict[str, Any] = {}
    for name in options.cases:
        budget = options.photos_budget or options.budget if name == "photos" else options.budget
        data = folder_of(name, options, budget)
        _write_dataset(name, data, options)
        say(f"{name}: searching for at most {budget}")
        answer = _searched(data, options, budget)
        cases[name] = _judged(name, answer)
        say(f"{name}: {answer['sentence']}")
    fields = ("pictures", "budget", "photos_budget", "photo_px", "margin", "draw", "space", "recipe")
    parameters = {name: getattr(options, name) for name in fields}
    return {"parameters": parameters, "cases": cases}


def folder_of(name: str, options: argparse.Namespace, budget: str) -> Path:
    """Returns the folder of a search, named by all that it depends on but for the machine and its packages."""
    texts = [Path(each).read_text() if each else None for each in (options.space, options.recipe)]
    size = options.photo_px if name == "photos" else options.pictures
    digest = digest_of([code_digest(), name, size, budget, options.margin, options.draw, options.workers, *texts])
    return options.work / f"{name}-{digest[:16]}"


def _write_dataset(name: str, folder: Path, options: argparse.Namespace) -> None:
    if (folder / "test" / "_manifest.json").exists():
        return
    rng = np.random.default_rng([options.draw, sorted(EXPECTED).index(name)])
    sizes: dict[str, int] = dict.fromkeys(search_data.SPLITS, options.pictures)
    if name == "photos":
        for split, (encoded, labels) in search_data.photos(options.photos, options.photo_px, 0).items():
            pairs = list(zip(encoded, labels, strict=True))
            search_data.write_dataset(pairs, folder / split, len(labels), 16, "search_truth")
    elif name == "edges":
        splits = {split: search_data.vertical_edges(options.pictures, rng) for split in sizes}
        search_data.write_splits(folder, splits, lambda pictures: pictures)
    else:
        changes = {
            "noise": lambda pictures: search_data.salt_and_pepper(pictures, rng),
            "contrast": lambda pictures: search_data.low_contrast(pictures, rng),
            "clean": lambda pictures: pictures,
        }
        search_data.write_splits(folder, search_data.digits(options.mnist, sizes, options.draw), changes[name])


def _searched(data: Path, options: argparse.Namespace, budget: str) -> dict[str, Any]:
    """Returns what the search prints; one that has ended before is not run again."""
    result, seconds = data / _RESULT, data / _SECONDS
    if result.exists():
        return json.loads(result.read_text())
    command = [sys.executable, "-m", "jobs.cli.app", "search", str(data / "train"), "--val", str(data / "val")]
    command += ["--test", str(data / "test"), "--budget", budget, "--out", str(data / "search"), "--json"]
    command += ["--margin", f"{options.margin:g}", "--workers", options.workers]
    command += ["--space", options.space] if options.space else []
    command += ["--recipe", options.recipe] if options.recipe else []
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    before = json.loads(seconds.read_text()) if seconds.exists() else []
    start = time.perf_counter()
    seconds.write_text(json.dumps([*before, None]))  # a run that is killed leaves its mark
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise StriateError(f"{' '.join(command)} failed with exit code {done.returncode}")
    answer = json.loads(done.stdout) | {"wall_s": round(time.perf_counter() - start, 1), "runs_before": len(before)}
    result.write_text(json.dumps(answer))
    return answer


def as_expected(expected: Sequence[str], outcome: str, filters: str | None) -> bool:
    """Returns whether a search gives the known answer; "undecided" never is it.

    Args:
        expected: beginnings of canonical steps, one of which the winner must have; empty where no filter helps.
        outcome: of the search.
        filters: of the winner, if there is one.
    """
    if not expected:
        return outcome == "none"
    steps = [str(step) for step in Pipeline.parse(filters).steps] if outcome == "helps" and filters else []
    return any(step.startswith(beginning) for step in steps for beginning in expected)


def _judged(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    expected, winner = EXPECTED[name], answer["winner"]
    found = None
    if expected is not None:
        found = as_expected(expected, answer["outcome"], winner["filters"] if winner else None)
    gains = [
        {
            "candidate": gain["candidate"]["name"],
            **{field: gain[field] for field in ("accuracy", "identity", "gain", "interval", "adjusted_p", "verdict")},
        }
        for gain in answer["finalists"]
    ]
    test = answer["test"]
    return {
        "expected": None if expected is None else list(expected),
        "as_expected": found,
        "outcome": answer["outcome"],
        "sentence": answer["sentence"],
        "winner": winner and winner["name"],
        "placebo_won": answer["placebo_won"],
        "finalists": gains,
        "test": test and {field: test[field] for field in ("accuracy", "identity", "gain", "interval")},
        "trainings": answer["trainings"],
        "wall_s": answer["wall_s"],
        "interrupted_runs_before": answer["runs_before"],
        "unfinished": answer["unfinished"],
    }


def _show(result: Mapping[str, Any]) -> None:
    rows = [
        (name, case["sentence"], {True: "yes", False: "NO", None: ""}[case["as_expected"]], case["wall_s"])
        for name, case in result["cases"].items()
    ]
    print_table("which filter helps", ("case", "answer", "as expected", "seconds"), rows, left=2)


if __name__ == "__main__":
    sys.exit(main())
