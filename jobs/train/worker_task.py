"""The data that passes between the driver and training workers: a worker's task and its outcome. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from library.training.progress import TrainingProgress


@dataclass(frozen=True)
class TrainTask:
    """The task of every training worker.

    Attributes:
        recipe: the recipe as JSON, with absolute paths.
        recipe_digest: digest of the recipe as the user wrote it.
        progress_key: name under which progress is published.
        out: URI of the bundle.
        logs: URI of the folder of metrics.jsonl.
        class_counts: training pictures by class, in the order of the model's outputs.
        label_sets: where a picture may have several classes, their numbers for each set of labels; else None.
        steps: canonical text of the pipeline before augmentation.
        fit: canonical text of the pipeline that resizes a picture to the model's input.
        input_size: height and width of the model's input.
        channels: channels of the model's input.
        decoded_bytes: mean size of a training picture before augmentation, as the first ones have it.
        decoded_dtype: type of its samples.
        threads: threads of torch in each worker, and threads that augment pictures in memory.
        decoders: number of actors that decode a stream for each worker.
        decoder_cpus: logical CPUs of each of these actors.
    """

    recipe: str
    recipe_digest: str
    progress_key: str
    out: str
    logs: str
    class_counts: dict[str, int]
    label_sets: list[list[int]] | None
    steps: str
    fit: str
    input_size: tuple[int, int]
    channels: int
    decoded_bytes: float
    decoded_dtype: str
    threads: int
    decoders: int
    decoder_cpus: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for the configuration of Ray Train."""
        return asdict(self)


@dataclass(frozen=True)
class TrainTimes:
    """Unix times at which the parts of a training were completed, in this order; None for what did not happen.

    Attributes:
        planned: plan and checks.
        connected: the start of Ray, or the connection to it.
        put: pictures in Ray's object store.
        entered: start of the workers, as far as the training function of the first one.
        imported: imports of that function.
        built: model, optimizer and loader.
        first_step: the first step, with the start of the loader and with compiling.
        trained: the last step, validation and checkpoint.
        written: the bundle.
    """

    planned: float | None = None
    connected: float | None = None
    put: float | None = None
    entered: float | None = None
    imported: float | None = None
    built: float | None = None
    first_step: float | None = None
    trained: float | None = None
    written: float | None = None


@dataclass(frozen=True)
class Divergence:
    """A step whose loss is not a finite number, or so large that the model cannot recover.

    Attributes:
        step: the step's number, from 0.
        loss: the batch's mean loss.
        learning_rate: the learning rate of the step.
        keys: keys of the batch's pictures.
    """

    step: int
    loss: float
    learning_rate: float
    keys: Sequence[str]


@dataclass(frozen=True)
class TrainOutcome:
    """The outcome of a training.

    Attributes:
        progress: where it ended.
        seconds: duration of the training loop.
        compile_seconds: of it, what torch.compile took.
        times: when the first worker completed its parts; the driver's parts are None.
        nodes: for each worker, Ray's id of its node.
        augmentation: where training pictures were augmented, and why there; None where they were not.
        divergence: set if the training ended because it diverged.
        error: set if it ended with an error that would occur again in a retry.
    """

    progress: TrainingProgress = field(default_factory=TrainingProgress)
    seconds: float = 0.0
    compile_seconds: float = 0.0
    times: TrainTimes = field(default_factory=TrainTimes)
    nodes: Sequence[str] = ()
    augmentation: str | None = None
    divergence: Divergence | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for the return value of Ray Train."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainOutcome:
        """Returns the outcome from the data of `to_dict`."""
        divergence = values["divergence"]
        nested: dict[str, Any] = {
            "progress": TrainingProgress(**values["progress"]),
            "times": TrainTimes(**values["times"]),
            "divergence": None if divergence is None else Divergence(**divergence),
        }
        return cls(**{**values, **nested})
