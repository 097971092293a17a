"""Decodes JPEGs on a GPU: nvJPEG through TorchCodec, for a recipe's `input.decode: cuda`.

Only training uses it, and only in processes that have a GPU; library.imaging.codec decodes everywhere else. It differs
from the CPU's decoder in two ways: samples differ by a little (the bundle records by how much), and nvJPEG does not
detect all the damage that simplejpeg refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.errors import BadPicture, UsageError
from library.imaging import codec

_PACKAGE = "torchcodec"
#: The oldest version that decodes pictures.
_OLDEST = (0, 16)
#: Colours of JPEGs that nvJPEG decodes; the CPU decodes inks (CMYK, YCCK), which need a conversion.
_COLOURS = ("Gray", "YCbCr", "RGB")


def check_installed() -> None:
    """Checks that this machine has TorchCodec.

    Raises:
        UsageError: says what to install.
    """
    advice = f"pip install '{_PACKAGE}>={_OLDEST[0]}.{_OLDEST[1]}', or set input.decode: cpu"
    if find_spec(_PACKAGE) is None:
        raise UsageError(f"input.decode: cuda needs the package TorchCodec, which is not installed: {advice}")
    installed = version(_PACKAGE)
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        raise UsageError(f"input.decode: cuda needs a newer TorchCodec than {installed}: {advice}")


def library_version() -> str:
    """Package and version that decode, such as `torchcodec 0.17.0`."""
    return f"{_PACKAGE} {version(_PACKAGE)}"


def decode(
    data: bytes,
    limits: codec.Limits | None = codec.DEFAULT_LIMITS,
    header: codec.Header | None = None,
    *,
    device: str = "cuda",
) -> NDArray[Any]:
    """Decodes a picture like `codec.decode`; grey and colour JPEGs on the GPU, everything else on the CPU.

    Args:
        data: the encoded picture.
        limits: checked from the header first.
        header: result of `codec.probe` for the same bytes and limits.
        device: where JPEGs are decoded; on `cpu` by TorchCodec too.

    Returns:
        Height x width x channels, in the CPU's memory.

    Raises:
        UsageError: there is no CUDA device, or no TorchCodec.
        BadPicture: the picture cannot be decoded.
    """
    header = header or codec.probe(data, limits)
    if header.format != "jpeg" or header.colours not in _COLOURS:
        return codec.decode(data, limits, header)
    decode_jpeg = _decode_jpeg(device)
    try:
        # TorchCodec applies the orientation tag itself, on a GPU as on a CPU.
        tensor = decode_jpeg(data, mode="GRAY" if header.channels == 1 else "RGB", device=device)
    except RuntimeError as error:
        raise BadPicture("damaged", str(error).strip().splitlines()[0][:300]) from error
    pixels = tensor.permute(1, 2, 0).cpu().numpy()
    if pixels.shape != (header.height, header.width, header.channels):
        expected = f"{header.height}x{header.width}x{header.channels}"
        raise BadPicture("damaged", f"the header says {expected}, the pixels are {pixels.shape}")
    return np.ascontiguousarray(pixels)


@functools.cache
def _decode_jpeg(device: str) -> Callable[..., torch.Tensor]:
    check_installed()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("input.decode: cuda needs a CUDA device, and this machine has none; set input.decode: cpu")
    from torchcodec.decoders import decode_jpeg  # pyright: ignore

    return decode_jpeg
