"""What the chapters of the tour share: pictures, datasets and trained networks in one folder, each made once.

tour = TourFolder(Path("out/tour"), chapter="digits")
lenet = tour.train("lenet", [], train_on=..., test_on=...)   # or returns what an earlier chapter trained
lenet.accuracy, lenet.curve, lenet.bundle
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from sklearn.datasets import load_digits

from jobs.demo.demo import demo_photos, demo_pictures
from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from jobs.output import stderr
from jobs.train.driver import train
from jobs.train.plan import TrainPlan, plan_train
from jobs.train.run_folder import read_record, remove_temporaries, remove_training, training_versions
from library import storage
from library.bundle.description import load_record
from library.dataset.lease import hold
from library.errors import UsageError
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.recipe import Recipe

_PlanT = TypeVar("_PlanT")


@dataclass(frozen=True)
class Trained:
    """A network that a chapter trained.

    Attributes:
        bundle: its folder.
        curve: for each epoch: number, training loss, validation loss, validation top-1 (0..1).
        accuracy: validation top-1 of the bundle, 0..1; its epoch is the one with the least training loss, so that the
            validation pictures, which are the test pictures of the tour, did not choose it.
        pictures: number of training pictures.
        tested: number of validation pictures.
    """

    bundle: Path
    curve: tuple[tuple[int, float, float, float], ...]
    accuracy: float
    pictures: int
    tested: int


@dataclass
class TourFolder:
    """The folder of a tour, as one chapter uses it.

    Attributes:
        folder: of the tour.
        chapter: name of the chapter; its pictures and commands are its own.
        commands: command lines that give what the chapter shows, in order, as a reader can type them.
    """

    folder: Path
    chapter: str
    commands: list[str] = field(default_factory=list[str])

    def command(self, *words: str | Path) -> None:
        """Notes a command line for the page, quoted where a shell needs it, and says it on stderr."""
        line = shlex.join(["striate", *map(str, words)])
        if line not in self.commands:
            self.commands.append(line)
            stderr.print(line, markup=False, soft_wrap=True)

    def picture(self, name: str, pixels: Pixels) -> str:
        """Writes a picture as PNG, and returns its path relative to the pages."""
        return self.png(name, codec.encode(visible(pixels), codec.Encoding("png"))[0])

    def png(self, name: str, data: bytes) -> str:
        """Writes an encoded PNG, and returns its path relative to the pages."""
        target = self.folder / "pictures" / f"{self.chapter}-{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target.relative_to(self.folder).as_posix()

    def raw_digits(self) -> Path:
        """The folder of the 1,797 handwritten digits as PNG files, 8 x 8 pixels, one folder a class."""
        folder = self.folder / "raw" / "digits"
        complete = self.folder / "raw" / "digits.complete"
        if not complete.exists():
            for path, content in demo_pictures():
                if path.startswith("digits/"):
                    target = self.folder / "raw" / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
            complete.touch()
        return folder

    def raw_photos(self) -> Path:
        """The folder of the whole photos, one folder a class."""
        folder = self.folder / "raw" / "photos"
        for label, pixels in demo_photos().items():
            target = folder / label / f"{label}.png"
            if not target.exists():
                # Whole or not at all: a file that a kill cut short would be kept, as it exists.
                storage.write_bytes(str(target), codec.encode(pixels, codec.Encoding("png"))[0])
        return folder

    def digits(self) -> Path:
        """The dataset of the digits with the splits `train` and `test`, 4 to 1."""
        source, dataset = self.raw_digits(), self.folder / "data" / "digits"
        self.ingest(source, dataset, split="train=0.8,test=0.2")
        return dataset

    def photos(self, *, ingested: bool = False) -> Path:
        """The path of the dataset of the whole photos; only with `ingested` is it made here, which needs Ray."""
        source, dataset = self.raw_photos(), self.folder / "data" / "photos"
        if ingested:
            self.ingest(source, dataset)
        else:
            self.command("ingest", source, dataset)
        return dataset

    def ingest(self, source: Path, dataset: Path, *, split: str | None = None) -> None:
        """Makes a dataset of a folder of pictures; with fractions (`train=0.8,test=0.2`) one for each split."""
        options = () if split is None else ("--split", split)
        self.command("ingest", source, dataset, *options)
        paths = str(source), str(dataset)
        ingest(prepare_dataset(lambda anew: plan_ingest(*paths, split=split or "found", overwrite=anew)))

    def filtered(self, name: str, source: Path, steps: str) -> Path:
        """A dataset that steps make of another one."""
        dataset = self.folder / "data" / name
        self.command("filter", source, dataset, "--steps", steps)
        paths = str(source), str(dataset)
        filter_dataset(prepare_dataset(lambda anew: plan_filter(*paths, steps, overwrite=anew)))
        return dataset

    def recipe(self, name: str, settings: Sequence[str], *, train_on: Path, test_on: Path) -> Path:
        """Writes `recipes/NAME.yaml`: what all trainings of the tour share, with these settings (`field=value`)."""
        recipe = self.folder / "recipes" / f"{name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        overrides = [f"data.train={train_on}", f"data.val={test_on}", *settings]
        fields = Recipe.load(_base(), overrides).model_dump(mode="json", exclude_unset=True)
        recipe.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
        return recipe

    def train(self, name: str, settings: Sequence[str], *, train_on: Path, test_on: Path, seed: int = 0) -> Trained:
        """Trains a network, or returns one that was trained before in this folder.

        One of another recipe, other data, or another version of Striate or PyTorch is replaced.

        Args:
            name: of the training; its recipe is `recipes/NAME.yaml`, its bundle `networks/NAME-SEED`.
            settings: what differs from `pages/recipe.yaml`, as `field=value`.
            train_on: the training set.
            test_on: the validation set.
            seed: of weights, order and augmentation.
        """
        recipe = self.recipe(name, settings, train_on=train_on, test_on=test_on)
        bundle = self.folder / "networks" / f"{name}-{seed}"
        self.command("train", recipe, "--set", f"seed={seed}", "--out", bundle)
        plan = prepare_network(Recipe.load(str(recipe), [f"seed={seed}"]), str(bundle))
        record = train(plan).bundle
        lines = (bundle / "logs" / "metrics.jsonl").read_text("utf-8").splitlines()
        epochs = [json.loads(line) for line in lines]
        curve = {
            int(one["epoch"]): (int(one["epoch"]), one["train_loss"], one["val_loss"], one["val_top1"])
            for one in epochs
        }
        tested = 0 if plan.val is None else len(plan.val)
        curves = tuple(curve[epoch] for epoch in sorted(curve))
        return Trained(bundle, curves, record.metrics["val_top1"], len(plan.train), tested)


def prepare_dataset(plan: Callable[[bool], _PlanT]) -> _PlanT:
    """Returns the plan of a dataset: it resumes or keeps its own, and replaces one that another tour has made there.

    Args:
        plan: plans it; takes whether the output of another job is replaced.

    Raises:
        UsageError: there is something else in its place.
    """
    try:
        return plan(False)
    except UsageError:
        return plan(True)  # fails in the same way where replacing does not help


def prepare_network(recipe: Recipe, out: str) -> TrainPlan:
    """Prepares a folder for a training, and returns the plan: it resumes or returns its own, and replaces another one.

    One that another version of Striate or PyTorch finished, or left unfinished, is another one. What that left
    unfinished is removed here.
    """
    replacing = plan_train(recipe, out, overwrite=True)
    owner = read_record(replacing.out)
    if owner is None or not owner.is_same(replacing.record):
        return replacing
    plan = plan_train(recipe, out)
    versions = load_record(plan.out).provenance.get("versions", {}) if plan.finished else owner.versions
    if training_versions().items() <= versions.items():
        return plan
    if not plan.finished:  # a training that overwrites resumes it too
        with hold(plan.out, tidy=remove_temporaries):
            remove_training(plan.out)
    return replacing


@cache
def photo(name: str) -> Pixels:
    """One of the photos that come with the packages: `china`, `flower` or `hopper`."""
    return demo_photos()[name]


def digit(number: int) -> Pixels:
    """The first handwritten digit of a class, 8 x 8 x 1, uint8."""
    digits: Any = load_digits()
    first = digits.images[list(digits.target).index(number)]
    return np.rint(first * (255 / 16)).astype(np.uint8)[:, :, None]


def filtered_pixels(steps: str, pixels: Pixels) -> Pixels:
    """What steps make of pixels."""
    return Pipeline.parse(steps).apply(pixels)


def _base() -> str:
    return str(files("jobs.tour").joinpath("pages/recipe.yaml"))
