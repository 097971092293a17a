"""The fields of a schema by their dotted paths: `data.train`, `optimizer.lr`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import pydantic
from pydantic.fields import FieldInfo

from library.grammar import nearest

Schema = type[pydantic.BaseModel]

_CLUSTER = "is not part of a recipe, as the cluster must not change what is learned; use {} on the command line"

#: Names that people write in a recipe although they are not fields, with what to do instead.
_NOT_FIELDS = {
    **dict.fromkeys(
        ("workers", "num_workers", "nodes", "num_nodes", "world_size", "replicas"), _CLUSTER.format("--workers")
    ),
    **dict.fromkeys(("gpu", "gpus", "num_gpus", "use_gpu", "device", "devices"), _CLUSTER.format("--gpu")),
    **dict.fromkeys(("cpus", "num_cpus", "cpus_per_worker"), _CLUSTER.format("--cpus-per-worker")),
    "nesterov": "is not a field; optimizer.name chooses it: sgd has Nesterov momentum, momentum the classical one",
    "learning_rate": "is not a field (did you mean 'optimizer.lr'?)",
}


def group_of(field: FieldInfo) -> Schema | None:
    """Returns the schema of a field that has fields of its own, else None."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            return annotation
    return None


def fields_of(schema: Schema, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every field with its path; a group comes before its fields."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        group = group_of(field)
        if group is not None:
            yield from fields_of(group, f"{prefix}{name}.")


def field_at(schema: Schema, parts: Sequence[Any]) -> tuple[str, FieldInfo | None]:
    """Returns the deepest field along `parts`, which may continue into its value; None for an unknown field."""
    group: Schema | None = schema
    field: FieldInfo | None = None
    path: list[str] = []
    for part in parts:
        if group is None:
            break
        field = group.model_fields.get(str(part))
        path.append(str(part))
        if field is None:
            break
        group = group_of(field)
    return ".".join(path), field


def unknown_field(schema: Schema, path: str) -> str:
    """Returns the message about a path that is not a field, to follow the path."""
    *parents, name = path.split(".")
    if name in _NOT_FIELDS:
        return _NOT_FIELDS[name]
    group = ".".join(parents)
    known = [known for known, _ in fields_of(schema)]
    same_name = [other for other in known if other.split(".")[-1] == name]
    if same_name:
        return f"is not a field (did you mean '{same_name[0]}'?)"
    siblings = [other for other in known if other.rpartition(".")[0] == group]
    close = nearest(path, siblings)
    return f"is not a field{close if 'mean' in close else nearest(path, known) or close}"


def value_at(data: Any, path: str) -> Any:
    """Returns the value at `path` in plain data; None where there is none."""
    for part in path.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None  # pyright: ignore[reportUnknownVariableType]
    return data
