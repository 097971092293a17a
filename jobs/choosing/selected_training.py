"""Trains a recipe on chosen pictures of a dataset, through the training of `striate train`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.train.driver import TrainResult, train
from jobs.train.plan import plan_train
from jobs.train.run_folder import is_finished
from library import storage
from library.dataset.manifest import Manifest, digest_of
from library.dataset.shards import read_columns
from library.errors import StriateError
from library.recipe import Recipe


@dataclass(frozen=True)
class TrainablePictures:
    """The pictures of a recipe's training set that it can use.

    Attributes:
        recipe: with the paths of its datasets.
        keys: of the N pictures, in stored order.
        labels: of the N pictures.
        positions: of the N pictures among all rows of the dataset.
        rows: of the dataset.
    """

    recipe: Recipe
    keys: Sequence[str]
    labels: Sequence[str]
    positions: NDArray[np.int64]
    rows: int

    @classmethod
    def of(cls, recipe: Recipe, manifest: Manifest) -> TrainablePictures:
        """Reads keys and labels; `manifest` is that of the recipe's training set."""
        names = recipe.data.classes
        chosen = set(manifest.tally.classes if names == "all" else names)
        table = read_columns(recipe.data.train, ["key", "label"], [shard.name for shard in manifest.shards])
        keys, labels = table["key"].to_pylist(), table["label"].to_pylist()
        rows = [row for row, label in enumerate(labels) if label in chosen]
        return cls(
            recipe, [keys[row] for row in rows], [labels[row] for row in rows], np.array(rows, np.int64), manifest.rows
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(set(self.labels))

    def absent_classes(self, chosen: NDArray[np.int64]) -> list[str]:
        """Returns the classes of which no picture is among the chosen ones; such a training is refused."""
        return sorted(set(self.labels) - {self.labels[number] for number in chosen.tolist()})

    def train(
        self,
        chosen: NDArray[np.int64],
        folder: str,
        name: str,
        *,
        seed: int | None = None,
        held_out: NDArray[np.int64] | None = None,
        gpu: bool | None = None,
        address: str | None = None,
    ) -> TrainResult:
        """Trains on some of the pictures; resumes a killed training, and returns a finished one.

        Args:
            chosen: which of the N pictures are trained on.
            folder: URI; the bundle is written to `name` below it.
            name: of this training.
            seed: replaces the recipe's.
            held_out: which of the N pictures are validated on; None for the recipe's validation set.
            gpu: whether to use a GPU; None to use one if there is any.
            address: address of the Ray cluster.

        Raises:
            StriateError: a class has no picture among the chosen ones, or the training fails.
        """
        recipe = self.recipe if seed is None else self.recipe.model_copy(update={"seed": seed})
        # The folder of this plan stays empty: the training's own folder belongs to its selection.
        whole = plan_train(recipe, storage.join(folder, "unused"))

        def selected(numbers: NDArray[np.int64]) -> tuple[NDArray[np.bool_], list[int]]:
            used = np.zeros(self.rows, np.bool_)
            used[self.positions[numbers]] = True
            counts = Counter(self.labels[number] for number in numbers.tolist())
            return used, [counts[label] for label in whole.train.classes]

        used, counts = selected(chosen)
        missing = [label for label, count in zip(whole.train.classes, counts, strict=True) if not count]
        if missing:
            raise StriateError(f"{name}: no chosen picture is of {', '.join(missing[:5])}; a recipe needs every class")
        plan = dataclasses.replace(
            whole,
            out=storage.join(folder, name),
            train=whole.train.only(used, counts),
            val=whole.val if held_out is None else whole.train.only(*selected(held_out)),
            datasets={**whole.datasets, "selection": digest_of([self.keys[number] for number in chosen.tolist()])},
        )
        finished = is_finished(plan.out, plan.record, overwrite=False)
        return train(dataclasses.replace(plan, finished=finished), gpu=gpu, address=address)
