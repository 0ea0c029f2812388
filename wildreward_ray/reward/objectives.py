"""What a row teaches: labels as targets P(y > j), and the losses of k-1 logits against them.

Logit j (counted from 1) is read in one of two ways, and `ordinal.p_gt` decodes it in the same one:

- cumulative: sigmoid(logit_j) = P(y > j). Binary cross entropy on every threshold (arXiv 2602.08829, reward-model
  training; the encoding goes back to Frank & Hall 2001, "A Simple Approach to Ordinal Classification").
- corn: sigmoid(logit_j) = P(y > j | y > j-1), so that the product of the first j is P(y > j) and can't cross (Shi, Cao
  & Raschka 2021, arXiv 2111.08851).

Both take the same targets, hard or soft, and give one loss a row that depends on no other row. The caller weighs and
averages rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wildreward_ray.core.errors import UserError

# Judge probabilities are renormalised in double precision but stored as float32.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Objective:
    """The loss a reward model is trained with.

    Args:
        loss: how the logits are read, see the module's text.
        monotonicity: weight of `monotonicity_penalty`; for the cumulative loss only.

    Raises:
        ValueError: the loss is unknown, or the penalty is negative, not finite or put on corn, which has none to pay.
    """

    loss: Literal["cumulative", "corn"] = "cumulative"
    monotonicity: float = 0.0

    def __post_init__(self) -> None:
        if self.loss not in _LOSSES:
            raise ValueError(f"loss {self.loss!r}: it is one of {', '.join(_LOSSES)}")
        if not (self.monotonicity >= 0 and math.isfinite(self.monotonicity)):
            raise ValueError(f"monotonicity {self.monotonicity}: the penalty's weight is finite and not negative")
        if self.monotonicity and self.loss == "corn":
            raise ValueError(f"monotonicity {self.monotonicity} with corn, whose probabilities can't cross")

    def rows(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of every row, [B] float32 in nats, from logits [B, k-1] and targets P(y > j) [B, k-1]."""
        losses = _LOSSES[self.loss](logits, targets)
        return losses + self.monotonicity * monotonicity_penalty(logits) if self.monotonicity else losses


def targets(labels: Tensor, k: int, *, level_probs: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """What the model shall say of every row, P(y > j) for j in 1..k-1.

    Args:
        labels: [B] integers in 1..k. They are checked even where `level_probs` replace them.
        k: number of levels.
        level_probs: [B, k] probabilities of the levels, to be learnt instead of the labels. One-hot rows give exactly
            what their labels give.
        label_smoothing: share in [0, 1) of every row's distribution that is spread evenly over the k levels (Szegedy
            et al. 2016, arXiv 1512.00567). P(y > j) is linear in the distribution, so it moves to (k-j)/k.

    Returns:
        [B, k-1] float32 in [0, 1], every row non-increasing.

    Raises:
        UserError: a label lies outside 1..k, `level_probs` has another number of levels, or a row of it is not a
            distribution.
        ValueError: `level_probs` has another number of rows than `labels`, or the smoothing lies outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label smoothing {label_smoothing}: it lies in [0, 1)")
    result = encode_labels(labels, k)
    if level_probs is not None:
        if level_probs.ndim != 2 or len(level_probs) != len(labels):
            raise ValueError(f"level probabilities of shape {tuple(level_probs.shape)} for {len(labels)} labels")
        if level_probs.shape[1] != k:
            raise UserError(
                f"level probabilities of {level_probs.shape[1]} levels for a model of {k}",
                flag="--levels",
                hint="train with as many levels as the dataset has",
            )
        result = soft_targets(level_probs)
    if label_smoothing:
        evenly = torch.arange(k - 1, 0, -1, dtype=torch.float32, device=result.device) / k
        result = (1 - label_smoothing) * result + label_smoothing * evenly
    return result


def encode_labels(labels: Tensor, k: int) -> Tensor:
    """Hard labels as cumulative targets (y > 1, ..., y > k-1).

    Args:
        labels: [B] integers in 1..k.
        k: number of levels.

    Returns:
        [B, k-1] float32 of zeros and ones.

    Raises:
        UserError: a label lies outside 1..k.
    """
    outside = (labels < 1) | (labels > k)
    if bool(outside.any()):
        row = int(outside.nonzero()[0].item())
        raise UserError(
            f"label {int(labels[row].item())} in row {row}: labels must lie in 1..{k}",
            flag="--levels",
            hint="train with as many levels as the labels have",
        )
    thresholds = torch.arange(1, k, device=labels.device)
    return (labels.unsqueeze(-1) > thresholds).float()


def soft_targets(level_probs: Tensor) -> Tensor:
    """A distribution over levels as cumulative targets P(y > j). One-hot rows give exactly `encode_labels`.

    Args:
        level_probs: [B, k] probabilities, column 0 is level 1, rows sum to 1.

    Returns:
        [B, k-1] float32 in [0, 1], every row non-increasing.

    Raises:
        UserError: a row is not a probability distribution.
    """
    probs = level_probs.float()
    # Written so that NaN counts as wrong too.
    good = (probs >= 0).all(dim=-1) & ((probs.sum(dim=-1) - 1).abs() <= _SUM_TOLERANCE)
    if not bool(good.all()):
        row = int((~good).nonzero()[0].item())
        raise UserError(
            f"level probabilities {[round(p, 4) for p in probs[row].tolist()]} in row {row}: "
            "they must be non-negative and sum to 1",
            flag="--dataset",
        )
    above = probs.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    return above.clamp(max=1.0)


def cumulative_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of every threshold, averaged over thresholds, in float32 whatever the model's dtype.

    Args:
        logits: [B, k-1], logit j of P(y > j).
        targets: [B, k-1] in [0, 1].

    Returns:
        [B] float32 in nats.

    Raises:
        ValueError: the shapes differ (they would broadcast to a wrong loss).
    """
    _check_shapes(logits, targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(dim=-1)


def corn(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of conditional thresholds (CORN loss of arXiv 2111.08851), in float32.

    With s_j = sigmoid(logit_j) = P(y > j | y > j-1), t_j = P(y > j) of the row and t_0 = 1, threshold j costs
    -(t_j log s_j + (t_{j-1} - t_j) log(1 - s_j)): the question is put with weight t_{j-1}. Hard labels give the
    original, where only rows with y > j-1 take part in threshold j. The sum over j is the cross entropy of the row's
    level distribution against the one `ordinal.p_gt` decodes with `corn`, so the optimum is exact for soft targets too.

    The paper divides the sum over a batch by the number of (row, threshold) pairs that take part in it, so what a row
    counts depends on the labels of the rows beside it, and with them on the cut into micro-batches and workers. Here a
    row's sum is divided by k-1, which is what `cumulative_bce` divides by.

    Args:
        logits: [B, k-1], logit j of P(y > j | y > j-1).
        targets: [B, k-1] P(y > j) in [0, 1], every row non-increasing.

    Returns:
        [B] float32 in nats.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(logits, targets)
    x, above = logits.float(), targets.float()
    asked = torch.cat([torch.ones_like(above[:, :1]), above[:, :-1]], dim=-1)
    # logsigmoid(-x) is log(1 - sigmoid(x)) without the rounding of 1 - sigmoid(x) to zero.
    terms = above * F.logsigmoid(x) + (asked - above) * F.logsigmoid(-x)
    return -terms.mean(dim=-1)


def monotonicity_penalty(logits: Tensor) -> Tensor:
    """How far neighbouring thresholds cross: the mean of max(0, p_{j+1} - p_j) over the k-2 pairs, p = sigmoid(logits).

    Args:
        logits: [B, k-1], logit j of P(y > j).

    Returns:
        [B] float32 in [0, 1]; zero for two levels, which have one threshold.
    """
    p = torch.sigmoid(logits.float())
    crossing = F.relu(p[:, 1:] - p[:, :-1])
    # A sum over no pairs is zero where a mean would be NaN.
    return crossing.sum(dim=-1) / max(1, crossing.shape[-1])


def _check_shapes(logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} against targets of shape {tuple(targets.shape)}")


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cumulative": cumulative_bce, "corn": corn}
