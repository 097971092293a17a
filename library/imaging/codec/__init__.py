"""The only place that decodes or encodes pictures.

Every decoded picture is an array, height x width x channels, of uint8, uint16 or float32, upright (EXIF
orientation applied): 1 channel is grey, 3 are RGB, 4 are RGB and alpha, anything else is bands. Palette and
CMYK pictures come out as RGB, 1-bit ones as 0 and 255. Sizes are checked from the header, before any pixel is
decoded.
"""

from library.imaging.codec.decoding import DEFAULT_LIMITS, DTYPES, Header, Limits, decode, probe
from library.imaging.codec.encoding import KEEP, Encoding, encode
from library.imaging.codec.formats import sniff
from library.imaging.codec.repair import repair

__all__ = [
    "DEFAULT_LIMITS",
    "DTYPES",
    "KEEP",
    "Encoding",
    "Header",
    "Limits",
    "decode",
    "encode",
    "probe",
    "repair",
    "sniff",
]
