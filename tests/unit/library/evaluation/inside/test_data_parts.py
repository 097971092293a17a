"""What needs a dataset: patches that excite units, the map of pictures, and confused classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.evaluation.inside.band_drawing import draw_mix_ups, draw_patches
from library.evaluation.inside.embedding import draw_embedding, features_of, pca, umap
from library.evaluation.inside.mix_ups import mix_ups
from library.evaluation.inside.units import exciting_patches
from library.models.build import create


def bundle_of(call: str, side: int, seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    record = BundleRecord(model=call, classes=("a", "b"), input_size=(side, side), channels=3)
    return Bundle.of_model(record, create(call, num_classes=2), device="cpu")


def noises(count: int, side: int, channels: int = 3) -> list[NDArray[Any]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8))


def spots(places: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    """Black pictures with one bright square each, brighter from picture to picture."""
    pictures = [np.zeros((28, 28, 1), np.uint8) for _ in places]
    for number, (picture, (row, column)) in enumerate(zip(pictures, places, strict=True)):
        picture[row : row + 4, column : column + 4] = 100 + 10 * number
    return pictures


def test_patches_show_what_the_unit_detects_brightest_first() -> None:
    call = 'lenet5(activation="relu", pooling="max")'
    model = create(call, num_classes=2).eval()
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.zero_()
        model.net.c1.weight[3] = 1  # unit 3 sums the pixels of its field; the others are always 0
    places = [(2, 2), (2, 20), (20, 2), (20, 20), (11, 11)]
    calls: list[tuple[int, int]] = []
    found = exciting_patches(model, spots(places), units=2, count=3, progress=lambda *one: calls.append(one))
    first = next(unit for unit in found if unit.stage == "c1")
    assert first.unit == 3
    assert [patch.picture for patch in first.patches] == [4, 3, 2]
    values = [patch.value for patch in first.patches]
    assert values == sorted(values, reverse=True)
    for patch in first.patches:
        # The field is 6 x 6 pixels, so all of the spot lies in it.
        assert patch.pixels.shape == (6, 6, 1)
        assert (patch.pixels > 0).sum() == 16
    assert calls[-1] == (5, 5)
    drawn = draw_patches(found)
    assert drawn.shape[1] > 3 * 84


def test_patches_of_dense_layers_are_whole_pictures() -> None:
    model = create("mlp(in_chans=3)", num_classes=2).eval()
    (unit,) = exciting_patches(model, noises(4, 28), units=1, count=2)
    assert [patch.pixels.shape for patch in unit.patches] == [(28, 28, 3)] * 2


def test_pca_keeps_distances_on_a_plane_and_explains_all_of_it() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(30, 2)).astype(np.float32) * [3, 1]
    turned = (flat @ np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]).astype(np.float32)
    found = pca(turned)
    assert found.explained == pytest.approx(1, abs=1e-5)

    def distances(points: NDArray[Any]) -> NDArray[Any]:
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    np.testing.assert_allclose(distances(found.points), distances(flat), atol=1e-4)
    assert found.points.var(0)[0] > found.points.var(0)[1]


def test_equal_features_lie_on_one_point_and_can_be_drawn() -> None:
    found = pca(np.ones((3, 4), np.float32))
    assert (found.points == 0).all()
    drawn = draw_embedding(found, noises(3, 28), ["a", None, "b"])
    assert drawn.shape == (760, 980, 3)


def test_thumbnails_lie_at_their_points_in_the_colour_of_their_class() -> None:
    points = np.array([[0, 0], [1, 1]], np.float32)
    found = pca(np.array([[0, 0], [1, 0]], np.float32))
    pictures = [np.full((8, 8, 1), value, np.uint8) for value in (7, 250)]
    drawn = draw_embedding(type(found)("PCA", points, 0.5), pictures, ["a", "b"])
    lower_left, upper_right = drawn[-60:, :70].reshape(-1, 3), drawn[:70, 600:800].reshape(-1, 3)
    assert (lower_left == 7).all(1).any()
    assert not (lower_left == 250).all(1).any()
    assert (upper_right == 250).all(1).any()


@pytest.mark.faults  # it compiles itself first
def test_umap_keeps_two_groups_apart() -> None:
    rng = np.random.default_rng(0)
    groups = np.concatenate([rng.normal(size=(20, 6)), rng.normal(size=(20, 6)) + 30]).astype(np.float32)
    found = umap(groups)
    assert found is not None
    one, other = found.points[:20], found.points[20:]
    assert np.linalg.norm(one.mean(0) - other.mean(0)) > max(one.std(), other.std())
    assert umap(groups[:15]) is None


def test_features_of_an_ensemble_count_members_by_their_weight() -> None:
    one, other = bundle_of("lenet5(in_chans=3)", 28), bundle_of("mlp(in_chans=3)", 28, 1)
    both = ensemble([one, other], [3, 1])
    pictures = noises(6, 28)
    joint = features_of(both, [(picture, picture) for picture in pictures])
    width = one.model.num_features
    assert joint.shape == (6, width + other.model.num_features)
    spreads = [float(part.var(0).sum()) for part in (joint[:, :width], joint[:, width:])]
    assert spreads == pytest.approx([3, 1], rel=1e-4)


def test_confused_pairs_are_counted_and_ranked_by_errors() -> None:
    rows = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.4, 0.6, 0], [0.3, 0.7, 0], [0, 0.45, 0.55], [0.05, 0.05, 0.9]], np.float32
    )
    labels = [["a"], ["a"], ["a"], ["b"], ["b"], ["unknown"]]
    first, second, *others = mix_ups(rows, labels, ("a", "b", "c"))
    assert (first.label, first.predicted, first.pictures, first.errors) == ("a", "b", 3, 2)
    assert first.mean_probability == pytest.approx(0.5)
    assert first.examples == (1, 2, 0)
    assert first.probabilities == pytest.approx((0.8, 0.6, 0.1))
    assert (second.label, second.predicted, second.errors) == ("b", "c", 1)
    # No error yet, but some probability: b is sometimes nearly taken for a.
    assert [(pair.label, pair.predicted, pair.errors) for pair in others] == [("b", "a", 0)]
    drawn = draw_mix_ups((first, second), noises(6, 20))
    assert drawn.shape[2] == 3


def test_a_picture_of_several_labels_is_confused_by_those_that_it_lacks() -> None:
    rows = np.array([[0.9, 0.8, 0.1], [0.9, 0.7, 0.6]], np.float32)
    found = mix_ups(rows, [["a", "b"], ["a"]], ("a", "b", "c"), multilabel=True)
    errors = {(pair.label, pair.predicted): (pair.errors, pair.pictures) for pair in found}
    assert errors == {("a", "b"): (1, 1), ("a", "c"): (1, 2), ("b", "c"): (0, 1)}


def test_answers_without_doubt_confuse_nothing() -> None:
    assert mix_ups(np.eye(2, dtype=np.float32), [["a"], ["b"]], ("a", "b")) == ()
