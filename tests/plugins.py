"""A step of a user's own, as files hold it that `--plugin` names."""

from __future__ import annotations

from pathlib import Path

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
