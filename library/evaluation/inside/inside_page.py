"""The page of `striate inspect`: sections of drawings with a text that says how to read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.evaluation.report.templates import base64_text, template

_MEASURE = (
    "The measure is the same map at 24 other places of the picture (dashed: the mean; shaded: the range); better than "
    "chance is only what beats all of them."
)
#: What the page and the guide say about each part, in the order of the page.
READING: Mapping[str, str] = {
    "stages": "What each stage hands to the next, and the part of the picture that one element of it depends on, with "
    "the padding outside. These are the stages that freeze counts in a recipe.",
    "kernels": "What the first layer looks for in pixels. Trained kernels show edges, bars and colours; hardly trained "
    "ones are noise.",
    "heat": "Which parts of the picture count. Grad-CAM follows the gradient of the class back to the last maps; "
    "occlusion hides one part after another and asks the classifier again, which costs more and assumes nothing.",
    "trust": "Whether the maps above deserve belief: the probability while the hottest pixels are hidden (it should "
    f"fall soon) or shown on a blurred picture (it should rise soon). {_MEASURE}",
    "road": "Whether the maps above deserve belief: the probability while the hottest pixels are taken away (it should "
    "fall soon) or are the only ones left (it should rise soon); those that are missing are filled in from their "
    f"neighbours. {_MEASURE}",
    "maps": "What each stage makes of the picture, from the input on: first lines and colours at their places, then "
    "parts, at last coarse maps of whole objects. Each map is drawn from its least (dark) to its greatest value.",
    "fields": "Which pixels one unit of each stage can see at all. Deep units see more than the picture; the part of a "
    "field that lies outside is padding.",
    "patches": "The parts of the dataset's pictures that excite a unit most, each cut out as its receptive field. What "
    "they have in common is what the unit looks for.",
    "embedding": "Each picture lies where the features before the last layers put it: neighbours look alike to the "
    "network. A picture among those of another class is a likely error, in the network or in the labels.",
    "confused": "Pairs of classes by the pictures of one that are taken for the other, with those that are given the "
    "greatest probability of the wrong class.",
}


@dataclass(frozen=True)
class Figure:
    """One drawing of the page.

    Attributes:
        file: name of its PNG beside the page.
        data: the PNG.
        alt: what it shows, for screen readers.
        caption: under it; empty for none.
    """

    file: str
    data: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        part: its key in `READING`.
        title: its heading.
        figures: its drawings; empty where `note` says why there are none.
        note: a sentence on the result.
        tables: above the drawings.
    """

    part: str
    title: str
    figures: Sequence[Figure]
    note: str = ""
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Chapter:
    """Sections about one thing: the network, one picture, or a dataset."""

    id: str
    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


#: As inside.html names the PNG of a drawing; names that lead out of the folder do not match.
_FILE = re.compile(r'<span class="key">([A-Za-z0-9_-]+\.png)</span>')


def files_of(page: str) -> list[str]:
    """The names of the PNG files that a page of `render_inside` has beside it."""
    return _FILE.findall(page)


def render_inside(title: str, facts: Sequence[tuple[str, str]], chapters: Sequence[Chapter], footer: str) -> str:
    """Returns the page as one HTML document that holds its drawings.

    Args:
        title: its heading.
        facts: names and values under the heading.
        chapters: in order.
        footer: a line with date and version.
    """
    return template("library.evaluation.inside", "inside.html").render(
        title=title, facts=facts, chapters=chapters, footer=footer, reading=READING, base64=base64_text
    )
