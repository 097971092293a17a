"""`striate tour`: the chapters of the book, what makes each of them, and its pages.

result = run_tour(Path("out/tour"))               # every chapter, or those that a killed tour had still to make
result = run_tour(Path("out/tour"), ["sandbox"])  # one
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.connection.session import connect
from jobs.output import stderr
from jobs.progress.display import duration
from jobs.tour import pixel_chapters, training_chapters, usage_chapters
from jobs.tour.chapter_parts import ChapterContent
from jobs.tour.tour_folder import TourFolder
from jobs.train.run_folder import training_versions
from library import storage
from library.dataset.manifest import VERSIONS
from library.errors import UsageError
from library.evaluation.report.templates import PAGE, check_report, template
from library.grammar import nearest

_COMMAND = "striate tour"
#: Until chapters of this weight are finished, the weights count more than the time that the chapters have taken.
_TRUSTED_WEIGHT = 40


@dataclass(frozen=True)
class Chapter:
    """One chapter of the book.

    Attributes:
        name: as `--only` takes it; names its template, `pages/NAME.html`.
        title: on its page.
        summary: a sentence on the first page.
        make: makes its pictures and numbers.
        needs_ray: whether it runs jobs, so that Ray is started.
        weight: about how many seconds it takes on two cores, for the estimate of what is left.
    """

    name: str
    title: str
    summary: str
    make: Callable[[TourFolder], ChapterContent]
    needs_ray: bool = False
    weight: int = 1


#: In the order of the book.
CHAPTERS = (
    Chapter("pixels", "Pixels are numbers", "What a picture is to a computer: one bit, grey, colour, many bands.",
            pixel_chapters.pixels),
    Chapter("dense", "Why fully connected layers do not scale", "A weight for every pair of pixels is too many: "
            "the numbers for a small picture, a 4K frame and a phone's photo.", pixel_chapters.dense),
    Chapter("cortex", "An idea from the visual cortex", "Cells that answer to lines of one direction, and filters "
            "that do the same.", pixel_chapters.cortex),
    Chapter("filters", "Filters and kernels", "The numbers of one patch worked out by hand, then nine kernels on a "
            "photo.", pixel_chapters.filters),
    Chapter("sandbox", "Stride, padding, pooling", "How large the result is, and a sandbox for your own picture and "
            "kernel.", pixel_chapters.sandbox),
    Chapter("layers", "The layers of a network", "One digit on its way through LeNet-5, stage by stage.",
            training_chapters.layers, needs_ray=True, weight=12),
    Chapter("digits", "Dense layers against convolutions", "Two networks on the same handwritten digits, three times "
            "each.", training_chapters.digits, needs_ray=True, weight=50),
    Chapter("augmentation", "More pictures from few", "Rotate, shift, shear, zoom, flip: what they look like, what "
            "they gain, and when they hurt.", training_chapters.augmentation, needs_ray=True, weight=90),
    Chapter("family", "The family of networks", "From LeNet-5 to today: layers, weights and work, computed from the "
            "networks themselves.", usage_chapters.family, weight=8),
    Chapter("transfer", "Transfer learning", "Explore a trained network, use it, train it further; measured on digits "
            "that it has never seen.", training_chapters.transfer, needs_ray=True, weight=120),
    Chapter("serving", "Serving", "A trained network answers over HTTP: a real request and its answer.",
            usage_chapters.serving, needs_ray=True, weight=20),
    Chapter("search", "Which filter helps?", "A search that measures it, with intervals and a placebo, on digits with "
            "noise.", usage_chapters.search, needs_ray=True, weight=110),
)  # fmt: skip


@dataclass(frozen=True)
class TourResult:
    """The pages of a tour.

    Attributes:
        page: path of the first page.
        chapters: by name, in the order of the book: path of its page, commands, numbers, and seconds that it took.
        resumed: names of the chapters that an earlier run had made.
    """

    page: str
    chapters: dict[str, dict[str, Any]]
    resumed: list[str]


@dataclass(frozen=True)
class _Made:
    """A finished chapter, as `chapters/NAME.json` holds it.

    Attributes:
        digest: of everything that the chapter is made from.
        body: HTML.
        commands: that give what it shows.
        numbers: that it states.
        seconds: that it took.
    """

    digest: str
    body: str
    commands: list[str]
    numbers: dict[str, Any]
    seconds: float


def run_tour(folder: Path, only: Sequence[str] = ()) -> TourResult:
    """Makes the chapters that are not finished, and writes the pages of all that are.

    Args:
        folder: gets `index.html`, a page a chapter, and what they are made from.
        only: names of the chapters to make; empty for all.

    Raises:
        UsageError: a chapter does not exist, the folder holds something else, or a file is in its place.
    """
    unknown = [name for name in only if name not in {chapter.name for chapter in CHAPTERS}]
    if unknown:
        names = [chapter.name for chapter in CHAPTERS]
        raise UsageError(
            f"--only {unknown[0]}: there is no such chapter{nearest(unknown[0], names)}; they are {', '.join(names)}"
        )
    uri = storage.normalize(str(folder))
    if storage.is_remote(uri):
        raise UsageError(f"--out {folder}: the tour is written to a folder on this machine")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / "chapters").is_dir():
        raise UsageError(f"--out {folder} contains other files; name an empty folder")
    check_report(uri, [], _COMMAND)
    finished = {chapter.name: found for chapter in CHAPTERS if (found := _finished(folder, chapter)) is not None}
    wanted = [chapter for chapter in CHAPTERS if not only or chapter.name in only]
    resumed = [chapter.name for chapter in wanted if chapter.name in finished]
    missing = [chapter for chapter in wanted if chapter.name not in finished]
    started, done = time.monotonic(), 0
    # Marks the folder as a tour's before anything else is in it, so that a killed tour can resume.
    (folder / "chapters").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if any(chapter.needs_ray for chapter in missing):
            stack.enter_context(connect())
        for number, chapter in enumerate(missing, 1):
            left = _left(time.monotonic() - started, done, sum(one.weight for one in missing))
            line = f"chapter {number} of {len(missing)}: {chapter.title}, about {duration(left)} left"
            stderr.print(line, markup=False)
            finished[chapter.name] = _make(folder, chapter)
            _write_pages(folder, finished)
            done += chapter.weight
    _write_pages(folder, finished)
    return TourResult(
        page=str(folder / PAGE),
        chapters={
            chapter.name: {
                "page": str(folder / _file(chapter)),
                "commands": finished[chapter.name].commands,
                "numbers": finished[chapter.name].numbers,
                "seconds": round(finished[chapter.name].seconds, 1),
            }
            for chapter in wanted
        },
        resumed=resumed,
    )


def _left(spent_s: float, done: int, whole: int) -> float:
    """Returns about how many seconds are left; the first chapters are too short to say how fast this machine is.

    Args:
        spent_s: on the chapters that are finished.
        done: their weights together.
        whole: those of all chapters.
    """
    return (spent_s + _TRUSTED_WEIGHT) / (done + _TRUSTED_WEIGHT) * (whole - done)


def _make(folder: Path, chapter: Chapter) -> _Made:
    started = time.monotonic()
    tour = TourFolder(folder, chapter.name)
    content = chapter.make(tour)
    body = template("jobs.tour", f"pages/{chapter.name}.html").render(**content.values)
    result = _Made(_digest(chapter), body, tour.commands, dict(content.numbers), time.monotonic() - started)
    # Written last: its presence says that the chapter is complete.
    storage.write_bytes(
        storage.normalize(str(_record(folder, chapter))), json.dumps(asdict(result), ensure_ascii=False).encode()
    )
    return result


def _record(folder: Path, chapter: Chapter) -> Path:
    return folder / "chapters" / f"{chapter.name}.json"


def _finished(folder: Path, chapter: Chapter) -> _Made | None:
    """Reads a chapter that an earlier run completed; None if there is none, or this version would write another."""
    try:
        record = _Made(**json.loads(_record(folder, chapter).read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # absent, or damaged: it is made again
        return None
    return record if record.digest == _digest(chapter) else None


def _digest(chapter: Chapter) -> str:
    """Identifies what a chapter is made from: the tour's code and recipe, its text, and the versions of packages."""
    tour = files("jobs.tour")
    pages = tour.joinpath("pages")
    sources = sorted((one for one in tour.iterdir() if one.name.endswith(".py")), key=lambda one: one.name)
    texts = [pages.joinpath(name) for name in (f"{chapter.name}.html", "parts.html", "recipe.yaml", "sandbox.js")]
    digest = hashlib.sha256(json.dumps(VERSIONS | training_versions(), sort_keys=True).encode())
    for part in (*sources, *texts):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def _file(chapter: Chapter) -> str:
    number = next(number for number, one in enumerate(CHAPTERS, 1) if one.name == chapter.name)
    return f"{number:02d}-{chapter.name}.html"


def _write_pages(folder: Path, finished: Mapping[str, _Made]) -> None:
    """Writes the page of each finished chapter, and the first page that lists them."""
    shown = [chapter for chapter in CHAPTERS if chapter.name in finished]
    frame = template("jobs.tour", "pages/frame.html")
    ways = [(chapter, _file(chapter)) for chapter in shown]
    for place, chapter in enumerate(shown):
        one = finished[chapter.name]
        html = frame.render(
            title=chapter.title,
            number=CHAPTERS.index(chapter) + 1,
            body=Markup(one.body),  # its template has escaped the values
            commands=one.commands,
            before=ways[place - 1] if place else None,
            after=ways[place + 1] if place + 1 < len(ways) else None,
            seconds=one.seconds,
            version=VERSIONS["striate"],
        )
        _write(folder / _file(chapter), html)
    index = template("jobs.tour", "pages/contents.html").render(
        title="The tour",
        chapters=[(chapter, _file(chapter), CHAPTERS.index(chapter) + 1) for chapter in shown],
        absent=[chapter for chapter in CHAPTERS if chapter.name not in finished],
        version=VERSIONS["striate"],
        folder=shlex.quote(str(folder)),
    )
    _write(folder / PAGE, index)


def _write(path: Path, html: str) -> None:
    storage.write_bytes(storage.normalize(str(path)), html.encode())
