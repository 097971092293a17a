"""What the paths after `striate predict BUNDLE` are: a dataset to score, or pictures to classify."""

from __future__ import annotations

from collections.abc import Sequence

from library import storage
from library.dataset.manifest import MANIFEST, manifest_uri
from library.errors import UsageError
from library.sources.entries import is_picture_name
from library.sources.folder import scan


def is_dataset_and_destination(bundle: str, paths: Sequence[str]) -> bool:
    """Whether they are a dataset (it has a manifest) and one place for what is made of it.

    Raises:
        UsageError: when there is a dataset among them, but not just a destination beside it.
    """
    datasets = [path for path in paths if _is_dataset(path)]
    if not datasets:
        return False
    if len(paths) == 2 and datasets[0] == paths[0] and not _holds_pictures(paths[1]):
        return True
    raise UsageError(
        f"{datasets[0]} is a dataset, and beside it there must be one path, the dataset to make: write\n"
        f"  striate predict {bundle} {datasets[0]} DEST    (DEST: a new folder) to score every picture of it, or\n"
        f"  striate predict {bundle} PICTURE...    with files and folders of pictures only, to print their classes"
    )


def picture_files(path: str) -> list[str]:
    """A file itself; of a folder the files below it that are pictures by their names, hidden ones passed over.

    A folder that holds none is given back as it is, to be told as one that cannot be read.

    Raises:
        UsageError: when it holds datasets.
    """
    uri = storage.normalize(path)
    # In a store every name may be a prefix: asking for each picture is a request each.
    if is_picture_name(path) or not storage.is_folder(uri):
        return [path]
    found = scan(uri).path
    datasets = [name.rpartition("/")[0] for name in found if name.rpartition("/")[2] == MANIFEST]
    if datasets:
        named = " or ".join(storage.join(path, name) for name in datasets[:3])
        raise UsageError(f"{path} holds datasets and is no folder of pictures; name one of them, and DEST: {named}")
    return [storage.join(path, name) for name in found if is_picture_name(name)] or [path]


def _is_dataset(path: str) -> bool:
    return not is_picture_name(path) and storage.exists(manifest_uri(storage.normalize(path)))


def _holds_pictures(path: str) -> bool:
    """Whether `path` is rather a picture, another file, or a folder of pictures than a destination."""
    uri = storage.normalize(path)
    if is_picture_name(path):
        return True
    if _is_dataset(path):
        return False
    if storage.exists(uri) and not storage.is_folder(uri):
        return True
    return any(is_picture_name(file.path) for file in storage.list_files(uri))
