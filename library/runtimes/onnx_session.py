"""Computes a network in ONNX Runtime, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import StriateError
from library.imaging.picture import Pixels
from library.runtimes.graph import OUTPUT, first_line, onnx_model
from library.runtimes.parity import Compute, samples

_TRIED_PICTURES = 8
#: A picture that takes less time than this is computed in the calling thread: waking another costs more.
_SMALL_S = 0.002
#: One picture per thread is chosen even if it takes up to this much longer: on a busy machine no thread then waits for
#: another that was interrupted.
_ACCEPTED_SLOWDOWN = 1.05


def onnx_compute(bundle: Bundle, threads: int, *, measure: bool = True) -> tuple[Compute, int]:
    """Opens a single network in ONNX Runtime.

    Either all threads compute a whole batch together, or each thread computes its own pictures, whichever is faster
    here. Large convolutional networks are faster the second way: one picture's maps stay in the cache and no thread
    waits for another. Large dense layers are faster the first way: their weights are read once per batch. A single
    picture gets all threads, except in a small network, which runs in the calling thread.

    The graph takes uint8 only; the bundle itself computes pictures of uint16 and float32.

    Args:
        bundle: a single network, on the CPU.
        threads: number of threads that compute.
        measure: whether to try both ways. If not, all threads compute each batch together, so that the same batches
            give the same bytes on the same machine, however busy it is.

    Returns:
        What computes the probabilities, and how many threads may call it at the same time.

    Raises:
        StriateError: the network cannot be written as ONNX, or ONNX Runtime cannot run it.
    """
    data = onnx_model(bundle)[1].SerializeToString()
    tried = np.stack(samples(bundle, _TRIED_PICTURES))
    run, lanes = _session(data, threads), 1
    if measure and threads > 1 and _seconds(run, tried[:1]) < _SMALL_S:
        run = _session(data, 1)
    elif measure and threads > 1:
        apart = _PicturePerThread(run, _session(data, 1), threads)
        if _seconds(apart, tried) < _ACCEPTED_SLOWDOWN * _seconds(run, tried):
            run, lanes = apart, threads
    return _by_dtype(bundle, run), lanes


def session_options(threads: int) -> Any:
    """Options for `threads` threads that sleep while idle: spinning, they would take the cores from decoders."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


_Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def _session(data: bytes, threads: int) -> _Run:
    import onnxruntime

    try:
        session: Any = onnxruntime.InferenceSession(data, session_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise StriateError(f"ONNX Runtime cannot load it: {first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return session.run([OUTPUT], {name: batch})[0]

    return run


class _PicturePerThread:
    """Computes each picture of a batch in its own thread; a single picture gets all threads.

    Args:
        together: a session of all threads.
        alone: a session of the calling thread only. (Two callers of a session with many threads wait for the same
            helpers: 21 pictures of ResNet-50 a second instead of 26, on two cores.)
        threads: number of threads.
    """

    def __init__(self, together: _Run, alone: _Run, threads: int) -> None:
        self._together, self._alone = together, alone
        self._pool = ThreadPoolExecutor(threads, "onnx")
        self._callers, self._lock = 0, threading.Lock()

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._lock:
            is_first = not self._callers
            self._callers += 1
        try:
            if not is_first:
                return self._alone(batch)
            if len(batch) == 1:
                return self._together(batch)
            return np.concatenate(list(self._pool.map(self._alone, np.split(batch, len(batch)))))
        finally:
            with self._lock:
                self._callers -= 1


def _by_dtype(bundle: Bundle, run: _Run) -> Compute:
    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        rows = np.zeros((len(pictures), len(bundle.classes)), np.float32)
        plain = np.array([_is_plain(picture) for picture in pictures], bool)
        if plain.any():
            rows[plain] = run(np.stack([picture for picture, yes in zip(pictures, plain, strict=True) if yes]))
        if not plain.all():
            others = [picture for picture, yes in zip(pictures, plain, strict=True) if not yes]
            rows[~plain] = bundle.probabilities(others)
        return rows

    return compute


def _is_plain(picture: Pixels) -> bool:
    return picture.dtype == np.uint8


def _seconds(run: _Run, batch: NDArray[np.uint8]) -> float:
    """Seconds of the shorter of two runs: other work on the machine can only make a run longer."""
    run(batch[:1])
    durations: list[float] = []
    for _ in range(2):
        began = perf_counter()
        run(batch)
        durations.append(perf_counter() - began)
    return min(durations)
