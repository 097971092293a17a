"""`striate models --plot`: the page, and the tables of docs/networks.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.inspection.side_by_side import (
    Measuring,
    check_folder,
    compare_models,
    course_markdown,
    course_table,
    keras_table,
    write_page,
)
from library.dataset.lease import hold
from library.errors import UsageError
from library.imaging import codec
from tests import ROOT


def test_the_tables_of_layers_in_the_guide_are_those_that_are_computed() -> None:
    assert course_markdown() in (ROOT / "docs/networks.md").read_text("utf-8")
    for name, depth, counts in keras_table():
        assert counts.with_norms == depth, name


def test_the_course_is_compared_where_it_is_known_and_not_excused() -> None:
    by_name = {line.name: line for line in course_table()}
    assert (by_name["vgg16"].course, by_name["vgg16"].counts.depth) == (19, 16)
    assert "the depth of vgg19" in by_name["vgg16"].why
    assert (by_name["resnet50"].course, by_name["resnet50"].counts.depth) == (150, 50)
    assert "resnet152" in by_name["resnet50"].why


def test_the_page_shows_sources_and_what_has_no_published_accuracy(tmp_path: Path) -> None:
    compared = compare_models(None, print, ("filter_net", "lenet5", "alexnet", "resnet18"))
    written = write_page(compared, check_folder(str(tmp_path / "out")))
    assert [Path(uri).name for uri in written] == [
        "index.html",
        "accuracy_by_multiply_adds.png",
        "accuracy_by_parameters.png",
        "time_line.png",
    ]
    page = (tmp_path / "out/index.html").read_text("utf-8")
    assert "so not in this chart: filter_net, lenet5." in page
    assert "None" not in page
    assert "results-imagenet.csv" in page
    assert page.count("trained 2021") == 1
    assert "pictures/s" not in page
    assert "<script" not in page
    for uri in written[1:]:
        assert codec.decode(Path(uri).read_bytes()).std() > 1
    (light, heavy) = (row for row in compared.to_dict()["models"] if row["name"] in ("alexnet", "resnet18"))
    assert light["multiply_adds_at_accuracy"] == light["multiply_adds"]
    assert heavy["multiply_adds_at_accuracy"] > 1.5 * heavy["multiply_adds"]  # 288 pixels, not 224
    check_folder(str(tmp_path / "out"))  # a page of this command may be written again


def test_measured_throughput_is_on_the_page_with_the_machine(tmp_path: Path) -> None:
    lines: list[str] = []
    compared = compare_models(Measuring(1, "cpu", 1e-9), lines.append, ("lenet5", "resnet18"))
    assert [line.split()[0] for line in lines] == ["measuring", "lenet5:", "measuring", "resnet18:"]
    assert "1 batch" in lines[-1]
    write_page(compared, str(tmp_path))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert f"measured on {compared.machine}" in page
    assert (tmp_path / "accuracy_by_throughput.png").exists()
    assert compared.to_dict()["models"][0]["throughput"]["pictures_per_s"] > 0


def test_a_page_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>mine</html>")
    with pytest.raises(UsageError, match="something else"):
        check_folder(str(tmp_path))


def test_a_folder_that_another_command_writes_is_left_alone(tmp_path: Path) -> None:
    compared = compare_models(None, print, ("alexnet", "resnet18"))
    with hold(str(tmp_path), tidy=print), pytest.raises(UsageError, match="is being written by process"):
        write_page(compared, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
