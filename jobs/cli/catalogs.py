"""`striate models`: the table of models, and one model layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cluster.console import Json, Terminal
from jobs import output
from library.errors import UsageError


def models_command(
    model: Annotated[str | None, typer.Argument(help="A model's name, or a call: resnet50(in_chans=4).")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    input_size: Annotated[
        str | None, typer.Option("--input", help="Height x width of its pictures.", show_default="its own")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="How many classes.", show_default="as published")] = None,
    json: Json = False,
) -> None:
    """List the models; or show one, with its layers, their receptive fields and what they cost.

    All figures are computed from the model. One multiply-add is two FLOPs, as for processors; many papers count one.

        striate models

        striate models vgg16 --layers --input 200x200

        striate models 'timm("convnext_tiny")'
    """
    from library.models import parse_call

    if model is not None:
        parse_call(model)  # a mistyped name is told at once: what follows imports torch, which takes seconds
    from jobs.models import describe_model, model_table, parse_size

    if model is None:
        if layers or input_size is not None or classes is not None:
            raise UsageError("--layers, --input and --classes go with one model: striate models vgg16 --layers")
        table = model_table()
        output.emit_json(table) if json else _print_table(table)
        return
    size = None if input_size is None else parse_size(input_size)
    described = describe_model(model, size=size, classes=classes, layers=layers)
    output.emit_json(described) if json else _print_model(described)


def _print_table(table: Sequence[Mapping[str, Any]]) -> None:
    console = Terminal()
    columns = ("", ">", ">", ">", ">", ">")
    rows = [
        (
            model["name"],
            str(model["year"]),
            _beside(model, "layers"),
            _beside(model, "parameters"),
            _gflops(model),
            "x".join(map(str, (*model["input_size"][1:], model["input_size"][0]))),
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
        weights = f"{model['source']} {model['library_name']}" if model["weights_source"] else "no weights"
        where = f"[link={model['paper']}]{escape(_short(model['paper']))}[/link]"
        console.print(
            f"  [dim]{escape(_short_authors(model['authors']))}; {where}; {escape(weights)}[/]", soft_wrap=True
        )
    console.print()
    console.print(
        "layers: convolutions and dense layers on the longest way through. In brackets: the paper's own figure, where "
        "it differs. One multiply-add is two FLOPs; papers' figures are doubled to match. Below each: by whom, paper, "
        "whose pre-trained weights."
    )
    console.print('`striate models NAME` shows one, `--layers` every layer; timm("NAME") is any other model of timm.')


def _print_model(model: Mapping[str, Any]) -> None:
    console = Terminal()
    size = "x".join(map(str, (*model["input_size"][1:], model["input_size"][0])))
    lines = {
        "paper": "; ".join(part for part in (model["authors"], str(model["year"] or ""), model["title"]) if part),
        "": model["paper"],
        "code": f"{model['source']} {model['library_name']}".strip(),
        "weights": model["weights_source"] or "none are published",
        "layers": _beside(model, "layers"),
        "parameters": _beside(model, "parameters") + f" with {model['num_classes']:,} classes",
        "GFLOPs": _gflops(model) + f" for one picture of {size} (one multiply-add is two FLOPs)",
        "pixels": f"mean {_numbers(model['mean'])}, std {_numbers(model['std'])}, for 0 to 1; "
        f"{model['interpolation']} resizing, the middle {model['crop_fraction']:.0%}",
        "stages": ", ".join(model["stages"]) + "  (freeze: N stops the first N)",
        "in training": ", ".join(f"{name}, its loss times {share}" for name, share in model["auxiliary_heads"].items()),
        "differs": model["note"],
    }
    console.print(f"[bold]{escape(model['call'])}[/]", soft_wrap=True)
    for name, text in lines.items():
        if text:
            console.print(f"{name:12} {escape(text)}", soft_wrap=True)
    for choice in model["choices"]:
        console.print(
            f"{'parameter':12} {choice['name']}={escape(str(choice['value']))}  {escape(choice['help'])}",
            soft_wrap=True,
        )
    if "per_layer" in model:
        console.print()
        _print_layers(console, model)


def _print_layers(console: Terminal, model: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold", min_width=12)
    table.add_column("kind", no_wrap=True)
    for heading in ("output", "parameters", "sees\npx", "connec-\ntions", "if\ndense"):
        table.add_column(heading, justify="right", no_wrap=True)
    norms = 0
    for layer in model["per_layer"]:
        if layer["kind"].endswith("norm"):
            norms += layer["parameters"]
            continue
        sees = layer["receptive_field"]
        table.add_row(
            escape(layer["name"].removeprefix("net.")),
            layer["kind"],
            "x".join(map(str, (*layer["output"][1:], layer["output"][0]))),
            f"{layer['parameters']:,}" if layer["parameters"] else "",
            str(sees[0]) if sees[0] == sees[1] else f"{sees[0]}x{sees[1]}",
            _short_number(layer["connections"]) if layer["connections"] else "",
            _short_number(layer["dense_weights"]) if layer["dense_weights"] else "",
        )
    console.print(table)
    listed = sum(layer["parameters"] for layer in model["per_layer"])
    console.print()
    if norms:
        console.print(f"normalisation layers, left out above, have {norms:,} parameters")
    if listed != model["parameters"]:
        console.print(f"{model['parameters'] - listed:,} parameters stand beside the layers")
    console.print(
        "sees px: side of the receptive field in pixels of the input. connections: inputs of every output, a bias "
        "counted as one. if dense: weights of a fully connected layer from the same inputs to the same outputs."
    )


def _beside(model: Mapping[str, Any], figure: str) -> str:
    """The computed figure, and the published one in brackets where it differs."""
    text = f"{model[figure]:,}"
    return text + f" ({_short_number(model['published'][figure])})" if figure in model["differs"] else text


def _gflops(model: Mapping[str, Any]) -> str:
    text = f"{model['flops'] / 1e9:.3g}"
    if "multiply_adds" in model["differs"]:
        text += f" ({2 * model['published']['multiply_adds'] / 1e9:.3g})"
    return text


def _short_number(number: int) -> str:
    """`138 M`: three digits; whole below ten thousand."""
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
