"""The engine of a replica: prepares pictures in threads, and classifies them in batches in further threads.

A picture that may take long to prepare goes to a worker process, which ends with its request: a thread could not be
stopped, and small pictures would wait for it.

A batch begins as soon as a thread is free, with the pictures that are ready: under load batches fill without waiting,
and a lone request does not wait. Ray Serve's `@serve.batch` forms its batches before the model is free, so they fill
only by waiting (decision 0008).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from time import perf_counter, thread_time
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import NOT_FINITE, NOT_FINITE_WHY, BadPicture, StepError, StriateError
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.pipeline.inputs import Prepared
from library.steps import plugins
from serve.http.service import Busy, TimedOut
from serve.processes import ProcessEndedError, ProcessPool
from serve.replica.prepare_worker import unpacked

_T = TypeVar("_T")

#: A picture that is expected to take longer goes to a worker process: a JPEG of 20 million pixels, a PNG of 6 million.
_SLOW_S = 0.15
#: Side of the sample picture with which the model's own steps are timed.
_SAMPLE_PX = 512


@dataclass(frozen=True)
class Result:
    """The result for one picture.

    Attributes:
        prepared: the model's input.
        probabilities: of all classes, in the bundle's order.
        width: of the decoded picture, in pixels.
        height: of the decoded picture, in pixels.
        prepare_s: time for decoding and the input pipeline, in seconds.
        wait_s: time from then until its batch began, in seconds.
        compute_s: time of its batch in the model, in seconds.
    """

    prepared: Prepared
    probabilities: NDArray[np.float32]
    width: int
    height: int
    prepare_s: float
    wait_s: float
    compute_s: float


@dataclass(eq=False)
class _Work:
    """A picture in progress, or (with `call`) another task for the first computing thread."""

    future: asyncio.Future[Any]
    call: Callable[[], Any] | None = None
    to_classify: bool = True
    prepared: Prepared | None = None
    size: tuple[int, int] = (0, 0)
    prepare_s: float = 0.0
    ready: float = field(default_factory=perf_counter)
    outcome: Any = None
    error: BaseException | None = None


class Engine:
    """Prepares and classifies pictures with a bundle, in threads; for use from one event loop, which it never blocks.

    Args:
        bundle: prepares the pictures.
        classify: returns probabilities (N x classes, float32) of prepared pictures; `lanes` threads may call it at the
            same time.
        limits: limits of one picture.
        threads: CPUs of this process.
        capacity: most pictures in progress (in preparation, waiting or computing); more are refused.
        batch_size: most pictures in a batch.
        lanes: threads that compute batches.
        timeout_s: longest time to prepare one picture, in seconds; its request may end it sooner.
        batch_wait_s: how long an idle model waits for a batch to fill, in seconds.
        on_batch: called with size and seconds of each batch, in the thread that computed it.
    """

    def __init__(
        self,
        bundle: Bundle,
        classify: Callable[[Sequence[Prepared]], NDArray[np.float32]],
        limits: codec.Limits,
        *,
        threads: int,
        capacity: int,
        batch_size: int,
        lanes: int = 1,
        timeout_s: float = 30.0,
        batch_wait_s: float = 0.0,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        # OpenCV would start a thread for every core of the machine, in every replica.
        cv2.setNumThreads(1)
        self._bundle, self._classify, self._limits = bundle, classify, limits
        self._capacity, self._batch_size, self._batch_wait_s = capacity, batch_size, batch_wait_s
        self._on_batch = on_batch
        self._preparing = ThreadPoolExecutor(max(2, threads), "prepare")
        self._workers = ProcessPool(
            "serve.replica.prepare_worker",
            max(2, threads),
            {"inputs": _input_pipelines(bundle), "plugins": [asdict(plugin) for plugin in plugins.loaded()]},
        )
        self._timeout_s, self._steps_px_s = timeout_s, _steps_px_s(bundle)
        self._waiting: deque[_Work] = deque()
        self._calls: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._in_progress = 0
        self._lanes = [_Lane(self._compute_for_ever, number) for number in range(lanes)]

    def admit(self, pictures: int) -> None:
        """Reserves room for pictures, to be released with `release`. A request above the capacity is admitted alone.

        Raises:
            Busy: there is not enough room.
        """
        if self._in_progress and self._in_progress + pictures > self._capacity:
            raise Busy(f"{self._in_progress} pictures are in progress, and the limit is {self._capacity}")
        self._in_progress += pictures

    def release(self, pictures: int) -> None:
        """Frees the room of pictures that are done."""
        self._in_progress -= pictures

    async def result(self, picture: bytes | NDArray[np.uint8]) -> Result | BadPicture:
        """Prepares and classifies one picture, encoded or decoded. Cancelling ends the work for it.

        Raises:
            TimedOut: preparing it takes too long.
        """
        work = _Work(asyncio.get_running_loop().create_future())
        self._preparing.submit(self._prepare, work, picture)
        outcome = await work.future
        if outcome is not _NEEDS_WORKER:
            return outcome
        try:
            prepared, seconds = await self._prepare_in_worker(picture)
        except BadPicture as bad:
            return bad
        work = _Work(asyncio.get_running_loop().create_future(), prepared=prepared, size=work.size, prepare_s=seconds)
        self._put(work, self._waiting)
        return await work.future

    async def compute(self, call: Callable[[], _T]) -> _T:
        """Runs `call` in the first computing thread, between batches."""
        work = _Work(asyncio.get_running_loop().create_future(), call=call)
        self._put(work, self._calls)
        return await work.future

    async def classified(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """Returns the probabilities of prepared pictures, N x classes, which wait among those of other requests.

        Raises:
            BadPicture: the model's answer for one of them is not finite.
        """
        loop = asyncio.get_running_loop()
        works = [_Work(loop.create_future(), prepared=picture) for picture in pictures]
        for work in works:
            self._put(work, self._waiting)
        rows: list[NDArray[np.float32]] = []
        for outcome in await asyncio.gather(*(work.future for work in works)):
            if isinstance(outcome, BadPicture):
                raise outcome
            rows.append(outcome.probabilities)
        return np.stack(rows)

    async def prepared(self, data: bytes) -> Prepared:
        """Returns the model's input for a picture; raises BadPicture, and TimedOut as `result` does."""
        work = _Work(asyncio.get_running_loop().create_future(), to_classify=False)
        self._preparing.submit(self._prepare, work, data)
        outcome = await work.future
        if outcome is _NEEDS_WORKER:
            outcome, _ = await self._prepare_in_worker(data)
        if isinstance(outcome, BadPicture):
            raise outcome
        return outcome

    async def view(self, data: bytes) -> bytes:
        """Returns the model's input as PNG; raises as `prepared` does."""
        prepared = await self.prepared(data)
        while isinstance(prepared, tuple):
            prepared = prepared[0]
        png = codec.Encoding("png")
        return await asyncio.get_running_loop().run_in_executor(
            self._preparing, lambda pixels: codec.encode(visible(pixels), png)[0], prepared
        )

    @property
    def waiting(self) -> int:
        """Number of pictures and calls that wait for a computing thread."""
        return len(self._waiting) + len(self._calls)

    def stuck_s(self) -> float:
        """Returns the longest time of a computing thread on its batch, in seconds; infinite when a thread has died."""
        return max(lane.stuck_s() for lane in self._lanes)

    def close(self) -> None:
        """Ends the threads; pictures that are not yet in progress are dropped."""
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._workers.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _prepare(self, work: _Work, picture: bytes | NDArray[np.uint8]) -> None:
        if work.future.cancelled():
            return
        began = perf_counter()
        try:
            if isinstance(picture, bytes):
                header = codec.probe(picture, self._limits)
                work.size = header.width, header.height
                slow = self._takes_long(header.expected_s, work.size)
                work.prepared = None if slow else self._bundle.prepare(picture, self._limits)
            else:
                work.size = picture.shape[1], picture.shape[0]
                slow = self._takes_long(0.0, work.size)
                work.prepared = None if slow else self._bundle.prepare_pixels(picture)
        except BadPicture as bad:
            work.outcome = bad
            _deliver([work])
        except Exception as error:  # raised where the result is awaited
            work.error = error
            _deliver([work])
        else:
            if slow or not work.to_classify:
                work.outcome = _NEEDS_WORKER if slow else work.prepared
                _deliver([work])
                return
            work.ready = perf_counter()
            work.prepare_s = work.ready - began
            self._put(work, self._waiting)

    def _takes_long(self, decoding_s: float, size: tuple[int, int]) -> bool:
        members = max(len(self._bundle.members), 1)  # each decodes the picture again
        return members * decoding_s + size[0] * size[1] * self._steps_px_s > _SLOW_S

    async def _prepare_in_worker(self, picture: bytes | NDArray[np.uint8]) -> tuple[Prepared, float]:
        """Returns the prepared picture, and the seconds for it and for the wait for a process."""
        began = perf_counter()
        if isinstance(picture, bytes):
            header, data = {"limits": asdict(self._limits)}, picture
        else:
            header, data = {"shape": picture.shape}, picture.tobytes()
        try:
            answer, packed = await self._workers.ask(header, data, seconds=self._timeout_s)
        except ProcessEndedError as ended:
            if ended.status > 0:
                raise  # an error in our own code; the process has printed it
            if ended.in_time:
                detail = f"the process that prepared it crashed (exit status {ended.status})"
                raise BadPicture("damaged", detail) from None
            raise TimedOut(f"preparing a picture took more than {self._timeout_s:g} s") from None
        if "reason" in answer:
            raise BadPicture(answer["reason"], answer["detail"])
        if "detail" in answer:
            raise StepError(answer["detail"])
        return unpacked(answer["shapes"], memoryview(packed))[0], perf_counter() - began

    def _put(self, work: _Work, queue: deque[_Work]) -> None:
        with self._changed:
            queue.append(work)
            self._changed.notify_all()

    def _compute_for_ever(self, lane: _Lane) -> None:
        while batch := self._next_batch(lane):
            lane.busy_since = perf_counter()
            try:
                self._compute(batch)
            except Exception as error:  # raised where the results are awaited
                for work in batch:
                    work.error = error
            lane.busy_since = None
            _deliver(batch)

    def _next_batch(self, lane: _Lane) -> list[_Work]:
        calls = self._calls if lane.number == 0 else ()
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or calls or self._closed)
                if self._batch_wait_s and not calls:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= self._batch_size or calls or self._closed, self._batch_wait_s
                    )
                if self._closed:
                    return []
                # Calls and batches take turns: a series of explanations would delay all pictures.
                lane.called = bool(calls) and not (lane.called and self._waiting)
                queue, most = (self._calls, 1) if lane.called else (self._waiting, self._batch_size)
                batch: list[_Work] = []
                while queue and len(batch) < most:
                    work = queue.popleft()
                    if not work.future.cancelled():
                        batch.append(work)
                if batch:
                    return batch

    def _compute(self, batch: list[_Work]) -> None:
        first = batch[0]
        if first.call is not None:
            first.outcome = first.call()
            return
        began = perf_counter()
        pictures = [work.prepared for work in batch if work.prepared is not None]
        rows = self._classify(pictures)
        seconds = perf_counter() - began
        for work, picture, row in zip(batch, pictures, rows, strict=True):
            if np.isfinite(row).all():
                work.outcome = Result(picture, row, *work.size, work.prepare_s, began - work.ready, seconds)
            else:
                work.outcome = BadPicture(NOT_FINITE, NOT_FINITE_WHY)
        if self._on_batch is not None:
            self._on_batch(len(batch), seconds)


#: The outcome of a picture that a worker process must prepare.
_NEEDS_WORKER = object()


def _input_pipelines(bundle: Bundle) -> Any:
    """Returns the input pipelines of a bundle for `prepare_worker`, as plain data."""
    if bundle.members:
        return [_input_pipelines(member) for member in bundle.members]
    record = bundle.record
    return {"steps": record.steps, "fit": record.fit, "size": record.input_size, "channels": record.channels}


def _steps_px_s(bundle: Bundle) -> float:
    """Returns the seconds that the model's own steps take for a pixel, measured with one picture."""
    sample = np.random.default_rng(0).integers(0, 256, (_SAMPLE_PX, _SAMPLE_PX, 3), np.uint8)
    seconds: list[float] = []
    for _ in range(2):  # the first run includes one-time work
        began = thread_time()
        # A selector may drop the sample, or a step may not support it.
        with contextlib.suppress(StriateError):
            bundle.prepare_pixels(sample)
        seconds.append(thread_time() - began)
    return min(seconds) / _SAMPLE_PX**2


class _Lane:
    """A thread that computes batches."""

    def __init__(self, run: Callable[[_Lane], None], number: int) -> None:
        self.number = number
        self.busy_since: float | None = None
        self.called = False
        self._thread = threading.Thread(target=run, args=[self], name=f"compute-{number}", daemon=True)
        self._thread.start()

    def stuck_s(self) -> float:
        if not self._thread.is_alive():
            return float("inf")
        since = self.busy_since
        return 0.0 if since is None else perf_counter() - since


def _deliver(batch: Sequence[_Work]) -> None:
    # After the event loop has ended nothing waits for the result.
    with contextlib.suppress(RuntimeError):
        batch[0].future.get_loop().call_soon_threadsafe(_resolve, batch)


def _resolve(batch: Sequence[_Work]) -> None:
    for work in batch:
        if work.future.done():
            continue
        if work.error is not None:
            work.future.set_exception(work.error)
        else:
            work.future.set_result(work.outcome)
