"""Layers are counted as other tables count them, and published accuracy is as published."""

from __future__ import annotations

import dataclasses

import pytest
import torchvision

from library.errors import UsageError
from library.models.catalog import CATALOG, Accuracy
from library.models.counting import COURSE_LAYERS, count_layers
from tests import ROOT


@pytest.mark.parametrize("name", COURSE_LAYERS)
def test_no_way_of_counting_gives_the_number_of_the_course(name: str) -> None:
    counts = dataclasses.asdict(count_layers(name))
    assert COURSE_LAYERS[name] not in counts.values()
    assert counts["depth"] == int(name.removeprefix("vgg").removeprefix("resnet"))


def test_layers_of_a_residual_network_are_those_counted_by_hand() -> None:
    counts = count_layers("resnet18")
    convolutions = 1 + 8 * 2 + 3  # the stem, eight blocks of two, three shortcuts
    assert counts.weighted == convolutions + 1
    assert counts.with_norms == counts.weighted + convolutions
    assert counts.with_pools == counts.with_norms + 2
    assert counts.with_activations == counts.with_pools + 1 + 8 * 2
    assert counts.with_additions == counts.with_activations + 8


def test_megabytes_hold_weights_and_running_statistics() -> None:
    statistics = 2 * (64 + 2 * (64 + 64) + 4 * 128 + 4 * 256 + 4 * 512 + 128 + 256 + 512)
    batches_seen = 20
    assert count_layers("resnet18").megabytes == pytest.approx((11_689_512 + statistics + batches_seen) * 4 / 2**20)


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "vgg16", "vgg19", "inception_v3"])
def test_accuracy_of_torchvisions_weights_is_what_torchvision_says(name: str) -> None:
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]
    accuracy = CATALOG[name].accuracy
    assert accuracy is not None
    # timm evaluates the same weights with its own resizing.
    tolerance = 0 if accuracy.source.startswith("https://docs.pytorch.org/") else 0.2
    assert accuracy.top1 == pytest.approx(published["acc@1"], abs=tolerance)
    assert accuracy.top5 == pytest.approx(published["acc@5"], abs=tolerance)


def test_the_guide_gives_torchvisions_figure_for_its_first_resnet50() -> None:
    published = torchvision.models.get_model_weights("resnet50")["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]
    assert f"reach {published['acc@1']:.1f}%" in (ROOT / "docs/networks.md").read_text("utf-8")


def test_weights_have_a_published_accuracy_with_a_source_and_no_other_has() -> None:
    for facts in CATALOG.values():
        accuracy = facts.accuracy
        assert isinstance(accuracy, Accuracy) == bool(facts.weights_source), facts.name
        if accuracy is not None:
            assert 0 < accuracy.top1 < accuracy.top5 < 100
            assert accuracy.source.startswith("https://")
            assert facts.year is not None
            assert accuracy.trained is None or accuracy.trained > facts.year


def test_a_model_that_does_not_exist_cannot_be_counted() -> None:
    with pytest.raises(UsageError, match="resnet"):
        count_layers("resnet51")
