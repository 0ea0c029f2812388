"""Direct preference optimisation on pairs of responses: log-probabilities, losses, and batches of pairs.

Shapes: B pairs (or rows), T tokens, V vocabulary. With pi the policy, ref the frozen reference, w the chosen and l the
rejected response to x, all losses are functions of

    h = r(w) - r(l)    with the log-ratio    r(y) = log pi(y|x) - log ref(y|x)

or, length-normalised, r(y) = [log pi(y|x) - log ref(y|x)] / |y| over the |y| tokens of the response.
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
        chosen_reward: implicit reward beta * r(w) of the chosen response, with the log-ratio as the loss uses it (per token
            if length-normalised), detached.
        rejected_reward: that of the rejected one.
        nll: negative log-likelihood of the chosen response in nats a token, before its weight, detached; None where the
            loss has no such term.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    nll: Tensor | None = None


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

    def response_tokens(self) -> Tensor:
        """Length of every response in tokens: [2B] int64, in the order of the rows."""
        return self.response_mask.sum(dim=1, dtype=torch.int64)

    def scored_positions(self) -> int:
        """How many of the last of T positions hold all response tokens and what predicts the first of them."""
        first = int(self.response_mask.any(dim=0).int().argmax())
        return self.response_mask.shape[1] - max(first - 1, 0)


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


def check_dpo(*, beta: float, loss_type: str, label_smoothing: float, nll_weight: float = 0.0) -> None:
    """Raise `UserError` for a combination of DPO settings that has no meaning."""
    if loss_type not in get_args(LossType):
        raise UserError(f"loss {loss_type!r}: known are {', '.join(get_args(LossType))}", flag="--learner.loss")
    if not 0 < beta < float("inf"):
        raise UserError(f"beta {beta}: it must be above 0", flag="--learner.beta")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label smoothing {label_smoothing}: it must lie in [0, 0.5)", flag="--learner.label-smoothing")
    if loss_type == "ipo" and label_smoothing:
        raise UserError(
            f"label smoothing {label_smoothing} with the ipo loss, which has none",
            flag="--learner.label-smoothing",
            hint="set it to 0 or take the sigmoid loss",
        )
    if not 0 <= nll_weight < float("inf"):
        raise UserError(f"weight of the likelihood {nll_weight}: it can't be negative", flag="--learner.nll-weight")


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
    length_normalized: bool = False,
    nll_weight: float = 0.0,
) -> DPOOutput:
    """The loss of every pair.

    - `sigmoid`: -log sigmoid(beta h) (arXiv 2305.18290, eq. 7). With label smoothing e, the chance that a pair is the
      wrong way round: -(1-e) log sigmoid(beta h) - e log sigmoid(-beta h) (conservative DPO, eq. 3 of
      https://ericmitchell.ai/cdpo.pdf).
    - `ipo`: (h - 1 / (2 beta))^2, beta being the paper's tau (arXiv 2310.12036, eq. 17). On summed log-probabilities as
      the paper writes it; TRL takes their mean over tokens (https://github.com/huggingface/trl/pull/1265), which is
      `ipo` with `length_normalized`.
    - `length_normalized` puts the log-ratio per token into h (arXiv 2411.15124, section on preference finetuning, which
      has it with `sigmoid`), so that a response gains nothing by length alone. Ratios shrink by the length, so beta must
      grow: that paper's models are trained with 5, where 0.1 is usual for sums.
    - `nll_weight` a adds a * -log pi(w|x) / |w|, which holds up the likelihood of the chosen response itself
      (arXiv 2404.19733v3, section 2): h alone may grow while both responses become less likely.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: [B] summed log-probabilities in nats. Those of the
            reference should carry no gradient.
        beta: strength of the pull towards the reference, above 0.
        label_smoothing: in [0, 0.5), `sigmoid` only.
        chosen_tokens, rejected_tokens: [B] of an integer type, the numbers of tokens that were summed. Both are needed for
            `length_normalized`, those of the chosen responses for `nll_weight`; otherwise unused.
        length_normalized: divide every log-ratio by its own response's number of tokens.
        nll_weight: weight of the negative log-likelihood of the chosen response, at least 0.

    Raises:
        UserError: see `check_dpo`.
        ValueError: the log-probabilities don't have one shape; token counts are missing, of another shape, not integers,
            or below 1.
    """
    check_dpo(beta=beta, loss_type=loss_type, label_smoothing=label_smoothing, nll_weight=nll_weight)
    shapes = [tuple(t.shape) for t in (policy_chosen, policy_rejected, ref_chosen, ref_rejected)]
    if len(set(shapes)) != 1:
        raise ValueError(f"log-probabilities of shapes {shapes}: they must be alike")
    chosen_ratio = policy_chosen.float() - ref_chosen.float()
    rejected_ratio = policy_rejected.float() - ref_rejected.float()
    if length_normalized:
        chosen_ratio = chosen_ratio / _lengths("chosen_tokens", chosen_tokens, chosen_ratio)
        rejected_ratio = rejected_ratio / _lengths("rejected_tokens", rejected_tokens, rejected_ratio)
    h = chosen_ratio - rejected_ratio
    if loss_type == "sigmoid":
        loss = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    else:
        loss = (h - 1 / (2 * beta)) ** 2
    nll = None
    if nll_weight:
        nll = -policy_chosen.float() / _lengths("chosen_tokens", chosen_tokens, policy_chosen)
        loss = loss + nll_weight * nll
    return DPOOutput(
        loss=loss,
        chosen_reward=(beta * chosen_ratio).detach(),
        rejected_reward=(beta * rejected_ratio).detach(),
        nll=None if nll is None else nll.detach(),
    )


def _lengths(name: str, tokens: Tensor | None, logprobs: Tensor) -> Tensor:
    """The token counts of `logprobs` as float32 divisors on its device, once they are known to be counts."""
    if tokens is None:
        raise ValueError(f"length_normalized and nll_weight divide by the length: {name} is missing")
    if tokens.shape != logprobs.shape:
        raise ValueError(
            f"{name} of shape {tuple(tokens.shape)} for log-probabilities of shape {tuple(logprobs.shape)}"
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"{name} of type {tokens.dtype}: they are integers")
    if bool((tokens < 1).any()):
        raise ValueError(f"{name} as low as {int(tokens.min())}: a response has at least one token")
    return tokens.to(device=logprobs.device, dtype=torch.float32)


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
