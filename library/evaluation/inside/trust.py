"""Whether a map of a picture can be trusted: the classifier is asked while its best or worst pixels are taken away.

Deletion and insertion (Petsiuk, Das, Saenko 2018, https://arxiv.org/abs/1806.07421, section 4.3). Where a map is right,
hiding its hottest pixels first lowers the probability soon (a small area under the deletion curve), and showing them
first raises it soon (a large area under the insertion curve). A map in random order is the measure of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.evaluation.inside.grad_cam import resized
from library.evaluation.inside.occlusion import class_of, fill_of, first_of
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

_STEPS = 20
_RANDOM_ORDERS = 3
#: Deviation of the blur that insertion starts from, as a fraction of the shorter side. The paper's is 5 of 224 pixels,
#: which leaves small pictures (digits) as readable as they were.
_BLUR = 1 / 8
_COLOURS = ("#2463d6", "#c2570c", "#12805c")
_DONE = {"deletion": "hidden", "insertion": "shown"}


@dataclass(frozen=True)
class Trust:
    """Curves of the probability of a class while pixels are hidden or shown in the order of a map.

    Attributes:
        class_name: the class.
        shares: of the pixels that are hidden or shown, rising from 0 to 1.
        deletion: probability with that share hidden, hottest first.
        insertion: probability with that share shown on a blurred picture, hottest first.
        random_deletion: the same in random order, the mean of several.
        random_insertion: likewise.
    """

    class_name: str
    shares: NDArray[np.float32]
    deletion: NDArray[np.float32]
    insertion: NDArray[np.float32]
    random_deletion: NDArray[np.float32]
    random_insertion: NDArray[np.float32]

    @property
    def areas(self) -> dict[str, float]:
        """Area under each curve, 0 to 1, by its name."""
        curves = {
            "deletion": self.deletion,
            "insertion": self.insertion,
            "random_deletion": self.random_deletion,
            "random_insertion": self.random_insertion,
        }
        return {name: float(np.trapezoid(curve, self.shares)) for name, curve in curves.items()}

    @property
    def verdict(self) -> str:
        """What the areas say, as a sentence."""
        areas = self.areas
        deletion = areas["random_deletion"] - areas["deletion"]
        insertion = areas["insertion"] - areas["random_insertion"]
        if deletion > 0 and insertion > 0:
            return "better than chance in both ways: its hottest pixels are those that the answer needs"
        if deletion <= 0 and insertion <= 0:
            return "no better than chance: do not read it as a reason for the answer"
        way = "hiding" if deletion > 0 else "showing"
        return f"better than chance in {way} its hottest pixels only: read it with care"


def deletion_insertion(
    bundle: Bundle,
    prepared: Prepared,
    heats: Mapping[str, NDArray[np.float32]],
    class_name: str | None = None,
    *,
    steps: int = _STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Trust]:
    """Measures how well maps rank the pixels of a picture by what they add to an answer.

    Hidden pixels get the mean colour of the training pixels. For an ensemble a map is resized to each member's input.

    Args:
        bundle: a single network or an ensemble.
        prepared: the picture, from `Bundle.prepare`.
        heats: maps by name, height x width of the first network's input; greater is hotter. Only the order counts.
        class_name: the class that they explain; None for the most probable.
        steps: in how many equal steps the pixels go or come.
        seed: of the random orders.
        progress: is called with the number of predictions that are done, and of all.

    Returns:
        The curves of each map by its name, all with the same random orders.

    Raises:
        UsageError: the bundle does not have this class.
    """
    target, class_name, _ = class_of(bundle, prepared, class_name)
    shares = np.linspace(0, 1, steps + 1, dtype=np.float32)
    fill, blurred = fill_of(bundle, prepared), _blurred(prepared)
    rng = np.random.default_rng(seed)
    height, width = first_of(prepared).shape[:2]
    noises = [rng.random((height, width), dtype=np.float32) for _ in range(_RANDOM_ORDERS)]
    whole, done = 2 * (len(heats) + _RANDOM_ORDERS) * len(shares), 0

    def curves(order: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        nonlocal done
        ranks, results = _ranks(prepared, order), list[NDArray[np.float32]]()
        for below, above in ((prepared, fill), (blurred, prepared)):
            rows = bundle.probabilities([_mixed(below, above, ranks, float(share)) for share in shares])
            results.append(np.asarray(rows[:, target], np.float32))
            done += len(shares)
            if progress is not None:
                progress(done, whole)
        return results

    found = {name: curves(heat) for name, heat in heats.items()}
    random = np.mean([curves(noise) for noise in noises], 0)
    return {
        name: Trust(class_name, shares, deletion, insertion, random[0], random[1])
        for name, (deletion, insertion) in found.items()
    }


def _ranks(prepared: Prepared, heat: NDArray[np.float32]) -> Prepared:
    """The place of each pixel in the order of a map, as a fraction: 0 for the hottest. As large as each input."""
    if isinstance(prepared, tuple):
        return tuple(_ranks(part, heat) for part in prepared)
    height, width = prepared.shape[:2]
    order = np.argsort(-resized(heat, height, width), axis=None, kind="stable")
    ranks = np.empty(height * width)
    ranks[order] = np.arange(len(order)) / len(order)
    return ranks.reshape(height, width, 1)


def _mixed(below: Prepared, above: Prepared, ranks: Prepared, share: float) -> Prepared:
    """`below`, with the hottest share of its pixels from `above`."""
    if isinstance(below, tuple):
        return tuple(_mixed(*parts, share) for parts in zip(below, above, ranks, strict=True))
    mixed: Pixels = np.where(np.asarray(ranks) < share - 1e-6, np.asarray(above), below)
    return mixed


def _blurred(prepared: Prepared) -> Prepared:
    if isinstance(prepared, tuple):
        return tuple(_blurred(part) for part in prepared)
    sigma = _BLUR * min(prepared.shape[:2])
    # OpenCV blurs at most four channels of some types at a time.
    bands: Sequence[Pixels] = [
        cv2.GaussianBlur(np.ascontiguousarray(prepared[:, :, band]), (0, 0), sigma) for band in range(prepared.shape[2])
    ]
    return np.stack(bands, 2)


def draw_trust(trusts: Mapping[str, Trust]) -> NDArray[np.uint8]:
    """Draws the deletion and insertion curves of maps side by side, with those of random orders.

    Args:
        trusts: of one picture and class, by the name of the map.

    Returns:
        Height x width x 3.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", {"font.size": 9, "font.family": "DejaVu Sans"}]):
        figure = Figure((9.4, 3.4), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for axes, name, title in zip(
            figure.subplots(1, 2, sharey=True),
            ("deletion", "insertion"),
            ("Deletion: hottest pixels hidden first", "Insertion: hottest pixels shown first"),
            strict=True,
        ):
            for (words, trust), colour in zip(trusts.items(), _COLOURS, strict=False):
                label = f"{words}: area {trust.areas[name]:.2f}"
                axes.plot(trust.shares, getattr(trust, name), color=colour, lw=2, label=label)
            last = list(trusts.values())[-1]
            label = f"random order: area {last.areas['random_' + name]:.2f}"
            axes.plot(last.shares, getattr(last, f"random_{name}"), color="#5b6576", lw=1.5, ls="--", label=label)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel=f"share of the pixels {_DONE[name]}")
            axes.set_ylabel("probability" if name == "deletion" else "")
            axes.grid(color="#dfe3ea")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8.5)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
