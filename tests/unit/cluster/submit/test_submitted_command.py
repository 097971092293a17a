"""Checks of a command before it is sent to a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli.app import run

RECIPE = "model: lenet5\n"
WHOLE = "data: {train: s3://b/digits}\nmodel: lenet5\noptimizer: {name: adamw, lr: 0.003}\nbatch_size: 32\nepochs: 1\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, and an address where nothing listens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.yaml").write_text(RECIPE)
    (tmp_path / "whole.yaml").write_text(WHOLE)
    (tmp_path / "out/keys.txt").touch()
    (tmp_path / "out/my_steps.py").touch()
    monkeypatch.setattr("library.steps.plugins._loaded", {})
    (tmp_path / "out/digits").mkdir()
    (tmp_path / "wrong.yaml").write_text("modle: lenet5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "COMMAND"),
        ("fliter s3://b/raw s3://b/edges", "fliter"),
        ("filter s3://b/raw", "destination"),
        ("filter s3://b/raw s3://b/edges --steps invert --limit many", "--limit"),
        ("filter s3://b/raw s3://b/edges --stpes invert", "--steps"),
        ("filter s3://b/raw s3://b/edges --steps inverrt", "did you mean 'invert'"),
        ("filter s3://b/raw s3://b/edges --encode jpg:900", "jpg:900"),
        ("augment s3://b/raw s3://b/more --copies 2 --steps invert", "random"),
        ("filter s3://b/raw out/edges --steps invert", "out/edges would be written to the job's temporary folder"),
        ("predict s3://b/lenet s3://b/raw scored", "scored would be written"),
        ("train out/recipe.yaml --out s3://b/lenet", "out/recipe.yaml is not sent, as .gitignore"),
        ("train missing.yaml --out s3://b/lenet", "missing.yaml: there is no such file or folder in"),
        ("train wrong.yaml --out s3://b/lenet", "modle"),
        ("train ../recipe.yaml --out s3://b/lenet", "../recipe.yaml is outside"),
        ("train whole.yaml --out s3://b/lenet --set data.train=out/digits", "out/digits is an empty folder"),
        ("train whole.yaml --out s3://b/lenet --set data.val=nowhere", "nowhere: there is no such file or folder"),
        (
            "train whole.yaml --out s3://b/lenet --set weights=missing.safetensors",
            "missing.safetensors: there is no such file or folder",
        ),
        ("filter s3://b/raw s3://b/edges --address http://head:8265", "before the --"),
        ("serve out/recipe.yaml --api-keys out/keys.txt", "out/recipe.yaml is not sent"),
        ("filter s3://b/raw s3://b/edges --plugin out/my_steps.py", "out/my_steps.py is not sent"),
        ("submit -- filter a b", "`striate submit` is for this machine"),
        ("jobs", "`striate jobs` is for this machine"),
    ],
)
def test_misuse_is_reported_before_anything_is_sent(
    project: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.parent / "recipe.yaml").write_text(RECIPE)
    assert run(["submit", "--", *command.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "head:6379"], "http://HOST:8265"),
        (["--token-file", "missing"], "--token-file missing cannot be read"),
        (["--env", "NOT_SET_ANYWHERE"], "--env 'NOT_SET_ANYWHERE'"),
    ],
)
def test_misuse_of_submit_itself_is_reported(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", *options, "--", "info", "s3://b/raw"]) == 2
    assert message in capsys.readouterr().err


def test_the_help_of_a_command_is_shown_without_submitting_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "--", "filter", "--help"]) == 0
    assert "--steps" in capsys.readouterr().out
