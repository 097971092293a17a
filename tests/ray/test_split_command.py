"""`striate split` from the command line, on a real local Ray: groups, growth and folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from jobs.cli.app import run
from library.dataset.manifest import load_manifest
from library.imaging import codec
from tests.bundles import make_bundle
from tests.datasets import content, rows
from tests.picture_examples import ingest


def test_splits_hold_whole_groups_and_stay_when_data_is_added(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, small, large, out = (tmp_path / name for name in ("raw", "small", "large", "out"))
    for path in sorted(photo_folder.glob("*/*")):
        if not path.name.startswith("damaged"):
            target = raw / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    ingest(raw, small, shard_bytes=2**19)
    arguments = ["--split", "train=0.6,test=0.4", "--json"]
    assert run(["split", str(small), str(out), *arguments]) == 0
    first = json.loads(capsys.readouterr().out)
    assert sum(split["pictures"] for split in first["assignment"]["splits"].values()) == 86
    before = {row["key"]: name for name in ("train", "test") for row in rows(out / name).to_pylist()}
    assert rows(out / "test").num_rows + rows(out / "train").num_rows == len(before) == 86

    for path in sorted(raw.glob("*/*")):  # a copy of every picture, of less quality
        path.with_stem(f"copy of {path.stem}").write_bytes(
            codec.encode(codec.decode(path.read_bytes()), codec.Encoding("jpeg", 70))[0]
        )
    ingest(raw, large, shard_bytes=2**19)
    assert run(["split", str(large), str(tmp_path / "new"), *arguments, "--like", str(out), "--workers", "1"]) == 0
    found = duckdb.connect().execute(f"select key, split from '{tmp_path}/new/_assignment.parquet'").fetchall()
    split_of = dict(found)
    assert {key: split_of[key] for key in before} == before
    same = sum(split_of[key] == split_of[key.replace("copy of ", "")] for key in split_of)
    assert same > 0.97 * len(split_of)  # of a few flat tiles, which have no hash, the copy is not recognised
    for name in ("train", "test"):
        manifest = load_manifest(str(tmp_path / "new" / name))
        assert (manifest.job.kind, manifest.tally.balanced, manifest.tally.rows_in) == ("split", True, 172)
    again = content(tmp_path / "new")
    capsys.readouterr()
    assert run(["split", str(large), str(tmp_path / "new"), *arguments, "--like", str(out)]) == 0
    assert content(tmp_path / "new") == again
    assert json.loads(capsys.readouterr().out)["datasets"][0]["run"]["shards_resumed"] > 1


def test_evaluate_tells_accuracy_with_and_without_leaks(
    photos: str, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    for path in sorted(photo_folder.glob("*/*"))[::4]:  # copies of pictures of the training set
        if not path.name.startswith("damaged"):
            (raw / path.parent.name).mkdir(parents=True, exist_ok=True)
            (raw / path.parent.name / f"copy of {path.name}").write_bytes(path.read_bytes())
    copies = {f"{path.parent.name}/{path.name}" for path in raw.glob("*/*")}
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        (raw / "china" / f"noise {number}.png").write_bytes(codec.encode(noise, codec.Encoding("png"))[0])
    ingest(raw, tmp_path / "test")
    bundle, report, train = make_bundle(tmp_path / "bundle"), tmp_path / "report", tmp_path / "train"
    shutil.copytree(photos, train)  # measures are written beside it
    arguments = ["evaluate", bundle, str(tmp_path / "test"), "--no-gpu", "--json", "--report", str(report)]
    assert run(arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run([*arguments, "--without-leaks", str(train)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["leaks"]["kinds"] == {"exact_duplicate": len(copies)}
    assert (numbers["top1"], numbers["loss"]) == (plain["top1"], plain["loss"])
    effect = numbers["leak_effect"]
    assert (effect["leaked"]["pictures"], effect["without"]["pictures"]) == (len(copies), 8)
    right = effect["leaked"]["top1"] * len(copies) + effect["without"]["top1"] * 8
    assert right == pytest.approx(numbers["top1"] * (len(copies) + 8))
    assert {
        key for (key,) in duckdb.connect().execute(f"select key from '{report}/leaks.parquet'").fetchall()
    } == copies
    assert "With and without leaks" in (report / "index.html").read_text()
    assert run([*arguments, "--without-leaks", str(train)]) == 0
    assert json.loads(capsys.readouterr().out)["throughput"]["shards_resumed"] > 0
    assert run([*arguments, "--without-leaks", "auto"]) == 2
    assert "does not say what it was trained on" in capsys.readouterr().err
