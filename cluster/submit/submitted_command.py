"""Parses a striate command that will run on a cluster, and checks what can be checked without running it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.submit.upload import Tree
from library.errors import UsageError

#: Commands about clusters run only on the user's own machine.
_STAY_HERE = ("submit", "jobs", "logs", "stop", "cluster")
#: Parameters that name files that a command writes, and options that name files that it reads.
_WRITTEN = ("destination", "out", "report", "folder", "write_config", "access_log", "file")
_READ = ("config", "api_keys", "plugin")


@dataclass(frozen=True)
class SubmittedCommand:
    """A parsed command line.

    Attributes:
        name: name of the command.
        words: the whole command line without `striate`.
        values: values of the parameters on the command line, without defaults.
        arguments: names of the positional parameters.
    """

    name: str
    words: tuple[str, ...]
    values: dict[str, Any]
    arguments: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The command line for a shell on the cluster."""
        return shlex.join(["striate", *self.words])


def parse(root: Any, words: Sequence[str]) -> SubmittedCommand:
    """Parses a command line as `striate` does. Runs nothing but the files that `--plugin` names, to know their steps.

    Args:
        root: context of `striate`, which knows all commands.
        words: the command line; `striate` before it may be left out.

    Raises:
        UsageError: when the command does not run on a cluster.
        Exception: of the command line library, for an unknown command, a wrong option or a missing argument.
    """
    words = tuple(words[1:] if list(words[:1]) == ["striate"] else words)
    if not words:
        raise UsageError("no command to submit: striate submit -- filter s3://b/raw s3://b/edges --steps 'edges'")
    name, command, rest = root.command.resolve_command(root, list(words))
    if name in _STAY_HERE:
        raise UsageError(f"`striate {name}` is for this machine: run it without submit")
    context = command.make_context(name, rest, parent=root)
    written = [key for key in context.params if context.get_parameter_source(key).name == "COMMANDLINE"]
    arguments = tuple(each.name for each in command.params if each.param_type_name == "argument")
    return SubmittedCommand(str(name), words, {key: context.params[key] for key in written}, arguments)


def check(command: SubmittedCommand, tree: Tree) -> None:
    """Refuses a command that would certainly fail on the cluster, or write its results where they cannot be found.

    Raises:
        UsageError: names the path or option that is wrong, and what would work.
    """
    values = command.values
    if str(values.get("address", "")).startswith("http"):
        raise UsageError("--address belongs before the --: on the cluster a command finds its own Ray")
    written = [path for key in _WRITTEN for path in _paths(values.get(key))]
    if command.name == "predict":  # DATASET DEST: a path that does not exist is a destination
        second = _paths(values.get("paths", ())[1:2])
        written += [path for path in second if not os.path.exists(os.path.join(tree.root, path))]
    for path in written:
        if not os.path.isabs(path) and path != "-":
            raise UsageError(
                f"{path} would be written to the job's temporary folder, which Ray removes: write it to "
                "s3://BUCKET/..., or to an absolute path that all nodes share"
            )
    for key in (*command.arguments, *_READ):
        for path in () if key in _WRITTEN else _paths(values.get(key)):
            if os.path.exists(os.path.join(tree.root, path)):
                _check_sent(path, tree)
    _check_content(command, tree)


def _check_content(command: SubmittedCommand, tree: Tree) -> None:
    """Checks pipelines, encodings and recipes with their own parsers."""
    steps, encode, recipe = (command.values.get(key) for key in ("steps", "encode", "recipe"))
    if isinstance(steps, str) and command.name == "filter" and steps.strip():
        from library.pipeline import Pipeline

        Pipeline.parse(steps, refuse="augmentation")
    if isinstance(steps, str) and command.name == "augment":
        from library.pipeline.augmentation import parse_augmentation

        parse_augmentation(steps)
    if isinstance(encode, str):
        from library.imaging.codec import Encoding

        Encoding.parse(encode)
    for path in _paths(recipe):
        from library.recipe import Recipe

        if os.path.isabs(path):
            continue
        _check_sent(path, tree)
        read = Recipe.load(os.path.join(tree.root, path), overrides=command.values.get("set_") or ())
        for named in (read.data.train, read.data.val, None if read.weights == "pretrained" else read.weights):
            for place in _paths(named):
                _check_sent(place, tree)


def _paths(value: Any) -> Iterator[str]:
    """Yields the local paths in the value of a parameter."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str | Path) and "://" not in str(each):
            yield str(each)


def _check_sent(path: str, tree: Tree) -> None:
    """Refuses a relative path that is not uploaded; absolute paths belong to the cluster."""
    if os.path.isabs(path) or tree.holds(path):
        return
    place = os.path.normpath(os.path.join(tree.root, path))
    if not place.startswith(os.path.join(tree.root, "")):
        raise UsageError(f"{path} is outside {tree.root}, which is sent: copy it there, or into a bucket")
    if not os.path.exists(place):
        raise UsageError(f"{path}: there is no such file or folder in {tree.root}, which is sent")
    if os.path.isdir(place) and not os.listdir(place):
        raise UsageError(f"{path} is an empty folder, which is not sent")
    raise UsageError(
        f"{path} is not sent, as .gitignore, .rayignore or striate leaves it out (out/, data/, environments and "
        "secrets always): copy it into a bucket, or name it by its absolute path where all nodes see the same folder"
    )
