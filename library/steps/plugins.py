"""Loads a user's own steps from a Python file, a module or an installed package: `--plugin my_steps.py`.

    from library.steps import register

    @register("filter")
    class Halve:
        '''Every value halved.'''

        def __call__(self, pixels): return pixels // 2

Code runs only when the command line names it, or when an installed package offers it as an entry point of the group
`striate.steps`; never because a dataset or a bundle asks for it. A plugin is one file: its text is sent to the workers,
where its imports must be installed. Manifests and bundles record the name and digest of each plugin that their
pipelines use. A bundle is refused if one is absent or different; a dataset is read without its plugins.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from library.errors import StriateError, UsageError
from library.steps.base import REGISTRY, Step, with_nested

ENTRY_POINTS = "striate.steps"
#: The key under which manifests and bundles record the digests of plugins.
RECORDED = "plugins"
_INSTALL = f"install the package that defines it as an entry point {ENTRY_POINTS}"
_FILES = "striate_plugin_"  # before the module name of a file, which must not hide another module


@dataclass(frozen=True)
class Plugin:
    """One file of steps.

    Attributes:
        name: name of the file without `.py`, or of the module as it is imported.
        module: its name in `sys.modules`.
        source: its text.
    """

    name: str
    module: str
    source: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the text, in hex."""
        return hashlib.sha256(self.source.encode()).hexdigest()


_loaded: dict[str, Plugin] = {}
_has_option = False  # whether the command has `--plugin`
_installing = threading.RLock()  # an actor with two threads installs the same plugin in both


def load(names: Iterable[str]) -> None:
    """Registers the steps of plugins in this process, those of installed packages first.

    Args:
        names: paths that end in `.py`, or names of modules that can be imported.

    Raises:
        UsageError: when there is no such file or module, it fails, one of its steps is registered already, or its
            steps lie in further modules.
    """
    global _has_option
    _has_option = True
    with _one_file_each():
        _load_entry_points()
        for name in names:
            _install(_of_file(Path(name)) if name.endswith(".py") else _of_module(name, f"--plugin {name}"))


def load_installed() -> None:
    """Registers the steps of installed packages only, for a command without `--plugin`.

    Raises:
        UsageError: as `load`.
    """
    global _has_option
    _has_option = False
    with _one_file_each():
        _load_entry_points()


def install(plugins: Sequence[Plugin]) -> None:
    """Registers the steps of plugins that another process has loaded; those loaded here already must be the same.

    Raises:
        UsageError: as `load`.
    """
    with _installing:
        for plugin in plugins:
            _install(plugin)


def loaded() -> tuple[Plugin, ...]:
    """Returns the plugins that are loaded here, sorted by name."""
    return named(_loaded)


def named(names: Iterable[str]) -> tuple[Plugin, ...]:
    """Returns the plugins of these names that are loaded here, sorted by name."""
    return tuple(_loaded[name] for name in sorted(names) if name in _loaded)


def used_by(steps: Iterable[Step]) -> tuple[Plugin, ...]:
    """Returns the plugins of the steps and of the steps in their parameters, sorted by name."""
    modules = {plugin.module: plugin for plugin in _loaded.values()}
    used = {plugin.name: plugin for step in with_nested(steps) if (plugin := modules.get(type(step).__module__))}
    return tuple(used[name] for name in sorted(used))


def digests(plugins: Iterable[Plugin]) -> dict[str, str]:
    """Returns what manifests and bundles record: digests by name."""
    return {plugin.name: plugin.digest for plugin in plugins}


def recorded(digests: Mapping[str, str]) -> dict[str, Any]:
    """Returns the entry for a manifest's options or a bundle's provenance; empty if no plugin is used."""
    return {RECORDED: dict(digests)} if digests else {}


def check_recorded(record: Mapping[str, Any], owner: str) -> None:
    """Checks that the plugins recorded in a manifest or a bundle are loaded, with the same digests.

    Args:
        record: a job's options, or a bundle's provenance.
        owner: name of the manifest or bundle, for the message.

    Raises:
        UsageError: names the first plugin that is absent or different.
    """
    digests = record.get(RECORDED, {})
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise StriateError(f"{owner} is damaged: `{RECORDED}` must map names of plugins to their SHA-256")
    for name, digest in sorted(digests.items()):
        plugin = _loaded.get(name)
        if plugin is None:
            raise UsageError(
                f"{owner} uses steps of the plugin '{name}' (sha256 {digest[:12]}), which is not loaded: "
                + ("name its file or its module with --plugin" if _has_option else _INSTALL)
            )
        if plugin.digest != digest:
            raise UsageError(
                f"{owner} was made with another version of the plugin '{name}': sha256 {digest[:12]}, and the one "
                f"that is loaded has {plugin.digest[:12]}"
            )


def _of_file(path: Path) -> Plugin:
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--plugin {path}: cannot be read: {error}") from None
    return Plugin(path.stem, _FILES + path.stem, source)


@contextlib.contextmanager
def _one_file_each() -> Generator[None]:
    """Refuses new steps of modules that are not plugins, because no record would name them; removes all on an error."""
    steps, plugins, modules = set(REGISTRY), set(_loaded), set(sys.modules)
    try:
        yield
        files = {plugin.module for plugin in _loaded.values()}
        for name in sorted(REGISTRY.keys() - steps):
            module = REGISTRY[name].__module__
            if module not in files:
                raise UsageError(
                    f"a plugin is one file: the step '{name}' lies in the module {module}, which is not a plugin; name "
                    "that module too, or move the step"
                )
    except UsageError:
        new = {REGISTRY[name].__module__ for name in REGISTRY.keys() - steps}
        new |= {_loaded[name].module for name in _loaded.keys() - plugins}
        for name in REGISTRY.keys() - steps:
            del REGISTRY[name]
        for name in _loaded.keys() - plugins:
            del _loaded[name]
        for module in new - modules:
            del sys.modules[module]
        raise


def _load_entry_points() -> None:
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        owner = f"the entry point '{point.name}' of {ENTRY_POINTS}"
        plugin = _of_module(point.value.partition(":")[0], owner)
        try:
            _install(plugin)
        except UsageError as error:
            raise UsageError(f"{owner}: {error}") from error


def _of_module(name: str, owner: str) -> Plugin:
    """Returns the plugin of a module; `owner` says where its name comes from, for the error."""
    known = _loaded.get(name)
    if known is not None and known.module == name:
        return known
    try:
        spec = importlib.util.find_spec(name)
    except Exception as error:  # finding a submodule imports its package
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            spec = None
        else:
            raise UsageError(f"{owner}: {name} cannot be imported: {type(error).__name__}: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(f"{owner}: there is no Python file or importable module named {name}")
    return Plugin(name, name, Path(spec.origin).read_text("utf-8"))


def _install(plugin: Plugin) -> None:
    known = _loaded.get(plugin.name)
    if known is not None:
        if known.digest != plugin.digest:
            raise UsageError(
                f"two plugins are named '{plugin.name}': sha256 {known.digest[:12]} and {plugin.digest[:12]}"
            )
        return
    before = set(REGISTRY)
    try:
        _execute(plugin)
    except Exception as error:
        for name in set(REGISTRY) - before:
            del REGISTRY[name]
        sys.modules.pop(plugin.module, None)
        raise UsageError(f"the plugin '{plugin.name}' failed: {type(error).__name__}: {error}") from error
    _loaded[plugin.name] = plugin


def _execute(plugin: Plugin) -> None:
    if plugin.module == plugin.name and (plugin.module in sys.modules or _is_here(plugin)):
        importlib.import_module(plugin.module)
        return
    module = ModuleType(plugin.module)
    module.__package__ = plugin.module.rpartition(".")[0]
    sys.modules[plugin.module] = module  # before it runs: pydantic looks there for the names in annotations
    exec(compile(plugin.source, f"<plugin {plugin.name}>", "exec"), module.__dict__)


def _is_here(plugin: Plugin) -> bool:
    """Returns whether the same module can be imported here; a worker may have another version, or none."""
    try:
        return _of_module(plugin.name, plugin.name).digest == plugin.digest
    except UsageError:
        return False
