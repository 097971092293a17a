"""What timm's optimizers take, by name: enough to check a recipe without importing torch.

The names and what each takes are those of timm 1.0 (`timm.optim.list_optimizers`); a test holds the tables to the
installed timm. Left out: `adahessian`, which needs second derivatives, and what needs apex or bitsandbytes.
"""

from __future__ import annotations

_MOMENTUM = frozenset(
    {"adafactorbv", "cadafactorbv", "crmsproptf", "csgdc", "csgdp", "csgdw", "kron", "kronw", "larc", "lars", "madgrad"}
    | {"madgradw", "momentum", "nlarc", "nlars", "rmsprop", "rmsproptf", "rmsproptfw", "sgd", "sgdp", "sgdw"}
)
_MOMENTUM_AND_BETAS = frozenset({"adamuon", "muon", "nadamuon", "nmuon"})
_BETAS = frozenset(
    {"adabelief", "adafactor", "adam", "adamax", "adamp", "adamw", "adan", "adanw", "adopt", "adoptw", "cadafactor"}
    | {"cadamp", "cadamw", "cadan", "cadanw", "cadopt", "cadoptw", "clamb", "clambw", "claprop", "clion", "cmars"}
    | {"cnadamw", "lamb", "lambc", "lambcw", "lambw", "laprop", "lion", "mars", "nadam", "nadamw", "novograd"}
    | {"radabelief", "radam", "radamw"}
)
_NEITHER = frozenset({"adadelta", "adagrad"})
_NO_EPS = frozenset({"clion", "csgdc", "csgdw", "kron", "kronw", "lion", "momentum", "sgd", "sgdw"})

#: Every optimizer that a recipe can name.
OPTIMIZERS = _MOMENTUM | _MOMENTUM_AND_BETAS | _BETAS | _NEITHER

#: Those that take `momentum`.
WITH_MOMENTUM = _MOMENTUM | _MOMENTUM_AND_BETAS

#: Those that take `eps`.
WITH_EPS = OPTIMIZERS - _NO_EPS

#: How many numbers `betas` has, for those that take it.
BETAS = {name: 3 if name.removeprefix("c").startswith("adan") else 2 for name in _MOMENTUM_AND_BETAS | _BETAS}
