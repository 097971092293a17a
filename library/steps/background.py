"""A filter that blurs the background and keeps the subject sharp."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from library.errors import BadPicture, Dropped
from library.imaging import codec
from library.imaging.picture import Pixels
from library.steps.arrays import as_8_bits, by_channel_groups, finite_range, saturated, white
from library.steps.base import register

# GrabCut's time grows with the area: 370 ms for a 500x375 photo, 70 ms at this size.
_SEGMENT_SIDE_PX = 256
# GrabCut models the background with 5 Gaussians, which need enough pixels outside the subject.
_MIN_SIDE_PX = 8


@register("filter", still=True)
class BlurBackground:
    """Blur the background and leave the subject's pixels exactly as they are.

    A mask (`mask_column`) gives the subject, or GrabCut (Rother, Kolmogorov and Blake 2004) finds it, assuming that
    the outer `margin` is background and the middle probably the subject. GrabCut works on 8-bit RGB with a long
    side of at most 256 pixels: uint16 and float32 are scaled to 8 bits (float32 from its own range); 1 or 2 channels
    are used as grey, 3 or 4 as RGB, more as their mean. The background is blurred without the subject (normalized
    convolution, Knutsson and Westin 1993), so the subject's colours do not bleed into it.

    A mask is an encoded picture of the same height and width, as bytes or a struct with `bytes`; the subject is where
    any of its channels is not 0. `striate filter` moves masks with the picture; in a recipe's input put this step
    before steps that move pixels, because there the mask does not move with them.

    `no_subject` says what happens to a picture without a subject (GrabCut finds none, a side has fewer than 8 pixels,
    or the mask is 0 everywhere). Reason if it is dropped: `no_subject`.

    Raises:
        BadPicture: `not_finite` for GrabCut; for masks `no_mask`, `mask_size` and the reasons of decoding.
    """

    sigma: Annotated[float, Field(gt=0, le=250, description="standard deviation of the blur in pixels")] = 8.0
    mask_column: Annotated[
        str | None, Field(min_length=1, description="column with the subject's mask; without it GrabCut is used")
    ] = None
    margin: Annotated[
        float | None,
        Field(gt=0, lt=0.5, description="for GrabCut: width of the outer background, as a fraction of the side (0.1)"),
    ] = None
    iterations: Annotated[int | None, Field(ge=1, le=20, description="for GrabCut: rounds (3)")] = None
    no_subject: Annotated[
        Literal["keep", "drop"], Field(description="a picture without a subject: keep it as it is, or drop it")
    ] = "keep"

    @model_validator(mode="after")
    def _fill_in(self) -> BlurBackground:
        for name, default in (("margin", 0.1), ("iterations", 3)):
            if self.mask_column is None and getattr(self, name) is None:
                object.__setattr__(self, name, default)
            if self.mask_column is not None and getattr(self, name) is not None:
                raise ValueError(f"'{name}' has no effect with a 'mask_column'; it belongs to GrabCut")
        return self

    def columns(self) -> tuple[str, ...]:
        """The mask's column, if there is one."""
        return () if self.mask_column is None else (self.mask_column,)

    def may_drop(self) -> bool:
        """Whether pictures without a subject are dropped."""
        return self.no_subject == "drop"

    def __call__(self, pixels: Pixels, mask: Any = None) -> Pixels:
        shape = pixels.shape[0], pixels.shape[1]
        subject = self._grab_cut(pixels) if self.mask_column is None else _decoded_mask(mask, shape)
        if not subject.any() and self.no_subject == "drop":
            raise Dropped("no_subject", "there is no subject in the middle of the picture to keep sharp")
        if subject.all() or not subject.any():
            return pixels
        outside = np.asarray(~subject, np.float32)
        blurred = by_channel_groups(self._blurred, pixels * outside[:, :, None])
        weight = np.where(subject, np.float32(1), self._blurred(outside))
        background = saturated(blurred / weight[:, :, None], pixels.dtype)
        return np.where(subject[:, :, None], pixels, background)

    def _blurred(self, values: Pixels) -> Any:
        return cv2.GaussianBlur(values, (0, 0), self.sigma)

    def _grab_cut(self, pixels: Pixels) -> NDArray[np.bool_]:
        height, width = pixels.shape[:2]
        if min(height, width) < _MIN_SIDE_PX:
            return np.zeros((height, width), np.bool_)
        shrink = min(1.0, _SEGMENT_SIDE_PX / max(height, width))
        small = (max(_MIN_SIDE_PX, round(width * shrink)), max(_MIN_SIDE_PX, round(height * shrink)))
        image = cv2.resize(_eight_bit_rgb(pixels), small, interpolation=cv2.INTER_AREA)
        margin = cast(float, self.margin)
        rim_x, rim_y = (min(max(1, round(side * margin)), side // 2 - 1) for side in small)
        mask = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
        mask[rim_y:-rim_y, rim_x:-rim_x] = cv2.GC_PR_FGD
        # GrabCut's k-means uses OpenCV's process-wide random generator.
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, mask, (0, 0, 0, 0), *models, cast(int, self.iterations), cv2.GC_INIT_WITH_MASK)
        subject = np.asarray(mask == cv2.GC_PR_FGD, np.float32)
        return np.asarray(cv2.resize(subject, (width, height), interpolation=cv2.INTER_LINEAR)) >= 0.5


def _eight_bit_rgb(pixels: Pixels) -> NDArray[np.uint8]:
    channels = pixels.shape[2]
    colours = pixels[:, :, :3] if channels in (3, 4) else pixels[:, :, :1]
    if channels > 4:
        colours = pixels.mean(axis=2, keepdims=True, dtype=np.float64)
    low, high = finite_range(pixels) if pixels.dtype == np.float32 else (0, white(pixels.dtype))
    if pixels.dtype != np.uint8 or channels > 4:
        colours = as_8_bits(colours, low, high)
    return np.ascontiguousarray(np.broadcast_to(colours, (*pixels.shape[:2], 3)))


def _decoded_mask(mask: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    data = cast("dict[str, Any]", mask).get("bytes") if isinstance(mask, dict) else mask
    if data is None:
        raise BadPicture("no_mask", "the mask column is empty for this picture")
    if not isinstance(data, bytes):
        raise TypeError(f"a mask is encoded bytes or a struct with 'bytes'; the column holds {type(data).__name__}")
    decoded = codec.decode(data)
    height, width = decoded.shape[:2]
    if (height, width) != shape:
        raise BadPicture("mask_size", f"the mask is {width}x{height} and the picture {shape[1]}x{shape[0]}")
    return np.asarray(decoded.any(axis=2), np.bool_)
