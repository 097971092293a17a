"""Whether a map of a picture can be trusted: the classifier is asked while its best or worst pixels are taken away.

Deletion and insertion (Petsiuk, Das, Saenko 2018, https://arxiv.org/abs/1806.07421, section 4.3). Where a map is right,
hiding its hottest pixels first lowers the probability soon (a small area under the deletion curve), and showing them
first raises it soon (a large area under the insertion curve). We add the measure of both: the same map, shifted to
other places of the picture. Pixels in random order would be none, since a scatter of points breaks a network sooner,
and makes it recognise a picture later, than a spot does, whatever the spot hides.

With `road`, pixels are removed as in ROAD (Rong et al. 2022, https://arxiv.org/abs/2202.00449): filled in from their
neighbours. Deletion is then its removal of the most relevant pixels first, and insertion, read from its end, that of
the least relevant ones first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.evaluation.inside.grad_cam import resized
from library.evaluation.inside.imputation import imputed
from library.evaluation.inside.occlusion import class_of, fill_of, first_of
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

_STEPS = 10
#: Places of a map along each side: its own, and shifted by fifths of the side. A map that lies anywhere by chance is
#: the best of its 25 copies in 1 case of 25; `_odds` says what rounded fifths make of that.
_PLACES = 5
_BATCH = 32
#: Deviation of the blur that insertion starts from, as a fraction of the shorter side. The paper's is 5 of 224 pixels,
#: which leaves small pictures (digits) as readable as they were.
_BLUR = 1 / 8
_COLOURS = ("#2463d6", "#c2570c", "#12805c")
#: Title and axis of each drawing; true for pictures with hidden and blurred parts and for those of `road`.
_AXES = {
    "deletion": ("Deletion: without the hottest pixels", "share of the pixels that are missing"),
    "insertion": ("Insertion: with only the hottest pixels", "share of the pixels that are there"),
}
#: Areas closer than this are the same: batches of other sizes differ in the last bits.
_SAME = 1e-6


@dataclass(frozen=True)
class Trust:
    """Curves of the probability of a class while pixels are hidden or shown in the order of a map.

    Pixels that are hidden have the mean colour, and those that are not yet shown are blurred; with `road` both are
    filled in from their neighbours.

    Attributes:
        class_name: the class.
        shares: of the pixels that are hidden or shown, rising from 0 to 1.
        deletion: probability with that share hidden, hottest first.
        insertion: probability with only that share shown, hottest first.
        shifted_deletion: copies x shares: deletion in the orders of the map shifted to other places.
        shifted_insertion: copies x shares: insertion in these orders.
        odds: N, where a map at a random place beats all its copies in one way in at most 1 of N cases.
    """

    class_name: str
    shares: NDArray[np.float32]
    deletion: NDArray[np.float32]
    insertion: NDArray[np.float32]
    shifted_deletion: NDArray[np.float32]
    shifted_insertion: NDArray[np.float32]
    odds: int

    @property
    def areas(self) -> dict[str, float]:
        """Area under each curve, 0 to 1, by its name; of the shifted copies the mean area."""
        curves = {
            "deletion": self.deletion,
            "insertion": self.insertion,
            "shifted_deletion": self.shifted_deletion,
            "shifted_insertion": self.shifted_insertion,
        }
        return {name: float(np.mean(np.trapezoid(curve, self.shares))) for name, curve in curves.items()}

    @property
    def beaten(self) -> dict[str, int]:
        """How many shifted copies the map beats: by a smaller area under deletion, a larger one under insertion."""
        areas = self.areas
        deletion = np.trapezoid(self.shifted_deletion, self.shares)
        insertion = np.trapezoid(self.shifted_insertion, self.shares)
        return {
            "deletion": int((deletion > areas["deletion"] + _SAME).sum()),
            "insertion": int((insertion < areas["insertion"] - _SAME).sum()),
        }

    @property
    def verdict(self) -> str:
        """What the areas say, as a sentence.

        A map is better than chance in a way if it beats all its shifted copies. A map that lies anywhere by chance
        does so both ways in at most 1 case of `odds`, and in one way or the other in at most 2.
        """
        copies, beaten = len(self.shifted_deletion), self.beaten
        ways = [way for way, count in beaten.items() if count == copies]
        counts = f"of its {copies} copies at other places it beats {beaten['deletion']} in hiding its hottest pixels "
        counts += f"and {beaten['insertion']} in showing them"
        if len(ways) == 2:
            chance = f"as a map by chance does in at most 1 case of {self.odds}"
            return f"better than chance in both ways: {counts}, {chance}"
        if not ways:
            return f"no better than chance: {counts}; do not read it as a reason for the answer"
        way = "hiding" if ways == ["deletion"] else "showing"
        return (
            f"better than chance in {way} its hottest pixels only: {counts}, as up to 1 map of {self.odds // 2} by "
            "chance; read it with care"
        )


def deletion_insertion(
    bundle: Bundle,
    prepared: Prepared,
    heats: Mapping[str, NDArray[np.float32]],
    class_name: str | None = None,
    *,
    steps: int = _STEPS,
    road: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Trust]:
    """Measures how well maps rank the pixels of a picture by what they add to an answer.

    Deletion gives pixels the mean colour of the training pixels. Insertion starts from a blurred picture and makes
    pixels sharp. With `road` what is missing is filled in from its neighbours in both. For an ensemble a map is resized
    to each member's input. Each map takes 50 x (`steps` - 1) predictions, and with `road` as many sparse systems (half
    a minute in all for 224 pixels and ten steps).

    Args:
        bundle: a single network or an ensemble.
        prepared: the picture, from `Bundle.prepare`.
        heats: maps by name, height x width of the first network's input; greater is hotter. Only the order counts.
        class_name: the class that they explain; None for the most probable.
        steps: in how many equal steps the pixels go or come.
        road: whether hidden pixels are filled in from their neighbours.
        progress: is called with the number of predictions that are done, and of all.

    Returns:
        The curves of each map by its name, with those of its 24 shifted copies.

    Raises:
        UsageError: the bundle does not have this class.
    """
    target, class_name, _ = class_of(bundle, prepared, class_name)
    shares = np.linspace(0, 1, steps + 1, dtype=np.float32)
    fill = fill_of(bundle, prepared)
    whole = len(heats) * _PLACES**2 * 2 * (steps - 1)
    done = 0

    def probabilities(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        return np.asarray(bundle.probabilities(pictures)[:, target], np.float32)

    # All orders begin and end with the same pictures.
    flat = _mixed(prepared, fill, _ranks(prepared, np.zeros(first_of(prepared).shape[:2], np.float32)), 1)
    without = flat if road else _blurred(prepared)
    at_ends = probabilities([prepared, flat, without])

    def at(way: str, ranks: Prepared, share: float) -> Prepared:
        if road:
            return _imputed(prepared, fill, ranks, share, hottest=way == "deletion")
        below, above = (prepared, fill) if way == "deletion" else (without, prepared)
        return _mixed(below, above, ranks, share)

    def curves(orders: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Returns the curves of deletion and insertion, 2 x orders x shares."""
        nonlocal done
        result, parts = np.empty((len(orders), 2, len(shares)), np.float32), list[NDArray[np.float32]]()
        result[:, :, 0], result[:, :, -1] = at_ends[[0, 2]], at_ends[[1, 0]]
        ranked = (_ranks(prepared, order) for order in orders)
        ways = ("deletion", "insertion")
        pictures = (at(way, ranks, float(share)) for ranks in ranked for way in ways for share in shares[1:-1])
        while batch := list(islice(pictures, _BATCH)):
            parts.append(probabilities(batch))
            done += len(batch)
            if progress is not None:
                progress(done, whole)
        if parts:
            result[:, :, 1:-1] = np.concatenate(parts).reshape(len(orders), 2, -1)
        return result.swapaxes(0, 1)

    trusts: dict[str, Trust] = {}
    for name, heat in heats.items():
        deletion, insertion = curves([heat, *_shifted(heat)])
        odds = _odds(*heat.shape)
        trusts[name] = Trust(class_name, shares, deletion[0], insertion[0], deletion[1:], insertion[1:], odds)
    return trusts


def _offsets(side: int) -> list[int]:
    """By how many pixels a map is shifted along a side."""
    return [round(number * side / _PLACES) for number in range(_PLACES)]


def _odds(height: int, width: int) -> int:
    """In at most 1 of how many places of a picture a smooth map is better than its shifted copies.

    Shifted by a fifth of a side, a map and its copies change places, so one of the five along a side is the best: 1 of
    25 in all. Where fifths are rounded, it can be the best in a part of the side as wide as the largest distance of two
    neighbouring copies.
    """
    gaps = [max(np.diff([*_offsets(side), side])) for side in (height, width)]
    return int(height * width // (gaps[0] * gaps[1]))


def _shifted(heat: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The map moved to all other places of a 5 x 5 grid; what leaves the picture comes in on the other side."""
    rows, columns = (_offsets(side) for side in heat.shape)
    return [np.roll(heat, (row, column), (0, 1)) for row in rows for column in columns][1:]


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
    mixed: Pixels = np.where(_hottest(ranks, share), np.asarray(above), below)
    return mixed


def _hottest(ranks: Prepared, share: float) -> NDArray[np.bool_]:
    """Which pixels are the hottest share, height x width x 1."""
    return np.asarray(ranks) < share - 1e-6


def _imputed(prepared: Prepared, fill: Prepared, ranks: Prepared, share: float, *, hottest: bool) -> Prepared:
    """The picture without the hottest share of its pixels, or without all others, filled in from what is left."""
    if isinstance(prepared, tuple):
        parts = zip(prepared, fill, ranks, strict=True)
        return tuple(_imputed(*part, share, hottest=hottest) for part in parts)
    removed = (_hottest(ranks, share) == hottest)[:, :, 0]
    if removed.all():  # in pictures of a few pixels
        return _mixed(prepared, fill, ranks, 1)
    return imputed(prepared, removed)


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
    """Draws the curves of maps for deletion and insertion: dashed the mean of their copies, shaded the range.

    Args:
        trusts: of one picture and class, by the name of the map.

    Returns:
        Height x width x 3.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", {"font.size": 9, "font.family": "DejaVu Sans"}]):
        figure = Figure((9.4, 4.4), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for axes, (name, (title, share)) in zip(figure.subplots(1, 2, sharey=True), _AXES.items(), strict=True):
            for (words, trust), colour in zip(trusts.items(), _COLOURS, strict=False):
                label = f"{words}: area {trust.areas[name]:.2f}"
                axes.plot(trust.shares, getattr(trust, name), color=colour, lw=2, label=label)
                copies: NDArray[np.float32] = getattr(trust, f"shifted_{name}")
                label = f"shifted: {trust.areas['shifted_' + name]:.2f}, beaten {trust.beaten[name]} of {len(copies)}"
                axes.plot(trust.shares, copies.mean(0), color=colour, lw=1.3, ls="--", label=label)
                axes.fill_between(trust.shares, copies.min(0), copies.max(0), color=colour, alpha=0.08, lw=0)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel=share)
            axes.set_ylabel("probability" if name == "deletion" else "")
            axes.grid(color="#dfe3ea")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, -0.17))
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
