"""The actor that decodes pictures which are kept in memory. It imports no torch, so it is up in a second."""

from __future__ import annotations

from library.inputs import InputPipeline
from library.training.resident import Resident, decode_rows
from library.training.rows import Rows


class Decoder:
    """An actor that decodes one shard after another, for pictures that are kept in memory."""

    def __init__(self, rows: Rows, inputs: InputPipeline, fitted: bool) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._rows, self._inputs, self._fitted = rows, inputs, fitted

    def run(self, shard: int) -> tuple[int, Resident]:
        """The pictures of one shard, and its number."""
        return shard, decode_rows(self._rows, shard, self._inputs, fitted=self._fitted)
