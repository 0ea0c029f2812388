"""What one worker that learns in an online DPO run does: meet the others, load the policy, make steps, save, export."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
import torch.distributed as dist

from wildreward_ray.cluster.checkpoints import CheckpointStore, CheckpointWriter, fetch, read_info
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.storage import Location, first_line, upload
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.policy.adapters import add_adapters, policy_weights
from wildreward_ray.policy.learner import Learner
from wildreward_ray.policy.pairs import Pair, Sample
from wildreward_ray.reward.parallel import Layout, World, lay_out
from wildreward_ray.reward.training_state import restore, training_state
from wildreward_ray.stages.dpo_sending import WeightSending

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_FILE = "5GB"


class LearnerWorker(WeightSending):
    """One worker of the group. All workers' methods are called together, but `rendezvous`.

    Args:
        rank, size: this worker's place.
    """

    def __init__(self, config: OnlineDpoConfig, rank: int, size: int) -> None:
        self.config, self.world = config, World(rank, size)
        super().__init__()
        self._writer: CheckpointWriter | None = None
        self._local_rank, self._scratch = 0, Path()
        self._store: Any = None

    def rendezvous(self) -> str:
        """Start the store where the workers find each other, in this one. Returns its "host:port"."""
        host = ray.util.get_node_ip_address()
        self._store = meeting_store(host)
        return f"{host}:{self._store.port}"

    def join(self, address: str) -> None:
        """Meet the other workers, load the policy and get ready to learn.

        Args:
            address: what `rendezvous` of one of them gave.

        Raises:
            UserError: the policy can't be loaded, or can't be laid out or adapted as the settings say.
        """
        section = self.config.learner
        self._scratch = Path(tempfile.gettempdir()) / f"wildreward-learner-{address.replace(':', '-')}"
        if self.world.size > 1 or section.parallel.strategy == "fsdp2":
            host, _, port = address.rpartition(":")
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if section.num_gpus else "gloo",
                store=self._store or meeting_store(host, int(port)),
                rank=self.world.rank,
                world_size=self.world.size,
            )
        self._local_rank, here = self._neighbours()
        torch.set_num_threads(section.cpu_threads or max(1, len(os.sched_getaffinity(0)) // here))
        with _flags_of_learner():
            self.learner = self._learner(self._load())

    def step(
        self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair], beta: float | None = None
    ) -> dict[str, float]:
        """See `Learner.step`."""
        return self.learner.step(prompt_ids, pairs, beta=beta)

    def margin(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> float:
        """See `Learner.margin`."""
        return self.learner.margin(prompt_ids, pairs)

    def kl(self, prompt_ids: Sequence[Sequence[int]], samples: Sequence[Sample]) -> float:
        """See `Learner.kl`."""
        return self.learner.kl(prompt_ids, samples)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The policy's weights in bfloat16 by the names of its checkpoint; None but on rank 0."""
        first = self.world.rank == 0
        if not first and not self.layout.sharded:
            return None
        weights = policy_weights(self.layout.module, keep=first)
        return weights if first else None

    def save_checkpoint(self, step: int, place: Location, info: dict[str, Any]) -> None:
        """Begin to write weights and moments below `place`, once the checkpoint before is written.

        Args:
            step: of the run. Steps without pairs make it more than the optimizer's.
            place: directory of the checkpoints, the same on every call.
            info: JSON values that stand beside the weights in `checkpoint.json`.

        Raises:
            StorageError: the checkpoint before this one could not be written.
        """
        if self._writer is None:
            self._writer = CheckpointWriter(
                CheckpointStore(place),
                rank=self.world.rank,
                size=self.world.size,
                group=dist.new_group(backend="gloo") if self.world.size > 1 else None,
                keep=self.config.checkpoint.keep,
            )
        self._writer.save(step, self._state, {**info, "step": step, "updates": self.learner.done})

    def wait_checkpoint(self) -> None:
        """Return when the last checkpoint is whole.

        Raises:
            StorageError: it could not be written.
        """
        if self._writer is not None:
            self._writer.wait()

    def load_checkpoint(self, folder: Location) -> dict[str, Any]:
        """Load what `save_checkpoint` wrote, with any number of workers in any layout. Returns what stands beside it.

        Raises:
            StorageError: it is not whole, damaged, or of another model.
        """
        info = read_info(folder)
        if not isinstance(info.get("updates"), int):
            raise StorageError(f"{folder.uri!r} is no checkpoint of online DPO: it has no number of updates")
        first = self._local_rank == 0
        try:
            if first:
                fetch(folder, self._scratch)
            _barrier()
            source = folder.path if folder.is_local else self._scratch
            restore(self.layout.module, self.learner.optimizer, source)
            _barrier()
        finally:
            if first:
                shutil.rmtree(self._scratch, ignore_errors=True)
        self.learner.done = info["updates"]
        self._forget_empty_moments()
        return info

    def export(self, target: Location) -> None:
        """Write the policy as a Hugging Face checkpoint in bfloat16, with merged adapters, from rank 0 to `target`."""
        weights = self.weights()
        if weights is not None:
            with tempfile.TemporaryDirectory() as folder:
                self._write(Path(folder), weights)
                upload(Path(folder), target)

    def _neighbours(self) -> tuple[int, int]:
        """This worker's place among those of its machine, and how many they are."""
        if self.world.size == 1:
            return 0, 1
        addresses: list[Any] = [None] * self.world.size
        dist.all_gather_object(addresses, ray.util.get_node_ip_address())
        own = addresses[self.world.rank]
        return addresses[: self.world.rank].count(own), addresses.count(own)

    def _load(self) -> PreTrainedModel:
        """The policy as it is on disk, with its tokenizer and the settings that an export gives back."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        section, trust = self.config.learner, self.config.trust_remote_code
        path = resolve_model(self.config.policy, flag="--policy")
        # FSDP2 wants one type for all weights of a layer.
        half = bool(section.lora.rank and section.num_gpus) and section.precision == "bfloat16"
        half = half and section.parallel.strategy == "ddp"
        options = {} if section.parallel.attention == "auto" else {"attn_implementation": section.parallel.attention}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
            self._model_config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path,
                config=_for_learning(copy.deepcopy(self._model_config)),
                dtype=torch.bfloat16 if half else torch.float32,
                use_safetensors=True,
                trust_remote_code=trust,
                **options,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
            raise UserError(f"can't load the policy {self.config.policy!r}: {first_line(e)}", flag="--policy") from e
        self._generation_config = model.generation_config
        return model

    def _learner(self, model: PreTrainedModel) -> Learner:
        section = self.config.learner
        device = torch.device("cuda" if section.num_gpus else "cpu")
        bf16 = section.precision == "bfloat16"
        reference = None
        if section.lora.rank:
            torch.manual_seed(self.config.seed)  # adapters are drawn at random, on all workers alike
            module = add_adapters(model, section.lora)
        else:
            module = model
            frozen = copy.deepcopy(model).requires_grad_(False)
            # Nothing of it is exchanged but shards.
            world = self.world if section.parallel.strategy == "fsdp2" else World()
            plain = section.parallel.model_copy(update={"activation_checkpointing": False})
            reference = lay_out(frozen, plain, device=device, bf16=bf16, world=world)
        self.layout: Layout = lay_out(module, section.parallel, device=device, bf16=bf16, world=self.world)
        pad = self._tokenizer.pad_token_id
        learner = Learner(self.layout, reference, section, 0 if pad is None else pad)
        if section.parallel.activation_checkpointing:
            keep_recomputing(module)
        return learner

    def _state(self) -> dict[str, Any]:
        state = training_state(self.layout.module, self.learner.optimizer)
        self._forget_empty_moments()
        return state

    def _forget_empty_moments(self) -> None:
        """Undo the step of nothing by which torch makes the moments it saves: Adam would count it in its bias correction."""
        if not self.learner.done:
            self.learner.optimizer.state.clear()

    def _write(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        from transformers import AutoModelForCausalLM

        # The model in use may be sharded or adapted; an empty one of the same kind knows how its files are written.
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(
                copy.deepcopy(self._model_config),
                dtype=torch.bfloat16,
                trust_remote_code=self.config.trust_remote_code,
            )
        # The names are those of the files already.
        empty.save_pretrained(folder, state_dict=weights, max_shard_size=_MAX_FILE, save_original_format=False)
        if self._generation_config is not None:
            # As it came: `save_pretrained` refuses settings that contradict each other, which models are shipped with.
            self._generation_config.to_json_file(folder / "generation_config.json")
        self._tokenizer.save_pretrained(folder)


def meeting_store(host: str, port: int | None = None) -> Any:
    """The store (`torch.distributed.TCPStore`) by which processes find each other: the one at a port, or a new one.

    A new one listens before anybody is told: a port that is only chosen can be another process's by the time it is used.
    """
    new = port is None
    return dist.TCPStore(host, port or 0, is_master=new, wait_for_workers=False)  # type: ignore[attr-defined]


def keep_recomputing(module: torch.nn.Module) -> None:
    """Let layers compute their activations again though the model is in eval mode, where transformers stores them.

    The mode is that of each such layer alone, not of what is in it; `_for_learning` takes its dropout away.

    Raises:
        UserError: no layer of the model can.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    if not layers:
        raise UserError(
            f"the layers of a {type(module).__name__} can't compute activations again",
            flag="--learner.parallel.activation-checkpointing",
            hint="leave out",
        )
    for layer in layers:
        layer.training = True


def _for_learning(model_config: Any) -> Any:
    """A model's configuration without dropout and without a cache of keys and values, which only generation has use for."""
    for part in (model_config, model_config.get_text_config()):
        part.use_cache = False
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    return model_config


@contextlib.contextmanager
def _flags_of_learner() -> Iterator[None]:
    """Errors about the layout name the flags of this command, where they stand below `--learner`."""
    try:
        yield
    except UserError as e:
        if e.flag is None or not e.flag.startswith("--parallel."):
            raise
        raise UserError(e.problem, flag=f"--learner.{e.flag.removeprefix('--')}", hint=e.hint) from e


def _barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
