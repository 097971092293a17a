"""What the pages of all commands share: their templates, the name of their file and the check of their folder.

Imports nothing of an extra, so that commands which may write a page also start in the base installation.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from library import storage
from library.dataset.manifest import find_manifest
from library.errors import UsageError

#: Name of a page in its folder.
PAGE = "index.html"
#: The mark of head.html, which names the command, comes within as many bytes.
_MARK_WITHIN = 2**14


def template(package: str, name: str) -> Template:
    """Loads a Jinja2 template from the folder of a package; it escapes every value.

    A template of any package may include this report's `style.css`.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("library.evaluation.report", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def check_report(folder: str, datasets: Sequence[str], command: str, option: str = "--report") -> None:
    """Checks that a command may write its page to a folder.

    Args:
        folder: URI.
        datasets: URIs of the datasets that the command reads or writes.
        command: as its pages name it, such as `striate audit`.
        option: its option that names the folder.

    Raises:
        UsageError: the folder is a dataset or lies in one, holds a page of something else, or cannot be written to.
    """
    for dataset in datasets:
        if storage.contains(dataset, folder):
            raise UsageError(f"{option} {folder} is inside the dataset {dataset}; name another folder")
    if find_manifest(folder) is not None:
        raise UsageError(f"{option} {folder} is a dataset; name a folder of its own for the report")
    page = storage.join(folder, PAGE)
    if storage.exists(page):
        with storage.open_read(page) as file:
            start = file.read(_MARK_WITHIN)
        if f'name="generator" content="{command}"'.encode() not in start:
            raise UsageError(f"{option} {folder} contains a page ({PAGE}) of something else; name another folder")
    storage.check_writable(folder)


def base64_text(data: bytes) -> str:
    """Returns bytes as they stand in a `data:` URI of a page."""
    return base64.b64encode(data).decode()
