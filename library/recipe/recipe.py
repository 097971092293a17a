"""A recipe: read from YAML, checked, and written as YAML again."""

from __future__ import annotations

from collections.abc import Sequence

import pydantic

from library import storage
from library.dataset.manifest import digest_of
from library.errors import UsageError
from library.recipe.contradictions import Contradictions, contradictions
from library.recipe.parsing import read
from library.recipe.schema import RecipeFields
from library.recipe.yaml_text import dump_yaml

_MAX_BYTES = 2**20


class Recipe(RecipeFields):
    """What is trained on what, and how: `RecipeFields` that do not contradict each other."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Recipe:
        problems = list(contradictions(self))
        if problems:
            raise Contradictions(problems)
        return self

    @classmethod
    def load(cls, uri: str, overrides: Sequence[str] = ()) -> Recipe:
        """Reads a recipe from a file, on disk or in a store.

        Args:
            uri: URI of the YAML file.
            overrides: `a.b=value`, as in `--set`; the value is read as YAML.

        Raises:
            UsageError: the file does not exist, or the recipe is wrong: one line for each error, with the field, its
                value, and what would work.
            StriateError: the file cannot be read.
        """
        uri = storage.normalize(uri)
        if not storage.exists(uri):
            raise UsageError(f"{uri} does not exist; name the file of a recipe")
        return cls.parse(storage.read_bytes(uri, _MAX_BYTES).decode(errors="replace"), overrides, where=uri)

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = (), *, where: str = "the recipe") -> Recipe:
        """Reads a recipe from YAML text; `where` names it in errors. Overrides and errors are those of `load`."""
        return read(cls, text, overrides, where)

    def located(self) -> Recipe:
        """Returns the recipe with absolute paths, for processes that run in another folder.

        A relative path, in the file or in an override, is relative to the current folder.
        """
        train, val = storage.normalize(self.data.train), self.data.val and storage.normalize(self.data.val)
        named = self.weights is not None and self.weights != "pretrained"
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"train": train, "val": val}),
                "weights": storage.normalize(self.weights) if named and self.weights else self.weights,
            }
        )

    def dump(self) -> str:
        """Returns YAML that `parse` reads as an equal recipe, with all defaults and without null fields."""
        return dump_yaml(self.model_dump(exclude_none=True))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex; it does not depend on how the recipe is written."""
        return digest_of(self.model_dump(mode="json", exclude_none=True))
