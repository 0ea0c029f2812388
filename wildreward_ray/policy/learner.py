"""The policy's update: DPO steps on preference pairs against a frozen reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wildreward_ray.core.config.online_dpo import LearnerSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.dpo import PairBatch, collate_pairs, dpo_loss, sequence_logprobs
from wildreward_ray.policy.pairs import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Learner:
    """Holds the policy, its reference and the optimizer.

    Args:
        policy: causal language model in float32, on its device.
        section: settings of the update.
        pad_id: token that fills batches; it is masked.
    """

    def __init__(self, policy: PreTrainedModel, section: LearnerSection, pad_id: int) -> None:
        self.policy = policy
        self._section, self._pad = section, pad_id
        self._device = next(policy.parameters()).device
        self._reference = copy.deepcopy(policy).eval().requires_grad_(False)
        # Dropout off: the policy's log-probabilities are compared with those of its reference and of the engine.
        self.policy.eval()
        self._optimizer = torch.optim.AdamW(policy.parameters(), lr=section.learning_rate, weight_decay=0.0)
        warmup = section.warmup_steps
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0
        )

    def step(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> dict[str, float]:
        """One optimizer step on all pairs. The loss is the mean over pairs, whatever the size of micro-batches.

        Args:
            prompt_ids: token ids of the prompt of every pair.
            pairs: at least one.

        Returns:
            `dpo_loss`; `dpo_margin` and `dpo_margin_after` (mean implicit reward gap before and after the step);
            `dpo_accuracy` (share of pairs with a positive gap before it, ties count half); `kl` (mean over the pairs'
            sampled responses of log pi - log ref, in nats: the one-sample estimate of the KL to the reference);
            `grad_norm`; `tokens`.

        Raises:
            UserError: the loss or the gradient is not finite; the weights are those before the step.
        """
        self._optimizer.zero_grad(set_to_none=True)
        totals = dict.fromkeys(("dpo_loss", "dpo_margin", "dpo_accuracy", "kl"), 0.0)
        tokens = 0
        seen: list[tuple[PairBatch, Tensor]] = []
        for start in range(0, len(pairs), self._section.micro_pairs):
            part = slice(start, start + self._section.micro_pairs)
            batch = self._batch(prompt_ids[part], pairs[part])
            tokens += int(batch.attention_mask.sum())
            policy = self._logprobs(self.policy, batch)
            reference = self._reference_logprobs(batch)
            seen.append((batch, reference))
            n = len(pairs[part])
            out = dpo_loss(
                policy[:n],
                policy[n:],
                reference[:n],
                reference[n:],
                beta=self._section.beta,
                loss_type=self._section.loss,
                label_smoothing=self._section.label_smoothing,
            )
            torch.autograd.backward(out.loss.sum() / len(pairs))
            gap = out.chosen_reward - out.rejected_reward
            totals["dpo_loss"] += float(out.loss.detach().sum())
            totals["dpo_margin"] += float(gap.sum())
            totals["dpo_accuracy"] += float(((gap > 0).float() + 0.5 * (gap == 0).float()).sum())
            totals["kl"] += float((policy.detach() - reference).sum()) / 2
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self._section.clip_norm))
        means = {name: value / len(pairs) for name, value in totals.items()}
        if not (math.isfinite(means["dpo_loss"]) and math.isfinite(norm)):
            raise UserError(
                f"the DPO loss is {means['dpo_loss']} and the gradient norm {norm}",
                flag="--learner.learning-rate",
                hint="lower it",
            )
        self._optimizer.step()
        self._scheduler.step()
        after = sum(self._gap(batch, reference) for batch, reference in seen) / len(pairs)
        return {**means, "dpo_margin_after": after, "grad_norm": norm, "tokens": float(tokens)}

    @torch.no_grad()
    def margin(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> float:
        """The mean implicit reward gap beta * ((log pi - log ref)(chosen) - (log pi - log ref)(rejected)) of some pairs."""
        total = 0.0
        for start in range(0, len(pairs), self._section.micro_pairs):
            part = slice(start, start + self._section.micro_pairs)
            batch = self._batch(prompt_ids[part], pairs[part])
            total += self._gap(batch, self._reference_logprobs(batch))
        return total / len(pairs)

    @torch.no_grad()
    def _gap(self, batch: PairBatch, reference: Tensor) -> float:
        """The sum of the implicit reward gaps of a batch's pairs."""
        ratio = self._logprobs(self.policy, batch) - reference
        chosen, rejected = ratio.chunk(2)
        return self._section.beta * float((chosen - rejected).sum())

    def _batch(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> PairBatch:
        batch = collate_pairs(prompt_ids, pairs, self._pad)
        return PairBatch(
            batch.input_ids.to(self._device),
            batch.attention_mask.to(self._device),
            batch.response_mask.to(self._device),
        )

    def _logprobs(self, model: PreTrainedModel, batch: PairBatch) -> Tensor:
        bf16 = self._section.precision == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return sequence_logprobs(logits, batch.input_ids, batch.response_mask)

    @torch.no_grad()
    def _reference_logprobs(self, batch: PairBatch) -> Tensor:
        return self._logprobs(self._reference, batch)
