"""Models by their call, e.g. `create("resnet50(in_chans=4)", num_classes=10, weights="pretrained")`.

Importing this package imports no torch; making a model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.models.call import ModelCall, parse_call
from library.models.catalog import ModelInfo
from library.models.lookup import info, names

if TYPE_CHECKING:
    from library.models.classifier import Classifier

__all__ = ["ModelCall", "ModelInfo", "check_input", "create", "info", "names", "parse_call"]


def create(
    call: str | ModelCall,
    *,
    num_classes: int,
    weights: str | None = None,
    head: Sequence[int] = (),
    auxiliary: bool = True,
) -> Classifier:
    """Make a model.

    Args:
        call: e.g. `lenet5`, `resnet18(in_chans=4, small_input=True)`, `timm("convnext_tiny")`.
        num_classes: outputs.
        weights: None for random ones (torch's generator); `pretrained` for those of timm or torchvision; or a file
            (.safetensors, .pth, .pt; here or s3://), or a bundle. The classifier is taken from there only if it fits;
            the first convolution is adapted to other channels.
        head: units of dense layers, each with ReLU, between the features and the classifier.
        auxiliary: with the heads that GoogLeNet and Inception v3 have in training.

    Raises:
        UsageError: no such model, or weights that do not fit it (names the tensors).
        StriateError: weights that cannot be read or fetched.
    """
    from library.models.build import create as build

    return build(call, num_classes=num_classes, weights=weights, head=head, auxiliary=auxiliary)


def check_input(call: str | ModelCall, size: tuple[int, int]) -> None:
    """See whether a model can be trained on pictures of a size, without computing anything.

    Args:
        call: of the model.
        size: height and width in pixels.

    Raises:
        UsageError: the pictures are too small, or the model takes one size only.
    """
    from library.models.analysis import check_input as check

    check(call, size)
