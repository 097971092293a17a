"""The command line: its output on stdout and stderr, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli.app import run
from library import storage
from library.dataset.manifest import load_manifest
from library.imaging import codec
from tests.bundles import make_bundle

Run = Callable[..., Any]

_RECIPE = """
data: {train: ñ/roh, val_fraction: 0.3, classes: [Kätzchen, "犬 und 🐈"]}
model: lenet5
input: {size: 28}
optimizer: {name: sgd, lr: 0.05}
batch_size: 4
epochs: 1
"""


@pytest.fixture
def striate(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in this process; returns its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_tour_of_the_readme(striate: Run, photo_folder: Path, tmp_path: Path) -> None:
    raw, edges = tmp_path / "raw", tmp_path / "edges"
    code, out, _ = striate("ingest", photo_folder, raw, "--verify")
    assert code == 0
    assert "89 in = 86 out + 0 dropped + 3 rejected" in out
    code, out, _ = striate("info", raw)
    assert code == 0
    assert "hopper 30, china 28, flower 28" in out
    assert "rejected: damaged 1, not_an_image 1, truncated 1" in out
    steps = "grayscale | gaussian_blur(sigma=1.5) | edges(direction='vertical')"
    code, _, _ = striate("show", raw, "--out", tmp_path / "sheet.png", "--steps", steps)
    assert code == 0
    assert codec.probe((tmp_path / "sheet.png").read_bytes()).width > 900
    code, out, _ = striate("filter", raw, edges, "--steps", steps)
    assert code == 0
    assert "86 in = 86 out + 0 dropped + 0 rejected" in out
    code, out, _ = striate("info", edges)
    assert 'edges(direction="vertical"' in out


def test_any_letters_in_folders_and_classes_go_through_every_command(
    striate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Müller" / "größe 犬"
    for label, grey in (("Kätzchen", 40), ("犬 und 🐈", 200)):
        (folder / "Quelle é" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((28, 28, 1), grey + number, np.uint8)
            (folder / "Quelle é" / label / f"Bild ñ {number}.png").write_bytes(
                codec.encode(pixels, codec.Encoding("png"))[0]
            )
    (folder / "rezept ü.yaml").write_text(_RECIPE, encoding="utf-8")
    make_bundle(folder / "ñ" / "modell", classes=("Kätzchen", "犬 und 🐈"), steps="rgb")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "Müller"))
    for arguments in (
        ("ingest", "Quelle é", "ñ/roh"),
        ("filter", "ñ/roh", "ñ/weich", "--steps", 'keep_labels(["Kätzchen", "犬 und 🐈"]) | box_blur'),
        ("augment", "ñ/roh", "ñ/mehr", "--steps", "flip", "--copies", "1"),
        # test_train_job.py trains with such letters.
        ("train", "rezept ü.yaml", "--out", "~/größe 犬/ñ/neu", "--dry-run"),
        ("predict", "~/größe 犬/ñ/modell", "ñ/weich", "ñ/antworten", "--workers", "1"),
        ("evaluate", "ñ/modell", "ñ/weich", "--report", "ñ/bericht", "--workers", "1"),
        ("info", "ñ/antworten"),
    ):
        code, out, err = striate(*arguments)
        assert code == 0, err
    assert "犬 und 🐈 8, Kätzchen 8" in out or "Kätzchen 8, 犬 und 🐈 8" in out
    assert f"dataset_id {storage.uri_id('ñ/antworten')}" in out


def test_json_is_the_only_thing_on_stdout(striate: Run, photos: str, tmp_path: Path) -> None:
    code, out, _ = striate("filter", photos, tmp_path / "x", "--steps", "invert", "--json")
    document = json.loads(out)
    assert (code, document["rows"], document["complete"]) == (0, 86, True)
    for arguments in (["info", photos], ["steps"], ["show", photos, "--out", tmp_path / "s.png", "--count", "2"]):
        code, out, _ = striate(*arguments, "--json")
        assert code == 0
        assert json.loads(out)
    code, out, _ = striate("steps", "clahe", "--out", tmp_path / "clahe.png", "--json")
    assert json.loads(out)["picture"] == str(tmp_path / "clahe.png")
    code, out, _ = striate("filter", photos, tmp_path / "y", "--steps", "invert", "--dry-run", "--json")
    assert json.loads(out)["pictures_to_do"] == 86


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "RAW", "OUT", "--steps", "gausian_blur(sigma=1)"], r"did you mean 'gaussian_blur'"),
        (["filter", "RAW", "OUT", "--steps", "gaussian_blur(sigm=1)"], r"no parameter 'sigm' (did you mean 'sigma'?)"),
        (["filter", "RAW", "OUT", "--steps", "convolve(kernel=[[1, 2], [3]])"], "kernel"),
        (["filter", "RAW", "OUT", "--steps", "invert", "--encode", "jpg"], "unknown encoding 'jpg'"),
        (["filter", "RAW", "RAW/inside", "--steps", "invert"], "lies in the source"),
        (["filter", "OUT", "RAW", "--steps", "invert"], "there is nothing at"),
        (["filter", "RAW", "OUT", "--steps", "invert", "--limit", "0"], "--limit 0: must be at least 1"),
        (["filter", "RAW"], "Missing argument 'destination'"),
        (["filter", "RAW", "OUT", "--stepz", "invert"], "No such option: --stepz"),
        (["info", "OUT"], "create a dataset with `striate ingest`"),
        (["tour", "--out", "OUT", "--only", "pixels", "dense"], "another value of --only, give the option again"),
        (["info", "PAGE"], "it holds a page: open "),
        (["show", "RAW", "--out", "OUT.png", "--label", "zebra"], "no picture with the label 'zebra'"),
        (["steps", "clahee"], "did you mean 'clahe'"),
        (["steps", "--out", "x.png"], "--out goes with one step"),
        (["ingest", "EMPTY", "OUT"], "EMPTY"),
        (["ingest", "http://host/x.tar", "OUT"], "only local paths, s3://, gs://, az:// and hf:// are supported"),
        (["ingest", "PICTURES", "OUT", "--split", "train=0.9,test=0.2"], "sum to 1.1"),
        (["ingest", "PICTURES", "OUT", "--shard-mb", "-1"], "must be above 0"),
    ],
)
def test_misuse_ends_with_exit_code_2_and_says_what_would_work(
    striate: Run, photos: str, photo_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "PAGE").mkdir()
    (tmp_path / "PAGE" / "index.html").touch()
    paths = {
        "RAW": photos,
        "PAGE": str(tmp_path / "PAGE"),
        "OUT": str(tmp_path / "out"),
        "PICTURES": str(photo_folder),
        "EMPTY": str(tmp_path / "EMPTY"),
        "RAW/inside": f"{photos}/inside",
        "OUT.png": str(tmp_path / "x.png"),
    }
    typed = [paths.get(argument, argument) for argument in arguments]
    code, out, err = striate(*typed)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    code, out, _ = striate(*typed, "--json")
    assert code == json.loads(out)["exit_code"] == 2


def test_a_failure_ends_with_exit_code_1(striate: Run, photo_folder: Path, tmp_path: Path) -> None:
    code, _, err = striate("ingest", photo_folder, tmp_path / "raw", "--max-bad-fraction", "0")
    assert code == 1
    assert load_manifest(str(tmp_path / "raw")).complete, "everything is written first"
    assert "cannot be used, more than --max-bad-fraction 0" in err


def test_the_installed_command_starts_without_ray_and_helps_with_examples() -> None:
    striate = str(Path(sys.executable).parent / "striate")
    shown = subprocess.run(
        [striate, "filter", "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert shown.returncode == 0
    assert "striate filter out/raw out/edges --steps" in shown.stdout
    nothing = subprocess.run([striate], capture_output=True, text=True)
    assert "Commands" in nothing.stdout + nothing.stderr
    loaded = "import sys; from jobs.cli.app import run; run(['steps']); assert not {'ray', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True).returncode == 0


def test_an_address_where_no_ray_answers_is_reported(photos: str, tmp_path: Path) -> None:
    striate = str(Path(sys.executable).parent / "striate")
    command = [striate, "filter", photos, str(tmp_path / "x"), "--steps", "invert", "--address", "127.0.0.1:1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "cannot connect to Ray at 127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr
