"""The DPO learner: steps move the policy the right way, and only the policy."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wildreward_ray.core.config.online_dpo import LearnerSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.learner import Learner
from wildreward_ray.policy.pairs import Pair, Sample

PROMPTS = [(3, 4, 5), (6, 7), (8, 9, 10, 11), (12,)]


def tiny_policy() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def pairs() -> list[Pair]:
    chosen = [(20, 21, 22), (23, 24), (25,), (26, 27, 28, 29)]
    rejected = [(30, 31), (32, 33, 34), (35, 36), (37,)]
    return [
        Pair(i, Sample("good", good, True), Sample("bad", bad, True), 2.0, 1.0)
        for i, (good, bad) in enumerate(zip(chosen, rejected, strict=True))
    ]


def section(**changes: object) -> LearnerSection:
    return LearnerSection.model_validate({"learning_rate": 1e-3, "micro_pairs": 2, **changes})


def test_the_margin_starts_at_zero_and_every_step_raises_it_on_its_own_pairs() -> None:
    learner = Learner(tiny_policy(), section(), pad_id=0)
    first = learner.step(PROMPTS, pairs())
    assert first["dpo_margin"] == 0.0
    assert first["dpo_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first["dpo_accuracy"] == 0.5
    assert first["kl"] == 0.0
    second = learner.step(PROMPTS, pairs())
    assert 0 < first["dpo_margin_after"] < second["dpo_margin_after"]
    # What a step leaves behind is what the next one, and `margin`, begin with.
    assert second["dpo_margin"] == pytest.approx(first["dpo_margin_after"], abs=1e-5)
    assert learner.margin(PROMPTS, pairs()) == pytest.approx(second["dpo_margin_after"], abs=1e-5)


def test_the_size_of_micro_batches_changes_neither_loss_nor_weights() -> None:
    results = []
    for size in (1, 3, 4):
        policy = tiny_policy()
        metrics = Learner(policy, section(micro_pairs=size), pad_id=0).step(PROMPTS, pairs())
        results.append((metrics["grad_norm"], torch.cat([p.detach().reshape(-1) for p in policy.parameters()])))
    for norm, weights in results[1:]:
        assert norm == pytest.approx(results[0][0], rel=1e-4)
        assert torch.allclose(weights, results[0][1], atol=1e-5)


def test_every_weight_of_the_policy_moves_and_none_of_the_reference() -> None:
    policy = tiny_policy()
    start = copy.deepcopy(policy.state_dict())
    learner = Learner(policy, section(), pad_id=0)
    for _ in range(2):
        learner.step(PROMPTS, pairs())
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == set(start)
    # The reference still gives the first step's log-probabilities: a fresh learner's margin of the moved policy agrees.
    reference = tiny_policy()
    reference.load_state_dict(start)
    fresh = Learner(reference, section(), pad_id=0)
    fresh.policy.load_state_dict(policy.state_dict())
    assert fresh.margin(PROMPTS, pairs()) == pytest.approx(learner.margin(PROMPTS, pairs()), abs=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_flag_and_leaves_the_weights() -> None:
    policy = tiny_policy()
    learner = Learner(policy, section(), pad_id=0)
    with torch.no_grad():
        next(policy.parameters())[0, 0] = float("nan")
        policy.get_input_embeddings().weight[20, 0] = float("nan")
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(UserError, match=r"--learner\.learning-rate"):
        learner.step(PROMPTS, pairs())
    for name, tensor in policy.state_dict().items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(before[name]))
