"""Pictures prepared in threads, ahead of the classifier that judges them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from library.errors import BadPicture, StriateError

if TYPE_CHECKING:  # a bundle imports torch
    from library.bundle.bundle import Bundle, Prepared

#: Pictures that are prepared before they are judged together.
BATCH = 64
_DROPPED = "dropped:"

_ItemT = TypeVar("_ItemT")
_DoneT = TypeVar("_DoneT")


class Ahead:
    """Works on batches in threads; while one is used, the next is worked on.

    Args:
        threads: items worked on at once. With 1 nothing is done ahead: on the CPU of its own classifier a thread would
            only take turns with it.

    Attributes:
        waited: seconds that the caller has waited for items.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.waited = 0.0

    def __call__(self, batches: Iterable[Sequence[_ItemT]], work: Callable[[_ItemT], _DoneT]) -> Iterator[list[_DoneT]]:
        """Each batch, worked on, in its order; what `work` raises is raised where its batch is due."""
        if self._threads == 1:
            for batch in batches:
                start = perf_counter()
                done = [work(item) for item in batch]
                self.waited += perf_counter() - start
                yield done
            return
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[list[Future[_DoneT]]] = deque()
            try:
                for batch in batches:
                    waiting.append([pool.submit(work, item) for item in batch])
                    if len(waiting) > 1:
                        yield self._taken(waiting.popleft())
                while waiting:
                    yield self._taken(waiting.popleft())
            finally:
                for future in (future for batch in waiting for future in batch):
                    future.cancel()

    def _taken(self, batch: Sequence[Future[_DoneT]]) -> list[_DoneT]:
        start = perf_counter()
        done = [future.result() for future in batch]
        self.waited += perf_counter() - start
        return done


def seen_by(bundle: Bundle, data: bytes, columns: Mapping[str, Any]) -> Prepared | BadPicture:
    """What `bundle` sees of a picture, or why it cannot be used; `columns` has its key.

    Raises:
        StriateError: when a step's own code fails; names the picture.
    """
    try:
        return bundle.prepare(data, **columns)
    except BadPicture as bad:
        return bad
    except StriateError:
        raise
    except Exception as error:
        raise StriateError(f"picture '{columns['key']}': {type(error).__name__}: {error}") from error


def why_dropped(bad: BadPicture) -> str | None:
    """The reason of the classifier's own selector, or None for a picture that cannot be used."""
    return bad.reason.removeprefix(_DROPPED) if bad.reason.startswith(_DROPPED) else None
