"""Computes a network in ONNX Runtime; importing this module does not import torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.errors import StriateError
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

#: Computes the probabilities of prepared pictures, N x classes; each row sums to 1.
Compute: TypeAlias = Callable[[Sequence[Prepared]], NDArray[np.float32]]

#: Name of a graph's output.
OUTPUT = "probabilities"
#: ONNX Runtime's providers for a GPU, the fastest first.
_GPU_PROVIDERS = ("Tensorrt", "CUDA")
#: Pictures in the largest batch of a fixed size; larger ones are computed in parts.
LARGEST = 64
#: A picture that takes less time than this is computed in the calling thread: waking another costs more.
_SMALL_S = 0.002
#: One picture per thread is chosen even if it takes up to this much longer: on a busy machine no thread then waits for
#: another that was interrupted.
_ACCEPTED_SLOWDOWN = 1.05


@dataclass(frozen=True)
class OpenGraph:
    """A graph that is open in ONNX Runtime.

    Attributes:
        compute: computes probabilities.
        lanes: how many threads may call it at the same time.
        facts: the graph's metadata.
        provider: what computes it, such as `CPU`.
    """

    compute: Compute
    lanes: int
    facts: Mapping[str, str]
    provider: str = "CPU"


def padded_size(pictures: int) -> int:
    """Size of the batch in which a number of pictures, 1 to `LARGEST`, is computed: the next power of two."""
    return 1 << (pictures - 1).bit_length()


def open_graph(graph: bytes, classes: int, others: Compute, threads: int, tried: Sequence[Prepared] = ()) -> OpenGraph:
    """Opens the graph of a single network in ONNX Runtime.

    Either all threads compute a whole batch together, or each thread computes its own pictures, whichever is faster
    here. Large convolutional networks are faster the second way: one picture's maps stay in the cache and no thread
    waits for another. Large dense layers are faster the first way: their weights are read once per batch. A single
    picture gets all threads, except in a small network, which runs in the calling thread.

    Args:
        graph: an ONNX file of one input, uint8, N x height x width x channels.
        classes: number of the network's classes.
        others: computes pictures of uint16 and float32, which the graph does not take.
        threads: number of threads that compute.
        tried: pictures with which both ways are measured. Without any, all threads compute each batch together, so that
            the same batches give the same bytes on the same machine, however busy it is.

    Raises:
        StriateError: ONNX Runtime cannot run it.
    """
    run, lanes = _Session(graph, threads), 1
    facts = run.facts
    if tried and threads > 1:
        batch, alone = np.stack(tried), _Session(graph, 1)
        if _seconds(run, batch[:1]) < _SMALL_S:
            run = alone
        else:
            apart = _PicturePerThread(run, alone, threads)
            if _seconds(apart, batch) < _ACCEPTED_SLOWDOWN * _seconds(run, batch):
                run, lanes = apart, threads
    return OpenGraph(_by_dtype(classes, run, others), lanes, facts)


def open_on_gpu(graph: bytes, classes: int, others: Compute, device: int) -> OpenGraph:
    """Opens the graph of a single network on a GPU, with the fastest of ONNX Runtime's providers that is installed.

    Batches are filled up to a power of two, since TensorRT builds an engine for each size.

    Args:
        graph: see `open_graph`.
        classes: see `open_graph`.
        others: see `open_graph`.
        device: index of the GPU.

    Raises:
        StriateError: ONNX Runtime is installed without CUDA, or cannot run the graph.
    """
    import onnxruntime

    installed = onnxruntime.get_available_providers()
    names = [name for name in _GPU_PROVIDERS if f"{name}ExecutionProvider" in installed]
    if not names:
        raise StriateError("ONNX Runtime is installed for the CPU only; a GPU needs the package onnxruntime-gpu")
    errors: list[str] = []
    for name in names:
        try:
            run = _Session(graph, 1, [(f"{name}ExecutionProvider", {"device_id": device}), "CPUExecutionProvider"])
            run(np.zeros((1, *run.shape), np.uint8))
        except Exception as error:  # its errors have no common base
            errors.append(f"{name}: {first_line(error)}")
        else:
            return OpenGraph(_by_dtype(classes, _Padded(run), others), 1, run.facts, name)
    raise StriateError(f"ONNX Runtime cannot run it on the GPU: {'; '.join(errors)}")


def first_line(error: BaseException) -> str:
    """Type and first line of an error, at most 200 characters: tracers write messages of several pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def session_options(threads: int) -> Any:
    """Options for `threads` threads that sleep while idle: spinning, they would take the cores from decoders."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


_Run: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class _Session:
    def __init__(self, graph: bytes, threads: int, providers: Sequence[Any] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime

        try:
            self._session: Any = onnxruntime.InferenceSession(
                graph, session_options(threads), providers=list(providers)
            )
        except Exception as error:  # its errors have no common base
            raise StriateError(f"ONNX Runtime cannot load it: {first_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of a picture."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._session.run([OUTPUT], {self._input: batch})[0]

    @property
    def facts(self) -> Mapping[str, str]:
        return self._session.get_modelmeta().custom_metadata_map


class _Padded:
    """Fills batches up to `padded_size`, and computes larger ones than `LARGEST` in parts."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        for first in range(0, len(batch), LARGEST):
            part = batch[first : first + LARGEST]
            filling = padded_size(len(part)) - len(part)
            filled = np.concatenate([part, np.zeros((filling, *part.shape[1:]), np.uint8)]) if filling else part
            parts.append(self._run(filled)[: len(part)])
        return np.concatenate(parts)


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


def _by_dtype(classes: int, run: _Run, others: Compute) -> Compute:
    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        rows = np.zeros((len(pictures), classes), np.float32)
        plain = np.array([_is_plain(picture) for picture in pictures], bool)
        if plain.any():
            rows[plain] = run(np.stack([picture for picture, yes in zip(pictures, plain, strict=True) if yes]))
        if not plain.all():
            rows[~plain] = others([picture for picture, yes in zip(pictures, plain, strict=True) if not yes])
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
