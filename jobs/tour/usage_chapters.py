"""The chapters on networks in practice: their family with its figures, a served one that answers, the filter search."""

from __future__ import annotations

import json
import shlex

import numpy as np
import yaml

from jobs.demo.demo import served
from jobs.inspection.catalogs import ModelFacts, model_table
from jobs.inspection.side_by_side import FAMILIES, compare_models, draw_charts
from jobs.search.running import run_search
from jobs.search.search_plan import plan_search
from jobs.tour.chapter_parts import ChapterContent, enlarged, short_count
from jobs.tour.tour_folder import TourFolder, filtered_pixels
from library.evaluation.report.charts import interval_chart
from library.imaging import codec

#: Share of pixels that are black or white in the digits of the search.
_NOISE = 0.3
#: Of the search; the space is narrow so that it is decided in this time.
_BUDGET = "150s"
_SPACE = {
    "filters": [
        "median_blur(size=3)",
        "gaussian_blur(sigma=1.0)",
        "sharpen(amount=1.0)",
        "equalize",
        'edges(direction="all")',
    ],
    "places": ["always"],
    "length": 1,
    "placebos": 1,
}


def family(tour: TourFolder) -> ChapterContent:
    """Every model of the catalogue, with figures that are computed from the network itself."""
    tour.command("models")
    tour.command("models", "--plot", "--out", tour.folder / "models")
    tour.command("models", "resnet50", "--layers")
    table = model_table()
    dated = [model for model in table if model.year is not None]
    compared = compare_models(None, lambda line: None)
    charts = draw_charts(compared)
    widest = max(table, key=lambda one: one.parameters)
    busiest = max(table, key=lambda one: one.multiply_adds)
    return ChapterContent(
        {
            "rows": [
                (model, _size(model), short_count(model.parameters), short_count(model.multiply_adds))
                for model in table
            ],
            "differing": [model for model in table if model.differs],
            "count": len(table),
            "widest": widest,
            "widest_count": short_count(widest.parameters),
            "busiest": busiest,
            "busiest_count": short_count(busiest.multiply_adds),
            "first": dated[0],
            "families": list(FAMILIES),
            "accuracy": charts["accuracy_by_multiply_adds"].markup,
            "time_line": charts["time_line"].markup,
        },
        {"models": {model.name: [model.layers, model.parameters, model.multiply_adds] for model in table}},
    )


def _size(model: ModelFacts) -> str:
    channels, height, width = model.input_size
    return f"{width} x {height} x {channels}"


def serving(tour: TourFolder) -> ChapterContent:
    """Serves LeNet-5 on this machine, sends it a picture, and shows the request and the answer."""
    data = tour.digits()
    lenet = tour.train("lenet", (), train_on=data / "train", test_on=data / "test")
    picture = tour.raw_digits() / "7" / "0007.png"
    tour.command("serve", lenet.bundle)
    answer = served(lenet.bundle, picture)
    ranked = [(one["class"], one["probability"]) for one in answer["predictions"][0]["classes"]]
    return ChapterContent(
        {
            "picture": tour.picture("asked", enlarged(codec.decode(picture.read_bytes()), 16)),
            "file": shlex.quote(f"@{picture}"),
            "model": lenet.bundle.name,
            "answer": json.dumps(answer, indent=2),
            "ranked": ranked,
        },
        {"answer": answer},
    )


def search(tour: TourFolder) -> ChapterContent:
    """Digits with salt and pepper, and what the filter search says about them."""
    source, dataset = tour.folder / "raw" / "noisy", tour.folder / "data" / "noisy"
    # Says how they were made, as another tour may have made others here.
    complete, description = tour.folder / "raw" / "noisy.complete", f"{_NOISE:g} of the pixels of 28 x 28"
    is_complete = complete.exists() and complete.read_text("utf-8") == description
    if not is_complete:
        complete.unlink(missing_ok=True)
    drawn = np.random.default_rng(0)
    examples: list[tuple[str, str]] = []
    for file in sorted(tour.raw_digits().glob("*/*.png")):
        pixels = filtered_pixels('resize([28, 28], mode="exact")', codec.decode(file.read_bytes()))
        noise = drawn.random(pixels.shape[:2])
        pixels = pixels.copy()
        pixels[noise < _NOISE / 2], pixels[noise > 1 - _NOISE / 2] = 0, 255
        target = source / file.relative_to(tour.raw_digits())
        if not is_complete:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(codec.encode(pixels, codec.Encoding("png"))[0])
        if file.name in ("0003.png", "0007.png"):
            examples.append((tour.picture(file.stem, enlarged(pixels, 5)), "with noise"))
            median = filtered_pixels("median_blur(size=3)", pixels)
            examples.append((tour.picture(f"{file.stem}-median", enlarged(median, 5)), "after median_blur(size=3)"))
    complete.write_text(description, encoding="utf-8")
    tour.ingest(source, dataset, split="train=0.6,val=0.4")
    space, out = tour.folder / "recipes" / "space.yaml", tour.folder / "search"
    space.parent.mkdir(parents=True, exist_ok=True)
    space.write_text(yaml.safe_dump(_SPACE, sort_keys=False), encoding="utf-8")
    train, val = dataset / "train", dataset / "val"
    # Few passes, so that eight paired trainings of each finalist fit into the budget.
    recipe = str(tour.recipe("search", ("epochs=4",), train_on=train, test_on=val))
    options = ("--recipe", recipe, "--space", space, "--seeds", "8", "--budget", _BUDGET, "--out", out)
    tour.command("search", train, "--val", val, *options)
    plan = plan_search(str(train), str(val), out=str(out), budget=_BUDGET, space=str(space), recipe=recipe, seeds=8)
    report = run_search(plan).report
    gains = report.answer.gains
    return ChapterContent(
        {
            "examples": examples,
            "noise": _NOISE,
            "filters": _SPACE["filters"],
            "sentence": report.answer.sentence,
            "rows": [(gain.candidate.name, gain.accuracy, gain.text, gain.verdict) for gain in gains],
            "identity": gains[0].identity if gains else None,
            "chart": interval_chart(
                [(gain.candidate.name, 100 * gain.mean, _points(gain.interval)) for gain in gains],
                margin=100 * gains[0].margin if gains else 0.0,
                x_title="gain in percentage points",
                salt="search",
            ),
            "page": "search/index.html",
            "trainings": report.trainings,
            "budget": _BUDGET,
            "unfinished": report.unfinished,
        },
        {"sentence": report.answer.sentence, "outcome": report.answer.outcome, "trainings": report.trainings},
    )


def _points(interval: tuple[float, float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]
