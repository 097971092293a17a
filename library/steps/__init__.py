"""Every step: importing this package fills REGISTRY."""

from library.steps.background import BlurBackground
from library.steps.base import REGISTRY
from library.steps.colour import Channels, Grayscale, Rgb
from library.steps.convolution import Convolve
from library.steps.edges import Canny, Edges
from library.steps.geometry import CenterCrop, Crop, PadSquare, Resize, Rotate90
from library.steps.pooling import AvgPool, MaxPool
from library.steps.selectors import (
    AspectRatioBetween,
    BrightnessBetween,
    ContrastAtLeast,
    DropLabels,
    FileSizeBetween,
    KeepChannels,
    KeepFormats,
    KeepLabels,
    MaxSize,
    MinSize,
    NotBlank,
    Sample,
    SharpAtLeast,
)
from library.steps.sharpening import LaplacianSharpen, Sharpen
from library.steps.smoothing import Bilateral, BoxBlur, Denoise, GaussianBlur, MedianBlur
from library.steps.tone import Binarize, Clahe, ContrastStretch, Equalize, Gamma, Invert

__all__ = [
    "REGISTRY",
    "AspectRatioBetween",
    "AvgPool",
    "Bilateral",
    "Binarize",
    "BlurBackground",
    "BoxBlur",
    "BrightnessBetween",
    "Canny",
    "CenterCrop",
    "Channels",
    "Clahe",
    "ContrastAtLeast",
    "ContrastStretch",
    "Convolve",
    "Crop",
    "Denoise",
    "DropLabels",
    "Edges",
    "Equalize",
    "FileSizeBetween",
    "Gamma",
    "GaussianBlur",
    "Grayscale",
    "Invert",
    "KeepChannels",
    "KeepFormats",
    "KeepLabels",
    "LaplacianSharpen",
    "MaxPool",
    "MaxSize",
    "MedianBlur",
    "MinSize",
    "NotBlank",
    "PadSquare",
    "Resize",
    "Rgb",
    "Rotate90",
    "Sample",
    "SharpAtLeast",
    "Sharpen",
]
