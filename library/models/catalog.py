"""The catalogue of models. It does not import torch, so that reading a recipe stays fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias

Interpolation: TypeAlias = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Published:
    """Figures from the paper, rounded as there: `138E6` stands for 138,357,544.

    Attributes:
        parameters: number of trainable parameters.
        layers: depth as the paper counts it.
        multiply_adds: for one picture of the model's input size.
    """

    parameters: Decimal | None = None
    layers: Decimal | None = None
    multiply_adds: Decimal | None = None


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of pre-trained weights as others published it: one crop of ImageNet's 50,000 validation pictures.

    Attributes:
        top1: percent.
        top5: percent.
        size: height and width of the crops in pixels, which may be larger than the model's own input.
        source: URL.
        trained: year in which the weights were trained, where that is later than the model by years; else None.
    """

    top1: float
    top5: float
    size: int
    source: str
    trained: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model that are known before it is built.

    Attributes:
        name: its name in calls.
        year: year of the first publication; None if unknown.
        authors: authors of the paper.
        title: title of the paper.
        paper: URL of the paper.
        source: the library whose code it is.
        library_name: its name in that library, with the tag of its weights.
        input_size: channels, height and width in pixels.
        mean: mean of each channel, for pixels scaled to 0..1.
        std: standard deviation of each channel, for pixels scaled to 0..1.
        interpolation: how pictures were resized when the pre-trained weights were evaluated.
        crop_fraction: side of the centre crop in that evaluation, as a fraction of the resized picture's side.
        weights_source: URL of the pre-trained weights; empty if there are none.
        num_classes: number of classes of the published network, to which `published` applies.
        published: figures from the paper.
        note: differences between the code and the paper.
        stages: name of each stage and a regular expression for its parameters, from the input on.
        auxiliary: names of the heads that exist in training only, with the weight of their loss.
        accuracy: of the pre-trained weights; None where there are none.
    """

    name: str
    source: Literal["timm", "torchvision", "ours"]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    year: int | None = None
    authors: str = ""
    title: str = ""
    paper: str = ""
    library_name: str = ""
    interpolation: Interpolation = "linear"
    crop_fraction: float = 0.875
    weights_source: str = ""
    num_classes: int = 1000
    published: Published = field(default_factory=Published)
    note: str = ""
    stages: tuple[tuple[str, str], ...] = ()
    auxiliary: Mapping[str, float] = field(default_factory=dict[str, float])
    accuracy: Accuracy | None = None


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_MNIST: dict[str, Any] = {"mean": (0.1307,), "std": (0.3081,), "num_classes": 10}
_LENET_PAPER: dict[str, Any] = {
    "year": 1998,
    "authors": "LeCun, Bottou, Bengio, Haffner",
    "title": "Gradient-Based Learning Applied to Document Recognition",
    "paper": "https://doi.org/10.1109/5.726791",
}
_INCEPTION4_PAPER: dict[str, Any] = {
    "year": 2016,
    "authors": "Szegedy, Ioffe, Vanhoucke, Alemi",
    "title": "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
    "paper": "https://arxiv.org/abs/1602.07261",
}

_TORCHVISION_RESULTS = "https://docs.pytorch.org/vision/stable/models.html"
_TIMM_RESULTS = (
    "https://github.com/huggingface/pytorch-image-models/blob/0173a139a2c66db3a41ebfe1d8ac4fb02483642e/"
    "results/results-imagenet.csv"
)
#: The recipes a1 and a1h of "ResNet strikes back" (https://arxiv.org/abs/2110.00476).
_STRIKES_BACK = 2021


def _hub(name: str) -> dict[str, Any]:
    return {"source": "timm", "library_name": name, "weights_source": f"https://huggingface.co/timm/{name}"}


def _vgg(layers: int, parameters: str, ends: tuple[int, ...], accuracy: tuple[float, float]) -> ModelInfo:
    """A VGG; `ends` are the indices in `features` of the last convolution of each block."""
    stages: list[tuple[str, str]] = []
    first = 0
    for number, end in enumerate(ends, start=1):
        indices = "|".join(str(index) for index in range(first, end + 1))
        stages.append((f"conv{number}", rf"features\.({indices})\."))
        first = end + 1
    return ModelInfo(
        f"vgg{layers}",
        **_hub(f"vgg{layers}.tv_in1k"),
        **_IMAGENET,
        input_size=(3, 224, 224),
        year=2014,
        authors="Simonyan, Zisserman",
        title="Very Deep Convolutional Networks for Large-Scale Image Recognition",
        paper="https://arxiv.org/abs/1409.1556",
        published=Published(parameters=Decimal(parameters), layers=Decimal(layers)),
        stages=(*stages, ("dense", r"pre_logits\.")),
        accuracy=Accuracy(*accuracy, 224, _TIMM_RESULTS),
    )


def _resnet(layers: int, tag: str, multiply_adds: str, accuracy: tuple[float, float]) -> ModelInfo:
    return ModelInfo(
        f"resnet{layers}",
        **_hub(f"resnet{layers}.{tag}"),
        **_IMAGENET,
        input_size=(3, 224, 224),
        interpolation="cubic",
        crop_fraction=0.95,
        year=2015,
        authors="He, Zhang, Ren, Sun",
        title="Deep Residual Learning for Image Recognition",
        paper="https://arxiv.org/abs/1512.03385",
        published=Published(layers=Decimal(layers), multiply_adds=Decimal(multiply_adds)),
        note=""
        if layers < 50
        else "a block that halves the picture does so in its 3x3 convolution, not in the first 1x1",
        stages=(("stem", "conv1|bn1"), *((f"layer{n}", rf"layer{n}\.") for n in range(1, 5))),
        accuracy=Accuracy(*accuracy, 288, _TIMM_RESULTS, _STRIKES_BACK),
    )


_MODELS = (
    ModelInfo(
        "lenet5",
        "ours",
        (1, 28, 28),
        **_MNIST,
        **_LENET_PAPER,
        published=Published(parameters=Decimal(60_000), layers=Decimal(7)),
        note="C3 sees all six maps, subsampling has no weights (two of the paper's layers), the output is dense",
        stages=(("c1", "c1"), ("c3", "c3"), ("c5", "c5"), ("f6", "f6")),
    ),
    ModelInfo(
        "mlp",
        "ours",
        (1, 28, 28),
        **_MNIST,
        **_LENET_PAPER,
        note="the paper's 28x28-300-10, with ReLU",
        stages=(("hidden", "hidden"),),
    ),
    ModelInfo(
        "alexnet",
        "torchvision",
        (3, 224, 224),
        **_IMAGENET,
        year=2012,
        authors="Krizhevsky, Sutskever, Hinton",
        title="ImageNet Classification with Deep Convolutional Neural Networks",
        paper="https://doi.org/10.1145/3065386",
        library_name="alexnet.IMAGENET1K_V1",
        weights_source="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        published=Published(parameters=Decimal("60E6"), layers=Decimal(8)),
        note="one tower, 64 first filters and no response normalisation, as in arXiv 1404.5997",
        stages=(
            ("conv1", r"features\.0\."),
            ("conv2", r"features\.3\."),
            ("conv3-5", r"features\."),
            ("dense", r"classifier\."),
        ),
        accuracy=Accuracy(56.522, 79.066, 224, _TORCHVISION_RESULTS),
    ),
    _vgg(16, "138E6", (2, 7, 14, 21, 28), (71.592, 90.384)),
    _vgg(19, "144E6", (2, 7, 16, 25, 34), (72.378, 90.874)),
    ModelInfo(
        "googlenet",
        "torchvision",
        (3, 224, 224),
        # The weights come from TensorFlow; torchvision's network converts ImageNet's mean and std into these.
        **_HALF,
        year=2014,
        authors="Szegedy et al.",
        title="Going Deeper with Convolutions",
        paper="https://arxiv.org/abs/1409.4842",
        library_name="googlenet.IMAGENET1K_V1",
        weights_source="https://download.pytorch.org/models/googlenet-1378be20.pth",
        published=Published(parameters=Decimal("6.8E6"), layers=Decimal(22), multiply_adds=Decimal("1.5E9")),
        note="with batch normalisation, and 3x3 convolutions where the paper has 5x5",
        stages=(
            ("stem", "conv[123]"),
            ("inception3", "inception3"),
            ("inception4", "inception4"),
            ("inception5", "inception5"),
        ),
        auxiliary={"aux1": 0.3, "aux2": 0.3},
        accuracy=Accuracy(69.778, 89.53, 224, _TORCHVISION_RESULTS),
    ),
    ModelInfo(
        "inception_v3",
        **_hub("inception_v3.tv_in1k"),
        **_HALF,
        input_size=(3, 299, 299),
        interpolation="cubic",
        year=2015,
        authors="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna",
        title="Rethinking the Inception Architecture for Computer Vision",
        paper="https://arxiv.org/abs/1512.00567",
        published=Published(layers=Decimal(42), multiply_adds=Decimal("5E9")),
        note="the later network of Google's code, with a 1x1 convolution in the stem and blocks of another order",
        stages=(("stem", "Conv2d"), ("mixed5", "Mixed_5"), ("mixed6", "Mixed_6"), ("mixed7", "Mixed_7")),
        auxiliary={"AuxLogits": 0.4},
        accuracy=Accuracy(77.434, 93.474, 299, _TIMM_RESULTS),
    ),
    _resnet(18, "a1_in1k", "1.8E9", (73.158, 91.026)),
    _resnet(34, "a1_in1k", "3.6E9", (77.918, 93.766)),
    _resnet(50, "a1_in1k", "3.8E9", (81.214, 95.102)),
    _resnet(101, "a1h_in1k", "7.6E9", (82.778, 96.31)),
    _resnet(152, "a1h_in1k", "11.3E9", (83.45, 96.538)),
    ModelInfo(
        "xception",
        "timm",
        (3, 299, 299),
        **_HALF,
        year=2016,
        authors="Chollet",
        title="Xception: Deep Learning with Depthwise Separable Convolutions",
        paper="https://arxiv.org/abs/1610.02357",
        library_name="legacy_xception.tf_in1k",
        weights_source="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/xception-43020ad28.pth",
        interpolation="cubic",
        crop_fraction=0.8975,
        published=Published(parameters=Decimal(22_855_952), layers=Decimal(36)),
        note="the paper counts a depthwise and a pointwise convolution as one layer, and leaves out the classifier",
        stages=(
            ("stem", "(conv|bn)[12]"),
            ("entry", r"block[123]\."),
            ("middle", r"block([4-9]|10|11)\."),
            ("exit", r"block12\.|(conv|bn)[34]"),
        ),
        accuracy=Accuracy(79.04, 94.382, 299, _TIMM_RESULTS),
    ),
    ModelInfo(
        "inception_v4",
        **_hub("inception_v4.tf_in1k"),
        **_HALF,
        input_size=(3, 299, 299),
        interpolation="cubic",
        **_INCEPTION4_PAPER,
        stages=(
            ("stem", r"features\.[0-5]\."),
            ("inception_a", r"features\.[6-9]\."),
            ("inception_b", r"features\.1[0-7]\."),
            ("inception_c", r"features\.(1[89]|2[01])\."),
        ),
        accuracy=Accuracy(80.156, 94.968, 299, _TIMM_RESULTS),
    ),
    ModelInfo(
        "inception_resnet_v2",
        **_hub("inception_resnet_v2.tf_in1k"),
        **_HALF,
        input_size=(3, 299, 299),
        interpolation="cubic",
        crop_fraction=0.8975,
        **_INCEPTION4_PAPER,
        stages=(
            ("stem", "conv2d_[1-4]"),
            ("inception_a", r"mixed_5b|repeat\."),
            ("inception_b", r"mixed_6a|repeat_1\."),
            ("inception_c", r"mixed_7a|repeat_2\.|block8|conv2d_7b"),
        ),
        accuracy=Accuracy(80.462, 95.308, 299, _TIMM_RESULTS),
    ),
    ModelInfo(
        "resnet9",
        "ours",
        (3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        year=2018,
        authors="Page",
        title="How to Train Your ResNet",
        paper="https://myrtle.ai/learn/how-to-train-your-resnet/",
        num_classes=10,
        note="a quarter of Page's width, for CPUs; resnet9(width=64) is his network, with 6,573,120 parameters",
        stages=(("prep", "prep"), ("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")),
    ),
    ModelInfo(
        "filter_net",
        "ours",
        (3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        num_classes=10,
        note="not published: the network of `striate learn-filter`, whose first layer is looked at",
        stages=(("kernels", r"gates\.|kernels|norm"), ("layers", "layers")),
    ),
)

#: Every model of the catalogue by name, oldest first.
CATALOG: Mapping[str, ModelInfo] = {model.name: model for model in sorted(_MODELS, key=lambda model: model.year or 0)}

#: Name in calls for all other models of timm: `timm("convnext_tiny")`.
TIMM = "timm"
