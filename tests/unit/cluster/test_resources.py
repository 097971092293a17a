"""Named sizes, and whether nodes have room for them."""

from __future__ import annotations

from typing import get_args

import pytest

from cluster.resources import SIZES, Kind, Need, need_of, need_on_nodes
from library.errors import UsageError

LAPTOP = {"CPU": 2.0, "memory": 6e9}
GPU_NODE = {"CPU": 16.0, "GPU": 1.0, "memory": 60e9}


def test_every_size_is_defined_for_each_kind_of_job() -> None:
    for kinds in SIZES.values():
        assert kinds.keys() == set(get_args(Kind))
        assert all(need.workers >= 1 and need.cpus > 0 for need in kinds.values())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_laptop_is_enough_for_its_size(kind: Kind) -> None:
    assert need_on_nodes("laptop", kind, [LAPTOP]) == SIZES["laptop"][kind]


def test_a_size_that_does_not_fit_is_refused_with_sizes_that_do() -> None:
    with pytest.raises(UsageError) as refused:
        need_on_nodes("gpu-8", "classify", [LAPTOP, GPU_NODE])
    assert str(refused.value) == (
        "--size gpu-8 needs 8 workers with 8 CPU, 1 GPU and 8 GB each, but only 1 fit: Ray has 18 CPUs, "
        "1 GPUs and 66.0 GB for workers on 2 nodes; sizes that fit: laptop, cpu-small, gpu-1, or use --workers "
        "instead"
    )


def test_a_worker_must_fit_on_one_node() -> None:
    # 16 CPUs and a GPU in all, but no node has a GPU and eight CPUs.
    with pytest.raises(UsageError, match="but only 0 fit"):
        need_on_nodes("gpu-1", "classify", [{"CPU": 12.0, "memory": 60e9}, {"CPU": 4.0, "GPU": 1.0, "memory": 60e9}])


def test_memory_counts_as_well() -> None:
    with pytest.raises(UsageError, match=r"2\.0 GB for workers"):
        need_on_nodes("cpu-small", "shards", [{"CPU": 64.0, "memory": 2e9}])


def test_nothing_fits_on_a_node_without_cpus() -> None:
    with pytest.raises(UsageError, match="no size fits"):
        need_on_nodes("laptop", "shards", [{"memory": 6e9}])


def test_an_unknown_size_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"there is no such size \(did you mean 'gpu-1'\?\)"):
        need_of("gpu1", "train")


def test_a_need_reads_as_a_sentence() -> None:
    assert str(Need(1, 0.5)) == "1 worker with 0.5 CPU and 1 GB"
