"""The part of kustomize that k8s/ uses, so that its tests need no kubectl.

Supports resources, JSON 6902 patches with a target, images and a configMapGenerator of files; anything else is an
error, so k8s/ cannot use it. Where kubectl is installed, a test compares the two.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

#: PyYAML's loader in C if it was built with one: ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_FIELDS = {"apiVersion", "kind", "resources", "patches", "images", "configMapGenerator"}
_TARGET_FIELDS = {"group", "version", "kind", "name"}


def build(folder: Path) -> list[Resource]:
    """The resources that `kubectl kustomize FOLDER` prints, in no particular order."""
    kustomization = _document(folder / "kustomization.yaml")
    _known(kustomization, _FIELDS, folder)
    resources = [resource for entry in kustomization["resources"] for resource in _resources(folder / entry)]
    resources += [_config_map(generator, folder) for generator in kustomization.get("configMapGenerator", [])]
    for patch in kustomization.get("patches", []):
        _known(patch, {"path", "target"}, folder)
        _known(patch["target"], _TARGET_FIELDS, folder)
        targets = [resource for resource in resources if _is_target(resource, patch["target"])]
        if not targets:
            raise ValueError(f"{folder}: {patch['path']} matches no resource")
        for resource in targets:
            patch_json(resource, _document(folder / patch["path"]))
    for image in kustomization.get("images", []):
        _known(image, {"name", "newName"}, folder)
        for resource in resources:
            _rename_image(resource, image["name"], image["newName"])
    return resources


def load(path: Path) -> list[Resource]:
    """All documents of a YAML file; anchors become copies, so that a patch of one place does not change another."""
    return [_unshared(document) for document in yaml.load_all(path.read_text(), LOADER) if document]


def patch_json(document: Any, operations: list[dict[str, Any]]) -> None:
    """Applies add, replace, remove and test of RFC 6902 to `document` in place.

    Raises:
        ValueError: when a path does not exist, or a `test` finds another value.
    """
    for operation in operations:
        *parents, last = [_unescaped(part) for part in operation["path"].split("/")[1:]]
        place = document
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key: Any = len(place) if last == "-" else int(last) if isinstance(place, list) else last
        _apply(place, key, operation)


def _apply(place: Any, key: Any, operation: dict[str, Any]) -> None:
    exists = key < len(place) if isinstance(place, list) else key in place
    kind = operation["op"]
    if kind != "add" and not exists:
        raise ValueError(f"{kind} {operation['path']}: the path does not exist")
    if kind == "test":
        if place[key] != operation["value"]:
            raise ValueError(f"test {operation['path']}: {place[key]!r}, not {operation['value']!r}")
    elif kind == "remove":
        del place[key]
    elif kind == "replace" or (kind == "add" and isinstance(place, dict)):
        place[key] = copy.deepcopy(operation["value"])
    elif kind == "add":
        place.insert(key, copy.deepcopy(operation["value"]))
    else:
        raise ValueError(f"{kind} {operation['path']}: this operation is not supported here")


def _resources(path: Path) -> list[Resource]:
    return build(path) if path.is_dir() else load(path)


def _document(path: Path) -> Any:
    (document,) = yaml.load_all(path.read_text(), LOADER)
    return _unshared(document)


def _config_map(generator: dict[str, Any], folder: Path) -> Resource:
    _known(generator, {"name", "namespace", "files", "options"}, folder)
    options = generator["options"]
    _known(options, {"disableNameSuffixHash", "labels"}, folder)
    if not options["disableNameSuffixHash"]:
        raise ValueError(f"{folder}: generated names with a hash are not supported here")
    metadata = {"name": generator["name"], "namespace": generator["namespace"], "labels": options["labels"]}
    data = {Path(file).name: (folder / file).read_text() for file in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _is_target(resource: Resource, target: dict[str, str]) -> bool:
    group, _, version = resource["apiVersion"].rpartition("/")
    fields = {"group": group, "version": version, "kind": resource["kind"], "name": resource["metadata"]["name"]}
    return all(fields[field] == value for field, value in target.items())


def _rename_image(place: Any, name: str, new_name: str) -> None:
    """Renames an image in every list of containers at any depth, as kustomize does for kinds without a schema."""
    if isinstance(place, list):
        for item in place:
            _rename_image(item, name, new_name)
    elif isinstance(place, dict):
        for container in [*(place.get("containers") or []), *(place.get("initContainers") or [])]:
            repository, _, tag = container["image"].partition(":")
            if repository == name:
                container["image"] = f"{new_name}:{tag}"
        for value in place.values():
            _rename_image(value, name, new_name)


def _unshared(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _unshared(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_unshared(value) for value in document]
    return document


def _known(document: dict[str, Any], fields: set[str], folder: Path) -> None:
    if unknown := sorted(set(document) - fields):
        raise ValueError(f"{folder}/kustomization.yaml: {', '.join(unknown)} not supported here")


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
