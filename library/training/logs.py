"""What a run writes for people to look at: metrics.jsonl and TensorBoard files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library import storage

METRICS = "metrics.jsonl"


class Logs:
    """One line an epoch in metrics.jsonl, and scalars for TensorBoard.

    Args:
        uri: folder; in a store the files are uploaded after each epoch.
        step: what a run that goes on starts from; lines of later steps, written before it was killed, are left out.
    """

    def __init__(self, uri: str, step: int) -> None:
        from tensorboardX import SummaryWriter  # it takes seconds, and reading needs none of it

        self._uri = uri
        self._folder = Path(tempfile.mkdtemp(prefix="striate-logs-")) if storage.is_remote(uri) else Path(uri)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(uri) if line["step"] <= step]
        self._lines = "".join(json.dumps(line) + "\n" for line in kept)
        storage.write_bytes(storage.join(uri, METRICS), self._lines.encode())
        self._board = SummaryWriter(str(self._folder), purge_step=step, flush_secs=30)

    def window(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a few steps, for TensorBoard only."""
        for name, value in values.items():
            self._board.add_scalar(f"steps/{name}", value, step)

    def epoch(self, values: Mapping[str, Any]) -> None:
        """One line of metrics; `epoch` counts from 1, `step` is the number of steps done."""
        self._lines += json.dumps(values) + "\n"
        storage.write_bytes(storage.join(self._uri, METRICS), self._lines.encode())  # whole or not at all
        for name, value in values.items():
            if name not in ("epoch", "step"):
                self._board.add_scalar(f"epochs/{name}", value, values["step"])
        self._board.flush()
        if storage.is_remote(self._uri):
            for path in self._folder.iterdir():
                storage.write_bytes(storage.join(self._uri, path.name), path.read_bytes())

    def close(self) -> None:
        self._board.close()


def read_metrics(uri: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in a folder; none where there is no such file."""
    path = storage.join(uri, METRICS)
    if not storage.exists(path):
        return []
    return [json.loads(line) for line in storage.read_bytes(path).decode().splitlines()]
