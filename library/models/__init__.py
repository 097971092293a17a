"""Models by their call, such as `resnet50(in_chans=4)`; importing this package does not import torch.

`library.models.build.create` builds one, `library.models.analysis` computes its layers and figures.
"""

from library.models.call import ModelCall, parse_call
from library.models.catalog import ModelInfo
from library.models.lookup import info, names

__all__ = ["ModelCall", "ModelInfo", "info", "names", "parse_call"]
