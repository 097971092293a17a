"""The chapters that train networks: the layers of LeNet-5, dense against convolutional, augmentation, transfer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.inspection.catalogs import describe_model
from jobs.inspection.show import contact_sheet
from jobs.tour.chapter_parts import ChapterContent, enlarged, mean_text, sheet, signed, stretched
from jobs.tour.tour_folder import TourFolder, Trained, digit
from library import storage
from library.dataset.manifest import load_manifest
from library.dataset.shards import ShardReader
from library.evaluation.report.charts import line_chart
from library.imaging import codec

_SEEDS = (0, 1, 2)
_MLP = "mlp(hidden=[300, 100])"
#: Randomness that keeps the meaning of a digit, and one that does not.
_GENTLE = "rotate(10) | shift(0.07, 0.07)"
_FLIPPED = 'flip(p=0.5) | flip(direction="vertical", p=0.5)'
#: The lab of the Image Data Generator: name, call, and what it imitates.
_LAB = (
    ("rotate", "rotate(25)", "a camera that is not level"),
    ("shift", 'shift(0.2, 0.2, fill="edge")', "a subject that is not in the middle"),
    ("shear", "shear(20)", "a view from the side"),
    ("zoom", "zoom(0.3)", "a subject nearer or farther away"),
    ("flip", "flip(p=0.5)", "the same scene from the other side"),
    ("brightness", "brightness(0.4)", "another hour of the day"),
    ("channel_shift", "channel_shift(0.2)", "another lamp"),
    ("random_erase", "random_erase(p=1)", "something in front of the subject"),
)
_PRETRAIN_CLASSES = tuple("01234")
_NEW_CLASSES = tuple("56789")
_FEW = 0.07
_MOST_MOVED = 5


def layers(tour: TourFolder) -> ChapterContent:
    """A digit on its way through the trained LeNet-5."""
    from library.bundle.bundle import Bundle
    from library.evaluation.inside.recording import feature_maps

    lenet = _lenet(tour, 0)
    bundle = Bundle.load(str(lenet.bundle))
    tour.command("models", "lenet5", "--layers")
    facts = describe_model("lenet5", layers=True)
    file = tour.raw_digits() / "3" / "0003.png"
    tour.command("predict", lenet.bundle, file)
    data = file.read_bytes()
    prediction = bundle.predict(data)
    prepared = bundle.prepare(data)
    assert isinstance(prepared, np.ndarray), "a single network takes one array"
    stages = []
    for number, maps in enumerate(feature_maps(bundle.model, prepared)):
        values = np.asarray(maps.values)
        count, height, width = values.shape
        drawn = _maps_sheet(values) if maps.is_map else _units_sheet(values.reshape(-1))
        size = f"{count} maps of {width} x {height}" if maps.is_map else f"{count} numbers"
        stages.append((maps.stage, size, tour.png(f"stage-{number}", drawn)))
    first = next(module for name, module in bundle.model.net.named_modules() if name == "c1")
    kernels = np.asarray(first.weight.detach().numpy()[:, 0], np.float64)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return ChapterContent(
        {
            "input": tour.picture("input", enlarged(prepared, 8)),
            "original": tour.picture("original", enlarged(digit(3), 28)),
            "stages": stages,
            "kernels": tour.png(
                "kernels",
                sheet(
                    [[(enlarged(signed(kernel), 20), f"kernel {n}") for n, kernel in enumerate(kernels, 1)]],
                    tile_px=100,
                ),
            ),
            "rows": facts.per_layer,
            "facts": facts,
            "ranked": prediction.classes,
            "accuracy": lenet.accuracy,
            "tested": lenet.tested,
        },
        {"accuracy": lenet.accuracy, "tested": lenet.tested, "answer": dict(prediction.classes)},
    )


def _maps_sheet(maps: NDArray[np.float32], most: int = 16) -> bytes:
    tiles = [(enlarged(stretched(plane), 4), f"map {number}") for number, plane in enumerate(maps[:most], 1)]
    return sheet([tiles[start : start + 8] for start in range(0, len(tiles), 8)], tile_px=112)


def _units_sheet(values: NDArray[np.float32]) -> bytes:
    strip = stretched(np.resize(values, (1, values.size)))
    return codec.encode(np.repeat(enlarged(np.repeat(strip, 5, 0), 7), 3, 2), codec.Encoding("png"))[0]


def _lenet(tour: TourFolder, seed: int) -> Trained:
    data = tour.digits()
    return tour.train("lenet", (), train_on=data / "train", test_on=data / "test", seed=seed)


def digits(tour: TourFolder) -> ChapterContent:
    """The perceptron beside LeNet-5 on the same pictures, with three seeds each."""
    data = tour.digits()
    train_on, test_on = data / "train", data / "test"
    mlps = [tour.train("mlp", (f"model={_MLP}",), train_on=train_on, test_on=test_on, seed=seed) for seed in _SEEDS]
    lenets = [_lenet(tour, seed) for seed in _SEEDS]
    tour.command("evaluate", lenets[0].bundle, mlps[0].bundle, test_on, "--report", tour.folder / "report")
    rows = [
        (name, describe_model(call).parameters, _per_seed(trained), mean_text([one.accuracy for one in trained]))
        for name, call, trained in (("MLP, 784-300-100-10", _MLP, mlps), ("LeNet-5", "lenet5", lenets))
    ]
    moved = _when_moved(mlps, lenets, test_on)
    differences = [100 * (lenet.accuracy - mlp.accuracy) for mlp, lenet in zip(mlps, lenets, strict=True)]
    return ChapterContent(
        {
            "rows": rows,
            "train": lenets[0].pictures,
            "test": lenets[0].tested,
            "one": 100 / lenets[0].tested,
            "differences": differences,
            "moved": moved,
            "ahead": sum(lenet > mlp for _, mlp, lenet in moved[1:]),
            "most_ahead": max(0.0, *(100 * (lenet - mlp) for _, mlp, lenet in moved[1:])),
            "moved_chart": line_chart(
                {name: [(float(row[0]), row[part]) for row in moved] for part, name in ((1, "MLP"), (2, "LeNet-5"))},
                x_title="pixels to the right",
                y_title="accuracy on moved digits",
                show=lambda value: f"{value:.0%}",
                salt="moved",
            ),
            "accuracy_chart": _chart({"MLP": mlps[0], "LeNet-5": lenets[0]}, 3),
            "loss_chart": line_chart(
                {
                    "training": [(float(point[0]), point[1]) for point in lenets[0].curve],
                    "validation": [(float(point[0]), point[2]) for point in lenets[0].curve],
                },
                x_title="epoch",
                y_title="loss of LeNet-5",
                show=lambda value: f"{value:.1f}",
                salt="digits loss",
            ),
            "epochs": len(lenets[0].curve),
            "seeds": len(_SEEDS),
        },
        {
            "mlp": [one.accuracy for one in mlps],
            "lenet5": [one.accuracy for one in lenets],
            "moved": moved,
            "train": lenets[0].pictures,
            "test": lenets[0].tested,
        },
    )


def _when_moved(mlps: Sequence[Trained], lenets: Sequence[Trained], test_on: Path) -> list[tuple[int, float, float]]:
    """Mean accuracies of two kinds of networks on the test digits moved to the right: pixels, first, second."""
    from library.bundle.bundle import Bundle

    pairs = [
        (row["image"]["bytes"], row["label"])
        for shard in load_manifest(str(test_on)).shards
        for table in ShardReader(storage.join(str(test_on), shard.name))
        for row in table.select(["image", "label"]).to_pylist()
    ]
    accuracies: list[list[float]] = []
    for kind in (mlps, lenets):
        bundles = [Bundle.load(str(one.bundle)) for one in kind]
        prepared = np.stack([np.asarray(bundles[0].prepare(data)) for data, _ in pairs])
        truth = np.array([bundles[0].record.classes.index(label) for _, label in pairs])
        means: list[float] = []
        for pixels in range(_MOST_MOVED + 1):
            shifted = np.roll(prepared, pixels, axis=2)
            shifted[:, :, :pixels] = 0
            right = [bundle.probabilities(list(shifted)).argmax(1) == truth for bundle in bundles]
            means.append(float(np.mean(right)))
        accuracies.append(means)
    return [(pixels, accuracies[0][pixels], accuracies[1][pixels]) for pixels in range(_MOST_MOVED + 1)]


def _per_seed(trained: Sequence[Trained]) -> str:
    return ", ".join(f"{one.accuracy:.1%}" for one in trained)


def _chart(trained: Mapping[str, Trained], part: int, salt: str = "accuracy") -> object:
    return line_chart(
        {name: [(float(point[0]), float(point[part])) for point in one.curve] for name, one in trained.items()},
        x_title="epoch",
        y_title="validation accuracy",
        show=lambda value: f"{value:.0%}",
        salt=salt,
    )


def augmentation(tour: TourFolder) -> ChapterContent:
    """Contact sheets of each augmentation, and what augmentation gains where pictures are few."""
    photos = tour.filtered("squares", tour.photos(ingested=True), "center_crop(420) | resize(280)")
    lab: list[tuple[str, str, str, str]] = []
    for name, text, imitates in _LAB:
        drawn = contact_sheet(str(photos), text, augment=5, count=1, label="china", tile_px=150, seed=0)
        options = ("--label", "china", "--count", "1", "--augment", "5", "--steps", text, "--out", "sheet.png")
        tour.command("show", photos, *options)
        lab.append((name, text, imitates, tour.png(name, drawn.png)))
    data = tour.digits()
    few = tour.filtered("few", data / "train", f"sample({_FEW})")
    arms = (("none", "no augmentation", ""), ("gentle", _GENTLE, _GENTLE), ("flipped", _FLIPPED, _FLIPPED))
    results: dict[str, list[Trained]] = {}
    for name, _, text in arms:
        settings = ["epochs=40", *((f"augment={json.dumps(text)}",) if text else ())]
        results[name] = [
            tour.train(f"few-{name}", settings, train_on=few, test_on=data / "test", seed=seed) for seed in _SEEDS
        ]
    base = results["none"]
    rows = [
        (
            shown,
            _per_seed(results[name]),
            mean_text([one.accuracy for one in results[name]]),
            _gain(base, results[name]),
        )
        for name, shown, _ in arms
    ]
    sheets = [
        (
            text,
            tour.png(f"digits-{name}", contact_sheet(str(few), text, augment=6, count=2, tile_px=96, seed=0).png),
        )
        for name, _, text in arms
        if text
    ]
    return ChapterContent(
        {
            "lab": lab,
            "rows": rows,
            "sheets": sheets,
            "few": base[0].pictures,
            "tested": base[0].tested,
            "epochs": len(base[0].curve),
            "chart": _chart({name: results[name][0] for name, _, _ in arms}, 3, "augmentation"),
        },
        {
            "pictures": base[0].pictures,
            "tested": base[0].tested,
            **{name: [one.accuracy for one in trained] for name, trained in results.items()},
        },
    )


def _runs_ahead(these: Sequence[Trained], those: Sequence[Trained]) -> int:
    """The number of seeds with which the first of two ways is more accurate than the second."""
    return sum(one.accuracy > other.accuracy for one, other in zip(these, those, strict=True))


def _gain(base: Sequence[Trained], other: Sequence[Trained]) -> str:
    gains = [100 * (one.accuracy - first.accuracy) for first, one in zip(base, other, strict=True)]
    if not any(gains):
        return ""
    return f"{sum(gains) / len(gains):+.1f} points ({min(gains):+.1f} to {max(gains):+.1f})"


def transfer(tour: TourFolder) -> ChapterContent:
    """A network that has learned five digits, explored, used and re-trained on the five others."""
    from library.bundle.bundle import Bundle

    data = tour.digits()
    train_on, test_on = data / "train", data / "test"
    known, new = (f"data.classes={json.dumps(list(names))}" for names in (_PRETRAIN_CLASSES, _NEW_CLASSES))
    base = tour.train("first-five", (known, f"augment={_GENTLE}"), train_on=train_on, test_on=test_on)
    few = tour.filtered("few", train_on, f"sample({_FEW})")
    strange = _test_files(tour)
    bundle = Bundle.load(str(base.bundle))
    tour.command("predict", base.bundle, *(file for _, file in strange[:3]))
    answers = [(label, file, bundle.predict(file.read_bytes())) for label, file in strange]
    confusion = _confusion([(label, answer.best) for label, _, answer in answers])
    sure = [answer.classes[0][1] for _, _, answer in answers]
    examples = [
        (tour.picture(f"strange-{label}", enlarged(codec.decode(file.read_bytes()), 12)), label, answer.classes[:2])
        for label, file, answer in (next(one for one in answers if one[0] == label) for label in _NEW_CLASSES)
    ]
    weights = f"weights={base.bundle}"
    arms = (
        ("scratch", "", "from the beginning: random weights", ()),
        ("use", "use all", "lab 2, use: all weights frozen, a new last layer",
         (weights, "freeze=all", "optimizer.lr=0.03")),
        ("first", "use the first two layers", "lab 2, use the first two layers: they are frozen, the others learn",
         (weights, "freeze=2")),
        ("retrain", "re-train", "lab 3, re-train: every weight may change", (weights,)),
    )  # fmt: skip
    results = {
        name: [
            tour.train(
                f"last-five-{name}",
                (new, "epochs=40", "batch_size=8", *settings),
                train_on=few,
                test_on=test_on,
                seed=seed,
            )
            for seed in _SEEDS
        ]
        for name, _, _, settings in arms
    }
    scratch = results["scratch"]
    return ChapterContent(
        {
            "base": base,
            "examples": examples,
            "known": _PRETRAIN_CLASSES,
            "confusion": confusion,
            "strange": len(strange),
            "sure": sum(sure) / len(sure),
            "rows": [
                (
                    text,
                    _per_seed(results[name]),
                    mean_text([one.accuracy for one in results[name]]),
                    _gain(scratch, results[name]),
                )
                for name, _, text, _ in arms
            ],
            "runs": len(_SEEDS),
            "ahead": {short: _runs_ahead(results[name], scratch) for name, short, *_ in arms[1:]},
            "behind": {short: _runs_ahead(scratch, results[name]) for name, short, *_ in arms[1:]},
            "first_ahead": _runs_ahead(results["first"], results["use"]),
            "first_behind": _runs_ahead(results["use"], results["first"]),
            "few": scratch[0].pictures,
            "tested": scratch[0].tested,
            "chart": _chart(
                {"from the beginning": scratch[0], "use": results["use"][0], "re-train": results["retrain"][0]},
                3,
                "transfer",
            ),
        },
        {
            "first_five": base.accuracy,
            "pictures": scratch[0].pictures,
            "tested": scratch[0].tested,
            "mean_confidence_in_wrong_classes": sum(sure) / len(sure),
            **{name: [one.accuracy for one in trained] for name, trained in results.items()},
        },
    )


def _test_files(tour: TourFolder) -> list[tuple[str, Path]]:
    """Digits that the first network has no class for, twenty of each class, with their labels."""
    root = tour.raw_digits()
    return [(label, file) for label in _NEW_CLASSES for file in sorted((root / label).glob("*.png"))[:20]]


def _confusion(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[int]]]:
    """For each class of `_NEW_CLASSES`, how often each class of the first network was its answer."""
    return [
        (label, [sum(pair == (label, answer) for pair in pairs) for answer in _PRETRAIN_CLASSES])
        for label in _NEW_CLASSES
    ]
