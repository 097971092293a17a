"""Runs every main job on real pictures that each installation has: `striate demo`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from cluster.connection.session import connect
from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from jobs.inspection.info import datasets_below
from jobs.inspection.show import contact_sheet
from jobs.output import balance, reasons, size, stderr
from library.bundle.description import Prediction
from library.dataset.manifest import Manifest
from library.errors import StriateError, UsageError
from library.evaluation.metrics import Evaluation
from library.evaluation.report.templates import template
from library.imaging import codec
from library.imaging.contact_sheet import thumbnail
from library.imaging.picture import Pixels

_TILE_PX, _STEP_PX = 224, 64
_CLASSIFIED = 8

#: Dataset, pipeline, encoding, and its description on the page.
_FILTERS = (
    (
        "photos",
        'not_blank(min_std=0.08) | grayscale | gaussian_blur(sigma=1.5) | edges(direction="vertical", gain=3)',
        "keep",
        "Vertical edges after a little blur; tiles of flat sky are dropped first.",
    ),
    ("photos", "clahe(clip_limit=2) | sharpen(amount=0.7)", "png", "Local contrast, then an unsharp mask."),
    (
        "photos",
        "blur_background(sigma=6)",
        "jpeg:92",
        "GrabCut guesses what stands out (on tiles as small as these it is often wrong); the rest is blurred.",
    ),
    (
        "digits",
        'binarize(method="otsu") | resize(80, interpolation="nearest")',
        "png",
        "Black or white, enlarged ten times.",
    ),
)


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        page: path of the page.
        bundle: path of the classifier.
        report: path of the page of its evaluation.
        answered: the served classifier's answer for one picture.
        sheets: paths of the contact sheets.
        datasets: the balance of each dataset, by its path.
    """

    page: str
    bundle: str
    report: str
    answered: dict[str, Any]
    sheets: list[str]
    datasets: dict[str, str]


def run_demo(folder: Path) -> DemoResult:
    """Writes pictures, ingests and filters them, trains and serves a classifier, and draws a page of the results.

    Args:
        folder: gets `pictures/`, `data/` (the datasets), the sheets and `index.html`; a second run resumes the first.

    Raises:
        UsageError: when the folder contains other files.
    """
    pictures, data = folder / "pictures", folder / "data"
    if folder.exists() and any(folder.iterdir()) and not pictures.is_dir():
        raise UsageError(f"{folder} contains other files; name an empty folder")
    for path, content in demo_pictures():
        target = pictures / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    pipelines: list[_Filtered] = []
    with connect():
        for name, split in (("photos", "found"), ("digits", "train=0.8,test=0.2")):
            source, raw = pictures / name, data / name
            stderr.print(f"striate ingest {source} {raw} --split {split} --verify", markup=False, soft_wrap=True)
            ingest(plan_ingest(str(source), str(raw), split=split, verify=True))
        for number, (name, steps, encode, text) in enumerate(_FILTERS, 1):
            source = data / name if name == "photos" else data / name / "train"
            filtered = data / f"{name}-{number}"
            stderr.print(
                f"striate filter {source} {filtered} --steps {shlex.quote(steps)} --encode {encode}",
                markup=False,
                soft_wrap=True,
            )
            manifest = filter_dataset(plan_filter(str(source), str(filtered), steps, encode=encode))
            sheet = folder / f"{name}-{number}.png"
            sheet.write_bytes(contact_sheet(str(source), steps, count=9).png)
            pipelines.append(_Filtered(f"{name}: {steps}", text, manifest, sheet.name))
        classifier = _classifier(folder)
    answer = served(folder / "lenet", folder / "pictures" / "digits" / "3" / "0003.png")
    datasets = {
        uri: manifest for name in ("photos", "digits") for uri, manifest in datasets_below(str(data / name)).items()
    }
    page = folder / "index.html"
    page.write_text(
        template("jobs.demo", "demo.html").render(
            datasets=datasets, pipelines=pipelines, classifier=classifier, balance=balance, reasons=reasons, size=size
        ),
        encoding="utf-8",
    )
    return DemoResult(
        page=str(page),
        bundle=str(folder / "lenet"),
        report=str(folder / "report" / "index.html"),
        answered=answer,
        sheets=[str(path) for path in sorted(folder.glob("*.png"))],
        datasets={uri: balance(manifest) for uri, manifest in datasets.items()},
    )


@dataclass(frozen=True)
class _Filtered:
    """One pipeline on the page: `title` and `text` describe it, `sheet` is the file of its contact sheet."""

    title: str
    text: str
    manifest: Manifest
    sheet: str


@dataclass(frozen=True)
class _Classifier:
    """The classifier on the page; `answers` are picture files, relative to the page, with their predictions."""

    dataset: str
    evaluation: Evaluation
    answers: list[tuple[str, Prediction]]


def _classifier(folder: Path) -> _Classifier:
    """Trains LeNet-5 on the digits, evaluates it, and classifies some of them."""
    from jobs.evaluate import plan_evaluate, run_evaluate
    from jobs.predict import predict_files
    from jobs.train.driver import train
    from jobs.train.plan import plan_train
    from library.bundle.bundle import Bundle
    from library.recipe import Recipe

    digits, out, report = folder / "data" / "digits", folder / "lenet", folder / "report"
    recipe = str(files("jobs").joinpath("recipes/lenet-digits.yaml"))
    overrides = [f"data.train={digits / 'train'}", f"data.val={digits / 'test'}"]
    _command("train", recipe, *(f"--set {override}" for override in overrides), f"--out {out}")
    train(plan_train(Recipe.load(recipe, overrides), str(out)))
    _command("evaluate", str(out), str(digits / "test"), f"--report {report}")
    subject = run_evaluate(plan_evaluate([str(out)], str(digits / "test"), report=str(report))).subjects[0]
    evaluation = cast(Evaluation, subject.evaluation)  # each digit has one label
    written = sorted((folder / "pictures" / "digits").glob("*/*.png"))
    chosen = written[:: max(1, len(written) // _CLASSIFIED)][:_CLASSIFIED]
    _command("predict", str(out), *(str(path) for path in chosen[:2]), "...")
    answers = predict_files(Bundle.load(str(out)), [str(path) for path in chosen], top_k=3)
    return _Classifier(
        str(digits / "train"),
        evaluation,
        [
            (str(Path(answer.file).relative_to(folder)), answer.result)
            for answer in answers
            if isinstance(answer.result, Prediction)
        ],
    )


def served(bundle: Path, picture: Path) -> dict[str, Any]:
    """Serves the classifier as a user does, sends it one picture, stops it, and returns the answer."""
    _command("serve", str(bundle), "--port", "0")
    serve = [
        sys.executable,
        "-c",
        "from jobs.cli.app import main; main()",
        "serve",
        str(bundle),
        "--port",
        "0",
        "--json",
    ]
    # A local Ray, even if RAY_ADDRESS is set.
    with subprocess.Popen(serve, stdout=subprocess.PIPE, env=os.environ | {"RAY_ADDRESS": "local"}) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.startswith(b"{") or b"address" not in line:
            raise StriateError("the classifier could not be served; see above")
        url = f"{json.loads(line)['address']}/models/{bundle.name}/predict?top_k=3"
        stderr.print(f"curl --data-binary @{picture} '{url}'", markup=False, soft_wrap=True)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, picture.read_bytes()), timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
        finally:
            server.send_signal(signal.SIGINT)
    stderr.print(_text_of(answer), markup=False, soft_wrap=True)
    return answer


def _text_of(answer: dict[str, Any]) -> str:
    classes = answer["predictions"][0]["classes"]
    return ", ".join(f"{ranked['class']} {ranked['probability']:.1%}" for ranked in classes)


def _command(*words: str) -> None:
    stderr.print("striate", *words, markup=False, soft_wrap=True)


def demo_pictures() -> Iterator[tuple[str, bytes]]:
    """Yields real pictures with their paths: tiles of three photos, each a class; three files with typical damage;
    1,797 handwritten digits; and some of the tiles again, each with a copy or two."""
    jpeg, png = codec.Encoding("jpeg", 92), codec.Encoding("png")
    for label, photo in demo_photos().items():
        for number, tile in enumerate(_tiles(photo)):
            yield f"photos/{label}/{label}-{number:03d}.jpg", codec.encode(tile, jpeg)[0]
    whole, _ = codec.encode(next(_tiles(demo_photos()["china"])), jpeg)
    yield "photos/china/damaged-cut-off.jpg", whole[: len(whole) // 2]
    yield "photos/flower/damaged-text.jpg", b"<html>404 Not Found</html>\n"
    drawing, _ = codec.encode(next(_tiles(demo_photos()["flower"])), png)
    yield "photos/flower/damaged-bit.png", drawing[:5000] + bytes([drawing[5000] ^ 4]) + drawing[5001:]
    digits: Any = load_digits()
    for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = np.rint(values * (255 / 16)).astype(np.uint8)[:, :, None]
        yield f"digits/{digit}/{number:04d}.png", codec.encode(pixels, png)[0]
    yield from _copies()


def _copies() -> Iterator[tuple[str, bytes]]:
    """Yields 13 tiles and 18 copies of them: half as large, of poor quality, lossless, equal, with another label."""
    jpeg, poor, png = codec.Encoding("jpeg", 92), codec.Encoding("jpeg", 40), codec.Encoding("png")
    for label, photo in demo_photos().items():
        for number, tile in enumerate(list(_tiles(photo))[::7]):
            name, data = f"{label}-{7 * number:03d}", codec.encode(tile, jpeg)[0]
            yield f"copies/{label}/{name}.jpg", data
            if number % 2 == 0:
                yield f"copies/{label}/{name}-small.jpg", codec.encode(thumbnail(tile, _TILE_PX // 2), jpeg)[0]
            if number % 2 == 1:
                yield f"copies/{label}/{name}-poor.jpg", codec.encode(tile, poor)[0]
            if number == 2:
                yield f"copies/{label}/{name}-lossless.png", codec.encode(codec.decode(data), png)[0]
            if number == 4:
                yield f"copies/{label}/{name}-again.jpg", data
            if number == 3 and label == "flower":
                yield f"copies/china/{name}.jpg", data


def demo_photos() -> dict[str, Pixels]:
    """Returns the three photos, height x width x 3, uint8, by the name of their class."""
    china, flower = (np.asarray(image) for image in load_sample_images().images)
    portrait = files("matplotlib").joinpath("mpl-data/sample_data/grace_hopper.jpg").read_bytes()
    return {"china": china, "flower": flower, "hopper": codec.decode(portrait)}


def _tiles(photo: Pixels) -> Iterator[Pixels]:
    for top in range(0, photo.shape[0] - _TILE_PX + 1, _STEP_PX):
        for left in range(0, photo.shape[1] - _TILE_PX + 1, _STEP_PX):
            yield photo[top : top + _TILE_PX, left : left + _TILE_PX]
