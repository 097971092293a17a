"""A network in ONNX Runtime, on the CPU."""

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
from library.runtimes.runtime import Compute
from library.runtimes.samples import samples

_TRIED_PICTURES = 8
#: A picture that takes less is not worth waking another thread for.
_SMALL_S = 0.002
#: Pictures apart are computed so even where they take a little longer: where the cores have other work too, no thread
#: waits for one that was held up.
_NEARLY = 1.05


def onnx_compute(bundle: Bundle, threads: int, *, measure: bool = True) -> tuple[Compute, int]:
    """A single network's probabilities through ONNX Runtime, and how many callers may ask for them at once.

    Whole batches are computed by all threads together, or every thread computes pictures of its own, whichever is
    faster here. Convolutions of large networks are faster the second way, as one picture's maps stay in the cache and
    no thread waits for another; large dense layers the first way, as their weights are read once a batch. A lone
    picture gets all threads, except in a small network, which runs in the calling thread.

    Pictures of uint16 and float32, for which the graph is not made, go to the bundle itself.

    Args:
        bundle: of a single network, on the CPU.
        threads: that compute.
        measure: whether to try both ways; without, all threads compute each batch together, so that the same batches
            give the same bytes on the same machine, however busy it is.

    Raises:
        StriateError: a network that ONNX cannot say, or ONNX Runtime not run.
    """
    data = onnx_model(bundle)[1].SerializeToString()
    tried = np.stack(samples(bundle, _TRIED_PICTURES))
    run, lanes = _session(data, threads), 1
    if measure and threads > 1 and _seconds(run, tried[:1]) < _SMALL_S:
        run = _session(data, 1)
    elif measure and threads > 1:
        apart = _Apart(run, _session(data, 1), threads)
        if _seconds(apart, tried) < _NEARLY * _seconds(run, tried):
            run, lanes = apart, threads
    return _by_dtype(bundle, run), lanes


def session_options(threads: int) -> Any:
    """Threads that sleep when they have nothing to do: spinning they would take the cores from those that decode."""
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
        raise StriateError(f"ONNX Runtime does not take it: {first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return session.run([OUTPUT], {name: batch})[0]

    return run


class _Apart:
    """Each thread computes pictures of its own; a picture that is alone gets all of them.

    Args:
        together: a session of all threads.
        alone: one of the calling thread. (In a session of many, two who ask wait for the same helpers: 21 pictures of
            ResNet-50 a second instead of 26, on two cores.)
        threads: how many.
    """

    def __init__(self, together: _Run, alone: _Run, threads: int) -> None:
        self._together, self._alone = together, alone
        self._pool = ThreadPoolExecutor(threads, "onnx")
        self._asking, self._lock = 0, threading.Lock()

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._lock:
            is_first = not self._asking
            self._asking += 1
        try:
            if not is_first:
                return self._alone(batch)
            if len(batch) == 1:
                return self._together(batch)
            return np.concatenate(list(self._pool.map(self._alone, np.split(batch, len(batch)))))
        finally:
            with self._lock:
                self._asking -= 1


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
    """Of the shorter of two: what others do on the machine only ever makes a run longer."""
    run(batch[:1])
    spent: list[float] = []
    for _ in range(2):
        began = perf_counter()
        run(batch)
        spent.append(perf_counter() - began)
    return min(spent)
