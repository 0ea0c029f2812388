"""Direct preference optimisation on pairs of responses: log-probabilities, losses, and batches of pairs.

Shapes: B pairs (or rows), T tokens, V vocabulary. With pi the policy, ref the frozen reference, w the chosen and l the
rejected response to x, all losses are functions of

    h = [log pi(w|x) - log pi(l|x)] - [log ref(w|x) - log ref(l|x)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.pairs import Pair

LossType = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class DPOOutput:
    """What a DPO loss gives for B pairs, all [B] float32.

    Attributes:
        loss: differentiable; the caller averages.
        chosen_reward: implicit reward beta * (log pi - log ref) of the chosen response, detached.
        rejected_reward: that of the rejected one.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


@dataclass(frozen=True)
class PairBatch:
    """B pairs as 2B right-padded rows [2B, T]: first every chosen response, then every rejected one.

    Attributes:
        input_ids: int64, prompt then response.
        attention_mask: int64, 0 on padding.
        response_mask: bool, True on the tokens of the response.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def sequence_logprobs(logits: Tensor, input_ids: Tensor, response_mask: Tensor) -> Tensor:
    """Sum of the log-probabilities of every row's response tokens, in nats.

    Logits at position t predict token t+1. Only the positions that predict a response token are turned to float32, one
    row at a time: a float32 copy of all logits would cost twice the bfloat16 logits again.

    Args:
        logits: [B, T, V] of any float dtype.
        input_ids: [B, T].
        response_mask: [B, T], true on response tokens.

    Returns:
        [B] float32; 0 for a row without response tokens.

    Raises:
        ValueError: shapes differ, or a response begins at position 0, where nothing predicts it.
    """
    if logits.shape[:2] != input_ids.shape or input_ids.shape != response_mask.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, input_ids {tuple(input_ids.shape)} and "
            f"response_mask {tuple(response_mask.shape)} don't belong together"
        )
    mask = response_mask.bool()
    if bool(mask[:, 0].any()):
        raise ValueError("a response begins at position 0: it needs at least one prompt token before it")
    sums = []
    for row_logits, row_ids, row_mask in zip(logits[:, :-1], input_ids[:, 1:], mask[:, 1:], strict=True):
        predicting = row_logits[row_mask].float()
        picked = predicting.gather(-1, row_ids[row_mask].unsqueeze(-1)).squeeze(-1)
        sums.append((picked - predicting.logsumexp(dim=-1)).sum())
    return torch.stack(sums)


def check_dpo(*, beta: float, loss_type: str, label_smoothing: float) -> None:
    """Raise `UserError` for a combination of DPO settings that has no meaning."""
    if loss_type not in get_args(LossType):
        raise UserError(f"loss {loss_type!r}: known are {', '.join(get_args(LossType))}", flag="--loss-type")
    if not 0 < beta < float("inf"):
        raise UserError(f"beta {beta}: it must be above 0", flag="--beta")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label smoothing {label_smoothing}: it must lie in [0, 0.5)", flag="--label-smoothing")
    if loss_type == "ipo" and label_smoothing:
        raise UserError(
            f"label smoothing {label_smoothing} with the ipo loss, which has none",
            flag="--label-smoothing",
            hint="set it to 0 or take the sigmoid loss",
        )


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
) -> DPOOutput:
    """The loss of every pair.

    - `sigmoid`: -log sigmoid(beta h) (arXiv 2305.18290, eq. 7). With label smoothing e, the chance that a pair is the
      wrong way round: -(1-e) log sigmoid(beta h) - e log sigmoid(-beta h) (conservative DPO, eq. 3 of
      https://ericmitchell.ai/cdpo.pdf).
    - `ipo`: (h - 1 / (2 beta))^2, beta being the paper's tau (arXiv 2310.12036, eq. 17). On summed log-probabilities as
      the paper writes it; TRL takes their mean over tokens (https://github.com/huggingface/trl/pull/1265).

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: [B] summed log-probabilities. Those of the reference
            should carry no gradient.
        beta: strength of the pull towards the reference, above 0.
        label_smoothing: in [0, 0.5), `sigmoid` only.

    Raises:
        UserError: see `check_dpo`.
        ValueError: the four don't have one shape.
    """
    check_dpo(beta=beta, loss_type=loss_type, label_smoothing=label_smoothing)
    shapes = [tuple(t.shape) for t in (policy_chosen, policy_rejected, ref_chosen, ref_rejected)]
    if len(set(shapes)) != 1:
        raise ValueError(f"log-probabilities of shapes {shapes}: they must be alike")
    chosen_ratio = policy_chosen.float() - ref_chosen.float()
    rejected_ratio = policy_rejected.float() - ref_rejected.float()
    h = chosen_ratio - rejected_ratio
    if loss_type == "sigmoid":
        loss = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    else:
        loss = (h - 1 / (2 * beta)) ** 2
    return DPOOutput(
        loss=loss,
        chosen_reward=(beta * chosen_ratio).detach(),
        rejected_reward=(beta * rejected_ratio).detach(),
    )


def collate_pairs(prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair], pad_id: int) -> PairBatch:
    """Pairs as one padded batch.

    Args:
        prompt_ids: token ids of the prompt of every pair, in the order of `pairs`.
        pairs: B pairs.
        pad_id: what fills the right; it is masked, so it may be a token that responses use, such as end-of-text.

    Raises:
        ValueError: no pairs, or a prompt or a response without tokens.
    """
    if not pairs:
        raise ValueError("no pairs to collate")
    rows = [
        (prompt, sample.token_ids)
        for side in ("chosen", "rejected")
        for prompt, pair in zip(prompt_ids, pairs, strict=True)
        for sample in (pair.chosen if side == "chosen" else pair.rejected,)
    ]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    response_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        if not prompt or not response:
            raise ValueError(f"pair {i % len(pairs)}: a prompt or a response without tokens")
        end = len(prompt) + len(response)
        input_ids[i, :end] = torch.tensor([*prompt, *response], dtype=torch.long)
        attention_mask[i, :end] = 1
        response_mask[i, len(prompt) : end] = True
    return PairBatch(input_ids=input_ids, attention_mask=attention_mask, response_mask=response_mask)
