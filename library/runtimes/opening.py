"""The runtime that was asked for, or the fastest that gives the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle, Prepared
from library.bundle.members import ParallelMembers
from library.errors import StriateError, UsageError
from library.runtimes.compiled import compiled
from library.runtimes.onnx_session import onnx_compute
from library.runtimes.parity import check
from library.runtimes.runtime import Runtime
from library.runtimes.samples import samples

NAMES = ("auto", "eager", "compile", "onnx")
#: What auto compares: a lone picture, and a batch.
_LONE, _BATCH = 1, 8
_MOST_ROUNDS = 10


def open_runtime(
    bundle: Bundle,
    name: str = "auto",
    *,
    threads: int | None = None,
    probe_s: float = 5.0,
    try_compile: bool | None = None,
    measure: bool = True,
) -> Runtime:
    """Make a bundle ready to be asked, and check that it gives the bundle's own answers.

    Args:
        bundle: a loaded bundle; its device is the runtime's.
        name: one of `NAMES`; auto is the fastest that passes the check (`library.runtimes.parity`).
        threads: CPU threads of ONNX Runtime, torch's number by default; eager and compile always have torch's.
        probe_s: how long auto may measure, in seconds; making the candidates and checking them comes on top.
        try_compile: whether auto considers torch.compile; by default on CUDA only. On a CPU compiling takes a minute
            and more, and what comes out was no faster than ONNX Runtime.
        measure: whether anything may be chosen by the clock. Without, the same batches give the same bytes on the same
            machine, however busy it is; auto always measures.

    Raises:
        UsageError: for another name, or auto without measuring.
        StriateError: where the runtime that was asked for cannot be made, or fails the check.
    """
    if name not in NAMES:
        raise UsageError(f"there is no runtime '{name}'; there are {', '.join(NAMES)}")
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
        return _joined(bundle, members)
    eager = Runtime("eager", str(bundle.device), threads, bundle.probabilities)
    if name == "auto":
        return _fastest(bundle, eager, probe_s=probe_s, try_compile=try_compile)
    try:
        return _made(name, bundle, eager, measure=measure)
    except StriateError as error:
        raise StriateError(f"runtime '{name}': {error}; the runtime eager takes every bundle") from error


def _made(name: str, bundle: Bundle, eager: Runtime, *, measure: bool) -> Runtime:
    if name == "eager":
        return eager
    if name == "compile":
        compute, lanes = compiled(bundle), 1
    elif bundle.device.type != "cpu":
        raise StriateError("ONNX Runtime is used on the CPU only")
    else:
        compute, lanes = onnx_compute(bundle, eager.threads, measure=measure)
    return Runtime(name, eager.device, eager.threads, compute, check(bundle, compute), lanes=lanes)


def _fastest(bundle: Bundle, eager: Runtime, *, probe_s: float, try_compile: bool | None) -> Runtime:
    on_cpu = bundle.device.type == "cpu"
    passed_over: dict[str, str] = {}
    candidates = [eager]
    for name in ("onnx", "compile"):
        if name == "compile" and not (not on_cpu if try_compile is None else try_compile):
            passed_over[name] = "not tried: on a CPU it takes minutes to make, and was no faster where measured"
            continue
        try:
            candidates.append(_made(name, bundle, eager, measure=True))
        except StriateError as error:
            passed_over[name] = str(error)
    seconds = _measured(candidates, samples(bundle, _BATCH), probe_s)
    best = min(candidates, key=lambda candidate: seconds[candidate.name])
    for candidate in candidates:
        if candidate is not best:
            slower = seconds[candidate.name] / seconds[best.name]
            passed_over[candidate.name] = f"takes {slower:.2f} times as long as {best.name}"
    return replace(best, passed_over=passed_over)


def _measured(candidates: Sequence[Runtime], pictures: Sequence[Prepared], probe_s: float) -> dict[str, float]:
    """Seconds for a lone picture and a batch, of each candidate: of its shortest runs, the candidates taking turns, so
    that what else the machine does meets them alike."""
    if len(candidates) == 1:
        return {candidates[0].name: 0.0}
    end = perf_counter() + probe_s
    spent: dict[tuple[str, int], float] = {}
    for round_number in range(_MOST_ROUNDS):
        for candidate in candidates:
            for size in (_LONE, _BATCH):
                began = perf_counter()
                if round_number and began > end:
                    break
                candidate.probabilities(pictures[:size])
                key = candidate.name, size
                spent[key] = min(spent.get(key, float("inf")), perf_counter() - began)
    return {one.name: sum(spent[one.name, size] for size in (_LONE, _BATCH)) for one in candidates}


def _joined(bundle: Bundle, members: Sequence[Runtime]) -> Runtime:
    """An ensemble of its members' runtimes, which compute at the same time."""
    parallel = ParallelMembers([member.compute for member in members], bundle.device)

    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        return bundle.joined(parallel.probabilities(pictures))

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
