"""Steps of a user's own: what loads them, what they may be, and what refuses them."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jobs.cli.app import run
from jobs.filter import plan_filter
from jobs.predict import plan_predict
from jobs.train.plan import plan_train
from library.errors import GrammarError, StriateError, UsageError
from library.pipeline import Pipeline
from library.recipe import Recipe
from library.steps import REGISTRY, plugins
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, write_files
from tests.plugins import HALVE, unloaded_afterwards, write_plugin


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with unloaded_afterwards():
        yield


def test_a_file_that_is_named_adds_its_steps(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match=r"unknown step 'halve'.*--plugin loads your own"):
        Pipeline.parse("halve")
    plugins.load([write_plugin(tmp_path)])
    pipeline = Pipeline.parse("grayscale | halve(by=4)")
    assert str(pipeline) == "grayscale(background=1.0) | halve(by=4)"
    assert pipeline.apply(np.full((2, 2, 3), 200, np.uint8)).tolist() == [[[50], [50]], [[50], [50]]]


def test_a_module_that_can_be_imported_adds_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load(["my_steps"])
    assert [plugin.name for plugin in plugins.used_by(Pipeline.parse("halve").steps)] == ["my_steps"]


def test_an_installed_package_offers_steps_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _offer(monkeypatch, "my_steps")
    plugins.load_installed()
    assert "halve" in REGISTRY


@pytest.mark.parametrize("result", ["pixels.astype(np.float32) / 255", "pixels[1:]"])
def test_an_added_channel_has_the_dtype_and_the_size_of_the_others(tmp_path: Path, result: str) -> None:
    path = tmp_path / "strange.py"
    path.write_text(
        "import numpy as np\n"
        "from library.steps.base import register\n\n\n"
        '@register("filter", still=True)\n'
        "class Strange:\n"
        '    """Return something else."""\n\n'
        "    def __call__(self, pixels):\n"
        f"        return {result}\n"
    )
    plugins.load([str(path)])
    with pytest.raises(ValueError, match=r"with_channels\(strange\) makes .* must keep the dtype and the size"):
        Pipeline.parse("with_channels(strange)").steps[0](np.full((4, 4, 1), 9, np.uint8))


def _offer(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    point = importlib.metadata.EntryPoint("mine", module, plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.ENTRY_POINTS else [])


@pytest.mark.parametrize(
    ("module", "source"),
    [("my_steps", "raise RuntimeError('no')"), ("my_steps.blurs", "raise RuntimeError('no')"), ("no_such_module", "")],
)
def test_a_failing_entry_point_is_reported_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str
) -> None:
    write_plugin(tmp_path, source)
    monkeypatch.syspath_prepend(tmp_path)
    _offer(monkeypatch, module)
    with pytest.raises(UsageError, match=r"^the entry point 'mine' of striate\.steps: "):
        plugins.load_installed()


def test_serving_loads_installed_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _offer(monkeypatch, "my_steps")
    assert run(["serve", str(tmp_path / "absent")]) == 2
    assert "there is nothing at" in capsys.readouterr().err
    assert "halve" in REGISTRY


@pytest.mark.parametrize("init", ["", "import my_steps.blurs\n"])
def test_steps_in_a_plugins_submodule_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    package = tmp_path / "my_steps"
    package.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "blurs.py").write_text(HALVE)
    (package / "steps.py").write_text("import my_steps.blurs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"one file: the step 'halve' lies in the module my_steps\.blurs, which"):
        plugins.load(["my_steps.steps"])
    assert "halve" not in REGISTRY
    assert not plugins._loaded
    sys.modules.pop("my_steps", None)
    plugins.load(["my_steps.steps", "my_steps.blurs"])
    assert [plugin.name for plugin in plugins.used_by(Pipeline.parse("halve").steps)] == ["my_steps.blurs"]


def test_a_plan_sends_only_the_plugins_that_it_uses(tmp_path: Path) -> None:
    plugins.load([write_plugin(tmp_path)])
    source = str(tmp_path / "data")
    ingest(write_files(tmp_path / "raw", {"a/1.png": encoded("png", 30, 30)}), tmp_path / "data")
    for steps, names in (("grayscale", []), ("halve", ["my_steps"])):
        plan = plan_filter(source, str(tmp_path / steps), steps)
        assert [plugin.name for plugin in plan.used_plugins] == names
    bundles = {steps: make_bundle(tmp_path / f"bundle-{steps}", steps=steps) for steps in ("invert", "halve")}
    bundle = Path(bundles["halve"], "bundle.json")
    record = json.loads(bundle.read_text())
    record["provenance"] |= plugins.recorded(plugins.digests(plugins.named(["my_steps"])))
    bundle.write_text(json.dumps(record))
    for steps, names in (("invert", []), ("halve", ["my_steps"])):
        plan = plan_predict(bundles[steps], source, str(tmp_path / "scored"))
        assert [plugin.name for plugin in plan.used_plugins] == names


def test_a_model_does_not_need_the_plugins_of_its_augmentation(tmp_path: Path) -> None:
    plugins.load([write_plugin(tmp_path)])
    files = {f"{label}/{n}.png": encoded("png", 30, 30) for label in ("cat", "dog") for n in range(4)}
    ingest(write_files(tmp_path / "raw", files), tmp_path / "data")
    fields = {"data": {"train": str(tmp_path / "data")}, "model": "lenet5", "optimizer": {"name": "sgd", "lr": 0.1}}
    recipe = {**fields, "batch_size": 4, "epochs": 1, "augment": "flip | halve"}
    plan = plan_train(Recipe.parse(json.dumps(recipe)), str(tmp_path / "out"))
    assert list(plan.record.plugins) == [plugin.name for plugin in plan.used_plugins] == ["my_steps"]
    assert plan.input_plugins == {}
    plan = plan_train(
        Recipe.parse(json.dumps(recipe | {"input": {"steps": "grayscale | halve"}})), str(tmp_path / "out")
    )
    assert list(plan.input_plugins) == ["my_steps"]


def test_only_the_plugins_that_a_pipeline_uses_are_recorded(tmp_path: Path) -> None:
    plugins.load([write_plugin(tmp_path)])
    assert plugins.used_by(Pipeline.parse("grayscale").steps) == ()
    (used,) = plugins.used_by(Pipeline.parse("sometimes(0.5, grayscale | halve)").steps)
    assert plugins.digests([used]) == {"my_steps": used.digest}


def test_a_pipeline_travels_to_a_process_that_lacks_its_plugin(tmp_path: Path) -> None:
    plugins.load([write_plugin(tmp_path)])
    (tmp_path / "pipeline").write_bytes(pickle.dumps(Pipeline.parse("halve(by=3)")))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')))"
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "pipeline"], capture_output=True, text=True)
    assert result.stdout == "halve(by=3)\n", result.stderr


def test_what_was_recorded_must_be_loaded_and_the_same(tmp_path: Path) -> None:
    recorded = plugins.recorded({"my_steps": "0" * 64})
    for load, advice in (
        (plugins.load_installed, "install the package that defines it as an entry point striate.steps"),
        (lambda: plugins.load([]), "name its file or its module with --plugin"),
    ):
        load()
        with pytest.raises(UsageError, match=f"^the bundle x uses steps of the plugin 'my_steps' .*: {advice}$"):
            plugins.check_recorded(recorded, "the bundle x")
    plugins.load([write_plugin(tmp_path)])
    with pytest.raises(UsageError, match="the bundle x was made with another version of the plugin 'my_steps'"):
        plugins.check_recorded(recorded, "the bundle x")
    plugins.check_recorded(plugins.recorded(plugins.digests(plugins.named(["my_steps"]))), "the bundle x")


@pytest.mark.parametrize("damaged", [["my_steps"], "my_steps", None, {"my_steps": 1}])
def test_a_damaged_record_of_plugins_is_refused(damaged: object) -> None:
    with pytest.raises(StriateError, match="the bundle x is damaged: `plugins` must map names"):
        plugins.check_recorded({plugins.RECORDED: damaged}, "the bundle x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no')", "the plugin 'my_steps' failed: RuntimeError: no"),
        (HALVE.replace("class Halve", "class Grayscale"), "the plugin 'my_steps' failed: .*two steps are named"),
    ],
)
def test_a_plugin_that_fails_is_named_and_leaves_nothing(tmp_path: Path, source: str, message: str) -> None:
    before = dict(REGISTRY)
    with pytest.raises(UsageError, match=message):
        plugins.load([write_plugin(tmp_path, source)])
    assert before == REGISTRY
    assert not plugins._loaded


def test_threads_of_a_worker_install_a_plugin_once() -> None:
    # A plugin that waits, as most imports do, lets the other thread begin.
    source = HALVE.replace("from pydantic", "import time\n\ntime.sleep(0.01)\nfrom pydantic")
    plugin = plugins.Plugin("my_steps", "striate_plugin_my_steps", source)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(plugins.install, [[plugin], [plugin]]))
    assert "halve" in REGISTRY


def test_two_plugins_of_one_name_are_refused(tmp_path: Path) -> None:
    plugins.load([write_plugin(tmp_path)])
    plugins.load([write_plugin(tmp_path)])
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="two plugins are named 'my_steps'"):
        plugins.load([write_plugin(tmp_path / "other", HALVE + "\n")])


@pytest.mark.parametrize("name", ["absent.py", "no.such.module"])
def test_a_plugin_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"--plugin {name}: "):
        plugins.load([name])
