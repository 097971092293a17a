"""Checks of a machine, a cluster and a bucket from facts: each with its verdict and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.doctor.facts import GpuFacts, NodeFacts, StorageFacts
from library import storage
from library.extras import EXTRAS

#: S3 refuses requests from a clock that is 15 minutes off; the order of nodes' log lines is wrong much earlier.
_S3_CLOCK_S, _CLOCK_WARN_S, _S3_CLOCK_WARN_S = 900, 2, 60
_SHM_BYTES = 2 * 2**30
_MEMORY_BYTES = 4 * 10**9

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """The result of one check: its subject, the verdict, the facts, and what to do."""

    name: str
    verdict: Verdict
    facts: str
    advice: str = ""


def of_machine(facts: NodeFacts) -> Iterator[Check]:
    """Checks the versions, size, GPUs, /dev/shm and token files of one machine."""
    versions = facts["versions"]
    summary = ", ".join(f"{name} {versions[name] or 'absent'}" for name in ("python", "striate", "ray", "torch"))
    absent = [name for name, version in versions.items() if version is None and name not in EXTRAS]
    if absent:
        yield Check("versions", "fail", summary, f"install the absent packages: pip install {' '.join(absent)}")
    elif None in versions.values():
        how = "enough for datasets; training and serving need more: pip install 'striate[train,serve]'"
        yield Check("versions", "ok", summary, how)
    else:
        yield Check("versions", "ok", summary)
    memory = facts["memory_bytes"]
    summary = f"{facts['cpus']} CPUs, {memory / 1e9:.1f} GB"
    if memory < _MEMORY_BYTES:
        yield Check("machine", "warn", summary, "Ray with a worker per CPU needs 4 GB: use --workers 1, or add memory")
    else:
        yield Check("machine", "ok", summary)
    yield _of_gpus(facts["gpus"])
    yield of_shm("shared memory", facts["shm_bytes"])
    if facts["open_token_files"]:
        paths = " ".join(facts["open_token_files"])
        yield Check("token file", "warn", f"{paths}: other users of this machine can read it", f"chmod 600 {paths}")


def _of_gpus(gpus: GpuFacts) -> Check:
    if not gpus["devices"]:
        return Check("GPUs", "ok", "none")
    summary = ", ".join(f"{count}x {name}" for name, count in Counter(gpus["names"]).items()) or "none usable"
    if gpus["usable"] < gpus["devices"]:
        return Check(
            "GPUs",
            "warn",
            f"{summary} of {gpus['devices']}",
            "torch cannot use them all: compare `nvidia-smi` with python -c 'import torch; print(torch.version.cuda)', "
            "and check CUDA_VISIBLE_DEVICES",
        )
    return Check("GPUs", "ok", summary)


def of_shm(name: str, size: int | None) -> Check:
    """Checks the size of /dev/shm in bytes."""
    if size is None:
        return Check(name, "ok", "no /dev/shm; Ray uses files")
    summary = f"/dev/shm {size / 2**30:.1f} GiB"
    if size < _SHM_BYTES:
        return Check(
            name, "warn", summary, "Ray stores objects on disk: use docker run --shm-size=2g, or an emptyDir in memory"
        )
    return Check(name, "ok", summary)


def of_clock(name: str, ahead_s: float, uncertainty_s: float) -> Check:
    """Checks how far a node's clock is ahead of this machine's."""
    summary = f"{ahead_s:+.3f} s ahead, give or take {uncertainty_s:.3f} s"
    if abs(ahead_s) - uncertainty_s > _CLOCK_WARN_S:
        return Check(name, "warn", summary, "the order of log lines is unreliable: run chrony or ntpd on the nodes")
    return Check(name, "ok", summary)


def of_storage_clock(clock: tuple[float, float] | None) -> Check:
    """Checks how far this machine's clock is ahead of S3's, which refuses requests signed 15 minutes off."""
    if clock is None:
        return Check("clock of S3", "warn", "S3 does not return its time", "check `date -u` against another clock")
    ahead_s, uncertainty_s = clock
    summary = f"this clock is {ahead_s:+.1f} s ahead, give or take {uncertainty_s:.1f} s"
    off = abs(ahead_s) - uncertainty_s
    if off > _S3_CLOCK_WARN_S:
        verdict: Verdict = "fail" if off > _S3_CLOCK_S else "warn"
        return Check("clock of S3", verdict, summary, "S3 refuses requests that are 15 minutes off: run chrony or ntpd")
    return Check("clock of S3", "ok", summary)


def of_storage(name: str, place: str, result: StorageFacts) -> Check:
    """Checks that one machine can write, read, list and remove in a bucket or folder."""
    if result["error"] is None:
        return Check(name, "ok", f"{place}: an object was written, read and removed in {result['ms']} ms")
    advice = {
        "written": "allow writing there (s3:PutObject); nodes need credentials too: a role, or submit --env 'AWS_*'",
        "read": "allow reading there (s3:GetObject)",
        "removed": "allow deleting there (s3:DeleteObject), and remove the test object",
        "listed": "allow listing the bucket (s3:ListBucket)",
    }[str(result["step"])]
    return Check(
        name, "fail", str(result["error"]), advice if storage.is_remote(place) else "choose a folder of your own"
    )


def of_versions(here: Mapping[str, str | None], nodes: Mapping[str, Mapping[str, str | None]]) -> Check:
    """Checks that all nodes have the same versions as this machine."""
    differences: list[str] = []
    for package, version in here.items():
        others = [
            f"{versions[package] or 'absent'} on {name}"
            for name, versions in nodes.items()
            if versions[package] != version
        ]
        if others:
            differences.append(f"{package} {version or 'absent'} here, {', '.join(others)}")
    if differences:
        return Check(
            "versions of nodes",
            "fail",
            "; ".join(differences),
            "install one requirements.lock everywhere, or use one image",
        )
    return Check("versions of nodes", "ok", f"the same on {len(nodes)} node{'' if len(nodes) == 1 else 's'}")


def worst(checks: Sequence[Check]) -> Verdict:
    """Returns the worst verdict; `ok` for no checks."""
    order: list[Verdict] = ["ok", "warn", "fail"]
    return order[max((order.index(check.verdict) for check in checks), default=0)]
