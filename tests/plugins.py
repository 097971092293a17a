"""A file with a user's own step, as `--plugin` takes it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path

from library.steps import REGISTRY, plugins

#: Annotations are text here, as in many users' files.
HALVE = '''
from __future__ import annotations

from typing import Annotated

from pydantic import Field

from library.imaging.picture import Pixels
from library.steps import register


@register("filter")
class Halve:
    """Every value divided."""

    by: Annotated[int, Field(ge=1, description="divisor")] = 2

    def __call__(self, pixels: Pixels) -> Pixels:
        return pixels // self.by
'''


def write_plugin(folder: Path, source: str = HALVE) -> str:
    """Writes `my_steps.py`; returns its path."""
    path = folder / "my_steps.py"
    path.write_text(source)
    return str(path)


@contextlib.contextmanager
def unloaded_afterwards() -> Generator[None]:
    """Removes the steps, plugins and modules that the block has loaded."""
    steps, loaded, modules = dict(REGISTRY), dict(plugins._loaded), set(sys.modules)
    try:
        yield
    finally:
        for before, now in ((steps, REGISTRY), (loaded, plugins._loaded)):
            now.clear()
            now.update(before)
        for name in [name for name in set(sys.modules) - modules if "my_steps" in name]:
            del sys.modules[name]
