"""Which extra of the installation brings each package that the base installation lacks.

`pip install striate` brings what filtering and choosing need; pyproject.toml lists the rest by extra, and a test holds
the two equal.
"""

from __future__ import annotations

import importlib.util

from library.errors import UsageError

#: The extra by the import name of each package. Both extras bring PyTorch, timm and ONNX; the advice names `train`.
EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "timm", "safetensors"), "train"),
    **dict.fromkeys(("sklearn", "matplotlib", "tensorboard", "tensorboardX"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "train"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "anyio", "multipart", "fastapi_offline"), "serve"),
}
_SERVING = ("serve", "export")


class MissingPackage(UsageError):
    """A package of an extra is not installed.

    Args:
        needed_by: what needs it: a command or a step, as the user wrote it.
        package: its import name.
        extra: the extra that brings it.
    """

    def __init__(self, needed_by: str, package: str, extra: str) -> None:
        self.needed_by, self.package, self.extra = needed_by, package, extra
        super().__init__(f"`{needed_by}` needs the package {package}: pip install 'striate[{extra}]'")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.needed_by, self.package, self.extra)


def check_installed(package: str, needed_by: str, extra: str | None = None) -> None:
    """Checks that a package of an extra is installed, without importing it.

    Args:
        package: its import name.
        needed_by: what needs it, for the error.
        extra: the extras to advise; by default the one that brings the package.

    Raises:
        MissingPackage: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(needed_by, package, extra or EXTRAS[package])


def missing_package(error: BaseException | None, command: str) -> MissingPackage | None:
    """Returns the advice for a failed import, or for an error that one has led to; None where no extra would help.

    Args:
        error: what was raised; its causes are looked at too.
        command: the name of the command that ran; `serve` and `export` need the extra `serve`.
    """
    while error is not None:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and package in EXTRAS:
            extra = "serve" if command in _SERVING else EXTRAS[package]
            return MissingPackage(f"striate {command}", package, extra)
        error = error.__cause__ or error.__context__
    return None
