"""`striate export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.console import Json, say
from jobs import output

if TYPE_CHECKING:  # it imports torch, which only the command itself waits for
    from jobs.export import Written


def export_command(
    bundle: Annotated[str, typer.Argument(help="Bundle: a folder or s3://.")],
    file_format: Annotated[
        Literal["onnx", "torch-export"], typer.Option("--format", help="ONNX, or a .pt2 for torch.export.load.")
    ] = "onnx",
    out: Annotated[
        str | None, typer.Option(help="File to write, here or in a store.", show_default="NAME.onnx or NAME.pt2 here")
    ] = None,
    json: Json = False,
) -> None:
    """Write a bundle as one file for other programs, and check it against the bundle.

    The file takes pictures of the model's size as they are stored (uint8, N x height x width x channels) and gives
    probabilities, N x classes. Class names, the bundle's id and the text of its input pipeline are in the metadata. It
    is run before it is written: where an answer differs by more than float32 explains, there is no file, and the exit
    code is 1.

        striate export out/catsdogs

        striate export out/catsdogs --format torch-export --out s3://models/catsdogs.pt2
    """
    from jobs.export import write_export

    written = write_export(bundle, file_format, out)
    output.emit_json(written.described()) if json else _print(written)


def _print(written: Written) -> None:
    made, classes = written.exported, written.bundle.classes
    say(f"{written.path}: {made.format}, {output.size(len(made.data))}, of bundle {written.bundle.id[:12]}")
    for one in made.inputs:
        pipeline = " | ".join(part for part in (one.steps, one.fit) if part)
        say(f"  {one.name}: uint8, N x {one.size[0]} x {one.size[1]} x {one.channels}, pictures after {pipeline}")
    say(f"  probabilities: float32, N x {len(classes)}")
    batches = ", ".join(map(str, made.batches))
    say(
        f"checked in batches of {batches}: largest difference of a probability {made.difference:.2g}, "
        f"{made.allowed:g} is allowed"
    )
