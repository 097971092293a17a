"""`striate learn-filter` on real digits: the page, the filters and what they do to a dataset."""

import html
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.cli.app import run
from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from library.bundle.bundle import Bundle
from library.choosing.filter_search.space import PLACES, Space
from library.imaging import codec
from library.pipeline import Pipeline
from tests.datasets import rows, write_digits, write_search
from tests.step_examples import step


def test_filters_are_learned_written_and_run_over_a_dataset(tmp_path: Path) -> None:
    data, out = str(tmp_path / "data"), tmp_path / "learned"
    ingest(plan_ingest(str(write_digits(tmp_path)), data))
    command = ["learn-filter", data, "--out", str(out), "--size", "3", "--count", "2", "--gates", "--epochs", "2"]
    assert run(command) == 0

    filters = (out / "filters.txt").read_text().splitlines()
    assert len(filters) == 2
    numbers = json.loads((out / "learned.json").read_text())
    assert [kernel["filter"] for kernel in numbers["kernels"]] == filters
    assert abs(sum(numbers["gates"].values()) - 1) < 0.01
    assert (out / "pipeline.txt").read_text().strip() == numbers["pipeline"]
    space = yaml.safe_load((out / "space.yaml").read_text())
    assert space["filters"][0] == "default"
    assert codec.decode((out / "kernels.png").read_bytes()).shape[2] == 3

    # The kernel is that of the bundle, up to its scale.
    weights = Bundle.load(str(out / "training"), device="cpu").model.net.kernels.weight.detach().numpy()
    for text, kernel in zip(filters, weights, strict=True):
        exported = np.asarray(step(text).kernel)
        cosine = (exported * kernel[0]).sum() / np.linalg.norm(exported) / np.linalg.norm(kernel[0])
        assert cosine > 0.9999

    filtered = str(tmp_path / "filtered")
    filter_dataset(plan_filter(data, filtered, filters[0]))
    before, after = rows(data).sort_by("key"), rows(filtered).sort_by("key")
    expected = Pipeline.parse(filters[0]).apply(codec.decode(before["image"][0].as_py()["bytes"]))
    np.testing.assert_array_equal(codec.decode(after["image"][0].as_py()["bytes"]), expected)

    page = (out / "index.html").read_text()
    (out / "index.html").unlink()
    assert run(command) == 0  # the training is not repeated
    assert json.loads((out / "learned.json").read_text()) == numbers
    assert len((out / "index.html").read_text()) == len(page)
    assert run([*command[:-1], "3"]) == 2  # another training is not replaced without --overwrite


@pytest.mark.faults
def test_a_search_compares_learned_kernels_and_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *options = search = write_search(tmp_path)
    train, space, out = search[0], str(tmp_path / "learned" / "space.yaml"), tmp_path / "out"
    assert run(["learn-filter", train, "--out", str(tmp_path / "learned"), "--count", "2", "--epochs", "2"]) == 0
    options[options.index("--space") + 1] = space
    command = ["search", train, *options, "--out", str(out)]
    capsys.readouterr()
    assert run([*command, "--dry-run", "--json"]) == 0
    default = len(Space.default().singles())
    assert json.loads(capsys.readouterr().out)["candidates"] == default + 2 * len(PLACES)
    # Without the default filters, which take minutes.
    document = yaml.safe_load(Path(space).read_text())
    document |= {"filters": document["filters"][1:], "places": ["always", "channels"], "placebos": 1}
    Path(space).write_text(yaml.safe_dump(document))
    assert run(command) == 0
    answer = json.loads((out / "answer.json").read_text())
    assert answer["unfinished"] is None
    page = html.unescape((out / "index.html").read_text())
    kernels = [str(Pipeline.parse(text)) for text in (tmp_path / "learned" / "filters.txt").read_text().splitlines()]
    names = [each["candidate"]["name"] for each in answer["candidates"]]
    for name in itertools.chain(kernels, (f"with_channels({kernel})" for kernel in kernels)):
        assert name in names
        assert f'<code title="{name}">' in page
