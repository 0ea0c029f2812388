"""Targets and losses of the reward model: a loss that is slightly another one still falls while it trains."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward import objectives, ordinal
from wildreward_ray.reward.objectives import Objective, targets

Loss = Literal["cumulative", "corn"]
LOSSES: tuple[Loss, ...] = ("cumulative", "corn")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_probs(rows: int, k: int) -> torch.Tensor:
    return torch.softmax(2 * torch.randn(rows, k, generator=torch.Generator().manual_seed(k)), dim=1)


# Targets


def test_labels_become_one_question_a_threshold() -> None:
    assert targets(torch.tensor([1, 2, 3, 4]), 4).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("bad", [0, 5, -1])
@pytest.mark.parametrize("soft", [False, True])
def test_a_label_outside_the_scale_is_named_and_never_clamped(bad: int, soft: bool) -> None:
    probs = torch.full((4, 4), 0.25) if soft else None
    with pytest.raises(UserError, match=rf"label {bad} in row 2: .*1\.\.4.*--levels"):
        targets(torch.tensor([1, 4, bad, 2]), 4, level_probs=probs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("k", range(2, 11))
def test_one_hot_soft_targets_equal_hard_targets_bit_for_bit(k: int, smoothing: float) -> None:
    labels = torch.arange(1, k + 1)
    soft = targets(labels, k, level_probs=torch.eye(k)[labels - 1], label_smoothing=smoothing)
    assert torch.equal(soft, targets(labels, k, label_smoothing=smoothing))
    assert soft.dtype == torch.float32


def test_soft_targets_are_tail_sums() -> None:
    found = targets(torch.tensor([4]), 4, level_probs=torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.7, 0.4]]))


@pytest.mark.parametrize("k", range(2, 11))
def test_smoothing_mixes_the_distribution_with_the_even_one(k: int) -> None:
    probs, labels = random_probs(50, k), torch.ones(50, dtype=torch.int64)
    mixed = targets(labels, k, level_probs=0.7 * probs + 0.3 / k)
    torch.testing.assert_close(targets(labels, k, level_probs=probs, label_smoothing=0.3), mixed)


@pytest.mark.parametrize("k", range(2, 11))
def test_targets_never_rise_over_the_thresholds(k: int) -> None:
    # corn takes differences of neighbours for weights: a negative one would reward a wrong answer.
    found = targets(torch.ones(500, dtype=torch.int64), k, level_probs=random_probs(500, k), label_smoothing=0.05)
    assert (found.diff(dim=1) <= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("row", [[0.5, 0.6], [-0.1, 1.1], [float("nan"), 1.0], [0.0, 0.0]])
def test_soft_targets_reject_what_is_no_distribution(row: list[float]) -> None:
    with pytest.raises(UserError, match=r"row 1: .*--dataset"):
        targets(torch.tensor([1, 1]), 2, level_probs=torch.tensor([[1.0, 0.0], row]))


def test_probabilities_of_another_number_of_levels_are_refused() -> None:
    with pytest.raises(UserError, match=r"of 5 levels for a model of 4.*--levels"):
        targets(torch.tensor([1]), 4, level_probs=torch.full((1, 5), 0.2))


def test_targets_refuse_probabilities_of_other_rows_and_smoothing_of_everything() -> None:
    with pytest.raises(ValueError, match="for 1 labels"):
        targets(torch.tensor([1]), 2, level_probs=torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"label smoothing 1\.0"):
        targets(torch.tensor([1]), 2, label_smoothing=1.0)


# Losses


def test_cumulative_is_the_mean_over_thresholds_of_binary_cross_entropy() -> None:
    logits, wanted = [0.3, -1.2, 2.0], [0.9, 0.7, 0.4]
    by_hand = -sum(
        t * math.log(sigmoid(x)) + (1 - t) * math.log(1 - sigmoid(x)) for x, t in zip(logits, wanted, strict=True)
    )
    loss = objectives.cumulative_bce(torch.tensor([logits]), torch.tensor([wanted]))
    assert loss.tolist() == pytest.approx([by_hand / 3], rel=1e-6)


@pytest.mark.parametrize(("label", "thresholds"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_corn_asks_only_the_questions_that_a_hard_label_comes_to(label: int, thresholds: int) -> None:
    logits = [0.3, -1.2, 2.0]
    yes = [math.log(sigmoid(x)) if label > j else math.log(1 - sigmoid(x)) for j, x in enumerate(logits, start=1)]
    loss = objectives.corn(torch.tensor([logits]), targets(torch.tensor([label]), 4))
    assert loss.tolist() == pytest.approx([-sum(yes[:thresholds]) / 3], rel=1e-6)


def test_corn_weighs_a_question_by_the_probability_that_it_is_put() -> None:
    logits, wanted = [0.3, -1.2, 2.0], [0.9, 0.7, 0.4]
    terms = [
        put * (t / put * math.log(sigmoid(x)) + (1 - t / put) * math.log(1 - sigmoid(x)))
        for x, t, put in zip(logits, wanted, [1.0, 0.9, 0.7], strict=True)
    ]
    loss = objectives.corn(torch.tensor([logits]), torch.tensor([wanted]))
    assert loss.tolist() == pytest.approx([-sum(terms) / 3], rel=1e-6)


@pytest.mark.parametrize("k", range(2, 11))
def test_corn_is_the_cross_entropy_of_the_levels_that_its_decoder_reads(k: int) -> None:
    logits = 3 * torch.randn(200, k - 1, generator=torch.Generator().manual_seed(0))
    probs = random_probs(200, k)
    losses = objectives.corn(logits, targets(torch.ones(200, dtype=torch.int64), k, level_probs=probs))
    decoded = ordinal.level_probs(ordinal.p_gt(logits.numpy(), decoder="corn"))
    cross_entropy = -(probs.numpy() * np.log(decoded)).sum(axis=1)
    np.testing.assert_allclose((k - 1) * losses.numpy(), cross_entropy, rtol=1e-4)


def test_two_levels_make_the_losses_one() -> None:
    logits, wanted = torch.randn(20, 1), torch.rand(20, 1)
    torch.testing.assert_close(objectives.corn(logits, wanted), objectives.cumulative_bce(logits, wanted))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_loses_the_same_in_any_batch(loss: Loss) -> None:
    logits, wanted = torch.randn(8, 3), targets(torch.tensor([1, 2, 3, 4, 4, 3, 2, 1]), 4)
    alone = [Objective(loss).rows(logits[i : i + 1], wanted[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(Objective(loss).rows(logits, wanted), torch.cat(alone))


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_bfloat16_logits_is_computed_in_float32(loss: Loss) -> None:
    logits = torch.tensor([[20.0, 20.0, 20.0], [0.3, -1.7, 2.9]], dtype=torch.bfloat16)
    wanted = torch.tensor([[1.0, 1.0, 1.0], [0.9, 0.7, 0.4]])
    found = Objective(loss).rows(logits, wanted)
    assert torch.equal(found, Objective(loss).rows(logits.float(), wanted))
    assert found.dtype == torch.float32
    # 1 - sigmoid(20) is zero in float32.
    assert 0 < found[0].item() < 1e-8


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hopelessly_wrong_row_has_a_finite_loss_and_still_a_gradient(loss: Loss) -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    found = Objective(loss).rows(logits, targets(torch.tensor([1, 4]), 4))
    torch.autograd.backward(found.sum())
    assert torch.isfinite(found).all()
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(1 / 3)
    assert logits.grad[1, 0].item() == pytest.approx(-1 / 3)


def test_corn_teaches_nothing_to_thresholds_past_the_label() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    torch.autograd.backward(Objective("corn").rows(logits, targets(torch.tensor([2]), 4)).sum())
    assert logits.grad is not None
    assert logits.grad.tolist() == [pytest.approx([-1 / 6, 1 / 6, 0.0])]


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_refuses_shapes_that_would_broadcast(loss: Loss) -> None:
    with pytest.raises(ValueError, match="shape"):
        Objective(loss).rows(torch.zeros(4, 3), torch.zeros(1, 3))


# Penalty


def test_the_penalty_is_the_mean_rise_between_neighbours() -> None:
    p = [[0.2, 0.5, 0.4, 0.8], [0.9, 0.6, 0.5, 0.1]]
    logits = torch.tensor([[math.log(q / (1 - q)) for q in row] for row in p])
    torch.testing.assert_close(objectives.monotonicity_penalty(logits), torch.tensor([(0.3 + 0.4) / 3, 0.0]))


def test_the_penalty_adds_to_the_loss_with_its_weight_and_pulls_crossing_logits_together() -> None:
    logits = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    wanted = torch.sigmoid(logits.detach())
    with_penalty, without = Objective("cumulative", 2.0).rows(logits, wanted), Objective().rows(logits, wanted)
    assert (with_penalty - without).item() == pytest.approx(2 * (sigmoid(1.0) - sigmoid(-1.0)))
    # At these targets the cross entropy has no slope, so what is left is the penalty's.
    torch.autograd.backward(with_penalty.sum())
    assert logits.grad is not None
    assert logits.grad[0, 0].item() < 0 < logits.grad[0, 1].item()


def test_two_levels_pay_no_penalty_and_no_nan() -> None:
    logits = torch.randn(5, 1, requires_grad=True)
    found = objectives.monotonicity_penalty(logits)
    assert found.tolist() == [0.0] * 5
    torch.autograd.backward(Objective("cumulative", 1.0).rows(logits, torch.ones(5, 1)).sum())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("loss", "weight"), [("corn", 0.1), ("cumulative", -1.0), ("cumulative", math.nan)])
def test_an_objective_that_means_nothing_is_refused(loss: Loss, weight: float) -> None:
    with pytest.raises(ValueError, match="monotonicity"):
        Objective(loss, weight)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="'coral': it is one of cumulative, corn"):
        Objective("coral")  # type: ignore[arg-type]


# What training ends at


def fit(objective: Objective, logits_of: torch.nn.Module, inputs: torch.Tensor, wanted: torch.Tensor) -> None:
    """A few hundred full-batch steps with a falling rate."""
    steps = 300
    optimizer = torch.optim.Adam(logits_of.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(objective.rows(logits_of(inputs), wanted).mean())
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("loss", LOSSES)
def test_fitted_logits_decode_to_the_frequencies_of_the_labels(loss: Loss) -> None:
    true = np.array([[0.1, 0.2, 0.3, 0.4], [0.6, 0.1, 0.2, 0.1], [0.05, 0.45, 0.45, 0.05]])
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 3000)
    labels = np.concatenate([rng.choice(4, 3000, p=p) + 1 for p in true])
    table = torch.nn.Embedding(3, 3)
    torch.nn.init.zeros_(table.weight)
    fit(Objective(loss), table, torch.from_numpy(groups), targets(torch.from_numpy(labels), 4))

    p_gt = ordinal.p_gt(table.weight.detach().numpy(), decoder=loss)
    seen = np.array([[(labels[groups == g] > j).mean() for j in (1, 2, 3)] for g in range(3)])
    np.testing.assert_allclose(p_gt, seen, atol=2e-3)
    # Three standard errors of a share of 3000 draws.
    np.testing.assert_allclose(ordinal.level_probs(p_gt), true, atol=0.03)
    if loss == "corn":
        conditional = true[:, ::-1].cumsum(axis=1)[:, ::-1]
        learnt = torch.sigmoid(table.weight.detach()).numpy()
        np.testing.assert_allclose(learnt, conditional[:, 1:] / conditional[:, :-1], atol=0.05)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_targets_are_learnt_as_they_are(loss: Loss) -> None:
    # No level is so rare that 300 steps don't suffice.
    probs = 0.8 * random_probs(5, 5) + 0.2 / 5
    table = torch.nn.Embedding(5, 4)
    torch.nn.init.zeros_(table.weight)
    fit(Objective(loss), table, torch.arange(5), targets(torch.ones(5, dtype=torch.int64), 5, level_probs=probs))
    decoded = ordinal.level_probs(ordinal.p_gt(table.weight.detach().numpy(), decoder=loss))
    np.testing.assert_allclose(decoded, probs.numpy(), atol=1e-3)


class SharedSlope(torch.nn.Module):
    """One weight for all thresholds and a bias for each, the proportional-odds model."""

    def __init__(self, thresholds: int) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))
        self.bias = torch.nn.Parameter(torch.zeros(thresholds))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x[:, None] + self.bias


def test_cumulative_loss_recovers_the_thresholds_that_cut_the_levels() -> None:
    # Level > j where slope * x + logistic noise > cut_j, so P(y > j | x) = sigmoid(slope * x - cut_j).
    slope, cuts = 1.5, np.array([-2.0, -0.5, 1.0])
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20_000)
    labels = 1 + (slope * x + rng.logistic(size=x.size) > cuts[:, None]).sum(axis=0)
    model = SharedSlope(3)
    fit(Objective(), model, torch.from_numpy(x).float(), targets(torch.from_numpy(labels), 4))
    # Standard errors are about 0.025 with 20,000 rows.
    assert model.slope.item() == pytest.approx(slope, abs=0.1)
    np.testing.assert_allclose(-model.bias.detach().numpy(), cuts, atol=0.1)
