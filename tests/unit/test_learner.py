"""The DPO learner: steps move the policy the right way, and only the policy; what was saved goes on as if uninterrupted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from wildreward_ray.core.config.online_dpo import LearnerSection
from wildreward_ray.core.config.train import LoraSection, ParallelSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.adapters import adapters_off, add_adapters, policy_weights
from wildreward_ray.policy.dpo import collate_pairs, sequence_logprobs
from wildreward_ray.policy.learner import Learner
from wildreward_ray.policy.pairs import Pair, Sample
from wildreward_ray.reward.parallel import Layout, lay_out
from wildreward_ray.reward.training_state import restore, training_state

PROMPTS = [(3, 4, 5), (6, 7), (8, 9, 10, 11), (12,)]
IDS = torch.tensor([[3, 4, 5, 20, 21], [6, 7, 23, 24, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def tiny_policy(*, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
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


def placed(module: nn.Module) -> Layout:
    return lay_out(module, ParallelSection(), device=torch.device("cpu"))


def learner_of(policy: PreTrainedModel, **changes: object) -> Learner:
    frozen = copy.deepcopy(policy).requires_grad_(False)
    return Learner(placed(policy), placed(frozen), section(**changes), pad_id=0)


def adapted_learner(policy: PreTrainedModel, **changes: object) -> Learner:
    torch.manual_seed(1)
    return Learner(placed(add_adapters(policy, LoraSection(rank=4, alpha=8))), None, section(**changes), pad_id=0)


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.policy.module.state_dict())


def test_the_margin_starts_at_zero_and_every_step_raises_it_on_its_own_pairs() -> None:
    learner = learner_of(tiny_policy())
    first = learner.step(PROMPTS, pairs())
    assert first["dpo_margin"] == 0.0
    assert first["dpo_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first["dpo_accuracy"] == 0.5
    assert first["kl"] == 0.0
    second = learner.step(PROMPTS, pairs())
    assert 0 < second["dpo_margin"] < learner.margin(PROMPTS, pairs())


def test_the_size_of_micro_batches_changes_neither_loss_nor_weights() -> None:
    results = []
    for size in (1, 3, 4):
        policy = tiny_policy()
        metrics = learner_of(policy, micro_pairs=size).step(PROMPTS, pairs())
        results.append((metrics, torch.cat([p.detach().reshape(-1) for p in policy.parameters()])))
    for metrics, weights in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        assert torch.allclose(weights, results[0][1], atol=1e-5)


def test_every_weight_of_the_policy_moves_and_none_of_the_reference() -> None:
    policy = tiny_policy()
    start = copy.deepcopy(policy.state_dict())
    learner = learner_of(policy)
    for _ in range(2):
        learner.step(PROMPTS, pairs())
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == set(start)
    # The reference still gives the first step's log-probabilities: a fresh learner's margin of the moved policy agrees.
    reference = tiny_policy()
    reference.load_state_dict(start)
    fresh = learner_of(reference)
    fresh.policy.module.load_state_dict(policy.state_dict())
    assert fresh.margin(PROMPTS, pairs()) == pytest.approx(learner.margin(PROMPTS, pairs()), abs=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_flag_and_leaves_the_weights_and_the_moments() -> None:
    policy = tiny_policy()
    learner = learner_of(policy)
    learner.step(PROMPTS, pairs())
    with torch.no_grad():
        policy.get_input_embeddings().weight[20, 0] = float("nan")
    before, moments = weights_of(learner), copy.deepcopy(learner.optimizer.state_dict()["state"])
    with pytest.raises(UserError, match=r"--learner\.learning-rate"):
        learner.step(PROMPTS, pairs())
    for name, tensor in policy.state_dict().items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(before[name]))
    after = learner.optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][name], tensor) for i, entry in moments.items() for name, tensor in entry.items())
    assert learner.done == 1


def test_a_step_without_pairs_is_refused() -> None:
    learner = learner_of(tiny_policy())
    with pytest.raises(ValueError, match="no pairs"):
        learner.step([], [])
    assert learner.done == 0


def test_a_higher_beta_for_one_step_is_another_loss_and_scales_its_margin() -> None:
    results = {}
    for beta in (None, 0.4):
        learner = learner_of(tiny_policy(), beta=0.1)
        learner.step(PROMPTS, pairs())
        results[beta] = learner.step(PROMPTS, pairs(), beta=beta)
    assert results[0.4]["dpo_margin"] == pytest.approx(4 * results[None]["dpo_margin"], rel=1e-5)
    assert results[0.4]["dpo_loss"] < results[None]["dpo_loss"] - 1e-3


def test_the_kl_of_replies_is_zero_before_any_step_and_the_mean_log_ratio_after() -> None:
    learner = learner_of(tiny_policy(), micro_pairs=1)
    replies = [s for pair in pairs() for s in (pair.chosen, pair.rejected)][:5]
    prompts = [prompt for prompt in PROMPTS for _ in range(2)][:5]
    assert learner.kl(prompts, replies) == 0.0
    learner.step(PROMPTS, pairs())
    alone = [learner.kl([prompt], [reply]) for prompt, reply in zip(prompts, replies, strict=True)]
    assert learner.kl(prompts, replies) == pytest.approx(sum(alone) / 5, abs=1e-5)
    assert max(map(abs, alone)) > 0.01


def test_the_likelihood_of_chosen_replies_is_reported_only_where_the_loss_has_it_and_rises_with_its_weight() -> None:
    assert "nll" not in learner_of(tiny_policy()).step(PROMPTS, pairs())
    learner = learner_of(tiny_policy(), nll_weight=10.0)
    found = [learner.step(PROMPTS, pairs())["nll"] for _ in range(3)]
    assert found[0] > found[1] > found[2] > 0


def test_a_length_normalised_margin_is_per_token_before_a_step_and_after_it() -> None:
    learner = learner_of(tiny_policy(), length_normalized=True)
    learner.step(PROMPTS, pairs())
    left = learner.margin(PROMPTS, pairs())
    assert learner.step(PROMPTS, pairs())["dpo_margin"] == pytest.approx(left, abs=1e-6)
    summed = learner_of(tiny_policy())
    summed.policy.module.load_state_dict(learner.policy.module.state_dict())
    assert abs(learner.margin(PROMPTS, pairs())) < abs(summed.margin(PROMPTS, pairs()))


@torch.no_grad()
def test_logits_of_the_scored_positions_alone_give_the_same_log_probabilities_as_all_of_them() -> None:
    policy = placed(tiny_policy())
    batch = collate_pairs(PROMPTS, pairs(), pad_id=0)
    keep = batch.scored_positions()
    assert keep == batch.input_ids.shape[1], "a prompt of one token leaves nothing out"
    longer = collate_pairs([(9, 9, *prompt) for prompt in PROMPTS], pairs(), pad_id=0)
    keep = longer.scored_positions()
    assert keep == longer.input_ids.shape[1] - 2
    some = policy.logits(longer.input_ids, longer.attention_mask, keep)
    assert some.shape[1] == keep
    whole = sequence_logprobs(
        policy.logits(longer.input_ids, longer.attention_mask), longer.input_ids, longer.response_mask
    )
    found = sequence_logprobs(some, longer.input_ids[:, -keep:], longer.response_mask[:, -keep:])
    assert torch.allclose(found, whole, atol=1e-5)


def test_the_rate_rises_over_the_warm_up_and_follows_from_the_steps_done() -> None:
    learner = learner_of(tiny_policy(), warmup_steps=4)
    assert [learner.step(PROMPTS, pairs())["learning_rate"] for _ in range(2)] == pytest.approx([0.25e-3, 0.5e-3])
    learner.done = 7
    assert learner.step(PROMPTS, pairs())["learning_rate"] == 1e-3


def test_only_matrices_decay() -> None:
    learner = learner_of(tiny_policy(), weight_decay=0.1)
    for group in learner.optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}
    assert sum(len(group["params"]) for group in learner.optimizer.param_groups) == len(
        list(tiny_policy().parameters())
    )


@pytest.mark.parametrize("make", [learner_of, adapted_learner])
def test_a_run_resumed_after_two_steps_ends_as_the_uninterrupted_one_bit_for_bit(
    make: Callable[..., Learner], tmp_path: Path
) -> None:
    settings = {"warmup_steps": 4, "weight_decay": 0.1}
    whole = make(tiny_policy(), **settings)
    for step in range(3):
        if step == 2:
            save(training_state(whole.policy.module, whole.optimizer), checkpoint_id=str(tmp_path), no_dist=True)
        metrics = whole.step(PROMPTS, pairs())
    resumed = make(tiny_policy(), **settings)
    restore(resumed.policy.module, resumed.optimizer, tmp_path)
    resumed.done = 2
    assert resumed.step(PROMPTS, pairs()) == metrics
    after = weights_of(resumed)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights_of(whole).items())


def test_a_policy_with_its_adapters_off_gives_the_logits_of_the_untouched_base() -> None:
    base = tiny_policy().eval()
    learner = adapted_learner(tiny_policy())
    learner.step(PROMPTS, pairs())
    with torch.no_grad():
        expected = base(input_ids=IDS, attention_mask=MASK).logits
        on = learner.policy.logits(IDS, MASK)
        with adapters_off(learner.policy.module):
            assert torch.equal(learner.policy.logits(IDS, MASK), expected)
        assert torch.equal(learner.policy.logits(IDS, MASK), on)
    assert not torch.allclose(on, expected, atol=1e-3)


def test_adapters_against_themselves_off_learn_what_they_learn_against_a_frozen_copy_of_the_base() -> None:
    policy = tiny_policy()
    torch.manual_seed(1)
    module = add_adapters(policy, LoraSection(rank=4, alpha=8))
    copied = Learner(placed(module), placed(tiny_policy().requires_grad_(False)), section(), pad_id=0)
    off = adapted_learner(tiny_policy())
    for _ in range(3):
        assert off.step(PROMPTS, pairs()) == pytest.approx(copied.step(PROMPTS, pairs()), rel=1e-5, abs=1e-6)
    assert off.margin(PROMPTS, pairs()) > 0


def test_only_adapters_move_and_all_of_them() -> None:
    learner = adapted_learner(tiny_policy())
    before = weights_of(learner)
    for _ in range(2):
        learner.step(PROMPTS, pairs())
    moved = {name for name, tensor in weights_of(learner).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".lora_" in name}


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_give_the_logits_of_the_adapted_model_under_the_names_of_the_base(tied: bool) -> None:
    learner = adapted_learner(tiny_policy(tied=tied), learning_rate=0.05)
    for _ in range(3):
        learner.step(PROMPTS, pairs())
    weights = policy_weights(learner.policy.module)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    fresh = tiny_policy(tied=tied).eval()
    assert set(weights) == set(fresh.state_dict()) - ({"lm_head.weight"} if tied else set())
    with torch.no_grad():
        base = fresh(input_ids=IDS, attention_mask=MASK).logits
        fresh.load_state_dict(weights, strict=False)
        merged = fresh(input_ids=IDS, attention_mask=MASK).logits
        trained = learner.policy.logits(IDS, MASK)
    # The merged weights are rounded to bfloat16.
    assert (merged - trained).abs().max() < 0.02
    assert (base - trained).abs().max() > 0.2


def test_weights_of_experts_have_the_names_of_the_files_that_engines_read(tmp_path: Path) -> None:
    """In memory the experts of a layer are one tensor."""
    from safetensors.torch import load_file

    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    weights = policy_weights(Qwen3MoeForCausalLM.from_pretrained(tmp_path))
    assert any(".experts.3." in name for name in stored)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in stored.items()}
    assert all(torch.equal(weights[name], tensor.bfloat16()) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"targets": ("no_such_layer",)}, "--learner.lora.targets"),
        ({"targets": ("embed_tokens",)}, "--learner.lora.targets"),
        ({"targets": ("lm_head",)}, "--learner.lora.targets"),
        ({"dropout": 0.1}, "--learner.lora.dropout"),
    ],
)
def test_adapters_that_could_not_be_merged_or_would_drop_out_are_refused_with_the_flag(
    changes: dict[str, object], flag: str
) -> None:
    with pytest.raises(UserError) as caught:
        add_adapters(tiny_policy(tied=True), LoraSection.model_validate({"rank": 2, **changes}))
    assert caught.value.flag == flag


def test_a_policy_without_adapters_can_not_be_its_own_reference() -> None:
    learner = Learner(placed(tiny_policy()), None, section(), pad_id=0)
    with pytest.raises(ValueError, match="without adapters"):
        learner.step(PROMPTS, pairs())
