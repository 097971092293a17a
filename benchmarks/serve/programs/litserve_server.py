"""LitServe as in its documentation: an uploaded file, batching, one worker per core.

By hand, with the variables of classifier.py: python -m benchmarks.serve.programs.litserve_server PORT WORKERS
"""

import sys
from typing import Any

import litserve as ls  # pyright: ignore[reportMissingImports] -- has its own environment, see README.md
from fastapi import UploadFile

from benchmarks.serve.programs.classifier import batch_size, classifier


class Classifier(ls.LitAPI):  # pyright: ignore[reportUntypedBaseClass]
    def setup(self, device: str) -> None:
        self.code = classifier()

    # LitServe inspects this annotation, so it must not be a string: no `from __future__ import annotations` here.
    def decode_request(self, request: UploadFile) -> Any:
        return self.code.prepare(request.file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        return self.code.classify(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    api = Classifier(max_batch_size=batch_size(), batch_timeout=0.01)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=60)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
