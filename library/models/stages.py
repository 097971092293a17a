"""Groups the modules of a network into stages, which are frozen and get a learning rate together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from library.errors import UsageError
from library.models.catalog import ModelInfo

#: Modules of each stage by its name, from the input on. No parameter is in two of them.
Stages = Mapping[str, list[nn.Module]]


def stages_of(net: Any, facts: ModelInfo, skip: tuple[str, ...]) -> Stages:
    """Groups the modules of a network without its classifier.

    The patterns of `facts` decide the stages, or else timm's groups for layer-wise learning rates.

    Args:
        net: the network.
        facts: the model's facts.
        skip: children that belong to the head.
    """
    names, stage_of = _by_pattern(facts) if facts.stages else _by_timm(net)
    stages: dict[str, list[nn.Module]] = {name: [] for name in names}
    for path, module in net.named_modules():
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        if not own or path.partition(".")[0] in skip:
            continue
        stage = stage_of(f"{path}.{own[0]}" if path else own[0])
        # Some modules have parameters of their own beside child layers, which may belong to another stage.
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
    from timm.models import group_parameters  # takes seconds, which our own models need not wait for

    # With reverse=True: the group's number for each parameter.
    numbers = cast("dict[str, int]", group_parameters(net, net.group_matcher(coarse=True), reverse=True))
    count = max(numbers.values(), default=0) + 1
    last: list[int] = [0]

    def stage_of(parameter: str) -> str:
        # timm leaves out buffers: they join the stage of the parameter before them.
        last[0] = numbers.get(parameter, last[0])
        return f"stage{last[0] + 1}"

    return [f"stage{number}" for number in range(1, count + 1)], stage_of


def frozen_count(freeze: int | str, names: tuple[str, ...]) -> int:
    """Number of stages that `freeze` stands for; `names` are the stages without the head.

    Raises:
        UsageError: there are fewer stages.
    """
    if freeze in ("none", "all"):
        return 0 if freeze == "none" else len(names)
    if not isinstance(freeze, int) or isinstance(freeze, bool) or not 0 <= freeze <= len(names):
        raise UsageError(
            f"freeze takes all, none, or 0 to {len(names)} stages here ({', '.join(names)}); got {freeze!r}"
        )
    return freeze
