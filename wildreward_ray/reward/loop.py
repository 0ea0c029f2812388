"""The training loop: what one worker does, the same for one worker and for many.

The loss of a step is the weighted mean over the instances of its global batch, whatever the number of workers and the shapes
of the micro-batches: every worker sums its instances' losses, divides by the weight of the whole batch, and gradients are added up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from wildreward_ray.core.config.train import OptimSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.batching import plan_epoch, shard_step, token_batches
from wildreward_ray.reward.engine import pad_right
from wildreward_ray.reward.ordinal import cumulative_bce, encode_labels, sigmoid_p_gt, soft_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rows(Protocol):
    """Tokenised rows with random access.

    Attributes:
        lengths: [N] tokens of every row.
        labels: [N] labels 1..k.
        label_probs: [N, k] probabilities of the labels, or None.
    """

    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    label_probs: NDArray[np.float32] | None

    def ids(self, row: int) -> Sequence[int]:
        """Token ids of one row."""
        ...


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did, over all workers. `tokens` counts real tokens, `loss` is the mean over instances."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class World:
    """This worker's place among all of them."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


class Trainer:
    """Fits an ordinal reward model.

    Args:
        model: sequence classifier with k-1 logits, equal on all workers, on its device.
        rows: training rows, equal on all workers.
        k: number of levels.
        optim: settings of the optimisation.
        soft: train on `rows.label_probs` instead of labels.
        balanced: give all labels the same total weight.
        bf16: run the model under bfloat16 autocast; weights, gradients and the loss stay float32.

    Raises:
        UserError: no rows, labels of one level only, or soft targets without probabilities.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Rows,
        *,
        k: int,
        pad_token_id: int,
        epochs: int,
        optim: OptimSection,
        seed: int,
        soft: bool = False,
        balanced: bool = False,
        bf16: bool = False,
        world: World | None = None,
    ) -> None:
        _check_rows(rows, soft)
        self.model, self.rows, self.k, self.world = model, rows, k, world or World()
        self._pad, self._epochs, self._seed, self._optim = pad_token_id, epochs, seed, optim
        self._device = next(model.parameters()).device
        self._bf16 = bf16
        labels = torch.from_numpy(np.asarray(rows.labels, dtype=np.int64))
        # Out-of-range labels are refused whatever the targets are.
        hard = encode_labels(labels, k)
        probs = rows.label_probs
        self._targets = soft_targets(torch.from_numpy(probs).float()) if soft and probs is not None else hard
        self._weights = _class_weights(labels, k) if balanced else torch.ones(len(labels))
        self.steps_per_epoch = -(-len(labels) // optim.global_batch)
        self.total_steps = self.steps_per_epoch * epochs
        self._optimizer = torch.optim.AdamW(_parameter_groups(model, optim), lr=optim.learning_rate)
        factor = _schedule(optim, self.total_steps)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, factor)

    def run(self, on_step: Callable[[StepRecord], None]) -> None:
        """Train to the end; `on_step` is called on every worker after every optimizer step.

        Raises:
            UserError: the loss or the gradient became NaN or infinite; the weights are those before that step.
        """
        torch.manual_seed(self._seed + self.world.rank)
        step = 0
        for epoch in range(self._epochs):
            for micro_batches in self.plan(epoch):
                step += 1
                self.model.train()
                on_step(self._step(step, epoch, micro_batches))

    def plan(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        """The steps of an epoch and their micro-batches, the same on all workers."""
        return plan_epoch(
            self.rows.lengths,
            global_batch=self._optim.global_batch,
            token_budget=self._optim.token_budget,
            seed=self._seed,
            epoch=epoch,
        )

    def _step(self, step: int, epoch: int, micro_batches: list[NDArray[np.int64]]) -> StepRecord:
        started = time.monotonic()
        everything = np.concatenate(micro_batches)
        batch_weight = float(self._weights[torch.from_numpy(everything)].sum())
        self._optimizer.zero_grad(set_to_none=False)
        loss_sum = torch.zeros((), device=self._device)
        for rows in shard_step(micro_batches, self.rows.lengths, self.world.rank, self.world.size):
            loss = self._loss(rows) / batch_weight
            torch.autograd.backward(loss)
            loss_sum += loss.detach()
        self._reduce_gradients()
        loss_value = float(self.world.sum(loss_sum))
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._optim.clip_norm))
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise UserError(
                f"step {step}: the loss is {loss_value} and the gradient norm {norm}",
                flag="--optim.learning-rate",
                hint="lower it",
            )
        rate = float(self._scheduler.get_last_lr()[0])
        self._optimizer.step()
        self._scheduler.step()
        tokens = int(self.rows.lengths[everything].sum())
        return StepRecord(step, epoch, loss_value, rate, norm, tokens, time.monotonic() - started)

    def _loss(self, rows: NDArray[np.int64]) -> Tensor:
        """The weighted sum of the losses of some rows."""
        input_ids, mask = pad_right([self.rows.ids(int(row)) for row in rows], self._pad)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits = self.model(input_ids=input_ids.to(self._device), attention_mask=mask.to(self._device)).logits
        index = torch.from_numpy(rows)
        losses = cumulative_bce(logits, self._targets[index].to(self._device))
        return (losses * self._weights[index].to(self._device)).sum()

    def _reduce_gradients(self) -> None:
        """Add up gradients over workers, as one flat tensor a device: one collective instead of one a parameter."""
        if self.world.size == 1:
            return
        grads = [
            p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters() if p.requires_grad
        ]
        flat = self.world.sum(torch.cat([g.reshape(-1).float() for g in grads]))
        start = 0
        for parameter, grad in zip((p for p in self.model.parameters() if p.requires_grad), grads, strict=True):
            parameter.grad = flat[start : start + grad.numel()].view_as(grad).to(grad.dtype)
            start += grad.numel()


@torch.inference_mode()
def predict(
    model: PreTrainedModel, rows: Rows, *, k: int, pad_token_id: int, token_budget: int, world: World | None = None
) -> NDArray[np.float64]:
    """P(y > j) of every row, float64 [N, k-1]; rows are shared out among the workers and every worker gets them all."""
    world = world or World()
    device = next(model.parameters()).device
    model.eval()
    logits = torch.zeros(len(rows.lengths), k - 1, device=device)
    mine = np.arange(world.rank, len(rows.lengths), world.size)
    for batch in token_batches(mine, rows.lengths, token_budget):
        input_ids, mask = pad_right([rows.ids(int(row)) for row in batch], pad_token_id)
        output = model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits
        logits[torch.from_numpy(batch).to(device)] = output.float()
    return sigmoid_p_gt(world.sum(logits).cpu().numpy())


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
        raise UserError("the dataset has no label_probs to train on", flag="--soft-targets")


def _class_weights(labels: Tensor, k: int) -> Tensor:
    counts = torch.bincount(labels, minlength=k + 1).float()
    present = int((counts > 0).sum())
    return len(labels) / (present * counts[labels])


def _parameter_groups(model: PreTrainedModel, optim: OptimSection) -> list[dict[str, object]]:
    """Groups by decay and by rate: no decay on biases and norms, a rate of its own for the new head."""
    body = f"{model.base_model_prefix}."
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(body), parameter.ndim >= 2), []).append(parameter)
    head_rate = optim.head_learning_rate or optim.learning_rate
    return [
        {
            "params": parameters,
            "lr": optim.learning_rate if in_body else head_rate,
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (in_body, decays), parameters in _body_first(groups)
    ]


def _body_first(groups: dict[tuple[bool, bool], list[Tensor]]) -> Iterator[tuple[tuple[bool, bool], list[Tensor]]]:
    # The first group's rate is the one that is logged.
    yield from sorted(groups.items(), key=lambda item: item[0], reverse=True)


def _schedule(optim: OptimSection, total: int) -> Callable[[int], float]:
    warmup = math.ceil(optim.warmup_share * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if optim.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done

    return factor
