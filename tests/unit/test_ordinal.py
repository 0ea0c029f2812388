"""Ordinal targets, loss and decoding: the places where a wrong number would still look like a reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.reward import ordinal


def test_labels_become_one_question_a_threshold() -> None:
    encoded = ordinal.encode_labels(torch.tensor([1, 2, 3, 4]), 4)
    assert encoded.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("bad", [0, 5, -1])
def test_a_label_outside_the_scale_is_named_and_never_clamped(bad: int) -> None:
    with pytest.raises(UserError, match=rf"label {bad} in row 2: .*1\.\.4.*--levels"):
        ordinal.encode_labels(torch.tensor([1, 4, bad, 2]), 4)


@pytest.mark.parametrize("k", range(2, 11))
def test_one_hot_soft_targets_equal_hard_targets(k: int) -> None:
    labels = torch.arange(1, k + 1)
    assert torch.equal(ordinal.soft_targets(torch.eye(k)[labels - 1]), ordinal.encode_labels(labels, k))


def test_soft_targets_are_tail_sums() -> None:
    targets = ordinal.soft_targets(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    torch.testing.assert_close(targets, torch.tensor([[0.9, 0.7, 0.4]]))


@pytest.mark.parametrize("row", [[0.5, 0.6], [-0.1, 1.1], [float("nan"), 1.0], [0.0, 0.0]])
def test_soft_targets_reject_what_is_no_distribution(row: list[float]) -> None:
    with pytest.raises(UserError, match="row 1"):
        ordinal.soft_targets(torch.tensor([[1.0, 0.0], row]))


def test_loss_is_the_mean_over_thresholds_of_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.rand(5, 3)
    loss = ordinal.cumulative_bce(logits, targets)
    p = torch.sigmoid(logits)
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(loss.mean(), torch.nn.BCEWithLogitsLoss()(logits, targets))


def test_loss_is_float32_even_where_bfloat16_would_round_it_away() -> None:
    logits = torch.tensor([[20.0, -20.0, 20.0]], dtype=torch.bfloat16)
    loss = ordinal.cumulative_bce(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    assert loss.dtype == torch.float32
    assert 0 < loss.item() < 1e-8


def test_loss_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="shape"):
        ordinal.cumulative_bce(torch.zeros(4, 3), torch.zeros(1, 3))


def test_score_is_the_mean_of_the_level_probabilities_even_for_crossing_thresholds() -> None:
    p = np.random.default_rng(0).random((500, 3))
    probs = ordinal.level_probs(p)
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    np.testing.assert_allclose(probs @ np.arange(1, 5), ordinal.score(p), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 9])
def test_monotone_is_isotonic_regression_and_keeps_the_sum(m: int) -> None:
    p = np.random.default_rng(m).random((200, m))
    fitted = ordinal.monotone(p)
    expected = [IsotonicRegression(increasing=False).fit_transform(np.arange(m), row) for row in p]
    np.testing.assert_allclose(fitted, expected, atol=1e-12)
    np.testing.assert_allclose(fitted.sum(axis=1), p.sum(axis=1), atol=1e-12)
    assert (np.diff(fitted, axis=1) <= 0).all()


def test_rows_that_are_monotone_already_come_back_bit_for_bit() -> None:
    p = np.sort(np.random.default_rng(1).random((100, 5)), axis=1)[:, ::-1]
    mixed = np.concatenate([p, p[:, ::-1]])
    assert np.array_equal(ordinal.monotone(mixed)[:100], p)


@pytest.mark.parametrize("k", range(2, 11))
def test_scores_span_exactly_one_to_k(k: int) -> None:
    extreme = ordinal.sigmoid_p_gt(np.array([[-1e4] * (k - 1), [1e4] * (k - 1)]))
    assert ordinal.score(extreme).tolist() == [1.0, float(k)]


def test_a_logit_that_is_no_number_raises_and_names_the_rows() -> None:
    logits = np.zeros((4, 3), dtype=np.float32)
    logits[1, 2], logits[3, 0] = np.nan, np.inf
    with pytest.raises(RewardUnavailableError, match=r"2 of 4 inputs \(rows 1, 3\)"):
        ordinal.sigmoid_p_gt(logits)


def test_temperature_divides_the_logits() -> None:
    logits = np.array([[2.0, -1.0]])
    np.testing.assert_allclose(ordinal.sigmoid_p_gt(logits, temperature=2.0), ordinal.sigmoid_p_gt(logits / 2))


def test_training_with_the_loss_recovers_the_order_of_the_levels() -> None:
    torch.manual_seed(0)
    labels = torch.randint(1, 5, (256,))
    features = torch.nn.functional.one_hot(labels - 1, 4).float() + 0.1 * torch.randn(256, 4)
    head = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = ordinal.cumulative_bce(head(features), ordinal.encode_labels(labels, 4)).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    scores = ordinal.score(ordinal.sigmoid_p_gt(head(torch.eye(4)).detach().numpy()))
    assert (np.diff(scores) > 0.5).all()
