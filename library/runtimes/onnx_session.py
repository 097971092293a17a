"""A network in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.bundle import Bundle
from library.errors import StriateError
from library.picture import Pixels
from library.runtimes.graph import OUTPUT, first_line, onnx_model
from library.runtimes.runtime import Compute
from library.runtimes.samples import samples

_TRIED_PICTURES = 8
#: A picture that takes less is not worth waking another thread for.
_SMALL_S = 0.002


def onnx_compute(bundle: Bundle, threads: int) -> Compute:
    """A single network's probabilities through ONNX Runtime.

    Whole batches are computed by all threads together, or every thread takes pictures of its own: what is faster here.
    Convolutions of large networks like the second, with one picture's maps in the cache and no thread waiting for
    another; large dense layers the first, as their weights are read once a batch. A lone picture gets all threads, but
    for a small network, which runs in the calling one.

    All of these gave the same bits for a picture, in batches of 1 to 19 and with 1 to 4 threads, for every model tried
    (LeNet, MLP, ResNets, AlexNet, EfficientNet, ConvNeXt, ViT); ONNX Runtime does not promise it. The bits are not
    those of eager.

    Pictures of uint16 and float32, for which the graph is not made, go to the bundle itself.

    Raises:
        StriateError: a network that ONNX cannot say, or ONNX Runtime not run.
    """
    data = onnx_model(bundle)[1].SerializeToString()
    tried = np.stack(samples(bundle, _TRIED_PICTURES))
    run = _session(data, threads)
    if threads > 1 and _seconds(run, tried[:1]) < _SMALL_S:
        run = _session(data, 1)
    elif threads > 1:
        apart = _apart(run, threads)
        if _seconds(apart, tried) < _seconds(run, tried):
            run = apart
    return _by_dtype(bundle, run)


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


def _apart(run: _Run, threads: int) -> _Run:
    pool = ThreadPoolExecutor(threads, "onnx")

    def each(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(batch) == 1:
            return run(batch)
        return np.concatenate(list(pool.map(run, np.split(batch, len(batch)))))

    return each


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
