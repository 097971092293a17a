"""The command that looks inside a classifier: inspect."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from cluster.console import Json, Terminal, say, visible
from jobs import output
from jobs.cli.options import Bundle, LabelsColumn, Plugins
from jobs.progress.display import duration
from library.extras import check_installed

_LINE_EVERY_S = 10.0


def inspect_command(
    bundle: Bundle,
    out: Annotated[str, typer.Option(help="Folder or s3:// for the page and its PNG files.")],
    pictures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PICTURE]...",
            help="Pictures to explain: files or s3://. Without any, a few of --data.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Dataset for the map of pictures, confused classes, and the patches that excite units most.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="The most pictures of --data, at equal distances over all of it; at most 2,000.", show_default="400"
        ),
    ] = None,
    labels: LabelsColumn = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Class whose evidence is drawn.", show_default="the most probable"),
    ] = None,
    road: Annotated[
        bool,
        typer.Option(
            "--road",
            help="Fill in hidden pixels from their neighbours (ROAD) for the measure of trust; half a minute for "
            "each map of a picture of 224 pixels.",
        ),
    ] = False,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--no-gpu", help="Whether to compute on a GPU.", show_default="if there is a GPU"),
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Look inside a classifier: what its layers see, which parts of a picture count, and whether to believe that.

    For the network: the kernels of the first layer. For each picture: feature maps stage by stage, Grad-CAM and
    occlusion, a measure of trust in both (deletion and insertion), and receptive fields. For a dataset: a map of its
    pictures, confused classes, and the patches that excite units most. Works for every model and for ensembles, whose
    members are drawn one by one. An unusable picture is reported, and the exit code is 1.

        striate inspect out/lenet seven.png --data out/mnist/test --out out/inside

        striate inspect out/catsdogs cat.jpg dog.jpg --class cat --out out/inside

        striate inspect out/tags --data out/val --labels tags --out s3://pages/inside
    """
    for package in ("torch", "sklearn", "matplotlib", "jinja2"):
        check_installed(package, "striate inspect")
    from jobs.inspection.look_inside import plan_inspect, run_inspect

    plan = plan_inspect(
        bundle, pictures or (), out=out, dataset=data, limit=limit, labels=labels, class_name=class_name, road=road
    )
    device = "auto" if gpu is None else "cuda" if gpu else "cpu"
    with _Steps() as steps:
        numbers = run_inspect(plan, device=device, report=steps)
    for failed in numbers["failed"]:
        say(f"{visible(failed['file'])}: {failed['reason']}: {failed['detail']}", file=sys.stderr)
    if json:
        output.emit_json(numbers)
    else:
        _print(numbers)
    if numbers["failed"]:
        raise typer.Exit(1)


def _print(numbers: dict[str, Any]) -> None:
    for picture in numbers["pictures"]:
        answers = ", ".join(f"{visible(one['class'])} {one['probability']:.1%}" for one in picture["classes"])
        say(f"{visible(picture['file'])}: {answers}")
        for name, trust in picture["trust"].items():
            say(f"  {name}: {trust['verdict']}")
    for pair in numbers.get("data", {}).get("confused", ())[:3]:
        say(
            f"{visible(pair['label'])} taken for {visible(pair['predicted'])}: {pair['errors']:,} of "
            f"{pair['pictures']:,}, mean probability {pair['mean_probability']:.1%}"
        )
    say(f"wrote {output.counted(len(numbers['files']), 'picture')}; open {numbers['page']} in a browser")


class _Steps:
    """Shows which part is computed: a live line on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self._console = Terminal(stderr=True)
        self._status = self._console.status("loading the network") if self._console.is_terminal else None
        self._part, self._first = "", 0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> _Steps:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, part: str, done: int, of: int) -> None:
        now = time.monotonic()
        if part != self._part:
            self._part, self._start, self._first = part, now, done
        seconds = max(now - self._start, 1e-6)
        rate = (done - self._first) / seconds
        left = f", {rate:,.0f}/s, {duration((of - done) / rate)} left" if rate else ""
        text = f"inspect: {part}, {done:,}/{of:,}{left}"
        if self._status is not None:
            self._status.update(visible(text))
        elif now - self._said >= _LINE_EVERY_S:
            self._said = now
            say(visible(text), file=sys.stderr, flush=True)
