"""Several bundles combined into one: `striate ensemble`."""

from __future__ import annotations

from collections.abc import Sequence

from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import BUNDLE, BundleRecord, Member
from library.dataset.lease import hold
from library.errors import UsageError


def ensemble(bundles: Sequence[Bundle], weights: Sequence[float] | None = None) -> Bundle:
    """Combines classifiers into one that gives the weighted mean of their probabilities.

    Args:
        bundles: at least two, with the same classes in any order.
        weights: weight of each in the mean, above 0; None for equal weights.

    Raises:
        UsageError: fewer than two bundles, different classes, one class a picture in some and several in others,
            or weights that are not one positive number per bundle.
    """
    if len(bundles) < 2:
        raise UsageError("an ensemble takes at least two bundles")
    weights = [1.0] * len(bundles) if weights is None else list(weights)
    if len(weights) != len(bundles) or min(weights) <= 0:
        raise UsageError(f"an ensemble of {len(bundles)} bundles takes as many weights above 0; got {weights}")
    classes = bundles[0].classes
    for bundle in bundles[1:]:
        differing = sorted(set(bundle.classes) ^ set(classes))
        if differing:
            raise UsageError(f"an ensemble's bundles must have the same classes; these differ: {', '.join(differing)}")
    multilabel = bundles[0].record.multilabel
    if any(bundle.record.multilabel != multilabel for bundle in bundles):
        raise UsageError("an ensemble's bundles must all give one class to a picture, or all any number of classes")
    members = tuple(Member(id=bundle.id, weight=weight) for bundle, weight in zip(bundles, weights, strict=True))
    return Bundle.of_members(BundleRecord(classes=classes, multilabel=multilabel, members=members), bundles)


def make_ensemble(uris: Sequence[str], out: str, weights: str | None = None) -> BundleRecord:
    """Loads bundles, combines them and writes the ensemble.

    Args:
        uris: the bundles' folders.
        out: URI of the bundle to write.
        weights: weight of each bundle in the mean, separated by commas; None for equal weights.

    Returns:
        The record of the new bundle.

    Raises:
        UsageError: weights that are not numbers, bundles that do not fit together, a destination that already holds a
            bundle, or that another command is writing.
    """
    try:
        shares = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise UsageError(f"--weights '{weights}': write numbers separated by commas, e.g. 2,1") from None
    folder = storage.normalize(out)
    with hold(folder, tidy=lambda _: None):
        if storage.exists(storage.join(folder, BUNDLE)):
            raise UsageError(f"{out} holds a bundle already; choose another folder")
        bundle = ensemble([Bundle.load(uri, device="cpu") for uri in uris], shares)
        bundle.save(folder)
    return bundle.record
