"""Shows a picture after any steps, in a process of its own: see `worker_process`."""

from __future__ import annotations

from typing import Any

import numpy as np

from library.errors import BadPicture, StepError, StriateError
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.imaging.picture import Picture
from library.pipeline import Pipeline
from library.pipeline.batch import run_step
from library.randomness import generator
from library.steps.base import Step, augmented
from serve.worker_process import answer_frames


def preview(data: bytes, steps: str, max_pixels: int) -> bytes:
    """A picture after steps, as PNG; augmentations show one of their variants.

    Raises:
        BadPicture: it cannot be used; `dropped:REASON` where a selector drops it, `too_large` where a step makes it so.
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
        return {"reason": "too_large", "detail": "the steps take more memory than there is for a preview"}, b""


if __name__ == "__main__":
    answer_frames(_answer)
