"""Training steps, schedules, freezing, and saving and restoring a learner's state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml

from library.models.build import create
from library.recipe import Recipe
from library.training.batches import Batch
from library.training.learner import Learner

COUNTS = {"even": 12, "odd": 4}
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (16, 28, 28, 1), np.uint8)
LABELS = np.array([0] * 12 + [1] * 4)
STEPS, STEPS_PER_EPOCH = 20, 5


def learner(**fields: Any) -> Learner:
    """A learner of a LeNet, with these fields in its recipe."""
    recipe = {
        "data": {"train": "train", "val": "val"},
        "model": "lenet5",
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant"},
        "batch_size": 16,
        "epochs": STEPS // STEPS_PER_EPOCH,
        **fields,
    }
    torch.manual_seed(0)
    return Learner(
        Recipe.parse(yaml.safe_dump(recipe)),
        create(recipe["model"], num_classes=2),
        class_counts=COUNTS,
        total_steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        device=torch.device("cpu"),
    )


def batch(rows: slice = slice(None)) -> Batch:
    chosen = LABELS[rows]
    return Batch(PICTURES[rows], chosen, [""] * len(chosen), 16)


def weights(one: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.model.state_dict().items()}


def test_the_loss_falls_when_a_batch_is_repeated() -> None:
    one = learner()
    losses = [float(one.step(batch(), step)) for step in range(STEPS)]
    assert losses[-1] < losses[0] / 2


def test_accumulating_over_parts_gives_the_step_of_the_whole_batch() -> None:
    whole, parts = learner(), learner(accumulate=4)
    assert float(parts.step(batch(), 0)) == pytest.approx(float(whole.step(batch(), 0)), rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, msg=name)


def test_a_restored_state_continues_as_if_uninterrupted() -> None:
    fields: dict[str, Any] = {"ema": 0.9, "mixup": 0.2, "schedule": {"name": "cosine"}}
    undisturbed = learner(**fields)
    for step in range(6):
        undisturbed.step(batch(), step)
    first = learner(**fields)
    for step in range(3):
        first.step(batch(), step)
    second = learner(**fields)
    second.restore(first.state())
    for step in range(3, 6):
        second.step(batch(), step)
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(second)[name], tensor, rtol=0, atol=1e-6, msg=name)
    for name, tensor in undisturbed.best_model.state_dict().items():
        torch.testing.assert_close(second.best_model.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_a_frozen_backbone_stays_fixed_until_the_recipe_unfreezes_it() -> None:
    one = learner(freeze="all", unfreeze={1: "none"})
    before = weights(one)
    one.step(batch(), 0)
    moved = {name for name, tensor in weights(one).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("head") for name in moved)
    one.start_epoch(1)
    one.step(batch(), STEPS_PER_EPOCH)
    assert all(not torch.equal(weights(one)[name], before[name]) for name in before if name.startswith("net"))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [0.1] * STEPS),
        ({"name": "linear"}, [0.1 * (1 - step / STEPS) for step in range(STEPS)]),
        ({"name": "cosine"}, [0.05 * (1 + np.cos(np.pi * step / STEPS)) for step in range(STEPS)]),
        ({"name": "step", "step_epochs": 2, "gamma": 0.5}, [0.1] * 10 + [0.05] * 10),
    ],
)
def test_the_learning_rate_follows_the_schedule(schedule: dict[str, Any], expected: list[float]) -> None:
    one = learner(schedule=schedule)
    rates: list[float] = []
    for step in range(STEPS):
        one.step(batch(slice(0, 2)), step)
        rates.append(one.learning_rate)
    assert rates == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_warm_up_raises_the_rate_and_layer_decay_lowers_it_near_the_input() -> None:
    one = learner(schedule={"name": "constant", "warmup_epochs": 1}, layer_decay=0.5)
    rates: list[float] = []
    for step in range(STEPS_PER_EPOCH + 1):
        one.step(batch(slice(0, 2)), step)
        rates.append(one.learning_rate)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1)
    groups = [group["lr"] for group in one._optimizer.param_groups]
    assert groups == sorted(groups)
    assert groups[0] < groups[-1]


def test_balanced_weights_count_classes_equally_and_keep_the_mean() -> None:
    ratios: list[float] = []
    for rows in (slice(0, 12), slice(12, 16)):
        plain, balanced = learner(), learner(loss={"class_weights": "balanced"})
        ratios.append(float(balanced.step(batch(rows), 0)) / float(plain.step(batch(rows), 0)))
    assert ratios == pytest.approx([16 / (2 * 12), 16 / (2 * 4)], rel=1e-5)


def test_scores_of_parts_add_up_to_the_score_of_the_whole() -> None:
    one = learner()
    whole = one.score(batch())
    parts = [one.score(batch(rows)) for rows in (slice(0, 5), slice(5, 16))]
    assert [sum(pair) for pair in zip(*(part.vector() for part in parts), strict=True)] == pytest.approx(whole.vector())
    assert whole.means("val")["val_top5"] == 1.0


@pytest.mark.parametrize("mix", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_mixing_works_with_an_odd_batch(mix: dict[str, float]) -> None:
    one = learner(**mix, loss={"label_smoothing": 0.1})
    losses = [float(one.step(batch(slice(0, 15)), step)) for step in range(4)]
    assert all(np.isfinite(losses))


def test_weights_that_are_not_finite_are_detected() -> None:
    one = learner()
    assert one.is_finite
    next(one.model.parameters()).data[0] = torch.nan
    assert not one.is_finite


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_parameters_that_share_a_group_move_as_they_would_apart(name: str) -> None:
    settings = {"optimizer": {"name": name, "lr": 0.01, "weight_decay": 0.1}}
    together = learner(**settings)
    # `unfreeze` turns the fused optimizer off; here no epoch comes in which it would do anything else.
    apart = learner(**settings, freeze=1, unfreeze={1: "none"})
    for one in (together, apart):
        one.model.freeze("none")
        assert len(one._optimizer.param_groups) == 2, "one group with weight decay and one without"
        for step in range(3):
            one.step(batch(), step)
    assert name == "lamb" or together._optimizer.defaults["fused"]
    for key, tensor in weights(apart).items():
        torch.testing.assert_close(weights(together)[key], tensor, msg=key)


def test_bf16_learns_what_float32_learns() -> None:
    settings: dict[str, Any] = {"model": "mlp(hidden=[32])", "optimizer": {"name": "adamw", "lr": 1e-3}}
    exact, half = learner(**settings, precision="fp32"), learner(**settings, precision="bf16")
    pairs = [(float(exact.step(batch(), step)), float(half.step(batch(), step))) for step in range(STEPS)]
    exact_losses, losses = zip(*pairs, strict=True)
    assert losses != exact_losses, "bf16 rounds"
    # bf16 has 8 bits of precision, so a product is off by up to 2^-8 of its size.
    assert losses == pytest.approx(exact_losses, rel=0.02)
    assert losses[-1] < losses[0] / 2
    assert all(tensor.dtype == torch.float32 for tensor in half.model.parameters()), "weights stay exact"


@pytest.mark.parametrize("name", ["muon", "nmuon", "adamuon"])
@pytest.mark.parametrize("model", ["lenet5", "mlp(hidden=[16])"])
def test_muon_learns_and_resumes(name: str, model: str) -> None:
    fields: dict[str, Any] = {"model": model, "optimizer": {"name": name, "lr": 0.02, "weight_decay": 0.01}}
    undisturbed = learner(**fields)
    losses = [float(undisturbed.step(batch(), step)) for step in range(6)]
    assert losses[-1] < losses[0]
    first, second = learner(**fields), learner(**fields)
    for step in range(3):
        first.step(batch(), step)
    second.restore(first.state())
    assert [float(second.step(batch(), step)) for step in range(3, 6)] == pytest.approx(losses[3:], rel=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 16])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_several_steps_in_parts_equal_those_of_whole_batches(parts: int, name: str) -> None:
    fields: dict[str, Any] = {"optimizer": {"name": name, "lr": 0.01}, "loss": {"label_smoothing": 0.1}}
    whole, split = learner(**fields), learner(**fields, accumulate=parts)
    for step in range(4):
        assert float(split.step(batch(), step)) == pytest.approx(float(whole.step(batch(), step)), rel=1e-4)
    for key, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_the_average_follows_the_weights_of_every_step() -> None:
    one = learner(ema=0.5)
    for step in range(5):
        # timm's warm-up (`ModelEmaV3`): 0 for the first two updates, then 1 - step ** (-2/3), up to the recipe's decay.
        decay = min(0.5, 1 - step ** (-2 / 3)) if step > 1 else 0.0
        before = {name: tensor.clone() for name, tensor in one.best_model.named_parameters()}
        one.step(batch(), step)
        for name, averaged in one.best_model.named_parameters():
            new = dict(one.model.named_parameters())[name]
            expected = decay * before[name] + (1 - decay) * new
            torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-7, msg=name)
