"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of a policy through peft, and its weights as others read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wildreward_ray.core.config.train import LoraSection
from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."


def add_adapters(model: PreTrainedModel, section: LoraSection) -> nn.Module:
    """The causal language model with frozen weights and trainable adapters in float32. `model` itself is changed.

    Raises:
        UserError: no layer has one of the names in `section.targets`; a layer that has is not linear, or shares its weights
            with another one, so that the adapters could not be merged; adapters with dropout, which learning does without.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if section.dropout:
        raise UserError(
            f"adapters with dropout {section.dropout}: DPO compares log-probabilities and learns without dropout",
            flag="--learner.lora.dropout",
            hint="leave out",
        )
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=list(section.targets) if section.targets else "all-linear",
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as e:
        raise UserError(f"no adapters: {str(e).splitlines()[0]}", flag="--learner.lora.targets") from e
    owners: dict[int, int] = {}
    for _, parameter in adapted.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, layer in _layers(adapted).items():
        base = layer.get_base_layer()
        if not isinstance(base, (nn.Linear, Conv1D)) or owners[id(base.weight)] > 1:
            reason = "shares its weights" if isinstance(base, (nn.Linear, Conv1D)) else f"is a {type(base).__name__}"
            raise UserError(
                f"no adapters on {name.removeprefix(_PREFIX)!r}: it {reason}",
                flag="--learner.lora.targets",
                hint="name linear layers with weights of their own",
            )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The model gives what its base gives.

    Adapters are scaled by 0. peft's own `disable_adapter` takes the gradient flag from their weights and gives it back later;
    FSDP2 keeps two tensors of a weight, and the flag would return to only one of them.

    Raises:
        ValueError: the model has no adapters.
    """
    layers = list(_layers(module).values())
    if not layers:
        raise ValueError(f"a {type(module).__name__} without adapters has nothing to turn off")
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update(dict.fromkeys(layer.scaling, 0.0))
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def policy_weights(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """The weights in bfloat16 on the CPU, adapters merged, under the names of the base model's checkpoint, tied ones once.

    Called on all workers at once where weights are sharded.

    Args:
        module: a transformers model, or what `add_adapters` made of one.
        keep: False where this worker only helps others to gather; it gets nothing.
    """
    layers = _layers(module)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    # The tensors themselves, not views of them: tied weights are told by identity. Asking also shards gathered weights again.
    for name, tensor in module.state_dict(keep_vars=True).items():
        if ".lora_" in name or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        whole = _whole(tensor)
        layer = layers.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None
        if layer is not None:
            whole = whole.float() + _delta(layer)
        if keep:
            dtype = torch.bfloat16 if whole.is_floating_point() else whole.dtype
            found[_base_name(name, bool(layers))] = whole.to("cpu", dtype).contiguous()
    return _as_in_checkpoint(module, found) if keep else {}


def _delta(layer: Any) -> Tensor:
    """What a layer's adapters add to its weight, in the weight's own orientation."""
    (name,) = layer.active_adapters
    lowered, raised = _whole(layer.lora_A[name].weight), _whole(layer.lora_B[name].weight)
    delta: Tensor = (raised @ lowered) * layer.scaling[name]
    return delta.T if layer.fan_in_fan_out else delta


def _whole(tensor: Tensor) -> Tensor:
    """A weight without its gradient, gathered where it is sharded."""
    whole = tensor.detach()
    return whole.full_tensor() if hasattr(whole, "full_tensor") else whole


def _base_name(name: str, adapted: bool) -> str:
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".") if adapted else name


def _as_in_checkpoint(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and shapes of the files: transformers joins some layers' weights when it loads them, e.g. those of experts."""
    from transformers.core_model_loading import revert_weight_conversion

    base: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    files: dict[str, Tensor] = revert_weight_conversion(base, weights)
    return {name: weight.contiguous() for name, weight in files.items()}


def _layers(module: nn.Module) -> dict[str, Any]:
    """The layers with adapters by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
