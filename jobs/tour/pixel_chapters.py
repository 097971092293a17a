"""The chapters that need no network: pixels, the cost of dense layers, the visual cortex, kernels, and the sandbox."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

import cv2
import numpy as np
from markupsafe import Markup

from jobs.inspection.catalogs import describe_model
from jobs.tour.chapter_parts import (
    ChapterContent,
    cells,
    enlarged,
    sheet,
    short_bytes,
    short_count,
    signed,
    weights,
)
from jobs.tour.tour_folder import TourFolder, digit, filtered_pixels, photo
from library.evaluation.report.charts import line_chart
from library.evaluation.report.templates import base64_text
from library.imaging import codec
from library.imaging.contact_sheet import thumbnail
from library.imaging.picture import Pixels
from library.steps.convolution import Convolve
from library.steps.edges import Gabor

_SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
#: Name, kernel, whether its sums are shown around grey, and what it does.
_KERNELS = (
    ("identity", ((0, 0, 0), (0, 1, 0), (0, 0, 0)), False, "Keeps each pixel: the starting point."),
    ("mean", ((1, 1, 1), (1, 1, 1), (1, 1, 1)), False, "The mean of nine pixels: a blur (divided by the sum, 9)."),
    ("Gaussian", ((1, 2, 1), (2, 4, 2), (1, 2, 1)), False, "A blur that trusts near pixels more (divided by 16)."),
    ("sharpen", ((0, -1, 0), (-1, 5, -1), (0, -1, 0)), False, "Takes the neighbours away from the pixel."),
    ("Sobel, x", _SOBEL_X, True, "Right minus left: vertical edges."),
    ("Sobel, y", ((-1, -2, -1), (0, 0, 0), (1, 2, 1)), True, "Below minus above: horizontal edges."),
    ("Prewitt, x", ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)), True, "As Sobel, with equal weights."),
    ("Laplacian", ((0, 1, 0), (1, -4, 1), (0, 1, 0)), True, "All neighbours minus the pixel: edges of any direction."),
    ("emboss", ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)), False, "Light from the lower right: a relief."),
)


def pixels(tour: TourFolder) -> ChapterContent:
    """One bit, grey, colour and many bands, with the numbers of real patches."""
    flower = np.ascontiguousarray(photo("flower")[30:350, 120:540])
    height, width = flower.shape[:2]
    steps = ('grayscale | binarize(method="otsu")', "grayscale", "rgb", "rgb | with_channels(gaussian_blur(sigma=4))")
    source = tour.raw_photos() / "flower" / "flower.png"
    _show(tour, steps[0], "flower")
    results = [filtered_pixels(text, flower) for text in steps]
    kinds = [
        ("1 bit", steps[0], width * height / 8, "black or white; a fax, a stamp, a mask"),
        ("grey", steps[1], width * height, "256 levels; an X-ray, a scan"),
        ("colour", steps[2], width * height * 3, "red, green and blue, 256 levels each"),
        (
            f"{results[3].shape[2]} bands",
            steps[3],
            results[3].nbytes,
            "satellites measure light that we do not see; here: the three colours and a blurred copy of each",
        ),
    ]
    shown = [
        (name, text, note, tour.picture(f"kind-{number}", result), result.shape, short_bytes(size))
        for number, ((name, text, size, note), result) in enumerate(zip(kinds, results, strict=True))
    ]
    three = digit(3)
    top, left = 150, 150
    patch = flower[top : top + 6, left : left + 6]
    marked = flower.copy()
    cv2.rectangle(marked, (left - 9, top - 9), (left + 14, top + 14), (255, 255, 255), 2)
    bands = [tour.picture(f"band-{number}", results[3][:, :, number : number + 1]) for number in range(6)]
    return ChapterContent(
        {
            "kinds": shown,
            "digit": tour.picture("digit", enlarged(three, 24)),
            "digit_cells": cells(three[:, :, 0]),
            "photo": tour.picture("photo", marked),
            "patch": tour.picture("patch", enlarged(patch, 24)),
            "planes": list(zip(("red", "green", "blue"), [cells(patch[:, :, band]) for band in range(3)], strict=True)),
            "bands": bands,
            "source": str(source),
        },
        {"width": width, "height": height, "bytes": {name: size for name, _, size, _ in kinds}},
    )


def _show(tour: TourFolder, steps: str, label: str | None = None) -> None:
    """Notes the command that draws what steps make of the photos, or of that of a class."""
    chosen = () if label is None else ("--label", label)
    tour.command("show", tour.photos(), *chosen, "--steps", steps, "--out", "sheet.png")


@dataclass(frozen=True)
class _Size:
    """A picture, and the weights of a dense layer that gives as many numbers as it takes."""

    name: str
    shape: str
    inputs: str
    weights: str
    memory: str


def dense(tour: TourFolder) -> ChapterContent:
    """The weights of a dense layer with as many units as inputs, for pictures of several sizes."""
    sizes = (
        ("a digit of MNIST", 28, 28, 1),
        ("a small picture", 200, 200, 1),
        ("the same in colour", 200, 200, 3),
        ("a frame of 4K video", 2160, 3840, 3),
        ("a photo of a phone, 12 megapixels", 3024, 4032, 3),
    )
    rows: list[_Size] = []
    numbers: dict[str, int] = {}
    for name, height, width, channels in sizes:
        inputs = height * width * channels
        numbers[f"{width}x{height}x{channels}"] = inputs**2
        rows.append(
            _Size(
                name,
                f"{width} x {height}" + (" x 3" if channels == 3 else ""),
                f"{inputs:,}",
                short_count(inputs**2),
                short_bytes(4 * inputs**2),
            )
        )
    call = "mlp(hidden=[40000], size=200)"
    tour.command("models", call, "--layers")
    tour.command("models", "lenet5", "--layers")
    facts, lenet = describe_model(call, layers=True), describe_model("lenet5", layers=True)
    convolution = next(layer for layer in lenet.per_layer or () if layer.dense_weights)
    gray = filtered_pixels("grayscale", photo("china")[:200, 200:400])
    moved = np.roll(gray, 20, axis=1)
    edge = Convolve(kernel=_SOBEL_X, offset=0.5)
    first, second = edge(gray), edge(moved)
    same = bool(np.array_equal(first[:, 1:-22], second[:, 21:-2]))
    tour.command("steps", "convolve([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])")
    return ChapterContent(
        {
            "rows": rows,
            "small": facts,
            "small_layer": next(layer for layer in facts.per_layer or () if layer.parameters),
            "small_count": short_count(next(layer.parameters for layer in facts.per_layer or () if layer.parameters)),
            "lenet": lenet,
            "convolution": convolution,
            "dense_weights": short_count(convolution.dense_weights or 0),
            "same": same,
            "shift_sheet": tour.png(
                "shift",
                sheet(
                    [
                        [(gray, "a picture"), (first, "its vertical edges")],
                        [(moved, "moved by 20 pixels"), (second, "its edges: moved by 20 pixels")],
                    ],
                    tile_px=220,
                ),
            ),
        },
        {"weights": numbers, "small_parameters": facts.parameters, "moved_result_is_equal": same},
    )


def cortex(tour: TourFolder) -> ChapterContent:
    """Oriented filters on a photo, and their answers to bars of every direction."""
    gray = filtered_pixels("grayscale", photo("china"))
    angles = (0, 45, 90, 135)
    named = [f"gabor(wavelength=8, angle={angle if angle <= 90 else angle - 180}, phase=0, gain=8)" for angle in angles]
    for text in (named[0], named[2]):
        _show(tour, f"grayscale | {text}", "china")
    answers = [
        (filtered_pixels(text, gray), f"lines at {angle} degrees") for text, angle in zip(named, angles, strict=True)
    ]
    kernels = [
        (enlarged(signed(Gabor(wavelength=8, angle=_wrapped(angle), phase=0).kernel(0)), 4), f"{angle} degrees")
        for angle in angles
    ]
    edges = [
        (filtered_pixels(f'edges(direction="{direction}")', gray), f"{direction} edges")
        for direction in ("vertical", "horizontal")
    ]
    _show(tour, 'grayscale | edges(direction="vertical")', "china")
    cell = Gabor(wavelength=12, angle=0, phase=0, gain=1)
    turns = list(range(-90, 91, 10))
    strength = [float(cell(_bar(turn))[40:56, 40:56].astype(np.float64).max()) for turn in turns]
    best = turns[int(np.argmax(strength))]
    chart = line_chart(
        {"answer": list(zip(map(float, turns), strength, strict=True))},
        x_title="degrees by which the bar is turned from upright",
        y_title="answer of the filter",
        show=lambda value: f"{value:.0f}",
        salt="cortex",
    )
    bars = [(_bar(turn), f"{turn} degrees: {strength[turns.index(turn)]:.0f}") for turn in (-60, -30, 0, 30, 60, 90)]
    return ChapterContent(
        {
            "photo": tour.picture("photo", gray),
            "kernels": tour.png("kernels", sheet([kernels], tile_px=180)),
            "answers": [(tour.picture(f"answer-{n}", result), text) for n, (result, text) in enumerate(answers)],
            "edges": [(tour.picture(f"edges-{n}", result), text) for n, (result, text) in enumerate(edges)],
            "bars": tour.png("bars", sheet([bars], tile_px=120)),
            "chart": chart,
            "best": best,
            "weakest": min(strength),
            "strongest": max(strength),
            "cell": "gabor(wavelength=12, angle=0, phase=0, gain=1)",
        },
        {"best_angle": best, "strongest": max(strength), "weakest": min(strength)},
    )


def _wrapped(angle: int) -> float:
    return float(angle if angle <= 90 else angle - 180)


def _bar(turn: float, side: int = 96) -> Pixels:
    """A light bar, six pixels wide, on black, turned by some degrees from upright: H x W x 1."""
    middle, turned = (side - 1) / 2, np.radians(turn)
    y, x = np.mgrid[:side, :side] - middle
    across = np.abs(x * np.cos(turned) + y * np.sin(turned))
    return np.rint(255 * np.clip(3.5 - across, 0, 1)).astype(np.uint8)[:, :, None]


def filters(tour: TourFolder) -> ChapterContent:
    """One window worked out by hand; then kernels on a photo, and a filter that no kernel can be."""
    gray = filtered_pixels("grayscale", photo("china"))
    # A place where the sum is neither 0 nor cut off: the one of which it is closest to 200.
    sums = cv2.filter2D(gray[:, :, 0], cv2.CV_32F, np.asarray(_SOBEL_X))
    inside = np.abs(sums - 200)[8:-8, 8:-8]
    row, column = (int(place) + 8 for place in np.unravel_index(int(np.argmin(inside)), inside.shape))
    window = gray[row - 1 : row + 2, column - 1 : column + 2, 0].astype(int)
    products = window * np.asarray(_SOBEL_X, int)
    total = int(products.sum())
    computed = int(Convolve(kernel=_SOBEL_X)(gray)[row, column, 0])
    shifted = int(Convolve(kernel=_SOBEL_X, offset=0.5)(gray)[row, column, 0])
    patch = gray[row - 3 : row + 4, column - 3 : column + 4]
    gallery = []
    part = np.ascontiguousarray(gray[60:260, 220:480])
    for number, (name, kernel, around_grey, effect) in enumerate(_KERNELS):
        step = Convolve(kernel=kernel, normalize=name in ("mean", "Gaussian"), offset=0.5 if around_grey else 0.0)
        if name in ("Sobel, x", "sharpen"):
            text = f"convolve({json.dumps(kernel)}{', offset=0.5' if around_grey else ''})".replace(".0", "")
            _show(tour, f"grayscale | {text}", "china")
        gallery.append((name, effect, weights(kernel), tour.picture(f"kernel-{number}", step(part)), str(step)))
    noisy = part.copy()
    generator = np.random.default_rng(0)
    drawn = generator.random(part.shape[:2])
    noisy[drawn < 0.05], noisy[drawn > 0.95] = 0, 255
    cleaned = {text: filtered_pixels(text, noisy) for text in ("box_blur(size=3)", "median_blur(size=3)")}
    errors = {text: float(np.abs(result.astype(float) - part).mean()) for text, result in cleaned.items()}
    _show(tour, "median_blur(size=3)")
    tour.command("steps", "convolve")
    noise_error = float(np.abs(noisy.astype(float) - part).mean())
    return ChapterContent(
        {
            "window": cells(window),
            "kernel": weights(_SOBEL_X),
            "products": [[f"{value:,}" for value in line] for line in products.tolist()],
            "total": total,
            "computed": computed,
            "shifted": shifted,
            "row": row,
            "column": column,
            "patch": tour.picture("patch", enlarged(patch, 32)),
            "gallery": gallery,
            "noise": [
                (tour.picture("noise", noisy), "10% of the pixels are black or white"),
                *((tour.picture(text.partition("_")[0], result), text) for text, result in cleaned.items()),
            ],
            "noise_error": noise_error,
            "errors": errors,
        },
        {"sum": total, "convolve": computed, "mean_error": {"noisy": noise_error, **errors}},
    )


def sandbox(tour: TourFolder) -> ChapterContent:
    """Sizes and strides, pooling, and the sandbox's script with its first picture."""
    gray = filtered_pixels("grayscale", photo("flower")[30:350, 120:540])
    strides = [
        (Convolve(kernel=_KERNELS[2][1], normalize=True, stride=stride)(gray), f"stride {stride}")
        for stride in (1, 2, 4, 8)
    ]
    strides = [(pixels, f"{text}: {pixels.shape[1]} x {pixels.shape[0]}") for pixels, text in strides]
    pooled = [(filtered_pixels(text, gray), text) for text in ("max_pool(size=8)", "avg_pool(size=8)")]
    pooled = [(pixels, f"{text}: {pixels.shape[1]} x {pixels.shape[0]}") for pixels, text in pooled]
    borders = [(_framed(gray, border), border) for border in ("zeros", "replicate", "reflect", "reflect_101")]
    example = "convolve([[1, 2, 1], [2, 4, 2], [1, 2, 1]], normalize=True, stride=2, padding=1)"
    _show(tour, f"grayscale | {example}", "flower")
    _show(tour, "grayscale | max_pool(size=8)", "flower")
    first = np.ascontiguousarray(thumbnail(photo("flower")[30:350, 120:540], 240))
    sizes = [
        (7, 3, 0, 1, _size(7, 3, 0, 1)),
        (7, 3, 1, 1, _size(7, 3, 1, 1)),
        (7, 3, 1, 2, _size(7, 3, 1, 2)),
        (28, 5, 2, 1, _size(28, 5, 2, 1)),
        (224, 7, 3, 2, _size(224, 7, 3, 2)),
    ]
    small = np.zeros((1, 1, 1), np.uint8)
    for side, kernel, padding, stride, size in sizes:
        step = Convolve(kernel=((1.0,) * kernel,) * kernel, normalize=True, padding=padding, stride=stride)
        result = step(np.resize(small, (side, side, 1)))
        assert result.shape[:2] == (size, size), "the formula is the step's own"
    return ChapterContent(
        {
            "strides": [(tour.picture(f"stride-{n}", result), text) for n, (result, text) in enumerate(strides)],
            "pooled": [
                (tour.picture(f"pooled-{n}", result), text)
                for n, (result, text) in enumerate([(gray, f"before: {gray.shape[1]} x {gray.shape[0]}"), *pooled])
            ],
            "borders": tour.png("borders", sheet([borders], tile_px=200)),
            "sizes": sizes,
            "picture": base64_text(codec.encode(first, codec.Encoding("png"))[0]),
            "script": Markup(files("jobs.tour").joinpath("pages/sandbox.js").read_text("utf-8")),
        },
        {"sizes": [list(line) for line in sizes]},
    )


def _size(side: int, kernel: int, padding: int, stride: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


def _framed(gray: Pixels, border: str) -> Pixels:
    """A corner of a picture with 24 pixels of padding, which a kernel of one weight makes visible."""
    corner = np.ascontiguousarray(gray[180:260, 120:200])
    return filtered_pixels(f'convolve(kernel=[[1]], padding=24, border="{border}")', corner)
