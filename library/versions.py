"""Versions of what decides the bytes of a dataset; kept in its manifest."""

from importlib.metadata import version

_DISTRIBUTIONS = (
    "striate",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "pillow-heif",
    "tifffile",
    "imagecodecs",
    "numpy",
    "pyarrow",
)

VERSIONS = {name: version(name) for name in _DISTRIBUTIONS}
