"""Finds planted defects in photos, beside CleanVision on the same files: precision and recall of each.

In a copy of the photos, a fifth gets a defect: dark, bright, blurry, low information (a flat colour with a faint line
of text) or an odd aspect ratio. Both tools judge every file with their defaults: Striate by `not_dark`, `not_bright`,
`not_blurry`, `min_entropy(3)` and `aspect_ratio_between(0.35, 2.86)`, CleanVision by its issues of the same kinds.

A photo without any planted defect that a tool marks counts against its precision, although some photos are dark or
blurred as they are. A mark on a photo with another planted defect counts neither way: a photo made dark is also one of
few levels. The default of `not_blurry` was chosen with these photos and this kind of blur in view, CleanVision's not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import cv2
import numpy as np

from benchmarks.common.command_line import (
    add_photos,
    at_least,
    existing_file,
    make_parser,
    run_benchmark,
    say,
    work_folder,
)
from benchmarks.common.photo_files import make_photos
from benchmarks.common.report import print_table
from library.errors import StriateError
from library.imaging import codec
from library.imaging.picture import Picture, Pixels
from library.pipeline import Pipeline
from library.steps.base import Selector

#: Of each defect, the selector of Striate and the issue of CleanVision.
_DEFECTS = {
    "dark": ("not_dark", "dark"),
    "bright": ("not_bright", "light"),
    "blurry": ("not_blurry", "blurry"),
    "low_information": ("min_entropy(3)", "low_information"),
    "odd_aspect": ("aspect_ratio_between(low=0.35, high=2.86)", "odd_aspect_ratio"),
}
_PEER = """
import json, sys
from cleanvision import Imagelab
from importlib.metadata import version
names = json.loads(sys.argv[2])
lab = Imagelab(data_path=sys.argv[1])
lab.find_issues({name: {} for name in names}, n_jobs=1, verbose=False)
marked = {}
for name in names:
    column = lab.issues["is_" + name + "_issue"]
    marked[name] = [str(path).rsplit("/", 1)[1] for path in column.index[column]]
print("RESULT" + json.dumps({"marked": marked, "version": version("cleanvision")}))
"""


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "--peer-python peers/bin/python", "--count 100 --out /tmp/results")
    add_photos(parser, 0.1)
    parser.add_argument("--count", type=at_least(25), default=500, help="photos (500)")
    parser.add_argument("--seed", type=int, default=0, help="decides which photos get which defect (0)")
    parser.add_argument("--peer-python", type=existing_file, help="Python of an environment with cleanvision (none)")
    return run_benchmark(__file__, parser, _measure, _show)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with work_folder(options.work) as work:
        photos = make_photos(options.tar, work / "photos", options.count)
        truth = _plant(work / "photos", options.seed)
        start = perf_counter()
        ours = _by_selectors(work / "photos")
        say(f"striate: {perf_counter() - start:.1f} s")
        tools = {"striate": _scores(ours, truth)}
        peer: dict[str, Any] = {}
        if options.peer_python is not None:
            start = perf_counter()
            peer = _by_cleanvision(work / "photos", options.peer_python)
            say(f"cleanvision: {perf_counter() - start:.1f} s")
            tools["cleanvision"] = _scores(peer["marked"], truth)
    return {
        "parameters": {"photos": dict(photos.facts), "seed": options.seed, "planted": _counts(truth)},
        "peer_version": peer.get("version"),
        "defects": {defect: {tool: scores[defect] for tool, scores in tools.items()} for defect in _DEFECTS},
        "agreement": _agreement(ours, peer["marked"], truth, options.count) if peer else None,
    }


def _plant(folder: Path, seed: int) -> dict[str, set[str]]:
    """Gives a fifth of the photos a defect; returns the names of the files by defect."""
    rng = np.random.default_rng(seed)
    names = sorted(path.name for path in folder.iterdir())
    chosen = rng.permutation(len(names))[: len(names) // 5]
    truth: dict[str, set[str]] = {defect: set() for defect in _DEFECTS}
    for place, number in enumerate(chosen.tolist()):
        defect, path = list(_DEFECTS)[place % len(_DEFECTS)], folder / names[number]
        pixels = codec.decode(path.read_bytes())
        path.write_bytes(codec.encode(_SPOIL[defect](pixels, rng), codec.Encoding("jpeg", 95))[0])
        truth[defect].add(path.name)
    return truth


def _dark(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return (pixels * rng.uniform(0.05, 0.25)).astype(np.uint8)


def _bright(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return (255 - (255.0 - pixels) * rng.uniform(0.005, 0.04)).astype(np.uint8)


def _blurry(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    sigma = max(pixels.shape[:2]) * rng.uniform(0.015, 0.05)
    blurred = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma))
    return blurred if blurred.ndim == 3 else blurred[:, :, None]


def _low_information(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    colour = rng.integers(60, 196, 3)
    page = np.broadcast_to(colour, (*pixels.shape[:2], 3)).astype(np.uint8).copy()
    ink = tuple(int(value) for value in colour - 40)
    cv2.putText(page, "no picture", (10, page.shape[0] // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, 1)
    return page


def _odd_aspect(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    side = max(8, int(min(height, width) / rng.uniform(4, 8)))
    first = (min(height, width) - side) // 2
    strip = pixels[first : first + side] if width >= height else pixels[:, first : first + side]
    return np.ascontiguousarray(strip)


_SPOIL: Mapping[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "dark": _dark,
    "bright": _bright,
    "blurry": _blurry,
    "low_information": _low_information,
    "odd_aspect": _odd_aspect,
}


def _by_selectors(folder: Path) -> dict[str, set[str]]:
    """Returns the names that Striate's selectors drop, by defect."""
    steps = {defect: cast(Selector, Pipeline.parse(selector).steps[0]) for defect, (selector, _) in _DEFECTS.items()}
    marked: dict[str, set[str]] = {defect: set() for defect in _DEFECTS}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        picture = Picture(path.name, None, codec.probe(data), lambda data=data: data, {})
        for defect, step in steps.items():
            if step.reason(picture) is not None:
                marked[defect].add(path.name)
    return marked


def _by_cleanvision(folder: Path, python: Path) -> dict[str, Any]:
    """Returns the names that CleanVision marks, by defect, and its version."""
    issues = {issue: defect for defect, (_, issue) in _DEFECTS.items()}
    # The file is not resolved: the link in an environment is what makes it one.
    command = [str(python), "-c", _PEER, str(folder), json.dumps(list(issues))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StriateError(f"CleanVision failed: {done.stderr.strip()[-500:]}")
    result = json.loads(done.stdout.rpartition("RESULT")[2])
    return {**result, "marked": {issues[issue]: set(names) for issue, names in result["marked"].items()}}


def _scores(marked: Mapping[str, set[str]], truth: Mapping[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Returns planted, marked, found, marks on photos without a defect, precision and recall of each defect."""
    spoiled = set[str]().union(*truth.values())
    result: dict[str, dict[str, Any]] = {}
    for defect, planted in truth.items():
        found = len(marked[defect] & planted)
        result[defect] = {
            "planted": len(planted),
            "marked": len(marked[defect]),
            "found": found,
            "without_defect": (false := len(marked[defect] - spoiled)),
            "precision": round(found / (found + false), 4) if found + false else None,
            "recall": round(found / len(planted), 4),
        }
    return result


def _agreement(
    ours: Mapping[str, set[str]], theirs: Mapping[str, set[str]], truth: Mapping[str, set[str]], photos: int
) -> dict[str, dict[str, Any]]:
    """Returns how many files both tools, or one of them, mark for each defect."""
    spoiled = set[str]().union(*truth.values())
    result: dict[str, dict[str, Any]] = {}
    for defect in _DEFECTS:
        one, other = ours[defect], theirs[defect]
        result[defect] = {
            "both": len(one & other),
            "only_striate": len(one - other),
            "only_cleanvision": len(other - one),
            "both_without_defect": len((one & other) - spoiled),
            "same_answer": round(1 - len(one ^ other) / photos, 4),
        }
    return result


def _counts(truth: Mapping[str, set[str]]) -> dict[str, int]:
    return {defect: len(names) for defect, names in truth.items()}


def _show(result: Mapping[str, Any]) -> None:
    rows = [[defect, tool, *one.values()] for defect, tools in result["defects"].items() for tool, one in tools.items()]
    columns = ["planted", "marked", "found", "without defect", "precision", "recall"]
    print_table("planted defects", ["defect", "tool", *columns], rows, left=2)
    if result["agreement"]:
        columns = list(next(iter(result["agreement"].values())))
        print_table(
            "agreement",
            ["defect", *(name.replace("_", " ") for name in columns)],
            [[defect, *one.values()] for defect, one in result["agreement"].items()],
        )


if __name__ == "__main__":
    sys.exit(main())
