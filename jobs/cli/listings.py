"""Commands that list what there is: steps and models."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster.console import Json, Terminal, say
from jobs import output
from jobs.cli.options import Plugins
from library import storage
from library.errors import UsageError

if TYPE_CHECKING:  # all steps, and PyTorch, take seconds to import
    from jobs.inspection.catalogs import ModelFacts
    from jobs.inspection.side_by_side import Measuring
    from library.models.analysis import Layer
    from library.steps.help import StepHelp


def steps_command(
    step: Annotated[str | None, typer.Argument(help="Name of a step, or a call: clahe(clip_limit=4).")] = None,
    out: Annotated[
        str | None,
        typer.Option(help="PNG file for its example picture.", show_default="NAME.png in the current folder"),
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """List all steps with their parameters; or describe one step and write an example picture to a PNG file.

    striate steps

    striate steps "clahe(clip_limit=4)" --out clahe.png
    """
    from jobs.inspection.catalogs import describe_step, example_picture
    from library.steps.help import step_table

    if step is None:
        if out is not None:
            raise UsageError("--out goes with one step: striate steps clahe --out clahe.png")
        table = step_table()
        output.emit_json(table) if json else _print_steps(table)
        return
    described = describe_step(step)
    png, verdict = example_picture(step)
    path = out or f"{described.name}.png"
    storage.write_bytes(storage.normalize(path), png)
    if json:
        output.emit_json({**asdict(described), "picture": path, "picture_result": verdict})
    else:
        _print_step(described, path, verdict)


def models_command(
    model: Annotated[str | None, typer.Argument(help="Name of a model, or a call: resnet50(in_chans=4).")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    input_size: Annotated[
        str | None,
        typer.Option("--input", help="Height x width of the input in pixels.", show_default="the model's own"),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes.", show_default="as published")] = None,
    plot: Annotated[
        bool,
        typer.Option("--plot", help="Draw all models side by side: accuracy, size, cost, years. A page and PNG files."),
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="Folder for the page of --plot.", show_default="models in the current folder")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --plot: measure how many pictures a second this machine answers.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="With --measure: pictures of a batch.", show_default="8")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="With --measure: auto, cpu, cuda or cuda:1.", show_default="auto")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=600, help="With --measure: seconds for each model, after a first batch.", show_default="3"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List all models; or describe one model, its layers, receptive fields and cost; or draw all side by side.

    All figures are computed from the model, but accuracy, which is as others published it. One multiply-add counts as
    two FLOPs; many papers count it as one.

        striate models

        striate models vgg16 --layers --input 200x200

        striate models 'timm("convnext_tiny")'

        striate models --plot --measure --out out/models
    """
    from library.models import parse_call

    given = {"--out": out, "--measure": measure or None, "--batch-size": batch_size, "--device": device,
             "--seconds": seconds}  # fmt: skip
    measuring_only = {"--batch-size": batch_size, "--device": device, "--seconds": seconds}
    _refuse({} if plot else given, "--plot", "striate models --plot --measure")
    _refuse({} if measure else measuring_only, "--measure", "striate models --plot --measure --seconds 5")
    if plot:
        if model is not None or layers or input_size is not None or classes is not None:
            raise UsageError("--plot draws all models as published: leave out MODEL, --layers, --input and --classes")
        _plot_models(out or "models", _measuring(batch_size, device, seconds) if measure else None, json=json)
        return
    if model is not None:
        parse_call(model)  # an unknown name is reported before torch is imported, which takes seconds
    from jobs.inspection.catalogs import describe_model, model_table, parse_size

    if model is None:
        if layers or input_size is not None or classes is not None:
            raise UsageError("--layers, --input and --classes go with one model: striate models vgg16 --layers")
        table = model_table()
        output.emit_json([model.to_dict() for model in table]) if json else _print_table(table)
        return
    size = None if input_size is None else parse_size(input_size)
    described = describe_model(model, size=size, classes=classes, layers=layers)
    output.emit_json(described.to_dict()) if json else _print_model(described)


def _refuse(given: Mapping[str, object], beside: str, example: str) -> None:
    """Refuses options that have no effect.

    Raises:
        UsageError: one of them is given.
    """
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UsageError(f"{' and '.join(names)} {'goes' if len(names) == 1 else 'go'} with {beside}: {example}")


def _measuring(batch_size: int | None, device: str | None, seconds: float | None) -> Measuring:
    from jobs.inspection.side_by_side import Measuring
    from library.models.throughput import chosen_device

    return Measuring(batch_size or 8, chosen_device(device or "auto"), 3.0 if seconds is None else seconds)


def _plot_models(out: str, measuring: Measuring | None, *, json: bool) -> None:
    from jobs.inspection.side_by_side import check_folder, compare_models, write_page

    folder = check_folder(out)
    compared = compare_models(measuring, lambda line: say(line, file=sys.stderr, flush=True))
    written = write_page(compared, folder)
    if json:
        output.emit_json({**compared.to_dict(), "written": written})
        return
    if measuring is not None:
        say(f"measured on {compared.machine}")
    for uri in written:
        say(f"wrote {uri}")


def _print_steps(steps: Sequence[Mapping[str, str]]) -> None:
    """Prints the table of steps."""
    console = Terminal()
    for kind, title in (
        ("filter", "filters: pixels to pixels"),
        ("selector", "selectors: keep a picture, or drop it with a reason"),
        ("augmentation", "augmentations: pixels to pixels, random"),
    ):
        chosen = [step for step in steps if step["kind"] == kind]
        if chosen:
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
            for step in chosen:
                call = f"[bold]{step['name']}[/]" + escape(f"({step['parameters']})" if step["parameters"] else "")
                table.add_row(call, escape(step["summary"]))
            console.print(table)
            console.print()
    console.print("`striate steps NAME` describes one and writes an example picture")


def _print_step(step: StepHelp, picture: str, picture_result: str) -> None:
    """Prints one step with all its parameters."""
    console = Terminal()
    console.print(f"[bold]{step.name}[/] ({step.kind})")
    console.print(escape(step.help))
    table = Table(box=None, pad_edge=False)
    for heading in ("parameter", "default", "type", ""):
        table.add_column(heading)
    for parameter in step.parameters:
        default = "required" if parameter.default is None else parameter.default
        table.add_row(parameter.name, *(escape(text) for text in (default, parameter.type, parameter.help)))
    if step.parameters:
        console.print(table)
    console.print(f"example: {escape(step.example)}", soft_wrap=True)
    console.print(f"wrote the example picture {escape(picture)} ({escape(picture_result)})", soft_wrap=True)


def _print_table(table: Sequence[ModelFacts]) -> None:
    console = Terminal()
    columns = ("", ">", ">", ">", ">", ">")
    rows = [
        (
            model.name,
            str(model.year or ""),
            _beside(model, "layers"),
            _beside(model, "parameters"),
            _gflops(model),
            "x".join(map(str, (*model.input_size[1:], model.input_size[0]))),
        )
        for model in table
    ]
    heading = ("model", "year", "layers", "parameters", "GFLOPs", "input")
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]

    def line(cells: Sequence[str]) -> str:
        parts = [f"{cell:{align}{width}}" for cell, align, width in zip(cells, columns, widths, strict=True)]
        return "  ".join(parts)

    console.print(f"[bold]{line(heading)}[/]", soft_wrap=True)
    for model, row in zip(table, rows, strict=True):
        console.print(f"[bold]{escape(row[0])}[/]{escape(line(row)[len(row[0]) :])}", soft_wrap=True)
        weights = f"{model.source} {model.library_name}" if model.weights_source else "no weights"
        where = f"[link={model.paper}]{escape(_short(model.paper))}[/link]" if model.paper else "no paper"
        authors = _short_authors(model.authors) if model.authors else "ours"
        console.print(f"  [dim]{escape(authors)}; {where}; {escape(weights)}[/]", soft_wrap=True)
    console.print()
    console.print(
        "layers: convolutions and dense layers on the longest path. In brackets: the paper's own figure, where it "
        "differs. One multiply-add counts as two FLOPs; papers' figures are doubled to match. Second line: authors, "
        "paper, source of pre-trained weights."
    )
    console.print(
        '`striate models NAME` describes one, `--layers` lists its layers; timm("NAME") is any other model of timm.'
    )


def _print_model(model: ModelFacts) -> None:
    console = Terminal()
    size = "x".join(map(str, (*model.input_size[1:], model.input_size[0])))
    lines = {
        "paper": "; ".join(part for part in (model.authors, str(model.year or ""), model.title) if part),
        "": model.paper,
        "code": f"{model.source} {model.library_name}".strip(),
        "weights": model.weights_source or "none are published",
        "layers": _beside(model, "layers"),
        "parameters": _beside(model, "parameters") + f" with {model.num_classes:,} classes",
        "GFLOPs": _gflops(model) + f" for one picture of {size} (one multiply-add is two FLOPs)",
        "accuracy": _accuracy(model),
        "pixels": f"mean {_numbers(model.mean)}, std {_numbers(model.std)}, for 0 to 1; "
        f"{model.interpolation} resizing, the middle {model.crop_fraction:.0%}",
        "stages": ", ".join(model.stages) + "  (freeze: N freezes the first N)",
        "in training": ", ".join(f"{name}, its loss times {share}" for name, share in model.auxiliary_heads.items()),
        "differs": model.note,
    }
    console.print(f"[bold]{escape(model.call)}[/]", soft_wrap=True)
    for name, text in lines.items():
        if text:
            console.print(f"{name:12} {escape(text)}", soft_wrap=True)
    for choice in model.choices:
        console.print(
            f"{'parameter':12} {choice.name}={escape(str(choice.value))}  {escape(choice.help)}",
            soft_wrap=True,
        )
    if model.per_layer is not None:
        console.print()
        _print_layers(console, model.per_layer, model.parameters)


def _accuracy(model: ModelFacts) -> str:
    one = model.accuracy
    if one is None:
        return ""
    trained = f", trained in {one.trained}" if one.trained else ""
    return (
        f"{one.top1:.1f}% top-1, {one.top5:.1f}% top-5 of the weights on ImageNet at {one.size} px{trained}, as "
        f"published: {one.source}"
    )


def _print_layers(console: Terminal, layers: Sequence[Layer], parameters: int) -> None:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold", min_width=12)
    table.add_column("kind", no_wrap=True)
    for heading in ("output", "parameters", "field\npx", "connec-\ntions", "if\ndense"):
        table.add_column(heading, justify="right", no_wrap=True)
    norms = 0
    for layer in layers:
        if layer.kind.endswith("norm"):
            norms += layer.parameters
            continue
        height, width = layer.receptive_field
        table.add_row(
            escape(layer.name.removeprefix("net.")),
            layer.kind,
            "x".join(map(str, (*layer.output[1:], layer.output[0]))),
            f"{layer.parameters:,}" if layer.parameters else "",
            str(height) if height == width else f"{height}x{width}",
            _short_number(layer.connections) if layer.connections else "",
            _short_number(layer.dense_weights) if layer.dense_weights else "",
        )
    console.print(table)
    listed = sum(layer.parameters for layer in layers)
    console.print()
    if norms:
        console.print(f"normalisation layers, not listed, have {norms:,} parameters")
    if listed != parameters:
        console.print(f"{parameters - listed:,} parameters belong to no layer")
    console.print(
        "field px: side of the receptive field in input pixels. connections: inputs of all outputs, a bias counts as "
        "one. if dense: weights of a fully connected layer with the same inputs and outputs."
    )


def _beside(model: ModelFacts, figure: str) -> str:
    """Returns the computed figure, and in brackets the published one if it differs."""
    text = f"{getattr(model, figure):,}"
    return text + f" ({_short_number(model.published[figure])})" if figure in model.differs else text


def _gflops(model: ModelFacts) -> str:
    text = f"{model.flops / 1e9:.3g}"
    if "multiply_adds" in model.differs:
        text += f" ({2 * model.published['multiply_adds'] / 1e9:.3g})"
    return text


def _short_number(number: int) -> str:
    """Returns `138 M`: three digits and a unit; below ten thousand the whole number."""
    if number < 10_000:
        return f"{number:,}"
    value = float(number)
    for unit in ("", " k", " M", " G", " T", " P"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} E"


def _short(paper: str) -> str:
    for start, short in (("https://arxiv.org/abs/", "arXiv "), ("https://doi.org/", "doi "), ("https://", "")):
        if paper.startswith(start):
            return short + paper.removeprefix(start).rstrip("/")
    return paper


def _short_authors(authors: str) -> str:
    listed = authors.split(", ")
    return authors if len(listed) <= 2 else f"{listed[0]} et al."


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"({shown}{', ...' if len(values) > 4 else ''})"
