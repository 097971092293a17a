"""What predict and evaluate share: the classifier as they use it, and pictures prepared in threads ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from library.bundle.description import Prediction
from library.errors import BadPicture, StriateError
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

#: Pictures that are prepared before they are classified together.
BATCH = 64
_DROPPED = "dropped:"

_ItemT = TypeVar("_ItemT")
_ResultT = TypeVar("_ResultT")


class Classifier(Protocol):
    """The part of `library.bundle.bundle.Bundle` that shard work uses; named here so that planning imports no torch."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def prepare(self, data: bytes, /, **columns: Any) -> Prepared: ...

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Prepared: ...

    def probabilities(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]: ...

    def features(self, pictures: Sequence[Prepared]) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

    def ranked(self, probabilities: NDArray[np.float32], top_k: int) -> Sequence[Prediction]: ...


class Prefetcher:
    """Processes batches in threads: while the caller uses one batch, the next is processed.

    Args:
        threads: items processed at the same time. With 1 nothing is processed ahead, as a thread would only compete
            with the classifier for the same CPU.

    Attributes:
        waited_s: seconds that the caller has waited for items.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.waited_s = 0.0

    def __call__(
        self, batches: Iterable[Sequence[_ItemT]], work: Callable[[_ItemT], _ResultT]
    ) -> Iterator[list[_ResultT]]:
        """Yields the results of each batch, in order; an error of `work` is raised when its batch is due."""
        if self._threads == 1:
            for batch in batches:
                start = perf_counter()
                results = [work(item) for item in batch]
                self.waited_s += perf_counter() - start
                yield results
            return
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[list[Future[_ResultT]]] = deque()
            try:
                for batch in batches:
                    waiting.append([pool.submit(work, item) for item in batch])
                    if len(waiting) > 1:
                        yield self._results(waiting.popleft())
                while waiting:
                    yield self._results(waiting.popleft())
            finally:
                for future in (future for batch in waiting for future in batch):
                    future.cancel()

    def _results(self, batch: Sequence[Future[_ResultT]]) -> list[_ResultT]:
        start = perf_counter()
        results = [future.result() for future in batch]
        self.waited_s += perf_counter() - start
        return results


def prepare_or_reject(classifier: Classifier, data: bytes, columns: Mapping[str, Any]) -> Prepared | BadPicture:
    """Prepares a picture for `classifier`, or returns why it cannot be used.

    Args:
        classifier: the bundle.
        data: the encoded picture.
        columns: the picture's other columns, with its `key`.

    Raises:
        StriateError: a step's own code failed; names the picture.
    """
    try:
        return classifier.prepare(data, **columns)
    except BadPicture as bad:
        return bad
    except StriateError:
        raise
    except Exception as error:
        raise StriateError(f"picture '{columns['key']}': {type(error).__name__}: {error}") from error


def drop_reason(bad: BadPicture) -> str | None:
    """Returns the reason of the classifier's own selector, or None for a picture that cannot be used."""
    return bad.reason.removeprefix(_DROPPED) if bad.reason.startswith(_DROPPED) else None
