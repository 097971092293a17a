"""A picture in a pipeline, decoded only when a step needs its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, TypeAlias

from numpy.typing import NDArray

from library.imaging import codec

#: Pixels, height x width x channels; uint8, uint16 or float32. Channels: 1 grey, 3 RGB, or any number of bands.
Pixels: TypeAlias = NDArray[Any]

#: Decodes a picture as `codec.decode` does: takes its bytes, the limits, and its header if it was read before.
Decode: TypeAlias = Callable[[bytes, codec.Limits | None, codec.Header | None], Pixels]


class Picture:
    """A picture that selectors judge and filters change.

    A selector that only needs the size, the label or the key causes no decoding, and a picture that no filter has
    changed keeps its bytes.

    Args:
        key: unique in the dataset.
        label: class name, or None.
        header: of the stored bytes.
        data: returns the stored bytes; called when they are needed.
        extras: all other columns, by name.
        limits: checked when the bytes are decoded.
        decode: decodes the bytes.
        measured: scores of the stored bytes that were computed before, by name.
    """

    def __init__(
        self,
        key: str,
        label: str | None,
        header: codec.Header,
        data: Callable[[], bytes],
        extras: Mapping[str, Any],
        limits: codec.Limits = codec.DEFAULT_LIMITS,
        decode: Decode = codec.decode,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        self.key, self.label, self.extras = key, label, extras
        self._header, self._data, self._limits, self._decode = header, data, limits, decode
        self._measured = measured or {}
        self._pixels: Pixels | None = None
        self.changed = False
        self.decode_seconds = 0.0

    @property
    def format(self) -> str:
        """Format of the stored bytes: jpeg, png, webp, tiff, avif, heic, jp2, gif, bmp or npy."""
        return self._header.format

    @property
    def width(self) -> int:
        return self._header.width if self._pixels is None else int(self._pixels.shape[1])

    @property
    def height(self) -> int:
        return self._header.height if self._pixels is None else int(self._pixels.shape[0])

    @property
    def channels(self) -> int:
        return self._header.channels if self._pixels is None else int(self._pixels.shape[2])

    @property
    def num_bytes(self) -> int:
        """Size of the stored bytes."""
        return len(self._data())

    @property
    def pixels(self) -> Pixels:
        """The current pixels; raises BadPicture if they cannot be decoded. Read-only: change them with `replace`."""
        if self._pixels is None:
            start = perf_counter()
            # A header made from a dataset's columns may not match the bytes; one that was read from them has work_px.
            header = self._header if self._header.work_px else None
            self._pixels = self._decode(self._data(), self._limits, header)
            self.decode_seconds += perf_counter() - start
        return self._pixels

    def replace(self, pixels: Pixels) -> None:
        """Replaces the pixels by a filter's result; the very same array counts as no change.

        Raises:
            TypeError: unless it is height x width x channels of uint8, uint16 or float32 with at least one pixel.
        """
        if pixels.ndim != 3 or not pixels.size or pixels.dtype.name not in codec.DTYPES:
            dtypes = ", ".join(codec.DTYPES)
            raise TypeError(
                f"must return height x width x channels of {dtypes}; returned {pixels.dtype} of shape {pixels.shape}"
            )
        if pixels is not self._pixels:
            self._pixels = pixels
            self.changed = True

    def measured(self, name: str) -> float | None:
        """A score that was computed before; None if there is none, or if a filter has changed the pixels."""
        return None if self.changed else self._measured.get(name)

    def column(self, name: str) -> Any:
        """The value of a column, by name; raises KeyError if the dataset has no such column."""
        if name in ("key", "label"):
            return self.key if name == "key" else self.label
        return self.extras[name]
