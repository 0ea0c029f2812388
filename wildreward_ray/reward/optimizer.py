"""AdamW and its schedule. The rate follows from the number of the step alone, so there is no scheduler state to save."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wildreward_ray.core.config.train import OptimSection


def make_optimizer(module: nn.Module, body: str, section: OptimSection) -> torch.optim.AdamW:
    """AdamW over what is to be trained, with a rate of its own for the head and no decay on biases and norms.

    Args:
        module: the model after it has been laid out.
        body: the attribute under which the model holds all but its head (`base_model_prefix` in transformers).
    """
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # Adapters put names of their own before those of the model.
            in_body = f".{body}." in f".{name}"
            groups.setdefault((in_body, parameter.ndim >= 2), []).append(parameter)
    head_rate = section.head_learning_rate or section.learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak_lr": section.learning_rate if in_body else head_rate,
                "lr": 0.0,
                "weight_decay": section.weight_decay if decays else 0.0,
            }
            # The body comes first: its rate is the one that is logged.
            for (in_body, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        ],
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, peaks: list[float], factor: float) -> float:
    """Set every group's rate to its peak times `factor`. Returns the first group's."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor
    return float(optimizer.param_groups[0]["lr"])


def rate_factor(section: OptimSection, step: int, total: int) -> float:
    """The share of the peak rate in a step, counted from 0 to `total` - 1: linear warm-up, then the chosen fall."""
    warmup = math.ceil(section.warmup_share * total)
    if step < warmup:
        return (step + 1) / warmup
    if section.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if section.schedule == "cosine" else 1 - done


def peaks_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The peak rate of every group."""
    return [float(group["peak_lr"]) for group in optimizer.param_groups]
