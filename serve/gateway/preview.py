"""Previews: a picture after any steps, computed one at a time in a process that can be ended (`serve.processes`).

The server creates a `Previewer`; its worker process runs this file.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from library.errors import BadPicture, StepError, StriateError
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.imaging.picture import Picture
from library.pipeline import Pipeline
from library.pipeline.batch import run_step
from library.randomness import generator
from library.steps import plugins
from library.steps.base import Step, augmented
from serve.http.service import Busy, TimedOut
from serve.processes import AnswerFrame, ProcessEndedError, ProcessPool, answer_frames
from serve.settings import ServeSettings

_MAX_WAITING = 16
_MAX_SECONDS = 10.0


class Previewer:
    """Shows one picture after another; its process starts with the first and lives until the server ends."""

    def __init__(self, settings: ServeSettings) -> None:
        self._max_pixels = settings.max_pixels
        self._seconds = min(settings.timeout_s, _MAX_SECONDS)
        self._worker = ProcessPool(__name__, 1, [asdict(plugin) for plugin in plugins.loaded()])
        self._waiting = 0

    async def show(self, data: bytes, steps: str) -> bytes:
        """Returns the picture after the steps, as PNG.

        Raises:
            BadPicture: the picture cannot be used, is dropped by a selector, or would become too large.
            StepError: a step's own code fails.
            TimedOut: the steps took too long.
            Busy: too many previews wait.
        """
        if self._waiting >= _MAX_WAITING:
            raise Busy("too many previews are waiting")
        self._waiting += 1
        try:
            request = {"steps": steps, "max_pixels": self._max_pixels}
            header, png = await self._worker.ask(request, data, seconds=self._seconds)
        except ProcessEndedError as ended:
            if ended.in_time:
                raise StepError(f"the steps ended the process that ran them (exit status {ended.status})") from None
            raise TimedOut(f"the steps took more than {self._seconds:g} s") from None
        finally:
            self._waiting -= 1
        if "reason" in header:
            raise BadPicture(header["reason"], header["detail"])
        if "detail" in header:
            raise StepError(header["detail"])
        return png

    def close(self) -> None:
        """Ends the process."""
        self._worker.close()


def preview(data: bytes, steps: str, max_pixels: int) -> bytes:
    """Returns the picture after the steps, as PNG; an augmentation gives one of its variants.

    Raises:
        BadPicture: it cannot be used; `dropped:REASON` where a selector drops it, `too_large` where a step enlarges it
            beyond `max_pixels`.
        StepError: a step's own code fails.
    """
    limits = codec.Limits(max_pixels=max_pixels)
    picture = Picture("", None, codec.probe(data, limits), lambda: data, {}, limits)
    rng = generator(0, 0, "preview")
    for step in Pipeline.parse(steps).steps:
        if step.kind == "augmentation":
            _augment(step, picture, rng)
        else:
            reason = run_step(step, picture)
            if reason is not None:
                raise BadPicture(f"dropped:{reason}", f"the selector '{step}' drops it")
        if picture.width * picture.height > max_pixels:
            detail = f"'{step}' makes it {picture.width}x{picture.height}; at most {max_pixels:,} pixels are shown"
            raise BadPicture("too_large", detail)
    return codec.encode(visible(picture.pixels), codec.Encoding("png"))[0]


def _augment(step: Step, picture: Picture, rng: np.random.Generator) -> None:
    try:
        picture.replace(augmented(step, picture.pixels, rng))
    except StriateError:
        raise
    except Exception as error:
        raise StepError(f"step '{step}' failed: {type(error).__name__}: {error}") from error


def _answer(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        return {}, preview(data, header["steps"], header["max_pixels"])
    except BadPicture as bad:
        return {"reason": bad.reason, "detail": bad.detail}, b""
    except StriateError as error:
        return {"detail": str(error)}, b""
    except MemoryError:
        return {"reason": "too_large", "detail": "the steps need more memory than a preview may use"}, b""


def _start(setup: list[dict[str, str]]) -> AnswerFrame:
    plugins.install([plugins.Plugin(**plugin) for plugin in setup])
    return _answer


if __name__ == "__main__":
    answer_frames(_start)
