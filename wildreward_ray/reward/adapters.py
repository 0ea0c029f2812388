"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) through peft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from wildreward_ray.core.config.train import LoraSection
from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_adapters(model: PreTrainedModel, section: LoraSection) -> nn.Module:
    """The model with frozen weights and trainable adapters in float32; its head is trained as a whole.

    Raises:
        UserError: no layer has one of the names in `section.targets`.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.targets) if section.targets else "all-linear",
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as e:
        raise UserError(f"no adapters: {str(e).splitlines()[0]}", flag="--lora.targets") from e
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def merge_adapters(model: PreTrainedModel, section: LoraSection, state: dict[str, Tensor]) -> PreTrainedModel:
    """The model with trained adapters added to its weights, as an ordinary checkpoint has them.

    Args:
        model: the base, as `add_adapters` got it.
        state: trained weights by the names that `add_adapters` gave them.

    Raises:
        ValueError: a trained weight has no place in the model.
    """
    adapted = add_adapters(model, section)
    unexpected = adapted.load_state_dict(state, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"trained weights without a place: {unexpected[:3]}")
    merged: PreTrainedModel = adapted.merge_and_unload()  # type: ignore[operator]
    return merged
