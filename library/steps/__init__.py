"""All steps; importing this package registers them in REGISTRY."""

from library.steps.augmentations.crops import RandomCrop, RandomErase, RandomResizedCrop
from library.steps.augmentations.degradation import GaussianNoise, JpegQuality, RandomBlur
from library.steps.augmentations.geometric import Flip, Rotate, Shear, Shift, Zoom
from library.steps.augmentations.photometric import Brightness, ChannelShift, Contrast, Hue, Saturation
from library.steps.augmentations.policies import Randaugment, Sometimes, TrivialAugment
from library.steps.background import BlurBackground
from library.steps.base import REGISTRY, register
from library.steps.colour import Channels, Grayscale, Rgb, WithChannels
from library.steps.convolution import Convolve
from library.steps.edges import Canny, Edges, Gabor
from library.steps.geometry import CenterCrop, Crop, PadSquare, Resize, Rotate90
from library.steps.judging import (
    BrightnessBetween,
    ColourfulnessBetween,
    ContrastAtLeast,
    MinEntropy,
    NotBlank,
    NotBlurry,
    NotBright,
    NotDark,
    SharpAtLeast,
)
from library.steps.morphology import Close, Dilate, Erode, Open
from library.steps.pooling import AvgPool, MaxPool
from library.steps.selectors import (
    AspectRatioBetween,
    DropLabels,
    FileSizeBetween,
    KeepChannels,
    KeepFormats,
    KeepLabels,
    MaxSize,
    MinSize,
    Sample,
    ScoreAtLeast,
)
from library.steps.smoothing import (
    Bilateral,
    BoxBlur,
    Denoise,
    GaussianBlur,
    LaplacianSharpen,
    MedianBlur,
    Sharpen,
)
from library.steps.tone import Binarize, Clahe, ContrastStretch, Equalize, Gamma, Invert

__all__ = [
    "REGISTRY",
    "AspectRatioBetween",
    "AvgPool",
    "Bilateral",
    "Binarize",
    "BlurBackground",
    "BoxBlur",
    "Brightness",
    "BrightnessBetween",
    "Canny",
    "CenterCrop",
    "ChannelShift",
    "Channels",
    "Clahe",
    "Close",
    "ColourfulnessBetween",
    "Contrast",
    "ContrastAtLeast",
    "ContrastStretch",
    "Convolve",
    "Crop",
    "Denoise",
    "Dilate",
    "DropLabels",
    "Edges",
    "Equalize",
    "Erode",
    "FileSizeBetween",
    "Flip",
    "Gabor",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "Hue",
    "Invert",
    "JpegQuality",
    "KeepChannels",
    "KeepFormats",
    "KeepLabels",
    "LaplacianSharpen",
    "MaxPool",
    "MaxSize",
    "MedianBlur",
    "MinEntropy",
    "MinSize",
    "NotBlank",
    "NotBlurry",
    "NotBright",
    "NotDark",
    "Open",
    "PadSquare",
    "Randaugment",
    "RandomBlur",
    "RandomCrop",
    "RandomErase",
    "RandomResizedCrop",
    "Resize",
    "Rgb",
    "Rotate",
    "Rotate90",
    "Sample",
    "Saturation",
    "ScoreAtLeast",
    "SharpAtLeast",
    "Sharpen",
    "Shear",
    "Shift",
    "Sometimes",
    "TrivialAugment",
    "WithChannels",
    "Zoom",
    "register",
]
