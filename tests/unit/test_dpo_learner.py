"""Workers that learn together learn what one of them learns alone, in any layout; what they save and export is read again."""

from __future__ import annotations

import faulthandler
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.policy.pairs import Pair, Sample
from wildreward_ray.reward.training_state import whole_weights
from wildreward_ray.stages.dpo_learner_worker import LearnerWorker, meeting_store

PROMPTS = [(3, 4, 5), (6, 7), (8, 9, 10, 11)]
REPLIES = [((20, 21, 22), (30, 31)), ((23, 24), (32, 33, 34)), ((26, 27, 28, 29), (37,))]
PAIRS = [
    Pair(i, Sample("good", good, True), Sample("bad", bad, True), 2.0, 1.0) for i, (good, bad) in enumerate(REPLIES)
]
SAMPLES = [Sample("good", good, True) for good, _ in REPLIES]
CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"parallel": {"strategy": "fsdp2"}},
    "ddp-lora": {"lora": {"rank": 4, "alpha": 8}},
    "fsdp2-lora": {
        "parallel": {"strategy": "fsdp2", "activation_checkpointing": True},
        "lora": {"rank": 4, "alpha": 8},
    },
}
SAVED = "fsdp2"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with tied embeddings, dropout and generation settings that contradict each other."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel({f"t{i}": i for i in range(64)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="t2").save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    return str(folder)


def config_of(policy: str, **learner: Any) -> OnlineDpoConfig:
    section = {"learning_rate": 1e-3, "micro_pairs": 1, "cpu_threads": 1, "warmup_steps": 4, **learner}
    return OnlineDpoConfig.model_validate(
        {"policy": policy, "reward_url": "http://localhost", "prompts": "p", "output": "o", "learner": section}
    )


def joined(policy: str, **learner: Any) -> LearnerWorker:
    worker = LearnerWorker(config_of(policy, **learner), 0, 1)
    worker.join(worker.rendezvous())
    return worker


def learn(worker: LearnerWorker) -> dict[str, Any]:
    """A step on three pairs, one on a single pair, and what the policy is then."""
    found: dict[str, Any] = {"kl_before": worker.kl(PROMPTS, SAMPLES)}
    found["steps"] = [worker.step(PROMPTS, PAIRS), worker.step(PROMPTS[:1], PAIRS[:1], beta=0.3)]
    found["margin"], found["kl"] = worker.margin(PROMPTS, PAIRS), worker.kl(PROMPTS[:1], SAMPLES[:1])
    # After passes that leave weights gathered.
    found["exported"] = worker.weights()
    found["weights"] = whole_weights(worker.layout.module)
    return found


def work(rank: int, policy: str, addresses: list[str], folder: str) -> None:
    """What each of two processes does, case after case. One that waits for ever says where."""
    faulthandler.dump_traceback_later(240, exit=True)
    results: dict[str, Any] = {}
    for (name, settings), address in zip(CASES.items(), addresses, strict=True):
        worker = LearnerWorker(config_of(policy, **settings), rank, 2)
        worker.join(address)
        results[name] = learn(worker)
        if name == SAVED:
            worker.save_checkpoint(9, locate(f"{folder}/checkpoints"), {"note": "two workers"})
            worker.wait_checkpoint()
            results["third"] = worker.step(PROMPTS, PAIRS)
            with torch.no_grad():
                for parameter in worker.layout.module.parameters():
                    parameter.fill_(float("nan"))
            try:
                worker.step(PROMPTS, PAIRS)
            except UserError as e:
                results["error"] = str(e)
        # Together: a worker that is gone already can take another one's last message with it.
        dist.barrier()
        dist.destroy_process_group()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def together(policy: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What two workers found, and where they saved."""
    folder = tmp_path_factory.mktemp("together")
    stores = [meeting_store("127.0.0.1") for _ in CASES]
    addresses = [f"127.0.0.1:{store.port}" for store in stores]
    spawn(work, (policy, addresses, str(folder)), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)], folder


def close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> bool:
    return set(found) == set(expected) and all(torch.allclose(found[n], t, atol=atol) for n, t in expected.items())


@pytest.mark.parametrize("case", CASES)
def test_two_workers_learn_what_one_learns_though_their_shares_are_unequal_or_empty(
    case: str, policy: str, together: tuple[list[dict[str, Any]], Path]
) -> None:
    alone = learn(joined(policy, **{key: value for key, value in CASES[case].items() if key == "lora"}))
    first, second = (results[case] for results in together[0])
    assert alone["kl_before"] == first["kl_before"] == 0.0
    for key in ("steps", "margin", "kl"):
        assert first[key] == second[key]
    for step, expected in zip(first["steps"], alone["steps"], strict=True):
        assert step == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert first["margin"] == pytest.approx(alone["margin"], abs=1e-5)
    assert first["kl"] == pytest.approx(alone["kl"], abs=1e-5)
    assert close(first["weights"], alone["weights"], 1e-5)
    # Workers that all stood still would agree too.
    assert alone["margin"] > 1e-4
    assert close(first["exported"], alone["exported"], 2e-3)
    assert second["exported"] is None


def test_a_fault_in_the_gradient_is_the_same_error_on_all_workers(
    together: tuple[list[dict[str, Any]], Path],
) -> None:
    first, second = (results["error"] for results in together[0])
    assert first == second
    assert "--learner.learning-rate" in first


def test_one_worker_goes_on_from_what_two_sharded_ones_saved(
    policy: str, together: tuple[list[dict[str, Any]], Path]
) -> None:
    results, folder = together
    worker = joined(policy)
    info = worker.load_checkpoint(locate(f"{folder}/checkpoints/step-00000009"))
    assert (info["step"], info["updates"], info["note"]) == (9, 2, "two workers")
    found = worker.step(PROMPTS, PAIRS)
    assert found == pytest.approx(results[0]["third"], rel=1e-4, abs=1e-5)
    assert found["learning_rate"] == 0.75e-3


def test_a_checkpoint_before_any_update_changes_nothing_for_who_saves_and_who_resumes(
    policy: str, tmp_path: Path
) -> None:
    """Saving makes moments by a step of nothing, which Adam's bias correction must not count."""
    untouched, saving, resumed = (joined(policy) for _ in range(3))
    saving.save_checkpoint(1, locate(str(tmp_path)), {})
    saving.wait_checkpoint()
    resumed.load_checkpoint(locate(str(tmp_path / "step-00000001")))
    for worker in (untouched, saving, resumed):
        worker.step(PROMPTS, PAIRS)
    expected = untouched.layout.module.state_dict()
    for worker in (saving, resumed):
        assert all(torch.equal(tensor, expected[n]) for n, tensor in worker.layout.module.state_dict().items())


def test_a_single_sharded_worker_goes_on_from_its_own_checkpoint_bit_for_bit(policy: str, tmp_path: Path) -> None:
    settings = {"parallel": {"strategy": "fsdp2"}}
    found = []
    for resumed in (False, True):
        try:
            worker = joined(policy, **settings)
            if resumed:
                worker.load_checkpoint(locate(str(tmp_path / "step-00000002")))
            else:
                worker.step(PROMPTS, PAIRS)
                worker.save_checkpoint(2, locate(str(tmp_path)), {})
                worker.wait_checkpoint()
            found.append(worker.step(PROMPTS, PAIRS))
        finally:
            dist.destroy_process_group()
    assert found[0] == found[1]


def test_a_checkpoint_of_something_else_is_refused(policy: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text(json.dumps({"step": 5}))
    with pytest.raises(StorageError, match="no number of updates"):
        joined(policy).load_checkpoint(locate(str(tmp_path)))


@pytest.mark.parametrize("rank", [0, 4])
def test_an_exported_policy_loads_with_the_learnt_weights_and_the_files_of_its_origin(
    rank: int, policy: str, tmp_path: Path
) -> None:
    worker = joined(policy, lora={"rank": rank}, learning_rate=0.02)
    worker.step(PROMPTS, PAIRS)
    worker.export(locate(str(tmp_path / "policy")))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32).eval()
    assert type(model) is LlamaForCausalLM
    ids = torch.tensor([[3, 4, 5, 20, 21]])
    with torch.no_grad():
        found = model(input_ids=ids).logits
        trained = worker.layout.logits(ids, torch.ones_like(ids))
        origin = AutoModelForCausalLM.from_pretrained(policy).eval()(input_ids=ids).logits
    assert (found - trained).abs().max() < 0.02
    assert (origin - trained).abs().max() > 0.03
    stored = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert (stored["dtype"], stored["use_cache"], stored["attention_dropout"]) == ("bfloat16", True, 0.2)
    generation = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.5
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").convert_tokens_to_ids("t7") == 7


def test_activations_are_computed_again_in_eval_mode_and_without_dropout(policy: str) -> None:
    calls = dict.fromkeys((False, True), 0)
    found = {}
    for again in calls:
        worker = joined(policy, parallel={"activation_checkpointing": again})
        for layer in worker.layout.module.get_submodule("model.layers").children():

            def count(*_: object, again: bool = again) -> None:
                calls[again] += 1

            layer.get_submodule("self_attn").register_forward_hook(count)
        found[again] = worker.step(PROMPTS, PAIRS)
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    # Two layers, three micro-batches: one more pass each.
    assert calls[True] == calls[False] + 6


def test_a_policy_that_is_not_there_is_refused_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        joined(str(tmp_path))
    assert caught.value.flag == "--policy"
