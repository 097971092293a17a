"""Benchmarks, and the programs that Striate is compared with. See README.md."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
