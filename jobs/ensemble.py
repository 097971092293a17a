"""Several bundles as one: `striate ensemble`."""

from __future__ import annotations

from collections.abc import Sequence

from library import storage
from library.bundle.bundle import Bundle, ensemble
from library.bundle.description import BUNDLE, BundleRecord
from library.errors import UsageError


def make_ensemble(uris: Sequence[str], out: str, weights: str | None = None) -> BundleRecord:
    """Write the ensemble of bundles.

    Args:
        uris: of the bundles.
        out: URI of the bundle to make.
        weights: what each counts, with commas between; None for all the same.

    Raises:
        UsageError: for weights that are no numbers, or a destination that holds a bundle.
    """
    try:
        shares = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise UsageError(f"--weights '{weights}': write numbers with commas between, e.g. 2,1") from None
    if storage.exists(storage.join(storage.normalize(out), BUNDLE)):
        raise UsageError(f"{out} holds a bundle already; choose another folder")
    made = ensemble([Bundle.load(uri, device="cpu") for uri in uris], shares)
    made.save(out)
    return made.record
