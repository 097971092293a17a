"""The process that shows a picture after any steps: one that takes too long or too much memory ends it, not the server.

Both ways go frames: the lengths of a JSON header and of the bytes after it, then both.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from typing import IO, Any

import numpy as np

from library import codec
from library.batch import run_step
from library.errors import BadPicture, StepError, StriateError
from library.picture import Picture
from library.pipeline import Pipeline
from library.randomness import generator
from library.sheet import visible
from library.steps.base import Step, augmented

_LENGTHS = struct.Struct(">II")


def write_frame(pipe: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    """Send one frame."""
    text = json.dumps(header).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)))
    pipe.write(text)
    pipe.write(data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None when the other side has ended."""
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text, data = _LENGTHS.unpack(lengths)
    header, body = pipe.read(text), pipe.read(data)
    return None if len(header) < text or len(body) < data else (json.loads(header), body)


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


def main() -> None:
    """Answer frames until there are no more."""
    max_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    # What a library prints must not get between the frames.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        header, data = frame
        # The default action ends the process, whatever C code it is in, and also when its server is gone.
        signal.setitimer(signal.ITIMER_REAL, header["seconds"])
        answer = _answer(header, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(replies, *answer)


if __name__ == "__main__":
    main()
