"""The measuring of online DPO: what is asked for, which steps count, what the figures say, and the reward that costs nothing."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import model_validator
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wildreward_ray.cluster.reward_client import RewardClient
from wildreward_ray.core.config.bench import BenchConfig, OnlineDpoBench
from wildreward_ray.core.errors import RewardRefusedError, UserError, WildRewardError
from wildreward_ray.core.wire import Score, ScoreRequest
from wildreward_ray.stages import bench_online_dpo, bench_online_dpo_reward
from wildreward_ray.stages.bench_online_dpo import Bench, write_prompts
from wildreward_ray.stages.bench_online_dpo_figures import (
    Sampled,
    counted,
    generation,
    overlap,
    ratios,
    throughput,
    trl_figures,
)
from wildreward_ray.stages.bench_online_dpo_reward import reward_of, reward_server
from wildreward_ray.stages.bench_online_dpo_trl import TrlResult, TrlRun, check_trl, rewards_from, train
from wildreward_ray.stages.bench_serve_load import apart

NOT_COUNTED = 1e6
STEPS = 6
WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", "user:", "assistant:", *(f"w{i}" for i in range(40))]


def row(number: int, **seconds: float) -> dict[str, Any]:
    """Metrics of a step; the times of steps that do not count are absurd."""
    strange = number <= 2 or number == STEPS
    times = {"rollout": 4.0, "score": 0.5, "learn": 3.0, "sync": 0.25, "step": 8.0, **seconds}
    return {
        "step": number,
        "staleness": 1,
        "pairs": 0 if strange else 7,
        "rollout_tokens_per_s": NOT_COUNTED if strange else 100.0,
        "seconds": dict.fromkeys(times, NOT_COUNTED) if strange else times,
        "idle": dict.fromkeys(("rollout", "reward", "learner"), 1.0 if strange else 0.5),
    }


def rows(**seconds: float) -> list[dict[str, Any]]:
    return [row(number, **seconds) for number in range(1, STEPS + 1)]


def logs(folder: Path, prompts: Sequence[str]) -> str:
    roles = ("user", "assistant", "user")
    lines = [
        json.dumps({"messages": [{"role": r, "content": c} for r, c in zip(roles, (p, "yes", "thanks"), strict=True)]})
        for p in prompts
    ]
    file = folder / "logs.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def bench_config(**settings: Any) -> BenchConfig:
    return BenchConfig.model_validate({"stage": "online-dpo", "online_dpo": settings})


def policy(folder: Path) -> str:
    """A tiny policy with a chat template."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_parts_are_words_with_or_without_commas() -> None:
    for value in ("trl,overlap", ["trl", "overlap"]):
        config = BenchConfig.load(None, {"stage": "online-dpo", "online_dpo.parts": value})
        assert config.online_dpo.parts == ("trl", "overlap")


@pytest.mark.parametrize("setting", [{"samples": 4}, {"gpu": True}])
def test_what_trl_can_not_do_is_compared_without_it_only(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave `trl` out"):
        OnlineDpoBench(**setting)
    assert OnlineDpoBench(parts=("overlap",), **setting).parts == ("overlap",)


def test_the_first_two_steps_and_the_last_do_not_count() -> None:
    assert list(counted([1, 2, 3, 4, 5, 6])) == [3, 4, 5]
    least = OnlineDpoBench.model_fields["steps"].metadata[0].ge
    assert len(counted(range(least))) == 1


def test_a_step_is_held_against_the_slowest_part_alone() -> None:
    found = overlap(rows(rollout=4.0, learn=3.0, step=8.0), rows(rollout=4.9, learn=4.8, sync=0.3, step=5.0))
    assert found["slowest_part"] == "rollout"
    assert found["overlap_ratio"] == 1.25
    assert (found["step_s_staleness_0"], found["step_s_staleness_1"]) == (8.0, 5.0)
    assert (found["sync_s_staleness_0"], found["sync_s_staleness_1"]) == (0.25, 0.3)
    assert found["idle_learner_staleness_1"] == 0.5
    assert overlap(rows(learn=10.0), rows(step=12.0))["overlap_ratio"] == 1.2


def test_a_counted_step_without_a_pair_is_an_error() -> None:
    found = rows()
    found[3]["pairs"] = 0
    with pytest.raises(WildRewardError, match="step 4 made no pair"):
        overlap(rows(), found)
    with pytest.raises(WildRewardError, match="step 4 made no pair"):
        throughput({"overlapped": found}, 8)


def test_rates_are_tokens_over_seconds_of_all_steps_together() -> None:
    found = rows()
    # 100 tokens in 1 s, 100 in 4 s and 400 in 4 s: 600 in 9 s, whatever the mean of the three rates is.
    for current, seconds, tokens in zip(counted(found), (1.0, 4.0, 4.0), (100, 100, 400), strict=True):
        current["seconds"]["rollout"], current["rollout_tokens_per_s"] = seconds, tokens / seconds
    strange = Sampled(1, NOT_COUNTED)
    before, after = ([strange, strange, *(Sampled(100, seconds) for _ in range(3)), strange] for seconds in (1.0, 3.0))
    figures = generation(found, before, after)
    assert figures["rollout_tokens_per_s"] == round(600 / 9, 1)
    assert (figures["raw_before_tokens_per_s"], figures["raw_after_tokens_per_s"]) == (100.0, 33.3)
    assert figures["raw_tokens_per_s"] == 50.0
    assert ratios({"rollout_tokens_per_s": 45.0, "raw_tokens_per_s": 50.0}) == {"generation_ratio": 0.9}


def test_prompts_a_second_are_those_of_the_same_steps_on_both_sides() -> None:
    mine = throughput({"in_turn": rows(step=4.0, learn=3.0), "overlapped": rows(step=5.0)}, 8)
    theirs = trl_figures(TrlResult("1.0", [NOT_COUNTED, NOT_COUNTED, 7.0, 8.0, 9.0, NOT_COUNTED]), 8)
    assert (mine["prompts_per_s"], theirs["trl_prompts_per_s"]) == (2.0, 1.0)
    assert (mine["fastest"], mine["prompts_per_s_overlapped"]) == ("in_turn", 1.6)
    assert (mine["learn_s_in_turn"], mine["pairs_per_step_in_turn"]) == (3.0, 7)
    assert ratios(mine | theirs) == {"prompts_over_trl": 2.0}
    assert ratios(mine) == {}


def test_the_reward_client_believes_the_reward_server() -> None:
    items = [{"prompt": "Why?", "response": "x" * n} for n in (0, 1, 200, 5000)]
    with reward_server() as url, RewardClient(url) as client:
        assert client.health().levels == 4
        scores = [found.score for found in client.score(items)]
        with pytest.raises(RewardRefusedError, match="HTTP 422"):
            client.score([{"prompt": "Why?"}])
        # A refused request leaves the connection in order.
        assert client.score(items[:1])[0].score == 4.0
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert all(1 <= score <= 4 for score in scores)
    assert scores[2] == reward_of("x" * 200).score == 2.5


def test_the_reward_server_answers_many_connections_at_a_time() -> None:
    groups = [[{"prompt": "Why?", "response": "x" * n}] for n in range(64)]
    with reward_server() as url, RewardClient(url, concurrency=32) as client:
        scores = client.score_groups(groups)
    assert [group[0].score for group in scores] == [reward_of("x" * n).score for n in range(64)]


def test_prompts_are_short_first_messages_each_once(tmp_path: Path) -> None:
    source = logs(tmp_path, ["w1", "w2 " * 200, "w1", " w3 ", "w4", "w5", "w6"])
    target = tmp_path / "prompts.jsonl"
    write_prompts(bench_config(steps=4, prompts_per_step=1), (source,), target)
    assert [json.loads(line)["prompt"] for line in target.read_text().splitlines()] == ["w1", "w3", "w4", "w5", "w6"]
    with pytest.raises(UserError, match=r"5 different prompts .* 8 are needed"):
        write_prompts(bench_config(steps=4, prompts_per_step=2), (source,), target)


def test_no_step_has_a_prompt_of_another(tmp_path: Path) -> None:
    source = logs(tmp_path, [f"w{i}" for i in range(13)])
    config = bench_config(steps=4, prompts_per_step=3, policy=policy(tmp_path / "policy"))
    write_prompts(config, (source,), tmp_path / "prompts.jsonl")
    batches = Bench(config.online_dpo, str(tmp_path), "http://127.0.0.1:1").batches
    assert [len(batch) for batch in batches] == [3] * 4
    assert len({prompt.prompt for batch in batches for prompt in batch}) == 12


def test_engine_and_learner_get_half_of_the_cores_each_and_stop_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    config = Bench(OnlineDpoBench(steps=200), "folder", "http://127.0.0.1:1").settings(1)
    assert (config.rollout.engine.cpu_threads, config.learner.cpu_threads) == (3, 3)
    assert (config.staleness, config.eval.prompts, config.checkpoint.every) == (1, 0, 200)
    in_turn = Bench(OnlineDpoBench(steps=200), "folder", "http://127.0.0.1:1").settings(0, in_turn=True)
    assert (in_turn.rollout.engine.cpu_threads, in_turn.learner.cpu_threads) == (6, 6)
    on_gpus = Bench(OnlineDpoBench(parts=("overlap",), gpu=True), "folder", "http://127.0.0.1:1").settings(0)
    assert (on_gpus.rollout.num_gpus, on_gpus.learner.num_gpus, on_gpus.learner.cpu_threads) == (1, 1, None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert Bench(OnlineDpoBench(), "folder", "http://127.0.0.1:1").settings(0).learner.cpu_threads == 1


@pytest.mark.parametrize(
    ("part", "expected"),
    [("overlap", [0, 1]), ("generation", ["raw", 0, "raw"]), ("trl", ["trl", "in turn", 1])],
)
def test_only_what_a_part_needs_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, expected: list[Any]
) -> None:
    asked: list[Any] = []

    def run(self: Bench, staleness: int, *, in_turn: bool = False) -> list[dict[str, Any]]:
        name = "in turn" if in_turn else staleness
        if name not in asked:
            asked.append(name)
        return rows()

    def raw(self: Bench) -> list[Sampled]:
        asked.append("raw")
        return [Sampled(100, 1.0)] * STEPS

    def trl(self: Bench) -> TrlResult:
        asked.append("trl")
        return TrlResult("1.0", [16.0] * STEPS)

    monkeypatch.setattr(bench_online_dpo, "check_trl", lambda: None)
    monkeypatch.setattr(Bench, "rows", run)
    monkeypatch.setattr(Bench, "raw", raw)
    monkeypatch.setattr(Bench, "trl", property(trl))
    config = bench_config(parts=(part,), steps=STEPS, prompts_per_step=2, policy=policy(tmp_path / "policy"))
    found = bench_online_dpo.measure(config, (logs(tmp_path, [f"w{i}" for i in range(12)]),))
    assert asked == expected
    aims = {"overlap": "overlap_ratio", "generation": "generation_ratio", "trl": "prompts_over_trl"}
    assert [name for name in aims.values() if name in found] == [aims[part]]
    assert found["steps_counted"] == 3


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="`bench` extra"):
        check_trl()


def test_trl_gets_the_reward_of_each_reply_to_its_own_prompt() -> None:
    asked: list[dict[str, Any]] = []

    def score(items: Sequence[dict[str, Any]]) -> list[Score]:
        asked.extend(items)
        return [Score(**reward_of(item["response"])._asdict()) for item in items]

    first, second = ([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}])
    history = {"role": "system", "content": "Be short."}
    replies = [[{"role": "assistant", "content": "x" * n}] for n in (0, 200, 400, 600)]
    # TRL repeats the list of prompts for the second reply to each.
    rewards = rewards_from(score)(prompts=[[history, *first], second] * 2, completions=replies, trainer_state=None)
    assert rewards == [reward_of("x" * n).score for n in (0, 200, 400, 600)]
    assert [item["prompt"] for item in asked] == ["a", "b", "a", "b"]
    assert [item["history"] for item in asked] == [[history], [], [history], []]


@pytest.mark.slow
def test_trl_takes_a_step_on_every_batch_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    asked: list[list[str | None]] = []

    class Noted(ScoreRequest):
        @model_validator(mode="after")
        def _note(self) -> Noted:
            asked.append([item.prompt for item in self.items])
            return self

    monkeypatch.setattr(bench_online_dpo_reward, "ScoreRequest", Noted)
    batches = [[[{"role": "user", "content": f"w{2 * step + i}"}] for i in range(2)] for step in range(3)]
    with reward_server() as url:
        run = TrlRun(
            policy=policy(tmp_path),
            batches=batches,
            reward_url=url,
            max_tokens=4,
            max_length=32,
            temperature=1.0,
            learning_rate=1e-3,
            beta=0.1,
            clip_norm=1.0,
            precision="float32",
            seed=0,
            threads=1,
        )
        found = apart(train, run)
    assert len(found.step_seconds) == 3
    assert min(found.step_seconds) > 0
    assert asked == [2 * [f"w{2 * step}", f"w{2 * step + 1}"] for step in range(3)]
