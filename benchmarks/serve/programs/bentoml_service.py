"""BentoML as in its documentation: Pillow images, adaptive batching, one worker per core.

By hand, with the variables of classifier.py: bentoml serve benchmarks.serve.programs.bentoml_service:Classifier
"""

from __future__ import annotations

import os
from typing import Any

import bentoml  # pyright: ignore[reportMissingImports] -- has its own environment, see README.md
from PIL import Image

from benchmarks.serve.programs.classifier import batch_size, classifier


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), traffic={"timeout": 60})  # pyright: ignore[reportUntypedClassDecorator]
class Classifier:
    def __init__(self) -> None:
        self.code = classifier()

    @bentoml.api(batchable=True, max_batch_size=batch_size())
    def predict(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        return self.code.classify([self.code.prepare_image(image) for image in images])
