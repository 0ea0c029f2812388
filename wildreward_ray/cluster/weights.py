"""New policy weights for a running vLLM engine, without restarting it.

The engine's workers load a safetensors file from shared memory. That is the way that works on CPU, where vLLM repacks weights
when it loads them and empties the parameters, so that they can only be replaced by loading a checkpoint again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm import LLM

EXTENSION = f"{__name__}.WeightLoader"


class WeightLoader:
    """Mixed into vLLM's worker by `worker_extension_cls`; its methods are called by `collective_rpc`."""

    model_runner: Any

    def load_policy(self, file: str) -> int:
        """Replace all weights by those in a safetensors file. Returns how many tensors it holds."""
        from safetensors.torch import load_file

        tensors = load_file(file)
        self.model_runner.reload_weights(weights_iterator=iter(tensors.items()))
        return len(tensors)


def load_weights(llm: LLM, weights: Mapping[str, torch.Tensor]) -> int:
    """Put `weights` (names as in the checkpoint) into a running engine and forget what was computed with the old ones.

    Returns:
        the number of tensors loaded.
    """
    from safetensors.torch import save_file

    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        file = Path(folder) / "policy.safetensors"
        save_file(dict(weights), file)
        loaded: list[int] = llm.collective_rpc("load_policy", args=(str(file),))
    # Cached prefixes hold keys and values of the old weights.
    if not llm.reset_prefix_cache():
        raise RuntimeError("the engine kept its prefix cache: requests were still running during a weight update")
    return loaded[0]


def unique_tensors(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict on the CPU in `dtype`, with tied weights once: under the name that comes first."""
    seen: set[tuple[int, torch.Size]] = set()
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen.add(key)
            unique[name] = tensor.detach().to("cpu", dtype).contiguous()
    return unique
