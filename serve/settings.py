"""Settings of a server: plain data, which Serve's config file can hold."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import pydantic

from library.imaging import codec
from library.runtimes import RuntimeName

#: Phones take photos of 12 to 50 million pixels.
_MAX_PIXELS = 64 * 10**6
#: 16-bit RGBA; a picture with more bands may have fewer pixels.
_MAX_BYTES_A_PIXEL = 8


class ServeSettings(pydantic.BaseModel):
    """Settings of a server, the same for all its models.

    Attributes:
        max_body_mb: largest request body, in MiB.
        max_pixels: largest picture, width x height; read from its header, before anything is decoded.
        max_files: most pictures in one request.
        timeout_s: longest time from a complete request to its answer, in seconds; then 504.
        body_timeout_s: longest time from a request's head to the end of its body, in seconds; then 408.
        top_k: number of classes in an answer where the request does not set it.
        keys: lines `NAME sha256:HEX`; without them and without `keys_file` no key is needed.
        keys_file: path of a file of such lines, on every node; read again when it changes, so deleting a line revokes
            its key.
        cors_origins: origins whose pages may call the API, such as `https://example.org`; none by default.
        explain: whether Grad-CAM is offered.
        drift: whether requests are compared with the training data.
        runtime: what computes; `auto` is the fastest that gives the same answers.
        device: auto, cpu, cuda, cuda:1 ...
        tune: measure for longer at start to choose batch size and wait.
        batch_size: most pictures in a batch; None chooses it by a measurement at start.
        batch_wait_ms: how long an idle model waits for a batch to fill; None is 0, or what `tune` measures.
        access_log: path of a file, on every node, for one JSON line per request; `-` is the processes' stderr; None
            writes no log.
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
    runtime: RuntimeName = "auto"
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
                raise ValueError(f"'{origin}' is not a valid origin: write one such as https://example.org")
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
        """Limits of one picture, as `Bundle.prepare` takes them."""
        return codec.Limits(self.max_body_bytes, self.max_pixels, self.max_pixels * _MAX_BYTES_A_PIXEL)
