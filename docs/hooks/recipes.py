"""Writes the table of fields at the end of docs/recipes.md: `.venv/bin/python docs/hooks/recipes.py`.

tests/unit/library/recipe/test_recipe.py compares the page with what `reference` returns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from library.recipe import Recipe
from library.recipe.fields import BETAS, OPTIMIZERS, WITH_MOMENTUM, accepted
from library.recipe.paths import fields_of, group_of
from library.recipe.yaml_text import dump_yaml

_PAGE = Path(__file__).parents[1] / "recipes.md"
_HEAD = "| field | takes | default | |"


def reference() -> str:
    """Markdown: every field with what it takes, its default and its meaning, then the optimizers."""
    rows = [_HEAD, "|---|---|---|---|"]
    for path, field in fields_of(Recipe):
        group = group_of(field)
        takes = "a table" if group else accepted(field)
        meaning = (group.__doc__ or "").split("\n")[0] if group else field.description
        rows.append(f"| `{path}` | {takes} | {_default(field)} | {meaning} |")
    rows += ["", "Optimizers, by what they take beside `lr` and `weight_decay`:", ""]
    for title, names in (
        ("momentum", WITH_MOMENTUM - BETAS.keys()),
        ("betas", BETAS.keys() - WITH_MOMENTUM),
        ("both", WITH_MOMENTUM & BETAS.keys()),
        ("neither", OPTIMIZERS - WITH_MOMENTUM - BETAS.keys()),
    ):
        rows.append(f"- {title}: {', '.join(sorted(names))}")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(needed)"
    default: Any = field.default
    if default is None or group_of(field):
        return ""
    return f"`{dump_yaml({'x': default}).removeprefix('x: ').strip()}`"


if __name__ == "__main__":
    text = _PAGE.read_text(encoding="utf-8")
    _PAGE.write_text(text[: text.index(_HEAD)] + reference(), encoding="utf-8")
