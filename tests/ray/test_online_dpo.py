"""`wildreward online-dpo` with a real rollout engine and rewards over real HTTP: the policy moves only by rewards that were given."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.ray.helpers import (
    Answer,
    free_port,
    json_lines_of,
    json_of,
    looks_whole,
    reward_server,
    score_reply,
    write_json_lines,
)
from wildreward_ray.cluster.reward_client import RewardClient
from wildreward_ray.cluster.weight_transfer import engine_transfer_arguments
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.policy.pairs import Pair, Sample
from wildreward_ray.stages import online_dpo
from wildreward_ray.stages.dpo_learner import LearnerActor
from wildreward_ray.stages.dpo_rollout import RolloutActor

pytestmark = pytest.mark.engine

PROMPTS = [{"prompt": f"Write {n} words about rain."} for n in ("two", "three", "five", "seven", "nine")]
SAMPLES, PER_STEP = 4, 2


def config_of(policy: str, url: str, folder: Path, **settings: Any) -> OnlineDpoConfig:
    small = {
        "steps": 3,
        "prompts_per_step": PER_STEP,
        "eval.prompts": 1,
        "staleness": 0,
        "tracking.kinds": (),
        "rollout.samples": SAMPLES,
        "rollout.max_tokens": 12,
        "rollout.engine.max_model_len": 256,
        "learner.learning_rate": 1e-3,
        "reward.retries": 1,
    }
    prompts = write_json_lines(folder / "prompts.jsonl", PROMPTS)
    given = {"policy": policy, "reward_url": url, "prompts": prompts, "output": str(folder / "out")}
    return OnlineDpoConfig.load(None, {**given, **small, **settings})


def shorter_is_better(reply: str) -> float:
    return 1 + 3 / (1 + len(reply) / 20)


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(Path(folder) / "model.safetensors")
    return loaded


def test_three_steps_move_the_policy_towards_what_was_rewarded(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    with reward_server(shorter_is_better) as server:
        result = online_dpo.run(config_of(tiny_policy, server.url, tmp_path))
    steps = json_lines_of(tmp_path / "out" / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    # A step samples with the weights of the step before, not with the first ones.
    assert [step["policy_version"] for step in steps] == [0, 1, 2]
    # One request a prompt: one before the first step for the held-out prompt, then those of each step.
    for step in steps:
        first = 1 + (step["step"] - 1) * PER_STEP
        given = [reward for rewards in server.given[first : first + PER_STEP] for reward in rewards]
        assert len(given) == SAMPLES * PER_STEP
        assert step["reward_mean"] == pytest.approx(statistics.fmean(given))
        assert step["pairs"] + sum(step["skipped"].values()) == PER_STEP
    assert steps[0]["dpo_margin"] == pytest.approx(0, abs=1e-3)
    summary = json_of(tmp_path / "out" / "summary.json")
    assert summary == result.summary
    assert summary["first_pairs"]["margin_after"] > 0
    exported = tmp_path / "out" / "policy"
    _, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"]
    assert AutoTokenizer.from_pretrained(exported).chat_template
    before, after = weights_of(tiny_policy), weights_of(exported)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert json_of(tmp_path / "out" / "manifest.json")["kind"] == "online_dpo"


def test_equal_rewards_change_nothing_and_every_prompt_is_counted_as_skipped(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    with reward_server(lambda reply: 2.5) as server:
        result = online_dpo.run(config_of(tiny_policy, server.url, tmp_path, steps=2))
    for step in json_lines_of(tmp_path / "out" / "metrics.jsonl"):
        assert step["pairs"] == 0
        assert step["skipped"] == {"margin": PER_STEP}
        assert step["dpo_loss"] is None
        assert step["reward_mean"] == pytest.approx(2.5)
    assert result.summary["first_pairs"] is None
    before, after = weights_of(tiny_policy), weights_of(tmp_path / "out" / "policy")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_after_an_update_the_rollout_engine_has_the_learners_weights(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    """Log-probabilities of one text under vLLM and under the learner's model, before and after the weights moved."""
    config = config_of(tiny_policy, "http://unused", tmp_path, **{"rollout.engine.dtype": "float32"})
    engine = engine_transfer_arguments("reload")
    rollout = RolloutActor.options(num_cpus=0.5).remote(tiny_policy, config.rollout, 0, engine)  # type: ignore[attr-defined]
    learner = LearnerActor.options(num_cpus=0.5).remote(config, 0, 1)
    ray.get(learner.join.remote(ray.get(learner.rendezvous.remote())))
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    text = list(tokenizer.encode("The rain in Spain falls mainly on the plain, and so did the policy."))
    prompt, rest = text[:4], tuple(text[4:])

    def engine_logprobs(actor: Any, ids: list[int]) -> list[float]:
        from vllm import SamplingParams

        output = actor._llm.generate(
            [{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False
        )[0]
        return [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]

    def learner_logprobs(actor: Any, ids: list[int]) -> list[float]:
        import copy

        import torch

        # Weights travel as bfloat16, and the engine computes in float32.
        model = copy.deepcopy(actor.learner.policy.module)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
        sequence = torch.tensor([ids])
        with torch.inference_mode():
            logits = model(input_ids=sequence).logits[0, :-1].log_softmax(-1)
        found: list[float] = logits.gather(-1, sequence[0, 1:, None])[:, 0].tolist()
        return found

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        engine, model = ray.get(
            [rollout.__ray_call__.remote(engine_logprobs, text), learner.__ray_call__.remote(learner_logprobs, text)]
        )
        return torch.tensor(engine), torch.tensor(model)

    try:
        engine_before, model_before = both()
        pair = Pair(0, Sample("good", rest, True), Sample("bad", tuple(reversed(rest)), True), 4.0, 1.0)
        for _ in range(3):
            ray.get(learner.step.remote([prompt], [pair]))
        ray.get(rollout.load.remote(learner.weights.remote(), 3))
        engine_after, model_after = both()
    finally:
        ray.kill(rollout)
        ray.kill(learner)
    assert (engine_before - model_before).abs().max() < 1e-4
    assert (model_after - model_before).abs().max() > 0.5
    # Far below what one tensor that stayed behind makes, such as an output layer that is the embedding as well.
    assert (engine_after - model_after).abs().max() < 1e-4


def test_a_service_that_is_down_is_found_before_any_engine_starts(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    """The policy has no weights: an engine that started first would say so."""
    policy = tmp_path / "no_weights"
    policy.mkdir()
    for file in Path(tiny_policy).iterdir():
        if file.suffix != ".safetensors":
            (policy / file.name).write_bytes(file.read_bytes())
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=url) as caught:
        online_dpo.run(config_of(str(policy), url, tmp_path))
    assert caught.value.flag == "--reward-url"
    assert looks_whole(tmp_path / "out") == []


def _nan(items: list[dict[str, Any]]) -> bytes:
    return score_reply([float("nan")] * len(items))


def _one_too_few(items: list[dict[str, Any]]) -> bytes:
    return score_reply([2.0] * (len(items) - 1))


def _error_object(items: list[dict[str, Any]]) -> bytes:
    return json.dumps({"error": "out of memory", "scores": None}).encode()


def _no_json(items: list[dict[str, Any]]) -> bytes:
    return b"<html>try again</html>"


@pytest.mark.parametrize("broken", [_nan, _one_too_few, _error_object, _no_json])
def test_a_reply_of_status_200_without_every_score_is_a_failure(broken: Answer) -> None:
    items = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "c"}]
    with reward_server(lambda reply: 2.0, answers=1, after=broken) as server:
        client = RewardClient(server.url, retries=0)
        assert [s.score for s in client.score(items)] == [2.0, 2.0]
        with pytest.raises(RewardUnavailableError, match=server.url):
            client.score(items)
        client.close()
