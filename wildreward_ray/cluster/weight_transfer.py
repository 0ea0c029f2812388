"""Policy weights from a learner's GPU straight into running vLLM engines (vLLM's `distributed/weight_transfer`).

nccl: learner worker 0 and every worker process of every rollout engine form one group; the learner is rank 0 and broadcasts.
ipc: a rollout actor and a learner worker share one GPU; the engine reads the learner's tensors where they are.

Order of calls. L runs in a learner actor, R in a rollout actor; a line with both is one that the driver has to start on both
sides before it waits for either, because under nccl each side blocks until all others have come:

    once        L  sender = Sender(...)             R  start the engine with `engine_transfer_arguments`
                L  sender.open()              with  R  open_transfer(llm, sender.init_info(r))       nccl: blocks, 300 s at most
    each time   L  info = sender.announce(tensors)                                                   returns without the engines
                L  sender.send()              with  R  receive(llm, info)                            nccl: blocks until all take part
                L  sender.release()                                                                  after every R has returned
    at the end  L  sender.close()

- No request may run in an engine while it receives.
- Learner tensors must not change between `announce` and `release`.
- With nccl there is one Sender, in learner worker 0, for all replicas; with ipc one in each learner worker, whose `info` goes to
  the rollout actor on the same GPU, which is asleep: there R is `wake(llm, lambda: receive(llm, info))`.
- Of a sharded learner every worker has to make the tensors whole at the same time (the gathers are collective): with nccl the
  other workers iterate over `whole(tensors, dtype)` while worker 0 sends; with ipc all workers call `announce` together.
- A nccl group dies with any member. After a rollout actor was replaced, build a new Sender on a new port and open it with all.
- An engine whose `receive` failed has no usable weights and has to be replaced. What can be known beforehand is therefore checked
  in `announce`, when nobody waits yet.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch

from wildreward_ray.cluster.weights import EXTENSION, CheckpointNames, forget_prefixes
from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from vllm import LLM

Transfer = Literal["nccl", "ipc", "reload"]
NamedTensors = Iterable[tuple[str, torch.Tensor]]

# Both sides hold two of these beside weights and KV cache, which leave little room; vLLM's own default is 1 GiB.
_BUFFER_BYTES = 256 * 2**20
_FLAG = "--weights"


def choose_transfer(
    wanted: Literal["auto", "nccl", "ipc", "reload"], *, colocated: bool, rollout_gpus: float, learner_gpus: float
) -> Transfer:
    """How weights will travel: what is wanted, or by `auto` the fastest way that the placement allows.

    Args:
        colocated: a rollout actor and a learner worker share a GPU.
        rollout_gpus, learner_gpus: GPUs that one actor of each kind holds.

    Raises:
        UserError: the wanted way can't work there.
    """
    on_gpus = rollout_gpus > 0 and learner_gpus > 0
    if wanted == "auto":
        if not on_gpus:
            return "reload"
        return "ipc" if colocated else "nccl"
    if wanted == "reload":
        return wanted
    if not on_gpus:
        raise UserError(
            f"{wanted} moves weights between GPUs, and rollout.num_gpus is {rollout_gpus:g}, learner.num_gpus {learner_gpus:g}",
            flag=_FLAG,
            hint="give both kinds of actors GPUs, or use reload",
        )
    if wanted == "ipc" and not colocated:
        raise UserError(
            "ipc needs learner and engine on the same GPU, and placement.mode is separate", flag=_FLAG, hint="use nccl"
        )
    if wanted == "nccl" and colocated:
        raise UserError(
            "nccl refuses two members on one GPU, and placement.mode is colocated", flag=_FLAG, hint="use ipc"
        )
    return wanted


def engine_transfer_arguments(kind: Transfer) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that let an engine receive weights by `kind`."""
    if kind == "reload":
        return {"worker_extension_cls": EXTENSION}
    return {"weight_transfer_config": {"backend": kind}}


def engine_environment(kind: Transfer) -> dict[str, str]:
    """Environment variables a rollout actor needs before vLLM is imported there.

    With ipc the engine runs in the actor's own process. Handles of GPU memory are Python objects, which vLLM sends to an engine
    process of its own only if pickles are allowed everywhere (`VLLM_ALLOW_INSECURE_SERIALIZATION`).
    """
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if kind == "ipc" else {}


def open_transfer(llm: LLM, init_info: dict[str, Any]) -> None:
    """Get an engine ready to receive. With nccl it blocks until the learner's and all other engines' calls have come."""
    llm.init_weight_transfer_engine({"init_info": init_info})


def receive(llm: LLM, update_info: dict[str, Any]) -> int:
    """Replace an engine's weights by those that were announced. With nccl it blocks until the learner sends.

    Returns:
        the number of tensors.

    Raises:
        RuntimeError: requests were running; the engine's answers would mix old and new weights.
    """
    llm.start_weight_update()
    llm.update_weights({"update_info": update_info})
    llm.finish_weight_update()
    forget_prefixes(llm)
    return len(update_info["names"])


def endpoint() -> tuple[str, int]:
    """This node's address and a port that is free now: where a Sender in this process can be reached."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])


def whole(tensors: NamedTensors, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors one at a time as an engine takes them: shards gathered, floating types as `dtype`, contiguous."""
    for name, tensor in tensors:
        gather = getattr(tensor, "full_tensor", None)
        full = (tensor if gather is None else gather()).detach()
        yield name, full.to(_wire_dtype(full, dtype)).contiguous()


class Sender:
    """The learner's side of a transfer. The module says when to call what.

    Args:
        kind: nccl or ipc.
        address, port: where engines reach this process (`endpoint`); only nccl uses them.
        replicas: rollout engines.
        tensor_parallel: worker processes of each engine.
        dtype: type that floating tensors travel in; that of the engines, so that nothing is cast twice.
        names: the checkpoint that the engines were started from.
    """

    def __init__(
        self,
        kind: Literal["nccl", "ipc"],
        *,
        address: str,
        port: int,
        replicas: int,
        tensor_parallel: int,
        dtype: torch.dtype,
        names: CheckpointNames,
    ) -> None:
        self._kind, self._tensor_parallel, self._names = kind, tensor_parallel, names
        # What all members must agree on. The learner is one of them, beside every worker process of every engine.
        self._group: dict[str, Any] = {
            "master_address": address,
            "master_port": port,
            "world_size": 1 + replicas * tensor_parallel,
            "packed": True,
            "packed_buffer_size_bytes": _BUFFER_BYTES,
        }
        self._source, self._client = _Source(dtype, keep=kind == "ipc"), _Recorder()
        self._engine: Any = None

    def init_info(self, replica: int) -> dict[str, Any]:
        """What `open_transfer` of rollout replica `replica` (from 0) gets."""
        if self._kind == "ipc":
            return {"packed": False}
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo

        # A worker adds its rank inside its own engine. Each engine counts from 0, so each gets a range of its own.
        offset = 1 + replica * self._tensor_parallel
        return asdict(NCCLWeightTransferInitInfo(rank_offset=offset, **self._group))

    def open(self) -> None:
        """Form the group. With nccl it blocks until `open_transfer` runs for every replica.

        Raises:
            UserError: this process sees no GPU, or no NCCL library.
        """
        if not torch.cuda.is_available():
            raise UserError(f"{self._kind} needs a GPU, and the learner sees none", flag=_FLAG, hint="use reload")
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self._engine = WeightTransferTrainerFactory.trainer_init(
            self.trainer_info(), client=self._client, source=self._source
        )
        # vLLM's communicator turns every broadcast into nothing if it finds no library, and the engines would load whatever memory held.
        if self._kind == "nccl" and self._engine.model_update_group.disabled:
            raise UserError("vLLM finds no NCCL library in the learner's process", flag=_FLAG, hint="use reload")

    def trainer_info(self) -> Any:
        """What vLLM's trainer side gets. Its rank 0 sends, and every Sender does."""
        if self._kind == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0, packed=False)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(rank=0, **self._group)

    def announce(self, tensors: NamedTensors) -> dict[str, Any]:
        """Take the tensors of one update and say what engines will get: the argument of `receive`.

        With nccl nothing is gathered, cast or copied yet. With ipc every tensor is made whole and stays in GPU memory until
        `release`: one copy of the policy in the wire type, unless the learner holds it so.

        Raises:
            UserError: a tensor of the engines' checkpoint is missing, or one is unknown.
        """
        self._source.hold(tensors)
        meta = self._source.metadata()
        self._names.check([m.name for m in meta])
        if self._kind == "ipc":
            self._engine.send_weights()
            # The handles leave this process: what they point at has to be there.
            torch.cuda.synchronize()
            return self._client.update
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

        info = NCCLWeightTransferUpdateInfo(
            names=[m.name for m in meta],
            dtype_names=[str(m.dtype).removeprefix("torch.") for m in meta],
            shapes=[list(m.shape) for m in meta],
        )
        return asdict(info)

    def send(self) -> int:
        """Broadcast what was announced; with ipc the engines fetch it themselves and this does nothing.

        Returns:
            the number of tensors.
        """
        if self._kind == "nccl":
            self._engine.send_weights()
        return len(self._source)

    def release(self) -> None:
        """Let go of the announced tensors."""
        self._source.hold(())
        self._client.update = {}
        if self._kind == "ipc":
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Leave the group."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


class _Source:
    """One update as vLLM's trainer side reads it: names, types and shapes beforehand, then tensors in the same order.

    Args:
        keep: hold on to what was handed out, because a GPU memory handle doesn't keep its memory alive.
    """

    def __init__(self, dtype: torch.dtype, *, keep: bool) -> None:
        self._dtype, self._keep = dtype, keep
        self._named: list[tuple[str, torch.Tensor]] = []
        self._kept: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._named)

    def hold(self, tensors: NamedTensors) -> None:
        self._named, self._kept = list(tensors), []

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, _wire_dtype(t, self._dtype), tuple(t.shape)) for name, t in self._named]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in whole(self._named, self._dtype):
            if self._keep:
                self._kept.append(tensor)
            yield name, tensor


class _Recorder:
    """Stands where vLLM's trainer side expects a client of the engines. The driver calls the rollout actors, so it only keeps
    what they are to be given."""

    def __init__(self) -> None:
        self.update: dict[str, Any] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None:
        self.update = update_info

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def _wire_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype
