"""The training loop: what one worker does, the same for one worker and for many.

The loss of a step is the weighted mean over the instances of its global batch, whatever the number of workers, their layout
and the shapes of the micro-batches: every worker sums its instances' losses, divides by the weight of the whole batch, and
gradients are added up. Dropout is drawn from the seed, the step and the micro-batch, so it doesn't depend on the number of
workers either, and a run that goes on in the middle draws what an uninterrupted one would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildreward_ray.core.config.train import ObjectiveSection, OptimSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.batching import IntArray, deal, plan_epoch, token_batches
from wildreward_ray.reward.engine import pad_right
from wildreward_ray.reward.objectives import Objective, targets
from wildreward_ray.reward.optimizer import make_optimizer, peaks_of, rate_factor, set_rate
from wildreward_ray.reward.parallel import Layout
from wildreward_ray.reward.row_weights import row_weights


class Rows(Protocol):
    """Tokenised rows with random access.

    Attributes:
        lengths: [N] tokens of every row.
        labels: [N] labels 1..k.
        label_probs: [N, k] probabilities of the labels, or None.
        users: [N] who wrote the feedback, None where it isn't known; or None altogether.
    """

    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    label_probs: NDArray[np.float32] | None
    users: NDArray[np.object_] | None

    def ids(self, row: int) -> Sequence[int]:
        """Token ids of one row."""
        ...


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did, over all workers.

    Attributes:
        step: counted from 1.
        epoch: counted from 0.
        loss: weighted mean over instances, in nats.
        learning_rate: of the body.
        grad_norm: before clipping.
        tokens: real ones, without padding.
        seconds: wall time.
        workers: how many took part.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    workers: int


class NotFiniteError(UserError):
    """The loss or the gradient became NaN or infinite; the weights are those before the step."""


class Trainer:
    """Fits an ordinal reward model.

    Args:
        layout: sequence classifier with k-1 logits, equal on all workers.
        body: the attribute under which the model holds all but its head (`base_model_prefix`).
        rows: training rows, equal on all workers.
        k: number of levels.
        optim, objective: settings.
        parts: see `batching.plan_epoch`.

    Raises:
        UserError: no rows, labels of one level only, or targets or weights that the rows have nothing for.
    """

    def __init__(
        self,
        layout: Layout,
        body: str,
        rows: Rows,
        *,
        k: int,
        pad_token_id: int,
        epochs: int,
        optim: OptimSection,
        objective: ObjectiveSection,
        seed: int,
        parts: int = 1,
    ) -> None:
        _check_rows(rows, objective.soft_targets)
        self.layout, self.rows, self.k = layout, rows, k
        self._pad, self._epochs, self._seed, self._optim, self._parts = pad_token_id, epochs, seed, optim, parts
        self._objective = Objective(objective.loss, objective.monotonicity)
        self._targets = targets(
            torch.from_numpy(np.asarray(rows.labels, dtype=np.int64)),
            k,
            level_probs=torch.from_numpy(rows.label_probs)
            if objective.soft_targets and rows.label_probs is not None
            else None,
            label_smoothing=objective.label_smoothing,
        )
        weights = row_weights(
            rows.labels,
            k,
            class_weights=objective.class_weights,
            user_weights=objective.user_weights,
            users=rows.users,
            confidence_weights=objective.confidence_weights,
            level_probs=rows.label_probs,
        )
        self._weights = torch.from_numpy(weights).float()
        self.steps_per_epoch = -(-len(rows.labels) // optim.global_batch)
        self.total_steps = self.steps_per_epoch * epochs
        self.optimizer = make_optimizer(layout.module, body, optim)
        self._peaks = peaks_of(self.optimizer)

    def run(self, on_step: Callable[[StepRecord], None], *, done: int = 0) -> None:
        """Train to the end; `on_step` is called on every worker after every optimizer step.

        Args:
            done: optimizer steps that weights and moments have behind them.

        Raises:
            NotFiniteError: the loss or the gradient became NaN or infinite; the weights are those before that step.
        """
        for epoch in range(done // self.steps_per_epoch, self._epochs):
            first = epoch * self.steps_per_epoch
            for index, micro_batches in enumerate(self.plan(epoch)):
                if first + index >= done:
                    on_step(self._step(first + index, epoch, micro_batches))

    def plan(self, epoch: int) -> list[list[IntArray]]:
        """The steps of an epoch and their micro-batches, the same on all workers."""
        return plan_epoch(
            self.rows.lengths,
            global_batch=self._optim.global_batch,
            token_budget=self._optim.token_budget,
            seed=self._seed,
            epoch=epoch,
            parts=self._parts,
        )

    def _step(self, step: int, epoch: int, micro_batches: list[IntArray]) -> StepRecord:
        """Optimizer step number `step`, counted from 0."""
        started = time.monotonic()
        self.layout.module.train()
        everything = np.concatenate(micro_batches)
        # A batch in which no row counts has a loss of nothing over nothing: nothing.
        weight = float(self._weights[torch.from_numpy(everything)].sum()) or 1.0
        world = self.layout.world
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self.layout.device)
        mine = deal(micro_batches, self.rows.lengths, world.rank, world.size)
        for place, entry in enumerate(mine):
            last = place == len(mine) - 1
            with nullcontext() if last else self.layout.accumulating():
                loss = self._loss(step, entry, everything) / weight
                # Gradients are averaged over workers, and the sum is wanted.
                torch.autograd.backward(loss * world.size)
            loss_sum += loss.detach()
        loss_value = float(world.sum(loss_sum))
        norm = self.layout.clip_gradients(self._optim.clip_norm)
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise NotFiniteError(
                f"step {step + 1}: the loss is {loss_value} and the gradient norm {norm}",
                flag="--optim.learning-rate",
                hint="lower it",
            )
        rate = set_rate(self.optimizer, self._peaks, rate_factor(self._optim, step, self.total_steps))
        self.optimizer.step()
        tokens = int(self.rows.lengths[everything].sum())
        return StepRecord(step + 1, epoch, loss_value, rate, norm, tokens, time.monotonic() - started, world.size)

    def _loss(self, step: int, entry: tuple[int, IntArray] | None, everything: IntArray) -> Tensor:
        """The weighted sum of the losses of a micro-batch; nothing, with a gradient of nothing, where there is none."""
        if entry is None:
            shortest = everything[[int(np.argmin(self.rows.lengths[everything]))]]
            return self._logits(shortest).float().sum() * 0.0
        place, rows = entry
        seed = np.random.SeedSequence([self._seed, step, place]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        index = torch.from_numpy(rows)
        losses = self._objective.rows(self._logits(rows), self._targets[index].to(self.layout.device))
        return (losses * self._weights[index].to(self.layout.device)).sum()

    def _logits(self, rows: IntArray) -> Tensor:
        return self.layout.logits(*pad_right([self.rows.ids(int(row)) for row in rows], self._pad))


@torch.no_grad()
def predict(layout: Layout, rows: Rows, *, k: int, pad_token_id: int, token_budget: int) -> NDArray[np.float64]:
    """Logits of every row, [N, k-1]; rows are shared out among the workers and every worker gets them all."""
    layout.module.eval()
    logits = torch.zeros(len(rows.lengths), k - 1, device=layout.device)
    if len(rows.lengths):
        batches = list(token_batches(np.arange(len(rows.lengths)), rows.lengths, token_budget))
        for entry in deal(batches, rows.lengths, layout.world.rank, layout.world.size):
            # A worker without a batch takes part all the same, and its result is left out.
            chosen = batches[-1][:1] if entry is None else entry[1]
            found = layout.logits(*pad_right([rows.ids(int(row)) for row in chosen], pad_token_id)).float()
            if entry is not None:
                logits[torch.from_numpy(chosen).to(layout.device)] = found
    found_by_all: NDArray[np.float64] = layout.world.sum(logits).cpu().numpy().astype(np.float64)
    return found_by_all


def _check_rows(rows: Rows, soft: bool) -> None:
    present = np.unique(rows.labels)
    if len(rows.labels) == 0:
        raise UserError("the training set is empty", flag="--dataset")
    if len(present) < 2:
        raise UserError(
            f"all {len(rows.labels)} training rows have label {present[0]}: at least two levels are needed",
            flag="--dataset",
        )
    if soft and rows.label_probs is None:
        raise UserError("the dataset has no label_probs to train on", flag="--objective.soft-targets")
