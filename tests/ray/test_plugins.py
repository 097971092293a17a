"""A user's own step in jobs: workers get the text of its file, and its datasets and bundles require it again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jobs.ingest import ingest, plan_ingest
from library.dataset.manifest import load_manifest
from library.imaging import codec
from tests.commands import write_recipe
from tests.datasets import content, rows, write_digits
from tests.plugins import HALVE, write_plugin

_STRIATE = Path(sys.executable).parent / "striate"


def _striate(*arguments: str) -> tuple[int, str]:
    """Runs a command in a new process that has loaded no plugin; returns its exit code and stderr."""
    result = subprocess.run([_STRIATE, *arguments], capture_output=True, text=True, timeout=300)
    return result.returncode, result.stderr


def test_a_filter_runs_a_users_own_step_and_records_it(photos: str, tmp_path: Path) -> None:
    plugin, out = write_plugin(tmp_path), str(tmp_path / "halved")
    command = ("filter", photos, out, "--steps", "halve(by=2)", "--encode", "png", "--workers", "2")
    assert _striate(*command, "--plugin", plugin)[0] == 0
    job = load_manifest(out).job
    assert list(job.options["plugins"]) == ["my_steps"]
    before = {row["key"]: row["image"]["bytes"] for row in rows(photos).to_pylist()}
    for row in rows(out).to_pylist()[:5]:
        assert (codec.decode(row["image"]["bytes"]) == codec.decode(before[row["key"]]) // 2).all()

    written = content(Path(out))
    code, output = _striate(*command)
    assert code == 2
    assert "unknown step 'halve'" in output
    code, output = _striate(*command, "--plugin", write_plugin(tmp_path, HALVE + "\n# changed\n"))
    assert code == 2
    assert "holds the output of another job" in output
    assert content(Path(out)) == written


def test_a_bundle_with_a_users_own_step_asks_for_it(tmp_path: Path) -> None:
    plugin, out, data = write_plugin(tmp_path), str(tmp_path / "bundle"), str(tmp_path / "digits")
    ingest(plan_ingest(str(write_digits(tmp_path / "pictures", 60)), data))
    recipe = Path(write_recipe(tmp_path, data, 1))
    recipe.write_text(recipe.read_text().replace("grayscale |", "grayscale | halve(by=2) |"))
    code, output = _striate("train", str(recipe), "--out", out, "--plugin", plugin)
    assert code == 0, output
    assert list(json.loads(Path(out, "bundle.json").read_text())["provenance"]["plugins"]) == ["my_steps"]
    code, output = _striate("predict", out, data, str(tmp_path / "scored"), "--plugin", plugin)
    assert code == 0, output
    for command in (["evaluate", out, data], ["predict", out, data, str(tmp_path / "x")], ["serve", out]):
        code, output = _striate(*command)
        assert code == 2
        assert f"the bundle {out} uses steps of the plugin 'my_steps'" in output
