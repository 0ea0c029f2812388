"""Laying a model out over workers: every worker holds it (DDP), or it is sharded (FSDP2). The training loop knows neither.

Both average gradients over workers, so a loss that is to be summed over workers is multiplied by their number first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wildreward_ray.core.config.train import ParallelSection
from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


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


@dataclass(frozen=True)
class Layout:
    """A model on its device and its workers.

    Attributes:
        module: the model itself, whose parameters and names the optimizer and checkpoints see.
        forward: what is called; `module`, or its wrapper.
        world: this worker's place.
        bf16: run it in bfloat16; weights, summed gradients and the loss stay float32.
        sharded: whether `module` holds a part of every weight only.
    """

    module: nn.Module
    forward: nn.Module
    world: World
    bf16: bool = False
    sharded: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def logits(self, input_ids: Tensor, attention_mask: Tensor, keep: int | None = None) -> Tensor:
        """Logits of [B, T] token ids; the gradient's last pass is the one outside of `accumulating`.

        Args:
            keep: of a language model, the number of last positions whose logits are wanted; None: all.

        Returns:
            [B, k-1] of a reward model, [B, keep, V] of a language model.
        """
        options = {} if keep is None else {"logits_to_keep": keep}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16 and not self.sharded):
            logits: Tensor = self.forward(
                input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device), **options
            ).logits
        return logits

    def accumulating(self) -> AbstractContextManager[Any]:
        """A context for all micro-batches of a step but the last, in which replicas don't exchange gradients yet.

        Shards do, after every micro-batch: whole gradients are what sharding is there to avoid.
        """
        return self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext()

    def clip_gradients(self, norm: float) -> float:
        """Scale gradients down to at most `norm` over all workers. Returns the norm they had."""
        found = torch.nn.utils.clip_grad_norm_(self.module.parameters(), norm)
        return float(found.full_tensor() if hasattr(found, "full_tensor") else found)


def lay_out(
    module: nn.Module, section: ParallelSection, *, device: torch.device, bf16: bool = False, world: World | None = None
) -> Layout:
    """Move a model to `device` and spread it over the workers, all of which call this with equal weights.

    Args:
        module: a transformers model, or one with adapters.

    Raises:
        UserError: FSDP2 finds no repeated layer to shard by, or the model can't compute activations again.
    """
    world = world or World()
    module.to(device)
    if section.activation_checkpointing:
        try:
            module.activation_checkpointing_enable()  # type: ignore[operator]
        except ValueError as e:
            raise UserError(str(e).splitlines()[0], flag="--parallel.activation-checkpointing", hint="leave out") from e
    layers = list(repeated_layers(module))
    if section.compile:
        # Layer by layer: they are alike, so one compilation serves them all.
        for layer in layers:
            layer.compile(dynamic=True)
    if section.strategy == "fsdp2":
        if not layers:
            raise UserError(
                f"a {type(module).__name__} has no list of layers to shard by",
                flag="--parallel.strategy",
                hint="use ddp",
            )
        _shard(module, layers, _mesh(device, world), bf16)
        return Layout(module, module, world, bf16, sharded=True)
    if world.size == 1:
        return Layout(module, module, world, bf16)
    replica = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
    return Layout(module, replica, world, bf16)


def repeated_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: the members of the module list that holds the most weights."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if lists:
        yield from max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _mesh(device: torch.device, world: World) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (world.size,))


def _shard(module: nn.Module, layers: list[nn.Module], mesh: DeviceMesh, bf16: bool) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, output_dtype=torch.float32
    )
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
