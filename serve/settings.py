"""What a server is told: plain data, so that it travels through Serve's config file as it is."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import pydantic

from library.imaging import codec

#: Photos of phones have 12 to 50 million.
_MAX_PIXELS = 64 * 10**6
#: RGBA of 16 bits; pictures with more bands have fewer pixels.
_MAX_BYTES_A_PIXEL = 8


class ServeSettings(pydantic.BaseModel):
    """How to serve; the same for every model of a server.

    Attributes:
        max_body_mb: largest request body, in MiB.
        max_pixels: largest picture, width x height; read from its header, before anything is decoded.
        max_files: most pictures in one request.
        timeout_s: from a whole request to its answer, in seconds; 504 after it.
        body_timeout_s: from a request's head to the end of its body, in seconds; 408 after it.
        top_k: classes in an answer where a request does not say.
        keys: lines `NAME sha256:HEX`; None, with no `keys_file`, asks for no key.
        keys_file: path of such lines, on every node; read again when it changes: a line taken out is a key revoked.
        cors_origins: origins whose pages may ask, such as `https://example.org`; none by default.
        explain: whether Grad-CAM may be asked for.
        drift: whether what is asked is measured against what was trained on.
        runtime: `auto` is the fastest that gives the same answers.
        device: auto, cpu, cuda, cuda:1 ...
        tune: take time at start to find batch size and wait; without it the probe is a short one.
        batch_size: pictures in a batch; None: found by the probe.
        batch_wait_ms: how long an idle model waits for a batch to fill; None: not at all, or with `tune` as the probe
            finds.
        access_log: file, on every node, that gets a JSON line for each request; `-` is the processes' stderr, None no
            line at all.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    max_body_mb: Annotated[float, pydantic.Field(gt=0, le=2048)] = 32.0
    max_pixels: Annotated[int, pydantic.Field(ge=1, le=codec.DEFAULT_LIMITS.max_pixels)] = _MAX_PIXELS
    max_files: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 64
    timeout_s: Annotated[float, pydantic.Field(gt=0)] = 30.0
    body_timeout_s: Annotated[float, pydantic.Field(gt=0)] = 30.0
    top_k: Annotated[int, pydantic.Field(ge=1)] = 5
    keys: tuple[str, ...] | None = None
    keys_file: str | None = None
    cors_origins: tuple[str, ...] = ()
    explain: bool = True
    drift: bool = False
    runtime: Literal["auto", "eager", "compile", "onnx"] = "auto"
    device: str = "auto"
    tune: bool = False
    batch_size: Annotated[int | None, pydantic.Field(ge=1)] = None
    batch_wait_ms: Annotated[float | None, pydantic.Field(ge=0)] = None
    access_log: str | None = None

    @pydantic.field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or parts.geturl() != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(f"'{origin}' is no origin such as https://example.org")
        return origins

    @property
    def needs_key(self) -> bool:
        """Whether requests must carry a key."""
        return self.keys is not None or self.keys_file is not None

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return int(self.max_body_mb * 2**20)

    @property
    def limits(self) -> codec.Limits:
        """What one picture may be; for `Bundle.prepare` too."""
        return codec.Limits(self.max_body_bytes, self.max_pixels, self.max_pixels * _MAX_BYTES_A_PIXEL)
