"""Throughput of a model on a device."""

from __future__ import annotations

import pytest
import torch

from library.errors import UsageError
from library.models.throughput import chosen_device, device_name, measure_throughput


def test_at_least_one_batch_is_timed_however_short_the_time() -> None:
    measured = measure_throughput("lenet5", batch_size=3, device="cpu", seconds=1e-9)
    assert measured.batches == 1
    assert measured.batch_size == 3
    assert measured.fastest_s == measured.slowest_s
    assert measured.pictures_per_s == pytest.approx(3 / measured.fastest_s)


def test_the_rate_lies_between_those_of_the_fastest_and_slowest_batch() -> None:
    measured = measure_throughput("mlp", batch_size=2, device="cpu", seconds=0.05)
    assert 2 / measured.slowest_s <= measured.pictures_per_s <= 2 / measured.fastest_s


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert chosen_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert chosen_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["tpu", "meta", "gpu", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        chosen_device(device)


def test_the_processor_is_named_with_its_threads() -> None:
    assert device_name("cpu").endswith(f", {torch.get_num_threads()} threads")
