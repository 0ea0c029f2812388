"""Weights for running engines: nothing but the whole model goes in, both sides of a transfer agree, and turns keep their order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from wildreward_ray.cluster import weights as module
from wildreward_ray.cluster.weight_transfer import (
    Sender,
    choose_transfer,
    engine_transfer_arguments,
    receive,
    whole,
)
from wildreward_ray.cluster.weights import (
    CheckpointNames,
    checkpoint_names,
    load_weights,
    sleep,
    sleep_arguments,
    ties_output,
    unique_tensors,
    wake,
)
from wildreward_ray.core.errors import UserError


class Engine:
    """What the code under test sees of `vllm.LLM`; it writes down what is asked of it."""

    def __init__(self, model: str = "", *, gpu: bool = False, can_sleep: bool = False, idle: bool = True) -> None:
        config = AutoConfig.from_pretrained(model) if model else None
        self.model_config = SimpleNamespace(model=model, hf_config=config, enable_sleep_mode=can_sleep)
        device = SimpleNamespace(device_type="cuda" if gpu else "cpu")
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(device_config=device))
        self.calls: list[Any] = []
        self.loaded: dict[str, torch.Tensor] = {}
        self.idle, self.lost = idle, 0

    def collective_rpc(self, method: str, args: tuple[str, ...]) -> list[int]:
        self.calls.append(method)
        self.loaded = load_file(args[0])
        return [len(self.loaded) - self.lost]

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return self.idle

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", tags))

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: Mapping[str, Any]) -> None:
        self.calls.append(("update", request["update_info"]))

    def finish_weight_update(self) -> None:
        self.calls.append("finish")


def tensors(model: str) -> dict[str, torch.Tensor]:
    state = AutoModelForCausalLM.from_pretrained(model).state_dict()
    return unique_tensors(state, torch.bfloat16)


def tied_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


def engine(model: str, **options: bool) -> Any:
    return Engine(model, **options)


def test_an_update_arrives_whole_and_the_prefix_cache_goes(llama_base: str) -> None:
    given, llm = tensors(llama_base), engine(llama_base)
    assert load_weights(llm, given) == len(given)
    assert llm.calls == ["load_policy", "reset_prefix_cache"]
    assert all(torch.equal(llm.loaded[name], tensor) for name, tensor in given.items())
    assert llm.loaded.keys() == given.keys()


def test_a_missing_or_unknown_tensor_is_refused_while_the_engine_still_has_its_old_weights(llama_base: str) -> None:
    given, llm = tensors(llama_base), engine(llama_base)
    key = "model.layers.1.self_attn.k_proj.weight"
    partial = {name: t for name, t in given.items() if name != key}
    with pytest.raises(UserError, match=f"lacks 1 of {len(given)} tensors, first '{key}'"):
        load_weights(llm, partial)
    with pytest.raises(UserError, match=r"doesn't know.*'model.layers.2.mlp'"):
        load_weights(llm, {**given, "model.layers.2.mlp": torch.zeros(2)})
    assert llm.calls == []


def test_an_output_layer_may_be_missing_only_where_it_is_the_embedding(tmp_path: Path, llama_base: str) -> None:
    model = tied_model()
    model.save_pretrained(tmp_path)
    given = unique_tensors(model.state_dict(), torch.float32)
    assert "lm_head.weight" not in given
    assert load_weights(engine(str(tmp_path)), given) == len(given)
    assert not ties_output(AutoConfig.from_pretrained(llama_base))
    untied = {name: t for name, t in tensors(llama_base).items() if name != "lm_head.weight"}
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load_weights(engine(llama_base), untied)


def test_names_of_a_checkpoint_in_several_files_are_those_of_one(tmp_path: Path, llama_base: str) -> None:
    AutoModelForCausalLM.from_pretrained(llama_base).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = checkpoint_names(str(tmp_path), tied=False)
    assert found == checkpoint_names(llama_base, tied=False)
    assert found.needed == tensors(llama_base).keys()


def test_rotary_tables_of_old_checkpoints_are_not_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({"model.norm.weight": torch.ones(2), table: torch.ones(2)}, tmp_path / "model.safetensors")
    names = checkpoint_names(str(tmp_path), tied=False)
    assert names == CheckpointNames(frozenset({"model.norm.weight"}), frozenset({table}))


def test_a_checkpoint_that_is_gone_or_holds_no_safetensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        checkpoint_names(str(tmp_path), tied=False)
    with pytest.raises(UserError, match="can't be found any more"):
        checkpoint_names(str(tmp_path / "gone"), tied=False)


def test_an_engine_that_is_busy_or_lost_tensors_is_an_error(llama_base: str) -> None:
    given = tensors(llama_base)
    with pytest.raises(RuntimeError, match="requests were still running"):
        load_weights(engine(llama_base, idle=False), given)
    llm = engine(llama_base)
    llm.lost = 1
    with pytest.raises(RuntimeError, match=f"instead of {len(given)}"):
        load_weights(llm, given)


def test_shared_memory_without_room_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARED", str(tmp_path))
    assert module._scratch(0) == str(tmp_path)
    assert module._scratch(2**60) is None


def test_a_sleeping_engine_gets_weights_before_its_cache_comes_back() -> None:
    llm = engine("", gpu=True, can_sleep=True)
    sleep(llm)
    assert wake(llm, lambda: llm.calls.append("load") or 7) == 7
    assert llm.calls == [("sleep", 2), ("wake_up", ["weights"]), "load", ("wake_up", ["kv_cache"])]


def test_turns_work_without_sleep_on_cpu_and_not_on_a_gpu() -> None:
    llm = engine("")
    sleep(llm)
    assert wake(llm, lambda: 7) == 7
    assert llm.calls == []
    assert (sleep_arguments(on_gpu=True), sleep_arguments(on_gpu=False)) == ({"enable_sleep_mode": True}, {})
    awake = engine("", gpu=True)
    with pytest.raises(UserError, match="without sleep mode"):
        sleep(awake)
    with pytest.raises(UserError, match="without sleep mode"):
        wake(awake, lambda: 7)


@pytest.mark.parametrize(
    ("wanted", "colocated", "rollout", "learner", "chosen"),
    [
        ("auto", False, 0, 0, "reload"),
        ("auto", True, 0, 0, "reload"),
        ("auto", False, 1, 0, "reload"),
        ("auto", False, 2, 1, "nccl"),
        ("auto", True, 1, 1, "ipc"),
        ("reload", True, 1, 1, "reload"),
        ("nccl", False, 1, 1, "nccl"),
        ("ipc", True, 0.5, 0.5, "ipc"),
    ],
)
def test_the_way_of_weights_follows_the_placement(
    wanted: Any, colocated: bool, rollout: float, learner: float, chosen: str
) -> None:
    assert choose_transfer(wanted, colocated=colocated, rollout_gpus=rollout, learner_gpus=learner) == chosen


@pytest.mark.parametrize(
    ("wanted", "colocated", "learner", "hint"),
    [
        ("nccl", False, 0, "reload"),
        ("ipc", True, 0, "reload"),
        ("ipc", False, 1, "use nccl"),
        ("nccl", True, 1, "use ipc"),
    ],
)
def test_a_way_that_can_not_work_is_refused(wanted: Any, colocated: bool, learner: float, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as e:
        choose_transfer(wanted, colocated=colocated, rollout_gpus=1, learner_gpus=learner)
    assert e.value.flag == "--weights"


def sender(kind: Any = "nccl", *, replicas: int = 1, parallel: int = 1, names: CheckpointNames | None = None) -> Sender:
    return Sender(
        kind,
        address="10.0.0.1",
        port=1234,
        replicas=replicas,
        tensor_parallel=parallel,
        dtype=torch.bfloat16,
        names=names or CheckpointNames(frozenset({"a", "b", "n"}), frozenset()),
    )


# The first is not contiguous, the last is no floating type.
TENSORS = [("b", torch.arange(6.0).reshape(2, 3).T), ("a", torch.full((2,), 1.5)), ("n", torch.tensor([300]))]


def test_tensors_travel_contiguous_in_the_engines_type() -> None:
    sent = dict(whole(TENSORS, torch.bfloat16))
    assert [t.dtype for t in sent.values()] == [torch.bfloat16, torch.bfloat16, torch.int64]
    assert all(t.is_contiguous() for t in sent.values())
    assert torch.equal(sent["b"].float(), TENSORS[0][1])


def test_a_part_of_the_model_is_refused_before_anyone_waits() -> None:
    with pytest.raises(UserError, match="lacks 1 of 3 tensors, first 'n'"):
        sender().announce(TENSORS[:2])


def test_a_learner_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="the learner sees none") as e:
        sender().open()
    assert e.value.flag == "--weights"


def test_an_engine_forgets_its_prefixes_after_the_update() -> None:
    llm = engine("")
    assert receive(llm, {"names": ["a", "b"]}) == 2
    assert llm.calls == ["start", ("update", {"names": ["a", "b"]}), "finish", "reset_prefix_cache"]


def test_vllm_takes_the_engine_arguments_and_the_trainers_info() -> None:
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo
    from vllm.engine.arg_utils import EngineArgs

    for kind in ("nccl", "ipc"):
        arguments = EngineArgs(model="any", **engine_transfer_arguments(kind))
        assert arguments.weight_transfer_config == WeightTransferConfig(backend=kind)
        assert kind in WeightTransferEngineFactory._registry
        info = sender(kind).trainer_info()
        assert info.is_sender
        assert WeightTransferTrainerFactory._registry[info.backend]().init_info_cls is type(info)
    assert IPCWeightTransferInitInfo(**sender("ipc").init_info(0)).packed is sender("ipc").trainer_info().packed
    arguments = EngineArgs(model="any", **engine_transfer_arguments("reload"))
    assert arguments.worker_extension_cls == "wildreward_ray.cluster.weights.WeightLoader"


def test_every_worker_of_every_engine_has_a_rank_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import nccl_common

    joined: list[tuple[Any, ...]] = []
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", lambda *a, device: joined.append(a))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    many = sender(replicas=3, parallel=2)
    for replica in range(3):
        info = nccl_common.NCCLWeightTransferInitInfo(**many.init_info(replica))
        for rank in range(2):
            parallel: Any = SimpleNamespace(data_parallel_index=0, world_size=2, rank=rank)
            nccl_common.worker_init_process_group(info, parallel)
        trainer = many.trainer_info()
        shared = (
            "master_address",
            "master_port",
            "world_size",
            "packed",
            "packed_buffer_size_bytes",
            "packed_num_buffers",
        )
        assert [getattr(info, name) for name in shared] == [getattr(trainer, name) for name in shared]
    # Rank 0 is the learner's.
    assert [(a[2], a[3]) for a in joined] == [(rank, 7) for rank in range(1, 7)]


class Wire:
    """Stands for both ends of an nccl group: what one side broadcasts, the other receives in the same order."""

    disabled = False

    def __init__(self) -> None:
        self.queue: list[torch.Tensor] = []
        self.sending = True

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        if self.sending:
            self.queue.append(tensor.clone())
        else:
            arrived = self.queue.pop(0)
            assert (tensor.dtype, tensor.shape) == (arrived.dtype, arrived.shape)
            tensor.copy_(arrived)


def test_vllms_receiver_reads_what_the_sender_announced_and_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine, NCCLWeightTransferEngine

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    wire, learner = Wire(), sender()
    # One by one: packing needs CUDA streams.
    trainer = NCCLTrainerWeightTransferEngine(client=learner._client, source=learner._source, packed=False)
    trainer.model_update_group = wire
    learner._engine = trainer
    loaded: dict[str, torch.Tensor] = {}
    model: Any = SimpleNamespace(load_weights=loaded.update)
    settings: Any = SimpleNamespace(parallel_config=None, model_config=None)
    worker = NCCLWeightTransferEngine(WeightTransferConfig(backend="nccl"), settings, torch.device("cpu"), model)
    worker.model_update_group = wire
    for factor in (1, 2):  # the group and the source serve more than one update
        info = learner.announce([(name, tensor * factor) for name, tensor in TENSORS])
        assert learner.send() == 3
        wire.sending = False
        worker.receive_weights(worker.parse_update_info(info))
        wire.sending = True
        assert wire.queue == []
        assert list(loaded) == [name for name, _ in TENSORS]
        assert all(torch.equal(loaded[name].float(), (tensor * factor).float()) for name, tensor in TENSORS)
        learner.release()
        loaded.clear()
