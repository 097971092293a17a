"""Looks inside a classifier and writes a page about it, with a PNG for each part: `striate inspect`.

It runs in this process, without Ray, on a sample of the dataset.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord, load_record
from library.dataset.destination import remove_temporary
from library.dataset.lease import hold
from library.dataset.manifest import VERSIONS, Manifest, find_manifest, load_manifest
from library.dataset.shards import ShardReader
from library.errors import BadPicture, StriateError, UsageError
from library.evaluation.inside import band_drawing as drawing
from library.evaluation.inside.grad_cam import Explanation, explain
from library.evaluation.inside.inside_page import Chapter, Figure, Section, Table, files_of, render_inside
from library.evaluation.inside.mix_ups import MixUp, mix_ups
from library.evaluation.inside.occlusion import first_of, occlusion
from library.evaluation.inside.recording import Part, StageMaps, blank, feature_maps, networks
from library.evaluation.inside.trust import Trust, deletion_insertion, draw_trust
from library.evaluation.inside.units import exciting_patches, first_kernels
from library.evaluation.report.templates import PAGE, check_report
from library.imaging import codec
from library.imaging.picture import Pixels
from library.pipeline.inputs import InputPipeline, Prepared
from library.training.label_sets import check_column, trained_column

COMMAND = "striate inspect"
#: Pictures of a dataset that are looked at.
LIMIT = 400
#: The most that can be asked for: the prepared pictures stay in memory, for each network of an ensemble.
MOST = 2_000
#: Pictures of the dataset with a chapter of their own where the command names none.
_EXAMPLES = 3
_STAGE_HEADINGS = ("stage", "result", "one element sees")
_BATCH = 32
_TOP = 3

#: Reports what is done: the part, and how much of how much.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class InspectPlan:
    """A checked request.

    Attributes:
        bundle: URI.
        record: its record.
        pictures: files that get a chapter each.
        dataset: URI; None without one.
        manifest: that of the dataset.
        limit: the most pictures of the dataset that are looked at.
        labels: column with lists of class names, for a bundle of several labels; None without one.
        out: URI of the folder that is written.
        class_name: the class whose evidence is drawn; None for the most probable of each picture.
        road: whether the measure of trust fills in hidden pixels from their neighbours.
    """

    bundle: str
    record: BundleRecord
    pictures: tuple[str, ...]
    dataset: str | None
    manifest: Manifest | None
    limit: int
    labels: str | None
    out: str
    class_name: str | None
    road: bool


def plan_inspect(
    bundle: str,
    pictures: Sequence[str],
    *,
    out: str,
    dataset: str | None = None,
    limit: int | None = None,
    labels: str | None = None,
    class_name: str | None = None,
    road: bool = False,
) -> InspectPlan:
    """Checks everything that can be checked before the network is loaded.

    Raises:
        UsageError: for anything wrong with the request.
    """
    uri = storage.normalize(bundle)
    record = load_record(uri)
    if dataset is None and (limit is not None or labels is not None):
        raise UsageError(f"{'--limit' if limit is not None else '--labels'} has no effect without --data")
    for name, given in (("--class", class_name is not None), ("--road", road)):
        if given and dataset is None and not pictures:
            raise UsageError(f"{name} has no effect without a picture or --data")
    if class_name is not None and class_name not in record.classes:
        raise UsageError(f"--class {class_name}: the bundle has no such class; it has {', '.join(record.classes[:20])}")
    for number, picture in enumerate(pictures):
        if picture in pictures[:number]:
            raise UsageError(f"{picture} is given twice")
        if find_manifest(storage.normalize(picture)) is not None:
            raise UsageError(f"{picture} is a dataset, not a picture; name it with --data")
    if limit is not None and not 2 <= limit <= MOST:
        raise UsageError(f"--limit {limit}: must be from 2 to {MOST:,}; the pictures stay in memory")
    dataset = None if dataset is None else storage.normalize(dataset)
    manifest = None if dataset is None else _checked(dataset, record)
    if dataset is not None and manifest is not None:
        labels = _labels_column(dataset, manifest.shards[0].name, uri, record, labels)
    out = storage.normalize(out)
    if storage.contains(uri, out):
        raise UsageError(f"--out {out} is the bundle or inside it; name another folder")
    check_report(out, [] if dataset is None else [dataset], COMMAND, "--out")
    limit = LIMIT if limit is None else limit
    return InspectPlan(uri, record, tuple(pictures), dataset, manifest, limit, labels, out, class_name, road)


def _checked(dataset: str, record: BundleRecord) -> Manifest:
    """The manifest of a dataset that a bundle can look at."""
    manifest = load_manifest(dataset)
    if manifest.tally.rows_out < 2:
        raise UsageError(f"{dataset} has fewer than two pictures, which a map of them needs")
    if not record.members:
        inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
        inputs.check_channels(dataset, manifest.tally.channels)
    return manifest


def _labels_column(dataset: str, shard: str, uri: str, record: BundleRecord, wanted: str | None) -> str | None:
    """The column with the classes of each picture; None where the bundle gives it one, which is in `label`."""
    if not record.multilabel:
        if wanted is not None:
            raise UsageError(f"--labels has no effect: {uri} gives a picture one class; leave it out")
        return None
    column = wanted or trained_column(uri, record)
    if column is None:
        raise UsageError(f"{uri} does not say which column holds the names of a picture's classes; add --labels COLUMN")
    check_column(dataset, ShardReader(storage.join(dataset, shard)).schema(), column, "--labels")
    return column


@dataclass
class Sample:
    """Pictures of a dataset as a bundle takes them.

    Attributes:
        pictures: the usable ones.
        labels: for each picture the names of its classes; empty where they are unknown.
        keys: of the pictures.
        left_out: pictures that the bundle drops or cannot use, by reason.
    """

    pictures: list[Prepared] = field(default_factory=list[Prepared])
    labels: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    keys: list[str] = field(default_factory=list[str])
    left_out: Counter[str] = field(default_factory=Counter[str])


def run_inspect(plan: InspectPlan, *, device: str = "auto", report: Report | None = None) -> dict[str, Any]:
    """Looks inside, writes the drawings and at last the page, and returns the numbers for --json.

    Args:
        plan: from `plan_inspect`.
        device: auto, cpu, cuda, cuda:1 ...
        report: is called as the work proceeds.

    Raises:
        UsageError: another command is writing to the folder.
        StriateError: the bundle or the dataset is damaged, a step's own code fails, or no picture of the dataset can
            be used.
    """
    bundle = Bundle.load(plan.bundle, device, plan.record.id)
    look = _Look(plan, bundle, report or (lambda *_: None))
    chapters = [look.network()]
    sample = None
    if plan.dataset is not None:
        sample = look.sample()
        chapters.append(look.dataset(sample))
    chapters += look.pictures(sample)
    written = time.strftime("%Y-%m-%d %H:%M")
    page = render_inside(
        f"Inside {storage.name_of(plan.bundle)}",
        look.facts(),
        chapters,
        f"made {written} by striate {VERSIONS['striate']}",
    )
    figures = [figure for chapter in chapters for section in chapter.sections for figure in section.figures]
    with hold(plan.out, tidy=remove_temporary):
        where = _write(plan.out, figures, page)
    return {**look.numbers, "page": where, "files": [figure.file for figure in figures]}


def _write(out: str, figures: Sequence[Figure], page: str) -> str:
    """Writes the drawings and at last the page, removes those that only an earlier page had; returns the page's URI."""
    for figure in figures:
        storage.write_bytes(storage.join(out, figure.file), figure.data)
    where = storage.join(out, PAGE)
    old = files_of(storage.read_bytes(where).decode("utf-8", "replace")) if storage.exists(where) else []
    # On a disk that ignores case, an old name in other letters is the drawing that has just been written.
    kept = {figure.file.lower() for figure in figures}
    storage.remove(storage.join(out, name) for name in old if name.lower() not in kept)
    storage.write_bytes(where, page.encode())
    return where


class _Look:
    """The work for one page, part by part; `numbers` grows with it."""

    def __init__(self, plan: InspectPlan, bundle: Bundle, report: Report) -> None:
        self._plan, self._bundle, self._report = plan, bundle, report
        self._names: set[str] = set()
        self.numbers: dict[str, Any] = {
            "bundle": plan.bundle,
            "bundle_id": bundle.id,
            "device": str(bundle.device),
            "networks": [],
            "pictures": [],
            "failed": [],
        }

    def facts(self) -> list[tuple[str, str]]:
        """Names and values under the page's heading."""
        classes = self._bundle.classes
        shown = ", ".join(classes[:12]) + (f" and {len(classes) - 12:,} more" if len(classes) > 12 else "")
        kind = "any number of" if self._bundle.record.multilabel else "one of"
        facts = [("bundle", f"{self._plan.bundle} ({self._bundle.id[:12]})"), ("answers", f"{kind} {shown}")]
        if self._bundle.members:
            facts.append(("ensemble", f"of {len(self._bundle.members)} bundles"))
        facts.append(("computed on", str(self._bundle.device)))
        return facts

    def network(self) -> Chapter:
        """The chapter about the network itself: its stages, and the kernels of its first layer."""
        tables, figures = list[Table](), list[Figure]()
        notes: list[str] = []
        for number, part in enumerate(self._parts(blank(self._bundle)), start=1):
            stages = feature_maps(part.model, part.pixels)
            kernels = first_kernels(part.model, (part.pixels.shape[0], part.pixels.shape[1]))
            self.numbers["networks"].append(
                {
                    "model": part.title,
                    "weight": part.weight,
                    "first_kernels": None if kernels is None else list(kernels.values.shape),
                    "stages": [_stage_numbers(stage) for stage in stages],
                }
            )
            size = (part.pixels.shape[0], part.pixels.shape[1])
            caption = f"{part.title}: {size[0]} x {size[1]} pixels of {_channels(part.pixels)}"
            tables.append(Table(caption, _STAGE_HEADINGS, [_stage_row(stage, size) for stage in stages]))
            if kernels is None:
                notes.append(f"{part.title} begins with neither a convolution nor a dense layer of pixels.")
            else:
                figures.append(self._figure("kernels", drawing.draw_kernels(kernels), part.title, number))
        kernels_section = Section("kernels", "First kernels", figures, " ".join(notes))
        return Chapter("network", "The network", (), [Section("stages", "Stages", (), tables=tables), kernels_section])

    def sample(self) -> Sample:
        """Reads pictures at equal distances over the whole dataset."""
        assert self._plan.manifest is not None
        sample, wanted = Sample(), min(self._plan.limit, self._plan.manifest.tally.rows_out)
        for done, row in enumerate(_spread_rows(self._plan, wanted), start=1):
            columns = {name: value for name, value in row.items() if name != "image"}
            try:
                prepared = self._bundle.prepare((row["image"] or {}).get("bytes") or b"", **columns)
            except BadPicture as bad:
                sample.left_out[bad.reason] += 1
                continue
            names: Any = row[self._plan.labels] if self._plan.labels else [row["label"]]
            sample.pictures.append(prepared)
            sample.labels.append(tuple(str(name) for name in names or () if name is not None))
            sample.keys.append(str(row["key"]))
            self._report("reading pictures", done, wanted)
        if len(sample.pictures) < 2:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sample.left_out.items())
            raise StriateError(f"of {wanted} pictures of {self._plan.dataset} fewer than two can be used: {reasons}")
        return sample

    def dataset(self, sample: Sample) -> Chapter:
        """The chapter about a dataset: a map of it, confused classes, and the patches that excite units most."""
        from library.evaluation.inside.embedding import draw_embedding, features_of, has_umap, pca, umap

        plan, pictures = self._plan, [first_of(one) for one in sample.pictures]
        assert plan.manifest is not None
        rows = self._probabilities(sample.pictures)
        pairs = mix_ups(rows, sample.labels, self._bundle.classes, multilabel=plan.record.multilabel)
        features = features_of(self._bundle, sample.pictures)
        embeddings = [pca(features)]
        if has_umap():
            self._report("UMAP", 0, 1)
            embeddings += [found for found in [umap(features)] if found is not None]
        labels = [names[0] if names else None for names in sample.labels]
        maps = [
            self._figure(f"embedding-{one.method.lower()}", draw_embedding(one, pictures, labels), one.method)
            for one in embeddings
        ]
        umap_note = "" if has_umap() else "UMAP is drawn too where the package umap-learn is installed."
        confused = (
            [self._figure("confused", drawing.draw_mix_ups(pairs, pictures), "confused classes")] if pairs else []
        )
        patches = self._patches(sample)
        looked = f"{len(pictures):,} of {plan.manifest.tally.rows_out:,} pictures"
        left = ", ".join(f"{reason} {count:,}" for reason, count in sample.left_out.items())
        facts = [("dataset", str(plan.dataset)), ("looked at", looked + (f"; left out: {left}" if left else ""))]
        self.numbers["data"] = {
            "dataset": plan.dataset,
            "pictures": len(pictures),
            "left_out": dict(sample.left_out),
            "embeddings": [{"method": one.method, "explained": one.explained} for one in embeddings],
            "confused": [_pair_numbers(pair) for pair in pairs],
        }
        no_pairs = "" if pairs else "No picture has a known label that another class could be taken for."
        return Chapter(
            "dataset",
            "The dataset",
            facts,
            [
                Section("embedding", "Map of the dataset", maps, umap_note),
                Section("confused", "Confused classes", confused, no_pairs),
                Section("patches", "What units look for", patches),
            ],
        )

    def pictures(self, sample: Sample | None) -> list[Chapter]:
        """A chapter for each picture: those that are named, or else the first ones of different classes."""
        chapters: list[Chapter] = []
        for file in self._plan.pictures:
            try:
                data = storage.read_bytes(storage.normalize(file), max_bytes=codec.DEFAULT_LIMITS.max_bytes)
            except StriateError as error:
                self.numbers["failed"].append({"file": file, "reason": "cannot_read", "detail": str(error)})
                continue
            try:
                prepared = self._bundle.prepare(data)
            except BadPicture as bad:
                self.numbers["failed"].append({"file": file, "reason": bad.reason, "detail": str(bad)})
                continue
            chapters.append(self._picture(file, prepared))
        if not self._plan.pictures and sample is not None:
            chapters += [
                self._picture(sample.keys[number], sample.pictures[number], sample.labels[number])
                for number in _of_different_classes(sample)
            ]
        return chapters

    def _picture(self, name: str, prepared: Prepared, labels: Sequence[str] = ()) -> Chapter:
        slug = self._slug(name)
        answer = self._bundle.ranked(self._bundle.probabilities([prepared]), _TOP)[0]
        wanted = self._plan.class_name
        explanation = self._explanation(prepared, wanted)
        hidden = occlusion(
            self._bundle, prepared, wanted, progress=lambda done, of: self._report(f"{name}: occlusion", done, of)
        )
        heats = {"occlusion": hidden.drop}
        if explanation is not None:
            heats = {"Grad-CAM": explanation.heat, **heats}
        trusts = deletion_insertion(
            self._bundle,
            prepared,
            heats,
            wanted,
            road=self._plan.road,
            progress=lambda done, of: self._report(f"{name}: trust", done, of),
        )
        seen, fields = list[Figure](), list[Figure]()
        for number, part in enumerate(self._parts(prepared), start=1):
            stages = feature_maps(part.model, part.pixels)
            seen.append(self._figure(f"{slug}-maps", drawing.draw_maps(stages), part.title, number))
            fields.append(self._figure(f"{slug}-fields", drawing.draw_fields(part.pixels, stages), part.title, number))
        heat_note = "" if explanation is not None else "This network has no maps over the picture, so no Grad-CAM."
        heat = self._figure(f"{slug}-heat", drawing.draw_heat(prepared, explanation, hidden), f"evidence in {name}")
        curves = self._figure(f"{slug}-trust", draw_trust(trusts), f"deletion and insertion for {name}")
        words = "; ".join(f"{which} is {trust.verdict}" for which, trust in trusts.items()) + "."
        self.numbers["pictures"].append(
            {
                "file": name,
                "classes": [{"class": label, "probability": share} for label, share in answer.classes],
                "explained": hidden.class_name,
                "occlusion": {"window": list(hidden.window), "largest_drop": float(hidden.drop.max())},
                "hidden_by": "neighbours" if self._plan.road else "mean colour",
                "trust": {which: _trust_numbers(trust) for which, trust in trusts.items()},
            }
        )
        facts = [("answer", ", ".join(f"{label} {share:.1%}" for label, share in answer.classes))]
        if labels:
            facts.append(("label", ", ".join(labels)))
        return Chapter(
            f"picture-{slug}",
            storage.name_of(name) or name,
            facts,
            [
                Section("heat", f"Evidence for {hidden.class_name}", [heat], heat_note),
                Section(
                    "road" if self._plan.road else "trust", "Trust in the maps", [curves], words[0].upper() + words[1:]
                ),
                Section("maps", "Feature maps", seen),
                Section("fields", "Receptive fields", fields),
            ],
        )

    def _explanation(self, prepared: Prepared, class_name: str | None) -> Explanation | None:
        try:
            return explain(self._bundle, prepared, class_name)
        except UsageError:  # no maps, as in a multi-layer perceptron; the class has been checked
            return None

    def _patches(self, sample: Sample) -> list[Figure]:
        figures: list[Figure] = []
        inputs = [[part.pixels for part in networks(self._bundle, one)] for one in sample.pictures]
        for number, part in enumerate(self._parts(sample.pictures[0]), start=1):
            pictures: list[Pixels] = [one[number - 1] for one in inputs]
            kinds = Counter(str(one.dtype) for one in pictures).most_common(1)[0][0]
            units = exciting_patches(
                part.model,
                [one for one in pictures if str(one.dtype) == kinds],
                progress=lambda done, of, title=part.title: self._report(f"patches of {title}", done, of),
            )
            figures.append(self._figure("patches", drawing.draw_patches(units), part.title, number))
        return figures

    def _probabilities(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        rows: list[NDArray[np.float32]] = []
        for first in range(0, len(pictures), _BATCH):
            rows.append(self._bundle.probabilities(pictures[first : first + _BATCH]))
            self._report("probabilities", min(first + _BATCH, len(pictures)), len(pictures))
        return np.concatenate(rows)

    def _parts(self, prepared: Prepared) -> list[Part]:
        return list(networks(self._bundle, prepared))

    def _figure(self, name: str, image: NDArray[np.uint8], alt: str, member: int | None = None) -> Figure:
        """A drawing; of an ensemble's member, whose number is in the file's name and whose title is the caption."""
        one_of_several = member is not None and bool(self._bundle.members)
        file = f"{name}-{member}.png" if one_of_several else f"{name}.png"
        return Figure(file, drawing.png(image), f"{name.replace('-', ' ')}: {alt}", alt if one_of_several else "")

    def _slug(self, name: str) -> str:
        """A name for the files of a picture, which no other picture has."""
        stem = storage.name_of(name).rpartition(".")[0] or storage.name_of(name)
        slug = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-")[:60] or "picture"
        number, unique = 2, slug
        while unique.lower() in self._names or unique.lower() in ("embedding", "kernels", "patches", "confused"):
            number, unique = number + 1, f"{slug}-{number}"
        self._names.add(unique.lower())
        return unique


def _spread_rows(plan: InspectPlan, wanted: int) -> Iterator[dict[str, Any]]:
    """Rows at equal distances over a dataset, shard by shard."""
    assert plan.manifest is not None
    assert plan.dataset is not None
    total = sum(shard.rows for shard in plan.manifest.shards)
    numbers = [number * total // wanted for number in range(wanted)]
    first = 0
    for shard in plan.manifest.shards:
        inside = [number - first for number in numbers if first <= number < first + shard.rows]
        first += shard.rows
        if inside:
            table: pa.Table = ShardReader(storage.join(plan.dataset, shard.name), rows=shard.rows).rows(inside)
            yield from table.to_pylist()


def _of_different_classes(sample: Sample) -> list[int]:
    """The first picture of each of a few classes."""
    first: dict[tuple[str, ...], int] = {}
    for number, names in enumerate(sample.labels):
        first.setdefault(names, number)
    return list(first.values())[:_EXAMPLES]


def _stage_row(stage: StageMaps, size: tuple[int, int]) -> tuple[str, str, str]:
    channels, height, width = stage.values.shape
    if not stage.is_map:
        return stage.stage, f"{channels:,} numbers", "the whole picture"
    result = f"{channels:,} maps of {height} x {width}"
    if stage.view is None:
        return stage.stage, result, "the whole picture"
    sees = round(stage.view.field[0]), round(stage.view.field[1])
    more = ", more than the picture" if sees[0] > size[0] and sees[1] > size[1] else ""
    return stage.stage, result, f"{sees[0]} x {sees[1]} pixels{more}"


def _channels(pixels: Pixels) -> str:
    channels = pixels.shape[2]
    return f"{channels} channel{'s' * (channels > 1)}"


def _stage_numbers(stage: StageMaps) -> dict[str, Any]:
    field_px = None if stage.view is None else [round(side) for side in stage.view.field]
    return {
        "stage": stage.stage,
        "module": stage.module,
        "shape": list(stage.values.shape),
        "receptive_field": field_px,
    }


def _trust_numbers(trust: Trust) -> dict[str, Any]:
    areas = {name: round(area, 4) for name, area in trust.areas.items()}
    return {**areas, "beaten": trust.beaten, "copies": len(trust.shifted_deletion), "verdict": trust.verdict}


def _pair_numbers(pair: MixUp) -> dict[str, Any]:
    return {
        "label": pair.label,
        "predicted": pair.predicted,
        "pictures": pair.pictures,
        "errors": pair.errors,
        "mean_probability": pair.mean_probability,
    }
