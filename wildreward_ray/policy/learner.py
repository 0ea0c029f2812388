"""The policy's update: DPO steps on preference pairs against a frozen reference, shared among any number of workers.

All workers call a method together with the same arguments. Each works on its share of the rows and all get the same result: the
loss is the mean over all pairs of a step, whatever the number of workers and the size of their micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wildreward_ray.core.config.online_dpo import LearnerSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.adapters import adapters_off
from wildreward_ray.policy.dpo import DPOOutput, PairBatch, check_dpo, collate_pairs, dpo_loss, sequence_logprobs
from wildreward_ray.policy.pairs import Pair, Sample

# What is summed over pairs and workers in a step.
_SUMS = ("dpo_loss", "dpo_margin", "dpo_accuracy", "kl", "nll", "tokens")


class Workers(Protocol):
    """This worker's place among all of them."""

    @property
    def rank(self) -> int:
        """Counted from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all workers, in place."""
        ...


class Placed(Protocol):
    """A causal language model on its device and its workers. Gradients are averaged over workers."""

    @property
    def module(self) -> nn.Module:
        """What holds the weights, or this worker's part of them."""
        ...

    @property
    def world(self) -> Workers:
        """The workers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def logits(self, input_ids: Tensor, attention_mask: Tensor, keep: int | None = None) -> Tensor:
        """[B, keep, V] logits of the last `keep` of [B, T] token ids. All workers call it the same number of times."""
        ...

    def accumulating(self) -> AbstractContextManager[Any]:
        """A context for all micro-batches of a step but the last."""
        ...

    def clip_gradients(self, norm: float) -> float:
        """Scale gradients down to at most `norm` over all workers. Returns the norm they had."""
        ...


class Learner:
    """Holds the policy, its reference and the optimizer.

    Args:
        policy: the model that learns; its trained weights are float32 and equal on all workers.
        reference: a frozen copy of it, laid out alike. None: the policy with its LoRA adapters off.
        section: settings of the update.
        pad_id: token that fills batches; it is masked.

    Attributes:
        optimizer: AdamW. Each group holds `peak_lr` and `weight_decay`, which are this run's and not a checkpoint's.
        done: optimizer steps that weights and moments have behind them. Whoever loads a checkpoint sets it: the rate follows
            from it, and nothing else has to be kept.

    Raises:
        UserError: settings of the loss that have no meaning together.
    """

    def __init__(self, policy: Placed, reference: Placed | None, section: LearnerSection, pad_id: int) -> None:
        check_dpo(
            beta=section.beta,
            loss_type=section.loss,
            label_smoothing=section.label_smoothing,
            nll_weight=section.nll_weight,
        )
        self.policy, self._reference, self._section, self._pad = policy, reference, section, pad_id
        # Dropout off: the policy's log-probabilities are compared with those of its reference and of the engine.
        policy.module.eval()
        if reference is not None:
            reference.module.eval()
        self.optimizer = _optimizer(policy.module, section)
        self.done = 0

    def step(
        self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair], *, beta: float | None = None
    ) -> dict[str, float]:
        """One optimizer step on all pairs.

        Args:
            prompt_ids: token ids of the prompt of every pair.
            pairs: at least one.
            beta: strength of the pull to the reference in place of the setting's.

        Returns:
            `dpo_loss`; `dpo_margin` (mean implicit reward gap before the step);
            `dpo_accuracy` (share of pairs with a positive gap, ties count half); `kl` (mean over the pairs'
            sampled responses of log pi - log ref, in nats: the one-sample estimate of the KL to the reference);
            `nll` (mean over pairs of the chosen response's negative log-likelihood in nats a token, only where the loss has
            it); `grad_norm` before clipping; `learning_rate` of this step; `tokens` without padding, prompts included.

        Raises:
            UserError: the loss or the gradient is not finite; the weights are those before the step.
            ValueError: no pairs, or a prompt or a response without tokens.
        """
        beta = self._section.beta if beta is None else beta
        self.optimizer.zero_grad(set_to_none=True)
        work = self._pair_work(prompt_ids, pairs)
        references = [self._reference_logprobs(batch) for batch, _ in work]
        totals = torch.zeros(len(_SUMS), dtype=torch.float64, device=self.policy.device)
        for place, ((batch, weight), reference) in enumerate(zip(work, references, strict=True)):
            with nullcontext() if place == len(work) - 1 else self.policy.accumulating():
                policy = self._logprobs(self.policy, batch)
                out = self._loss(batch, policy, reference, beta)
                # Gradients are averaged over workers, and the sum is wanted.
                share = weight * self.policy.world.size / len(pairs)
                torch.autograd.backward(out.loss.sum() * share)
            totals += weight * _sums(batch, out, policy.detach() - reference)
        sums = dict(zip(_SUMS, self.policy.world.sum(totals).tolist(), strict=True))
        tokens = sums.pop("tokens")
        means = {name: value / len(pairs) for name, value in sums.items() if name != "nll" or self._section.nll_weight}
        norm, rate = self._update(means["dpo_loss"])
        return {**means, "grad_norm": norm, "learning_rate": rate, "tokens": tokens}

    @torch.no_grad()
    def margin(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> float:
        """The mean implicit reward gap beta * (r(chosen) - r(rejected)) of some pairs, r being the log-ratio of the loss."""
        total = torch.zeros((), dtype=torch.float64, device=self.policy.device)
        for batch, weight in self._pair_work(prompt_ids, pairs):
            reference = self._reference_logprobs(batch)
            out = self._loss(batch, self._logprobs(self.policy, batch), reference, self._section.beta)
            total += weight * (out.chosen_reward - out.rejected_reward).double().sum()
        return float(self.policy.world.sum(total)) / len(pairs)

    @torch.no_grad()
    def kl(self, prompt_ids: Sequence[Sequence[int]], samples: Sequence[Sample]) -> float:
        """Mean over replies of log pi - log ref, in nats a reply: an estimate of KL(pi || ref) if pi sampled the replies.

        Args:
            prompt_ids: token ids of the prompt of every reply.
            samples: at least one.

        Raises:
            ValueError: no replies, or a prompt or a reply without tokens.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.policy.device)
        lengths = [len(prompt) + len(s.token_ids) for prompt, s in zip(prompt_ids, samples, strict=True)]
        for rows, weight in self._deal(lengths, 2 * self._section.micro_pairs):
            batch = self._replies([prompt_ids[i] for i in rows], [samples[i] for i in rows])
            reference = self._reference_logprobs(batch)
            total += weight * (self._logprobs(self.policy, batch) - reference).double().sum()
        return float(self.policy.world.sum(total)) / len(samples)

    def _update(self, loss: float) -> tuple[float, float]:
        """Move the weights along the gradient. Returns its norm and the rate."""
        norm = self.policy.clip_gradients(self._section.clip_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            # Loss and norm are sums over workers, so all of them come here or none.
            self.optimizer.zero_grad(set_to_none=True)
            raise UserError(
                f"the DPO loss is {loss} and the gradient norm {norm}", flag="--learner.learning-rate", hint="lower it"
            )
        warmup = self._section.warmup_steps
        factor = min(1.0, (self.done + 1) / warmup) if warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.optimizer.step()
        self.done += 1
        return norm, self._section.learning_rate * factor

    def _loss(self, batch: PairBatch, policy: Tensor, reference: Tensor, beta: float) -> DPOOutput:
        section = self._section
        chosen_tokens, rejected_tokens = batch.response_tokens().chunk(2)
        return dpo_loss(
            *policy.chunk(2),
            *reference.chunk(2),
            beta=beta,
            loss_type=section.loss,
            label_smoothing=section.label_smoothing,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            length_normalized=section.length_normalized,
            nll_weight=section.nll_weight,
        )

    def _logprobs(self, model: Placed, batch: PairBatch) -> Tensor:
        # What predicts no response token needs no logits: prompts are long, and the vocabulary is the widest layer.
        keep = batch.scored_positions()
        return sequence_logprobs(
            model.logits(batch.input_ids, batch.attention_mask, keep),
            batch.input_ids[:, -keep:],
            batch.response_mask[:, -keep:],
        )

    @torch.no_grad()
    def _reference_logprobs(self, batch: PairBatch) -> Tensor:
        if self._reference is not None:
            return self._logprobs(self._reference, batch)
        with adapters_off(self.policy.module):
            return self._logprobs(self.policy, batch)

    def _deal(self, lengths: Sequence[int], micro: int) -> list[tuple[list[int], float]]:
        """This worker's micro-batches of at most `micro` rows, and what a row of each counts: 1, or 0.

        Every worker gets the same number of them, because forward passes of sharded weights need all workers. Where the
        share is used up, the shortest row is passed through once more and counts nothing. Rows of a like length go together:
        there is less padding, and the longest come first, so that too little memory shows in the first pass.
        """
        if not lengths:
            raise ValueError("no pairs or replies to work on")
        world = self.policy.world
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        mine = order[world.rank :: world.size]
        rounds = math.ceil(math.ceil(len(order) / world.size) / micro)
        shares = [mine[start * micro : (start + 1) * micro] for start in range(rounds)]
        return [(share, 1.0) if share else (order[-1:], 0.0) for share in shares]

    def _pair_work(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> list[tuple[PairBatch, float]]:
        """This worker's micro-batches of pairs, and what a pair of each counts."""
        lengths = [
            len(prompt) + max(len(pair.chosen.token_ids), len(pair.rejected.token_ids))
            for prompt, pair in zip(prompt_ids, pairs, strict=True)
        ]
        return [
            (self._here(collate_pairs([prompt_ids[i] for i in rows], [pairs[i] for i in rows], self._pad)), weight)
            for rows, weight in self._deal(lengths, self._section.micro_pairs)
        ]

    def _replies(self, prompt_ids: Sequence[Sequence[int]], samples: Sequence[Sample]) -> PairBatch:
        """Replies as rows of a batch: [B, T]."""
        doubled = [Pair(i, sample, sample, 0.0, 0.0) for i, sample in enumerate(samples)]
        both = self._here(collate_pairs(prompt_ids, doubled, self._pad))
        n = len(samples)
        return PairBatch(both.input_ids[:n], both.attention_mask[:n], both.response_mask[:n])

    def _here(self, batch: PairBatch) -> PairBatch:
        device = self.policy.device
        return PairBatch(batch.input_ids.to(device), batch.attention_mask.to(device), batch.response_mask.to(device))


def _sums(batch: PairBatch, out: DPOOutput, ratio: Tensor) -> Tensor:
    """[6] float64: `_SUMS` of one batch; `ratio` is log pi - log ref of its 2B rows."""
    gap = out.chosen_reward - out.rejected_reward
    nll = torch.zeros_like(gap) if out.nll is None else out.nll
    won = (gap > 0).double() + 0.5 * (gap == 0).double()
    parts = (out.loss.detach(), gap, won, ratio / 2, nll, batch.attention_mask)
    return torch.stack([part.double().sum() for part in parts])


def _optimizer(module: nn.Module, section: LearnerSection) -> torch.optim.AdamW:
    """AdamW over what is to be trained, without decay on biases and norms."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = (
        ([p for p in trained if p.ndim >= 2], section.weight_decay),
        ([p for p in trained if p.ndim < 2], 0.0),
    )
    return torch.optim.AdamW(
        [
            {"params": parameters, "peak_lr": section.learning_rate, "lr": 0.0, "weight_decay": decay}
            for parameters, decay in groups
            if parameters
        ],
        fused=True,
    )
