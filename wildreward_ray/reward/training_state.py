"""What a checkpoint of training holds: trained weights and the optimizer's moments, by names that no layout changes.

The schedule, the order of rows and the random numbers of dropout follow from the seed and the number of the step, so the
number is all that has to be kept of them. Formats: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load

from wildreward_ray.core.errors import StorageError

_TRAINED = StateDictOptions(ignore_frozen_params=True)


def training_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and moments as `torch.distributed.checkpoint` saves them; called on all workers at once."""
    model, moments = get_state_dict(module, optimizer, options=_TRAINED)
    return {"model": model, "optimizer": moments}


def restore(module: nn.Module, optimizer: torch.optim.Optimizer, folder: str | Path) -> None:
    """Load a checkpoint that any number of workers of any layout wrote; called on all workers at once.

    Raises:
        StorageError: it is damaged, or of a model with other weights.
    """
    peaks = [{name: group[name] for name in ("peak_lr", "weight_decay")} for group in optimizer.param_groups]
    state = training_state(module, optimizer)
    try:
        with _without_single_process_warning():
            load(state, checkpoint_id=str(folder))
    except (CheckpointException, ValueError, RuntimeError, OSError, KeyError) as e:
        raise StorageError(
            f"checkpoint {str(folder)!r} doesn't fit the model: {' '.join(str(e).split())[:300]}", flag="--resume-from"
        ) from e
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    set_state_dict(
        module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )
    # Rates and decay are this run's settings; what was saved of them is only how the other run ended.
    for group, settings in zip(optimizer.param_groups, peaks, strict=True):
        group.update(settings)


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """All trained weights on the CPU, on rank 0; other workers get nothing. Called on all workers at once."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state = get_model_state_dict(module, options=options)
    return {name: weight for name, weight in state.items() if isinstance(weight, Tensor)}


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield
