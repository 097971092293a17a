"""Ranked classes for one or a few pictures, here and without Ray: `striate predict BUNDLE PICTURE...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import Prediction
from library.errors import BadPicture, StriateError, UsageError
from library.imaging import codec

_BATCH = 32


@dataclass(frozen=True)
class Answer:
    """What became of one file: a prediction, or why there is none."""

    file: str
    result: Prediction | BadPicture


def predict_files(bundle: Bundle, files: Sequence[str], *, top_k: int = 5) -> Iterator[Answer]:
    """Classify picture files, here or in a store; one that cannot be used stops no other.

    Args:
        bundle: the classifier.
        files: paths and s3:// addresses of pictures.
        top_k: how many classes each answer ranks; all where there are fewer.

    Raises:
        UsageError: where `top_k` is not at least 1.
    """
    if top_k < 1:
        raise UsageError(f"--top-k {top_k}: at least 1 class")
    for first in range(0, len(files), _BATCH):
        names = files[first : first + _BATCH]
        read = [_read(name) for name in names]
        judged = iter(bundle.predict_many([data for data in read if isinstance(data, bytes)], top_k))
        for name, data in zip(names, read, strict=True):
            yield Answer(name, data if isinstance(data, BadPicture) else next(judged))


def _read(file: str) -> bytes | BadPicture:
    try:
        uri = storage.normalize(file)
        if not storage.is_remote(uri) and storage.is_folder(uri):
            return BadPicture("no_pictures", "the folder holds no file with a picture's name")
        return storage.read_bytes(uri, max_bytes=codec.DEFAULT_LIMITS.max_bytes)
    except StriateError as error:
        return BadPicture("cannot_read", str(error))
