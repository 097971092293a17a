"""Parts of a network from the input's side to the features: what is frozen, thawed and slowed down together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from library.errors import UsageError
from library.models.catalog import ModelInfo

#: Name of each stage, and the modules in it. No parameter is in two of them.
Stages = Mapping[str, list[nn.Module]]


def stages_of(net: Any, facts: ModelInfo, skip: tuple[str, ...]) -> Stages:
    """Group the modules of a network that has lost its classifier.

    Args:
        net: whose modules are grouped: by the patterns of `facts`, or as timm does for layer-wise learning rates.
        facts: of the model.
        skip: children that belong to the head.
    """
    names, stage_of = _by_pattern(facts) if facts.stages else _by_timm(net)
    stages: dict[str, list[nn.Module]] = {name: [] for name in names}
    for path, module in net.named_modules():
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        if not own or path.partition(".")[0] in skip:
            continue
        stage = stage_of(f"{path}.{own[0]}" if path else own[0])
        # Some modules hold a number or two beside layers that may belong elsewhere.
        loose = any(True for child in module.children() for _ in (*child.parameters(), *child.buffers()))
        stages[stage].append(nn.ParameterList(module.parameters(recurse=False)) if loose else module)
    return {name: modules for name, modules in stages.items() if modules}


def _by_pattern(facts: ModelInfo) -> tuple[list[str], Callable[[str], str]]:
    def stage_of(parameter: str) -> str:
        for name, pattern in facts.stages:
            if re.match(pattern, parameter):
                return name
        raise AssertionError(f"{facts.name}: '{parameter}' is in no stage")

    return [name for name, _ in facts.stages], stage_of


def _by_timm(net: Any) -> tuple[list[str], Callable[[str], str]]:
    if not hasattr(net, "group_matcher"):
        return ["body"], lambda parameter: "body"
    from timm.models import group_parameters  # seconds, which a model of our own need not wait for

    # Told in reverse it is a number for each parameter.
    numbers = cast("dict[str, int]", group_parameters(net, net.group_matcher(coarse=True), reverse=True))
    count = max(numbers.values(), default=0) + 1
    before: list[int] = [0]

    def stage_of(parameter: str) -> str:
        # Only buffers are unknown to timm: they go with what came before them.
        before[0] = numbers.get(parameter, before[0])
        return f"stage{before[0] + 1}"

    return [f"stage{number}" for number in range(1, count + 1)], stage_of


def frozen_count(wanted: int | str, names: tuple[str, ...]) -> int:
    """How many stages `freeze: wanted` means; `names` are without the head.

    Raises:
        UsageError: for more stages than there are.
    """
    if wanted in ("none", "all"):
        return 0 if wanted == "none" else len(names)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted <= len(names):
        raise UsageError(
            f"freeze takes all, none, or 0 to {len(names)} stages here ({', '.join(names)}); got {wanted!r}"
        )
    return wanted
