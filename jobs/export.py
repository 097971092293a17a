"""A bundle as a file for other programs: `striate export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from library import storage
from library.bundle.bundle import Bundle
from library.runtimes.export import Exported, destination, export


@dataclass(frozen=True)
class Written:
    """An export, and where it lies."""

    path: str
    bundle: Bundle
    exported: Exported

    def described(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "file": self.path,
            "format": self.exported.format,
            "bytes": len(self.exported.data),
            "bundle_id": self.bundle.id,
            "classes": list(self.bundle.classes),
            "inputs": [
                {"name": one.name, "shape": ["N", *one.size, one.channels], "dtype": "uint8"}
                for one in self.exported.inputs
            ],
            "largest_difference": self.exported.difference,
            "allowed_difference": self.exported.allowed,
            "checked_batches": list(self.exported.batches),
        }


def write_export(bundle: str, file_format: str, out: str | None = None) -> Written:
    """Export a bundle into a file, here or in a store; nothing is written when it does not answer as the bundle does.

    Args:
        bundle: URI of the bundle.
        file_format: `onnx` or `torch-export`.
        out: URI of the file; by default the bundle's name in the working folder.

    Raises:
        UsageError: no bundle, or a place where no export may go.
        StriateError: it cannot be exported so.
    """
    path = destination(bundle, file_format, out)
    loaded = Bundle.load(bundle, "cpu")
    exported = export(loaded, file_format)
    storage.write_bytes(path, exported.data)
    return Written(path, loaded, exported)
