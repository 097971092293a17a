"""Measures whether leaving out the least sharp photos of cats and dogs helps, as `striate ablate` answers it.

The 1,000 photos are divided into training and validation pictures. The first question is that of the documents, with
the selectors' own bounds; these photos are good, so almost none is dropped. For the second, the bound of sharpness is
raised until a tenth of the photos is dropped. The third has planted defects: a fifth of the training photos is blurred
until the selectors drop it. A linear head on patches answers all three for other pictures of the same kind; trainings
of a whole network, with paired seeds, answer the second and the third for these pictures.
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

_PHOTOS = REPOSITORY.parent / "shared" / "data" / "cats-dogs-1000.tar"
_AS_DOCUMENTED = "not_blurry | min_entropy(3)"
_SHARPEST = "not_blurry(sharpness={:g}) | min_entropy(3)"
_SPLIT = "train=0.6,val=0.4"
#: Of the blur of planted defects, in pixels; photos are about 400 pixels wide.
_BLUR_PX = 8
_RECIPE = """data: {{train: given, val: given}}
input: {{steps: rgb, size: 32}}
augment: random_crop(32, padding=4, fill="reflect") | flip
model: resnet9(width=8)
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5e-4}}
schedule: {{name: cosine, warmup_epochs: 2}}
batch_size: 32
epochs: {epochs}
"""


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--epochs 1 --out /tmp/results")
    parser.add_argument(
        "--tar", type=existing_file, default=str(_PHOTOS), help="photos (../shared/data/cats-dogs-1000.tar)"
    )
    parser.add_argument("--sharpness", type=float, default=175.0, help="bound of the second question (175)")
    parser.add_argument("--seeds", type=at_least(5), default=5, help="trainings of each set (5)")
    parser.add_argument("--replicates", type=at_least(5), default=20, help="of the bootstrap of a linear head (20)")
    parser.add_argument("--epochs", type=at_least(1), default=40, help="of each training (40)")
    return run_benchmark(__file__, parser, _measure, _show, machine_facts=lambda _: torch_facts("cpu"))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    recipe = _RECIPE.format(epochs=options.epochs)
    questions: dict[str, Any] = {}
    with work_folder(None) as work, connect("local", num_cpus=2):
        path = work / "recipe.yaml"
        path.write_text(recipe, encoding="utf-8")
        ingest(plan_ingest(str(options.tar), str(work / "photos"), split=_SPLIT))
        planted = _with_blurred(options.tar, work / "files")
        ingest(plan_ingest(str(work / "files"), str(work / "planted")))
        sharpest = _SHARPEST.format(options.sharpness)
        for name, data, drop, trains in (
            ("as documented", "photos", _AS_DOCUMENTED, False),
            ("the least sharp tenth", "photos", sharpest, True),
            ("planted blur", "planted", _AS_DOCUMENTED, True),
        ):
            folder = str(work / data)
            head = plan_ablate(folder, drop, model="patches", seeds=options.replicates)
            answers = {"linear head on patches": _answered(head)}
            if trains:
                out = str(work / f"ablation-{data}")
                answers["whole trainings"] = _answered(
                    plan_ablate(folder, drop, recipe=str(path), seeds=options.seeds, out=out)
                )
            questions[name] = answers
    return {
        "parameters": {
            "split": _SPLIT,
            "planted": planted,
            "blur_px": _BLUR_PX,
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


def _with_blurred(tar: str, folder: Path) -> int:
    """Writes the photos as files of train/ and val/, every fifth of train/ blurred; returns how many are blurred."""
    listing = list_source(str(tar), Options())
    blurred = number = 0
    for read in read_pictures(listing.kind, listing.index, listing.gzip_indexes, Options()):
        if read.data is None:
            continue
        data, name = read.data, listing.index["label"][read.row].as_py()
        split = "train" if number % 5 < 3 else "val"
        if split == "train" and number % 25 in (0, 6, 12):
            pixels = cv2.GaussianBlur(codec.decode(data), (0, 0), _BLUR_PX)
            data, _ = codec.encode(pixels, codec.Encoding("jpeg", 95))
            blurred += 1
        path = folder / split / name / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        number += 1
    return blurred


def _show(result: Mapping[str, Any]) -> None:
    for name, trained in result["questions"].items():
        for what, facts in trained.items():
            sizes = ", ".join(f"{one} {count:,}" for one, count in facts["pictures"].items())
            print(f"\n{name}, {what}: {sizes}")
            for line in (*facts["sentences"], *facts["skipped"]):
                print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
