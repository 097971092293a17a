"""The interface between HTTP routes and a model.

In a model's own application the service is the replica itself; in the gateway it is a thin wrapper of the application's
handle, which turns Ray's errors back into those below. All methods are coroutines, so that one protocol fits both. A
call whose client has left is cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from serve.http.schemas import DriftReport, InsidePart, ModelDescription, Timing

#: Name of the Serve deployment in every model's application; the gateway recognizes models by it.
MODEL_DEPLOYMENT = "Model"


@dataclass(frozen=True)
class Answer:
    """A model's answer for one picture.

    Attributes:
        classes: class names with probabilities, best first, `top_k` of them; `float(float32)`, never rounded.
        width: of the decoded picture (orientation applied), in pixels.
        height: of the decoded picture, in pixels.
        probabilities: of all classes, in the bundle's order: shape (classes,).
        explanation: PNG of the Grad-CAM for the best class, of the picture's size or smaller; only with `explain`.
    """

    classes: tuple[tuple[str, float], ...]
    width: int
    height: int
    probabilities: NDArray[np.float32] = field(compare=False, repr=False)
    explanation: bytes | None = None


@dataclass(frozen=True)
class Answers:
    """A model's answers to one request.

    Attributes:
        pictures: one answer a picture, in order; a BadPicture for each that cannot be used.
        timing: of the request.
        bundle_id: id of the bundle that answered, in hex.
    """

    pictures: list[Answer | BadPicture]
    timing: Timing
    bundle_id: str


class Busy(StriateError):
    """The model is overloaded, is starting, or was lost while it computed.

    Args:
        detail: one sentence for a person.
        retry_after_s: seconds after which to try again.
        status: 429 where one client has too many requests in progress, 503 otherwise.
    """

    def __init__(self, detail: str, retry_after_s: int = 1, status: int = 503) -> None:
        self.detail, self.retry_after_s, self.status = detail, retry_after_s, status
        super().__init__(detail)

    def __reduce__(self) -> tuple[type, tuple[str, int, int]]:
        return type(self), (self.detail, self.retry_after_s, self.status)


class TimedOut(StriateError):
    """The answer took longer than `timeout_s` of the settings."""


class ModelService(Protocol):
    """A model that answers requests."""

    @property
    def name(self) -> str:
        """The name it is served under."""
        ...

    async def describe(self) -> ModelDescription:
        """Describes it for `GET /models`."""
        ...

    async def drift(self) -> DriftReport | None:
        """Compares recent requests with the training data; None where drift is not measured."""
        ...

    async def is_reachable(self) -> bool:
        """Whether clients reach it: its application answers, also through the proxy."""
        ...

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        """Classifies encoded pictures; one that cannot be used gives a BadPicture in its place and affects no other.

        Args:
            pictures: at least one; each must be within the settings' `limits`, as in `Bundle.prepare`.
            top_k: number of classes, best first; all where it is larger than their number.
            explain: with Grad-CAM; only where `describe().explain` is true.

        Raises:
            Busy: refused immediately, rather than queued without end.
            TimedOut: not done within the settings' `timeout_s`.
        """
        ...

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        """Classifies decoded pictures (height x width x channels, uint8), as `predict` does."""
        ...

    async def inside(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        """Draws, as PNG, what happens inside the model for a picture; only where `describe().explain` is true.

        Args:
            data: the encoded picture.
            part: what to draw.
            class_name: the class that `grad_cam` and `occlusion` explain; None for the most probable.

        Raises:
            BadPicture: the picture cannot be used.
            UsageError: the model has no such class, or nothing of that kind inside.
            Busy: another look inside this replica is in progress.
            TimedOut: it takes longer than the settings' `timeout_s`.
        """
        ...

    async def view(self, data: bytes) -> bytes:
        """Returns, as PNG, what the model sees of a picture: after its input pipeline, an ensemble's first member's.

        Raises:
            BadPicture: it cannot be used; `dropped:REASON` where a selector of the model drops it.
        """
        ...
