"""Pictures a second of every network of the catalogue, as `striate models --plot --measure` measures them.

The forward pass alone, in float32 with random weights, from uint8 pictures of the network's own size to logits. Every
round measures all networks in turn, so that a machine that gets slower favours none of them.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.common.command_line import at_least, make_parser, run_benchmark
from benchmarks.common.measuring import RATE, measured_rounds
from benchmarks.common.report import print_table, spread
from benchmarks.common.result_file import torch_facts
from jobs.inspection.side_by_side import rate_text, short_number
from library.models import names
from library.models.analysis import analyse
from library.models.throughput import chosen_device, device_name, measure_throughput


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__, __doc__, "", "--model lenet5 --model resnet18 --seconds 0.5 --rounds 1 --out /tmp/results"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="pictures of a batch (8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (auto)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each measurement after one batch (2)")
    parser.add_argument("--rounds", type=at_least(1), default=2, help="rounds, each with all networks (2)")
    parser.add_argument("--model", action="append", choices=names(), help="a network; may be repeated (all)")
    return run_benchmark(
        __file__, parser, _measure, _show, machine_facts=lambda options: torch_facts(chosen_device(options.device))
    )


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    device = chosen_device(options.device)
    models = options.model or names()
    rounds = measured_rounds(
        {
            name: functools.partial(_figures, name, options.batch_size, device, options.seconds)
            for name in dict.fromkeys(models)
        },
        options.rounds,
    )
    return {
        "parameters": {name: getattr(options, name) for name in ("batch_size", "seconds", "rounds")}
        | {"device": device, "device_name": device_name(device), "precision": "float32"},
        "networks": {
            name: {
                RATE: spread([one[RATE] for one in figures]),
                "multiply_adds": analyse(name).multiply_adds,
                "rounds": figures,
            }
            for name, figures in rounds.items()
        },
    }


def _figures(name: str, batch_size: int, device: str, seconds: float) -> dict[str, Any]:
    measured = measure_throughput(name, batch_size=batch_size, device=device, seconds=seconds)
    return {
        RATE: round(measured.pictures_per_s, 3),
        "batches": measured.batches,
        "fastest_batch_s": round(measured.fastest_s, 5),
        "slowest_batch_s": round(measured.slowest_s, 5),
    }


def _show(result: Mapping[str, Any]) -> None:
    parameters = result["parameters"]
    rows = [
        (
            name,
            *(rate_text(one[RATE][which]) for which in ("median", "min", "max")),
            short_number(one["multiply_adds"]),
            short_number(one["multiply_adds"] * one[RATE]["median"]),
        )
        for name, one in sorted(result["networks"].items(), key=lambda item: -item[1][RATE]["median"])
    ]
    count = "1 round" if parameters["rounds"] == 1 else f"{parameters['rounds']} rounds"
    title = f"{parameters['device_name']}, batches of {parameters['batch_size']}, {count}"
    headings = ("network", "pictures/s", "slowest round", "fastest round", "multiply-adds a picture", "and a second")
    print_table(title, headings, rows)


if __name__ == "__main__":
    sys.exit(main())
