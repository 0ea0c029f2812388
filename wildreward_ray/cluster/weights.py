"""New policy weights for a running vLLM engine, without restarting it.

The engine's workers load a safetensors file from shared memory. That is the way that works on CPU, where vLLM repacks weights
when it loads them and empties the parameters, so that they can only be replaced by loading a checkpoint again. On GPUs there
are faster ways: `weight_transfer`.

vLLM says little about a set of tensors that isn't the model's: one that is missing is a warning in its log at the most (a
missing `k_proj` not even that: the loaded `q_proj` stands for the fused layer, and the rest of the layer is memory that was never
written), and an unknown one raises only after the old weights are gone. `CheckpointNames` is therefore compared first.

Where an engine and the learner share a GPU they take turns, and the engine has no weights while it sleeps. `sleep` drops them
with the KV cache (vLLM's level 2; level 1 would keep a copy in the node's memory). Nothing is lost by it: the learner's weights
have to follow before the next sample, even after a step that had no pairs. `wake` makes room for the weights, has them put there
and only then brings back the KV cache, so that it never stands beside the engine's own buffers of an update. What the learner
keeps on the GPU stays there all the time (weights, optimizer, reference, and under ipc the tensors it announced): the engine's
`gpu_memory_share` has to leave room for that. No request may run at `sleep`, and the learner has to be idle meanwhile, because
vLLM measures the free memory of the whole GPU.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from vllm import LLM

T = TypeVar("T")

EXTENSION = f"{__name__}.WeightLoader"

_SHARED = "/dev/shm"
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Tables that some old checkpoints carry and that no model of today loads.
_TABLES = (".inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
# The output layer of a model that ties it to the embedding: some checkpoints hold it twice.
_OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class CheckpointNames:
    """Tensor names of the checkpoint an engine was started from.

    Attributes:
        needed: every update holds all of them.
        optional: an update may hold them.
    """

    needed: frozenset[str]
    optional: frozenset[str]

    def check(self, given: Collection[str]) -> None:
        """Raise unless `given` is the whole model and nothing else.

        Raises:
            UserError: names the first missing and the first unknown tensor.
        """
        missing = sorted(self.needed.difference(given))
        unknown = sorted(set(given) - self.needed - self.optional)
        if not missing and not unknown:
            return
        parts = [
            f"{word} {len(names)} of {len(self.needed)} tensors, first {names[0]!r}"
            for word, names in (("lacks", missing), ("has names the checkpoint doesn't know, beside", unknown))
            if names
        ]
        raise UserError(
            f"a weight update of the policy {' and '.join(parts)}",
            flag="--policy",
            hint="save the policy once with transformers' save_pretrained, so that its checkpoint has the model's own names",
        )


@functools.lru_cache(maxsize=8)
def checkpoint_names(model: str, *, tied: bool) -> CheckpointNames:
    """Tensor names of a safetensors checkpoint, from its index or its file's header.

    Args:
        model: path, or hub name whose files have been fetched already.
        tied: the model's output layer is its embedding, so that an update need not hold it.

    Raises:
        UserError: the checkpoint is gone, or it holds no safetensors.
    """
    from safetensors import safe_open

    index, single = _cached(model, _INDEX), _cached(model, _SINGLE)
    names: Collection[str]
    if index is not None:
        names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    elif single is not None:
        with safe_open(single, framework="pt") as file:
            names = list(file.keys())
    else:
        raise UserError(f"{model!r} holds neither {_SINGLE} nor {_INDEX}", flag="--policy")
    optional = {name for name in names if name.endswith(_TABLES)} | ({_OUTPUT} if tied else set())
    return CheckpointNames(frozenset(names) - optional, frozenset(optional))


def ties_output(config: Any) -> bool:
    """Whether a model with this Transformers configuration uses its embedding as output layer."""
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


class WeightLoader:
    """Mixed into vLLM's worker by `worker_extension_cls`; its methods are called by `collective_rpc`."""

    model_runner: Any
    reload_weights: Any

    def load_policy(self, file: str) -> int:
        """Replace all weights by those in a safetensors file. Returns how many tensors it holds."""
        from safetensors.torch import load_file
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        tensors = load_file(file)
        self.reload_weights(weights_iterator=iter(tensors.items()))
        # Reloading leaves out embeddings. Where one is the output layer as well, a CPU engine multiplies with a copy of it
        # that was packed when the engine started.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)
        return len(tensors)


def load_weights(llm: LLM, weights: Mapping[str, torch.Tensor]) -> int:
    """Put `weights` (names as in the checkpoint) into a running engine and forget what was computed with the old ones.

    Returns:
        the number of tensors loaded.

    Raises:
        UserError: a tensor of the model is missing, or one is unknown. The engine still has its old weights then.
    """
    from safetensors.torch import save_file

    config = llm.model_config
    checkpoint_names(str(config.model), tied=ties_output(config.hf_config)).check(weights.keys())
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    with tempfile.TemporaryDirectory(dir=_scratch(size)) as folder:
        file = Path(folder) / "policy.safetensors"
        save_file(dict(weights), file)
        loaded: list[int] = llm.collective_rpc("load_policy", args=(str(file),))
    if set(loaded) != {len(weights)}:
        raise RuntimeError(f"the engine's workers loaded {loaded} tensors each instead of {len(weights)}")
    forget_prefixes(llm)
    return len(weights)


def forget_prefixes(llm: LLM) -> None:
    """Drop cached prefixes: they hold keys and values of the old weights.

    Raises:
        RuntimeError: requests are still running.
    """
    if not llm.reset_prefix_cache():
        raise RuntimeError("the engine kept its prefix cache: requests were still running during a weight update")


def sleep_arguments(*, on_gpu: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that let an engine sleep. vLLM refuses them on CPU."""
    return {"enable_sleep_mode": True} if on_gpu else {}


def sleep(llm: LLM) -> None:
    """Give the GPU's memory to the learner: weights and KV cache are dropped, and `wake` has to follow before the next sample.

    On CPU nothing happens: there is no device memory to hand over, and the host's holds both. So a run that takes turns works
    there as well, in the same order.

    Raises:
        UserError: a GPU engine was started without `sleep_arguments`.
    """
    if _can_sleep(llm):
        llm.sleep(level=2)


def wake(llm: LLM, load: Callable[[], T]) -> T:
    """Take the GPU's memory back.

    Args:
        load: puts the new weights into the engine; it runs when there is room for them and not yet for the KV cache.

    Returns:
        what `load` returns. On CPU that is all that happens.

    Raises:
        UserError: a GPU engine was started without `sleep_arguments`.
    """
    if not _can_sleep(llm):
        return load()
    llm.wake_up(tags=["weights"])
    loaded = load()
    llm.wake_up(tags=["kv_cache"])
    return loaded


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


def _can_sleep(llm: LLM) -> bool:
    if llm.model_config.enable_sleep_mode:
        return True
    if llm.llm_engine.vllm_config.device_config.device_type == "cpu":
        return False
    raise UserError(
        "a GPU engine that shares its GPU was started without sleep mode, so the learner would find no memory",
        flag="--placement.mode",
        hint="use separate",
    )


def _scratch(size: int) -> str | None:
    """Shared memory if it has room for a file of `size` bytes of tensors, else the usual place: containers often have 64 MiB."""
    header = 2**24
    if os.path.isdir(_SHARED) and shutil.disk_usage(_SHARED).free > size + header:
        return _SHARED
    return None


def _cached(model: str, name: str) -> str | None:
    from transformers.utils import cached_file

    try:
        found: str | None = cached_file(
            model,
            name,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError as e:
        raise UserError(f"the checkpoint {model!r} can't be found any more: {e}", flag="--policy") from e
    return found
