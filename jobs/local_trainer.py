"""Ray Train without the actors that only a cluster needs; on a small machine each is a process that takes seconds.

This reaches into Ray Train: it is for the version that pyproject.toml asks for.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# One hands out Ray Data's datasets, of which we give it none. The other tidies up after a driver that is killed, which
# takes a Ray of its own with it.
_UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class LocalTrainer(TorchTrainer):
    """A `TorchTrainer` on a Ray that its own driver has started."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, _UNUSED)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if not self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = _FixedHere(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class _FixedHere(FixedScalingPolicy):
    """So many workers, for which no autoscaler is asked: there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
