"""Opens the runtime that is asked for, or the fastest one that gives the bundle's own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.description import WEIGHTS
from library.bundle.network import ParallelMembers, SingleNetwork
from library.errors import StriateError, UsageError
from library.pipeline.inputs import Prepared
from library.runtimes import NAMES, NAMES_TEXT
from library.runtimes.compiled import compiled, in_fixed_batches
from library.runtimes.graph import onnx_graph
from library.runtimes.kept_graphs import kept
from library.runtimes.onnx_session import Compute, OpenGraph, open_graph, open_on_gpu
from library.runtimes.parity import check, samples

#: Sizes of the batch that auto compares, beside a lone picture; a GPU gains from larger ones.
_CPU_BATCH, _GPU_BATCH = 8, 64
#: Pictures with which ONNX Runtime's ways to use several threads are compared.
_TRIED_PICTURES = 8
_MAX_ROUNDS = 10


@dataclass(frozen=True)
class Runtime:
    """One way to compute a bundle's probabilities; made by `open_runtime`.

    Any thread may call it, but at most `lanes` threads at the same time.

    Attributes:
        name: eager, compile or onnx; for an ensemble with several kinds, joined by `+`.
        device: cpu, cuda, cuda:1 ...
        threads: CPU threads that compute.
        compute: see `probabilities`.
        difference: largest difference from the bundle's own probabilities in the check; 0 for eager.
        passed_over: the runtimes that were not chosen, each with the reason.
        measured_ms: milliseconds for a lone picture and a batch, by the name of each runtime that auto compared.
        provider: what ONNX Runtime computes with; empty for another runtime.
        lanes: how many threads may call it at the same time. With more than one, each caller's pictures are computed
            beside the others', and larger batches gain nothing.
    """

    name: str
    device: str
    threads: int
    compute: Compute = field(repr=False)
    difference: float = 0.0
    passed_over: Mapping[str, str] = field(default_factory=dict[str, str])
    measured_ms: Mapping[str, Mapping[int, float]] = field(default_factory=dict[str, Mapping[int, float]])
    provider: str = ""
    lanes: int = 1

    def probabilities(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """Probabilities of pictures from `Bundle.prepare`, N x classes, in the order of the bundle's classes."""
        return self.compute(pictures)

    def described(self) -> dict[str, Any]:
        """The runtime as plain data, for people and JSON."""
        return {
            "name": self.name,
            "device": self.device,
            "threads": self.threads,
            "difference": self.difference,
            "passed_over": dict(self.passed_over),
            "measured_ms": {
                name: {str(size): round(ms, 3) for size, ms in by_size.items()}
                for name, by_size in self.measured_ms.items()
            },
            "provider": self.provider,
        }


def open_runtime(
    bundle: Bundle,
    name: str = "auto",
    *,
    threads: int | None = None,
    probe_s: float = 5.0,
    try_compile: bool | None = None,
    measure: bool = True,
) -> Runtime:
    """Builds a runtime for a bundle and checks that it gives the bundle's own answers.

    Args:
        bundle: a loaded bundle; the runtime computes on its device.
        name: one of `NAMES`, or auto: the fastest that passes the check (`library.runtimes.parity`).
        threads: CPU threads of ONNX Runtime, torch's number by default; eager and compile always use torch's.
        probe_s: how long auto may measure, in seconds, not counting the time to build and check the candidates.
        try_compile: whether auto considers torch.compile; by default on CUDA only. On a CPU compiling takes a minute
            or more, and the result was no faster than ONNX Runtime.
        measure: whether measured times may decide anything. If not, the same batches give the same bytes on the same
            machine, however busy it is; auto always measures.

    Raises:
        UsageError: an unknown name, or auto without measuring.
        StriateError: the runtime cannot be built, or fails the check.
    """
    if name not in ("auto", *NAMES):
        raise UsageError(f"there is no runtime '{name}': choose auto, {NAMES_TEXT}")
    if name == "auto" and not measure:
        raise UsageError("the runtime auto is chosen by measuring; name another")
    threads = threads or torch.get_num_threads()
    if bundle.members and name != "eager":
        members = [
            open_runtime(
                member,
                name,
                threads=threads,
                probe_s=probe_s / len(bundle.members),
                try_compile=try_compile,
                measure=measure,
            )
            for member in bundle.members
        ]
        return _ensemble_runtime(bundle, members)
    eager = _eager(bundle, threads)
    if name == "auto":
        return _fastest(bundle, eager, probe_s=probe_s, try_compile=try_compile)
    try:
        return _built(name, bundle, eager, measure=measure)
    except StriateError as error:
        raise StriateError(f"runtime '{name}': {error}; the runtime eager takes every bundle") from error


def _eager(bundle: Bundle, threads: int) -> Runtime:
    if bundle.members or bundle.device.type == "cpu":
        return Runtime("eager", str(bundle.device), threads, bundle.probabilities)
    compute = in_fixed_batches(bundle)
    return Runtime("eager", str(bundle.device), threads, compute, check(bundle, compute))


def _built(name: str, bundle: Bundle, eager: Runtime, *, measure: bool) -> Runtime:
    if name == "eager":
        return eager
    provider = ""
    if name == "compile":
        compute, lanes = compiled(bundle), 1
    else:
        opened = _opened(bundle, eager.threads, measure=measure)
        compute, lanes, provider = opened.compute, opened.lanes, opened.provider
    difference = check(bundle, compute)
    return Runtime(name, eager.device, eager.threads, compute, difference, lanes=lanes, provider=provider)


def _opened(bundle: Bundle, threads: int, *, measure: bool) -> OpenGraph:
    graph = kept(bundle.id, lambda: onnx_graph(_on_cpu(bundle)))
    if bundle.device.type == "cpu":
        tried = samples(bundle, _TRIED_PICTURES) if measure else ()
        return open_graph(graph, len(bundle.classes), bundle.probabilities, threads, tried)
    return open_on_gpu(graph, len(bundle.classes), bundle.probabilities, bundle.device.index or 0)


def _on_cpu(bundle: Bundle) -> Bundle:
    """The same network on the CPU, in whose precision graphs are exported and checked."""
    if bundle.device.type == "cpu":
        return bundle
    return Bundle(bundle.record, SingleNetwork(bundle.record, bundle.files()[WEIGHTS], "cpu"))


def _fastest(bundle: Bundle, eager: Runtime, *, probe_s: float, try_compile: bool | None) -> Runtime:
    on_cpu = bundle.device.type == "cpu"
    passed_over: dict[str, str] = {}
    candidates = [eager]
    for name in NAMES:
        if name == eager.name:
            continue
        if name == "compile" and not (not on_cpu if try_compile is None else try_compile):
            passed_over[name] = "not tried: on a CPU compiling takes minutes, and was no faster where measured"
            continue
        try:
            candidates.append(_built(name, bundle, eager, measure=True))
        except StriateError as error:
            passed_over[name] = str(error)
    measured_ms = _measured_ms(candidates, samples(bundle, _CPU_BATCH if on_cpu else _GPU_BATCH), probe_s)
    seconds = {name: sum(by_size.values()) for name, by_size in measured_ms.items()}
    best = min(candidates, key=lambda candidate: seconds[candidate.name])
    for candidate in candidates:
        if candidate is not best:
            slower = seconds[candidate.name] / seconds[best.name]
            passed_over[candidate.name] = f"takes {slower:.2f} times as long as {best.name}"
    return replace(best, passed_over=passed_over, measured_ms=measured_ms)


def _measured_ms(
    candidates: Sequence[Runtime], pictures: Sequence[Prepared], probe_s: float
) -> dict[str, dict[int, float]]:
    """Milliseconds that each candidate takes for one picture and for all of them: its shortest runs, by batch size.

    The candidates take turns, so that other work on the machine slows them alike.
    """
    if len(candidates) == 1:
        return {candidates[0].name: {}}
    end = perf_counter() + probe_s
    shortest: dict[str, dict[int, float]] = {candidate.name: {} for candidate in candidates}
    for round_number in range(_MAX_ROUNDS):
        for candidate in candidates:
            for size in (1, len(pictures)):
                began = perf_counter()
                if round_number and began > end:
                    break
                candidate.probabilities(pictures[:size])
                spent_ms = 1000 * (perf_counter() - began)
                shortest[candidate.name][size] = min(shortest[candidate.name].get(size, spent_ms), spent_ms)
    return shortest


def _ensemble_runtime(bundle: Bundle, members: Sequence[Runtime]) -> Runtime:
    """A runtime that computes the members of an ensemble at the same time, each in its own runtime."""
    parallel = ParallelMembers([member.compute for member in members], bundle.device)

    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        return bundle.mean_of_members(parallel.probabilities(pictures))

    passed_over: dict[str, str] = {}
    for number, member in enumerate(members):
        passed_over |= {f"{name} (member {number})": why for name, why in member.passed_over.items()}
    return Runtime(
        "+".join(dict.fromkeys(member.name for member in members)),
        members[0].device,
        members[0].threads,
        compute,
        max(member.difference for member in members),
        passed_over,
    )
