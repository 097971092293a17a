"""Ray Train that leaves Ctrl-C to the driver; and without the actors that only a cluster needs, each of which is a
process that takes seconds on a small machine.

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


class ClusterTrainer(TorchTrainer):
    """A `TorchTrainer` whose run ends with its driver, as any job does, and is resumed by the next one."""

    def _register_sigint_handler(self, controller: object) -> None:
        """Install none: Ray Train's own calls exit(0) at Ctrl-C, as if the training had succeeded."""


class LocalTrainer(ClusterTrainer):
    """The same on a Ray that its own driver has started."""

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
