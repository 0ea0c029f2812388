"""A learner worker's side of vLLM's weight transfer: which tensors leave, and who sends them (`cluster.weight_transfer`).

What leaves is what `LearnerWorker.weights` and an export hold: bfloat16, adapters merged, under the names of the checkpoint.
Where the module's own tensors are just that but for their type, they are cast, and gathered where they are sharded, one after
another while they leave; so the policy is never whole in one place but with ipc, which keeps all tensors until they are read.
Merged weights, and those of layers that transformers joins when it loads them, go over the host: a whole copy of the policy in
bfloat16 stands in the memory of the GPU that sends them until `release`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.weight_transfer import Sender, endpoint, whole
from wildreward_ray.cluster.weights import checkpoint_names, ties_output
from wildreward_ray.policy.adapters import policy_weights

if TYPE_CHECKING:
    from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
    from wildreward_ray.policy.learner import Learner
    from wildreward_ray.reward.parallel import Layout, World

# The type of an export, so that a run does not depend on the way its weights take.
_DTYPE = torch.bfloat16

Named = list[tuple[str, Tensor]]


class WeightSending:
    """The methods of a learner worker that move weights into engines. `cluster.weight_transfer` says in which order.

    All workers' methods are called together. With nccl rank 0 sends, and the others only help to gather sharded weights.
    """

    config: OnlineDpoConfig
    world: World
    layout: Layout
    learner: Learner

    def __init__(self) -> None:
        self._sender: Sender | None = None
        self._outgoing: Named = []

    def prepare_sender(self, kind: Literal["nccl", "ipc"]) -> list[dict[str, Any]]:
        """Get ready for a new group of engines; one there was before is left.

        Returns:
            what `open_transfer` of each rollout replica gets; nothing where this worker sends none.

        Raises:
            UserError: the policy's checkpoint holds no safetensors.
        """
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if kind == "nccl" and self.world.rank:
            return []
        rollout = self.config.rollout
        address, port = endpoint() if kind == "nccl" else ("", 0)
        path = resolve_model(self.config.policy, flag="--policy")
        self._sender = Sender(
            kind,
            address=address,
            port=port,
            replicas=rollout.replicas,
            tensor_parallel=rollout.engine.tensor_parallel,
            dtype=_DTYPE,
            names=checkpoint_names(path, tied=ties_output(_base(self.layout.module).config)),
        )
        return [self._sender.init_info(replica) for replica in range(rollout.replicas)]

    def open_sender(self) -> None:
        """See `Sender.open`."""
        if self._sender is not None:
            self._sender.open()

    @torch.no_grad()
    def announce(self) -> dict[str, Any] | None:
        """Take the policy as it is now; nothing may change it until `release`. Returns what `receive` gets.

        None where this worker sends nothing.

        Raises:
            UserError: see `Sender.announce`.
        """
        if self._sender is None and not self.layout.sharded:
            return None
        named = own_tensors(self.layout.module)
        if named is None:
            merged = policy_weights(self.layout.module, keep=self._sender is not None)
            named = [(name, tensor.to(self.layout.device)) for name, tensor in merged.items()]
        self._outgoing = named
        return None if self._sender is None else self._sender.announce(named)

    @torch.no_grad()
    def send(self) -> None:
        """Send what was announced, or help the worker that does."""
        if self._sender is not None:
            self._sender.send()
        elif self.layout.sharded:
            for _ in whole(self._outgoing, _DTYPE):
                pass

    def release(self) -> None:
        """Let go of what was announced."""
        self._outgoing = []
        if self._sender is not None:
            self._sender.release()
        self._empty_cache()

    def make_room(self) -> None:
        """Give memory of the GPU that holds nothing of use back to it: an engine that shares it is about to wake."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._empty_cache()

    def _empty_cache(self) -> None:
        if self.layout.device.type == "cuda":
            torch.cuda.empty_cache()


def own_tensors(module: nn.Module) -> Named | None:
    """A module's own tensors if a checkpoint of it holds just these, tied ones once; else None.

    Called on all workers at once where weights are sharded: some layers may still be gathered, and asking shards them again.
    """
    from transformers.core_model_loading import revert_weight_conversion

    if hasattr(module, "peft_config"):
        return None
    unique: dict[int, tuple[str, Tensor]] = {}
    # The tensors themselves, not views of them: tied weights are told by identity.
    for name, tensor in module.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), (name, tensor))
    # Whatever is renamed, split, joined or turned does not come back under its name as the same object.
    marks: dict[str, Tensor] = {name: torch.empty(t.shape, device="meta") for name, t in unique.values()}
    base: Any = module
    files = revert_weight_conversion(base, dict(marks))
    if files.keys() != marks.keys() or any(files[name] is not mark for name, mark in marks.items()):
        return None
    return list(unique.values())


def _base(module: nn.Module) -> Any:
    """The transformers model itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
