"""What the HTTP faces ask of a model: `model_api` of the one in its own process, `gateway_api` of every one.

In a model's own application the service is the replica itself; in the gateway it is a thin wrapper of the application's
handle, which turns Ray's errors back into those below. All methods are coroutines, so that one protocol does for both.
A call whose client has left is cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from serve.http.schemas import DriftReport, ModelDescription, Timing


@dataclass(frozen=True)
class Answer:
    """What a model says of one picture.

    Attributes:
        classes: ranked names with probabilities, as many as were asked for; `float(float32)`, never rounded.
        width: of the decoded picture (orientation applied), in pixels.
        height: likewise.
        probabilities: of every class, in the order of the bundle's classes: the row that the model gave.
        explanation: PNG of the Grad-CAM for the best class, of the picture's size or smaller; only where asked for.
    """

    classes: tuple[tuple[str, float], ...]
    width: int
    height: int
    probabilities: NDArray[np.float32] = field(compare=False, repr=False)
    explanation: bytes | None = None


@dataclass(frozen=True)
class Answers:
    """What a model says of the pictures of one request.

    Attributes:
        pictures: one answer each, in their order; a picture that cannot be used has its BadPicture.
        timing: of the request.
        bundle_id: of the bundle that answered, in hex.
    """

    pictures: list[Answer | BadPicture]
    timing: Timing
    bundle_id: str


class Busy(StriateError):
    """The model takes no more at the moment, or is starting, or has just lost what it was computing.

    Args:
        detail: one sentence for a person.
        retry_after_s: when asking again makes sense.
        status: 429 for more than one client may have under way, 503 for everything else.
    """

    def __init__(self, detail: str, retry_after_s: int = 1, status: int = 503) -> None:
        self.detail, self.retry_after_s, self.status = detail, retry_after_s, status
        super().__init__(detail)

    def __reduce__(self) -> tuple[type, tuple[str, int, int]]:
        return type(self), (self.detail, self.retry_after_s, self.status)


class TimedOut(StriateError):
    """The answer took longer than `timeout_s` of the settings."""


class ModelService(Protocol):
    """One model that answers."""

    @property
    def name(self) -> str:
        """Under which it is served."""
        ...

    async def described(self) -> ModelDescription:
        """Describes it for `GET /models`."""
        ...

    async def drift(self) -> DriftReport | None:
        """Compares what was asked lately with what was trained on; None where that is not measured."""
        ...

    async def is_reached(self) -> bool:
        """Whether clients reach it: its own application answers, and what stands between."""
        ...

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        """Classify encoded pictures; one that cannot be used is its BadPicture, in its place, and stops no other.

        Args:
            pictures: one at least; the service holds each to the settings' `limits`, as `Bundle.prepare` does.
            top_k: how many classes, best first; more than there are gives all.
            explain: with Grad-CAM; asked only where `described().explain` is true.

        Raises:
            Busy: refused at once, rather than queued for ever.
            TimedOut: not done within the settings' `timeout_s`.
        """
        ...

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        """As `predict`, of decoded pictures (height x width x channels)."""
        ...

    async def view(self, data: bytes) -> bytes:
        """PNG of what the model sees of a picture, after its own pipeline; an ensemble's first member's.

        Raises:
            BadPicture: also `dropped:REASON`, where a selector of the model drops it.
        """
        ...
