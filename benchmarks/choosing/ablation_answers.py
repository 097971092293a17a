"""Measures whether leaving out unsharp pictures helps, as `striate ablate` answers it on real pictures.

Four questions. 1,000 photos of cats and dogs with the bounds of the documents (these photos are good, so almost none is
dropped); the same with a bound that drops the least sharp tenth; the same with planted defects, a fifth of the training
photos blurred until the selectors drop it; and digits of MNIST, a fifth of them blurred. A linear head on patches
answers the first three for other photos of the same kind. LeNet-5 answers the last one, trained anew for every seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from benchmarks import REPOSITORY
from benchmarks.common.command_line import at_least, existing_file, make_parser, run_benchmark, say, work_folder
from benchmarks.common.result_file import torch_facts
from cluster.connection.session import connect
from jobs.choosing.ablate import plan_ablate, run_ablate
from jobs.ingest import ingest, plan_ingest
from library.imaging import codec
from library.sources import Options, list_source, read_pictures

_DATA = REPOSITORY.parent / "shared" / "data"
_AS_DOCUMENTED = "not_blurry | min_entropy(3)"
_LEAST_SHARP = "not_blurry(sharpness={:g}) | min_entropy(3)"
_DIGITS = "not_blurry"
_SPLIT = "train=0.6,val=0.4"
#: Of the blur of planted defects, in pixels; photos are about 400 pixels wide, digits 28.
_PHOTO_BLUR_PX, _DIGIT_BLUR_PX = 8, 4
_RECIPE = """data: {{train: given, val: given}}
input: {{steps: grayscale}}
model: lenet5
optimizer: {{name: adamw, lr: 3e-3, weight_decay: 0.01}}
schedule: {{name: cosine, warmup_epochs: 1}}
batch_size: 64
epochs: {epochs}
"""


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--epochs 1 --out /tmp/results")
    photos, digits = _DATA / "cats-dogs-1000.tar", _DATA / "mnist"
    parser.add_argument("--photos", type=existing_file, default=str(photos), help="photos of two classes, in a tar")
    parser.add_argument("--mnist", default=str(digits), help="MNIST (../shared/data/mnist)")
    parser.add_argument("--digits", type=at_least(100), default=4000, help="of which 3 in 5 are trained on (4,000)")
    parser.add_argument("--sharpness", type=float, default=175.0, help="bound of the second question (175)")
    parser.add_argument("--seeds", type=at_least(5), default=8, help="trainings of each set (8)")
    parser.add_argument("--replicates", type=at_least(5), default=20, help="of the bootstrap of a linear head (20)")
    parser.add_argument("--epochs", type=at_least(2), default=8, help="of each training (8)")
    return run_benchmark(__file__, parser, _measure, _show, machine_facts=lambda _: torch_facts("cpu"))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    recipe = _RECIPE.format(epochs=options.epochs)
    least_sharp = _LEAST_SHARP.format(options.sharpness)
    with work_folder(None) as work, connect("local", num_cpus=2):
        path = work / "recipe.yaml"
        path.write_text(recipe, encoding="utf-8")
        photos, planted, digits = (str(work / name) for name in ("photos", "planted", "digits"))
        ingest(plan_ingest(str(options.photos), photos, split=_SPLIT))
        blurred = {
            "photos": _write_blurred(str(options.photos), work / "photo-files", _PHOTO_BLUR_PX),
            "digits": _write_blurred(options.mnist, work / "digit-files", _DIGIT_BLUR_PX, options.digits),
        }
        ingest(plan_ingest(str(work / "photo-files"), planted))
        ingest(plan_ingest(str(work / "digit-files"), digits))
        heads: dict[str, Any] = {"model": "patches", "seeds": options.replicates}
        trainings: dict[str, Any] = {"recipe": str(path), "seeds": options.seeds, "out": str(work / "trainings")}
        questions = {
            "photos, as documented": _answered(plan_ablate(photos, _AS_DOCUMENTED, **heads)),
            "photos, the least sharp tenth": _answered(plan_ablate(photos, least_sharp, **heads)),
            "photos, planted blur": _answered(plan_ablate(planted, _AS_DOCUMENTED, **heads)),
            "digits, planted blur, whole trainings": _answered(plan_ablate(digits, _DIGITS, **trainings)),
        }
    return {
        "parameters": {
            "split": _SPLIT,
            "blurred": blurred,
            "blur_px": {"photos": _PHOTO_BLUR_PX, "digits": _DIGIT_BLUR_PX},
            "epochs": options.epochs,
            "recipe": recipe,
        },
        "questions": questions,
    }


def _answered(plan: Any) -> dict[str, Any]:
    measured = run_ablate(plan, gpu=False)
    for answer in measured.answers:
        say(f"{plan.pipeline}, {plan.described()['trains']}: {answer.sentence()}")
    facts = measured.summary()
    # The folders are temporary.
    return {name: value for name, value in facts.items() if name not in ("train", "val", "out")} | {
        "sentences": [answer.sentence() for answer in measured.answers]
    }


def _write_blurred(source: str, folder: Path, blur_px: float, pictures: int | None = None) -> int:
    """Writes pictures as files of train/ and val/, every fifth of train/ blurred; returns how many are blurred."""
    listing = list_source(source, Options())
    index = listing.index.slice(0, pictures)
    blurred = number = 0
    for read in read_pictures(listing.kind, index, listing.gzip_indexes, Options()):
        if read.data is None:
            continue
        data, name = read.data, index["label"][read.row].as_py()
        split = "train" if number % 5 < 3 else "val"
        if split == "train" and number % 25 in (0, 6, 12):
            pixels = cv2.GaussianBlur(codec.decode(data), (0, 0), blur_px)
            data, _ = codec.encode(pixels.reshape(*pixels.shape[:2], -1), codec.Encoding("png"))
            blurred += 1
        path = folder / split / name / f"{number:05d}"
        path = path.with_suffix(".jpg" if data.startswith(b"\xff\xd8") else ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        number += 1
    return blurred


def _show(result: Mapping[str, Any]) -> None:
    for name, facts in result["questions"].items():
        sizes = ", ".join(f"{one} {count:,}" for one, count in facts["pictures"].items())
        print(f"\n{name}: {sizes}")
        for line in (*facts["sentences"], *facts["skipped"]):
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
