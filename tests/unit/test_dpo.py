"""DPO: log-probabilities of response tokens only, and losses and gradients worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.dpo import DPOOutput, LossType, PairBatch, collate_pairs, dpo_loss, sequence_logprobs
from wildreward_ray.policy.pairs import Pair, Sample

PAD = 9


def made_pair(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Pair:
    return Pair(0, Sample("c", chosen, True), Sample("r", rejected, True), 2.0, 1.0)


def batch() -> PairBatch:
    return collate_pairs([[1, 2], [3]], [made_pair((4, 5, PAD), (6,)), made_pair((7,), (8, 4))], PAD)


VALUES = [-10.0, -12.0, -11.0, -11.5]
"""log pi(w), log pi(l), log ref(w), log ref(l): h is 1.5."""
LENGTHS: dict[str, Any] = {"chosen_tokens": torch.tensor([4]), "rejected_tokens": torch.tensor([5])}
H, H_PER_TOKEN = 1.5, 1 / 4 - (-0.5) / 5


def loss(values: list[float], *, beta: float = 0.1, loss_type: LossType = "sigmoid", **settings: Any) -> DPOOutput:
    return dpo_loss(*(torch.tensor([value]) for value in values), beta=beta, loss_type=loss_type, **settings)


def gradient(values: list[float], **settings: Any) -> list[float]:
    """The loss's gradient on the four log-probabilities."""
    tensors = [torch.tensor([value], requires_grad=True) for value in values]
    return [g.item() for g in torch.autograd.grad(dpo_loss(*tensors, **settings).loss.sum(), tensors)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_collated_rows_are_all_chosen_then_all_rejected() -> None:
    got = batch()
    assert got.input_ids.tolist() == [[1, 2, 4, 5, 9], [3, 7, 9, 9, 9], [1, 2, 6, 9, 9], [3, 8, 4, 9, 9]]
    assert got.attention_mask.sum(1).tolist() == [5, 2, 3, 3]
    assert got.response_mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]]


def test_end_of_text_in_a_response_counts_even_where_it_is_the_padding_token() -> None:
    got = batch()
    assert bool(got.response_mask[0, 4])
    assert int(got.attention_mask[0, 4]) == 1


def test_logprobs_sum_the_response_tokens_given_what_precedes_them() -> None:
    torch.manual_seed(0)
    got = batch()
    logits = torch.randn(4, 5, 10)
    logp = logits.log_softmax(-1)
    by_hand = [
        logp[0, 1, 4] + logp[0, 2, 5] + logp[0, 3, 9],
        logp[1, 0, 7],
        logp[2, 1, 6],
        logp[3, 0, 8] + logp[3, 1, 4],
    ]
    torch.testing.assert_close(
        sequence_logprobs(logits, got.input_ids, got.response_mask), torch.stack(by_hand), rtol=1e-5, atol=1e-5
    )


def test_prompt_and_padding_tokens_do_not_matter() -> None:
    got = batch()
    logits = torch.randn(4, 5, 10, requires_grad=True)
    logits_grad = torch.autograd.grad(sequence_logprobs(logits, got.input_ids, got.response_mask).sum(), logits)[0]
    predicts_response = torch.zeros(4, 5, dtype=torch.bool)
    predicts_response[:, :-1] = got.response_mask[:, 1:]
    assert torch.equal(logits_grad.abs().sum(-1) > 0, predicts_response)


def test_logprobs_of_bfloat16_logits_are_computed_in_float32() -> None:
    got = batch()
    logits = (10 * torch.randn(4, 5, 10)).to(torch.bfloat16)
    exact = sequence_logprobs(logits.double(), got.input_ids, got.response_mask)
    half = sequence_logprobs(logits, got.input_ids, got.response_mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-6, atol=1e-6)


def test_padding_does_not_change_a_models_logprobs(llama_base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_base).eval()
    got = batch()
    with torch.inference_mode():
        together = sequence_logprobs(
            model(input_ids=got.input_ids, attention_mask=got.attention_mask).logits, got.input_ids, got.response_mask
        )
        for i, length in enumerate(got.attention_mask.sum(1).tolist()):
            ids, mask = got.input_ids[i : i + 1, :length], got.response_mask[i : i + 1, :length]
            alone = sequence_logprobs(model(input_ids=ids).logits, ids, mask)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_response_without_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="position 0"):
        sequence_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))
    with pytest.raises(ValueError, match="without tokens"):
        collate_pairs([[]], [made_pair((1,), (2,))], PAD)
    with pytest.raises(ValueError, match="without tokens"):
        collate_pairs([[1]], [made_pair((1,), ())], PAD)


def test_every_response_has_its_own_length_without_prompt_and_padding() -> None:
    lengths = batch().response_tokens()
    assert lengths.tolist() == [3, 1, 1, 2]
    assert lengths.dtype == torch.int64


def test_sigmoid_loss_and_gradient_equal_the_paper() -> None:
    beta = 0.3
    assert loss(VALUES, beta=beta).loss.item() == pytest.approx(math.log(1 + math.exp(-beta * H)))
    # DPO, section 4: the gradient on log pi(w|x) is -beta * sigmoid(rejected reward - chosen reward), and +beta on l.
    weight = beta * sigmoid(-beta * H)
    assert gradient(VALUES, beta=beta) == pytest.approx([-weight, weight, weight, -weight])


def test_smoothing_mixes_in_the_reversed_pair() -> None:
    forward, backward = loss(VALUES).loss, loss([VALUES[i] for i in (1, 0, 3, 2)]).loss
    torch.testing.assert_close(loss(VALUES, label_smoothing=0.2).loss, 0.8 * forward + 0.2 * backward)


def test_smoothing_turns_the_gradient_where_the_pair_is_surer_than_its_label() -> None:
    beta, smoothing = 2.0, 0.2
    # The gradient on beta h is sigmoid(beta h) - (1 - e): it pulls a pair back once it is surer than 1 - e.
    weight = beta * (sigmoid(beta * H) - (1 - smoothing))
    assert weight > 0
    got = gradient(VALUES, beta=beta, label_smoothing=smoothing)
    assert got == pytest.approx([weight, -weight, -weight, weight])


def test_ipo_regresses_the_gap_to_half_over_beta() -> None:
    assert loss(VALUES, beta=0.25, loss_type="ipo").loss.item() == pytest.approx((H - 2.0) ** 2)
    assert gradient(VALUES, beta=0.25, loss_type="ipo") == pytest.approx([2 * (H - 2.0) * s for s in (1, -1, -1, 1)])


def test_length_normalisation_divides_each_log_ratio_by_its_own_length() -> None:
    beta = 0.3
    output = loss(VALUES, beta=beta, length_normalized=True, **LENGTHS)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-beta * H_PER_TOKEN)))
    assert output.chosen_reward.item() == pytest.approx(beta * 1.0 / 4)
    assert output.rejected_reward.item() == pytest.approx(beta * -0.5 / 5)
    weight = beta * sigmoid(-beta * H_PER_TOKEN)
    expected = [-weight / 4, weight / 5, weight / 4, -weight / 5]
    assert gradient(VALUES, beta=beta, length_normalized=True, **LENGTHS) == pytest.approx(expected)


def test_length_normalised_ipo_compares_means_over_tokens() -> None:
    output = loss(VALUES, beta=0.25, loss_type="ipo", length_normalized=True, **LENGTHS)
    assert output.loss.item() == pytest.approx((H_PER_TOKEN - 2.0) ** 2)
    pull = 2 * (H_PER_TOKEN - 2.0)
    got = gradient(VALUES, beta=0.25, loss_type="ipo", length_normalized=True, **LENGTHS)
    assert got == pytest.approx([pull / 4, -pull / 5, -pull / 4, pull / 5])


def test_lengths_alone_change_nothing() -> None:
    assert torch.equal(loss(VALUES, **LENGTHS).loss, loss(VALUES).loss)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
@pytest.mark.parametrize("length_normalized", [False, True])
def test_the_likelihood_term_is_per_token_and_pulls_at_the_policys_chosen_response_alone(
    loss_type: LossType, length_normalized: bool
) -> None:
    settings: dict[str, Any] = {"beta": 0.3, "loss_type": loss_type, "length_normalized": length_normalized, **LENGTHS}
    plain, with_nll = loss(VALUES, **settings), loss(VALUES, nll_weight=0.5, **settings)
    assert plain.nll is None
    assert with_nll.nll is not None
    assert with_nll.nll.tolist() == pytest.approx([10 / 4])
    assert (with_nll.loss - plain.loss).item() == pytest.approx(0.5 * 10 / 4, rel=1e-5)
    more = [
        a - b for a, b in zip(gradient(VALUES, nll_weight=0.5, **settings), gradient(VALUES, **settings), strict=True)
    ]
    assert more == pytest.approx([-0.5 / 4, 0, 0, 0], abs=1e-6)


def test_gradients_equal_finite_differences_with_every_setting_on() -> None:
    settings: dict[str, Any] = {
        "beta": 2.0,
        "label_smoothing": 0.1,
        "length_normalized": True,
        "nll_weight": 0.5,
        **LENGTHS,
    }
    step = 0.05
    by_differences = []
    for i in range(4):
        up, down = list(VALUES), list(VALUES)
        up[i] += step
        down[i] -= step
        by_differences.append((loss(up, **settings).loss - loss(down, **settings).loss).item() / (2 * step))
    assert gradient(VALUES, **settings) == pytest.approx(by_differences, abs=1e-4)


def test_each_pair_has_a_loss_of_its_own() -> None:
    rows = [VALUES, [-30.0, -3.0, -29.0, -7.0]]
    settings: dict[str, Any] = {"beta": 0.3, "length_normalized": True, "nll_weight": 0.5}
    counts = [torch.tensor([4, 9]), torch.tensor([5, 2])]
    together = dpo_loss(
        *torch.tensor(rows).T.unbind(), chosen_tokens=counts[0], rejected_tokens=counts[1], **settings
    ).loss
    alone = [
        loss(row, chosen_tokens=counts[0][i : i + 1], rejected_tokens=counts[1][i : i + 1], **settings).loss
        for i, row in enumerate(rows)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_policy_equal_to_its_reference_has_loss_log_two_and_no_reward() -> None:
    output = loss([-3.0, -4.0, -3.0, -4.0])
    assert output.loss.item() == pytest.approx(math.log(2))
    assert output.chosen_reward.item() == output.rejected_reward.item() == 0.0


def test_implicit_rewards_are_beta_times_the_log_ratio() -> None:
    output = loss(VALUES, beta=0.2)
    assert output.chosen_reward.item() == pytest.approx(0.2)
    assert output.rejected_reward.item() == pytest.approx(-0.1)


def test_only_the_loss_carries_a_gradient() -> None:
    tensors = [torch.tensor([value], requires_grad=True) for value in VALUES]
    output = dpo_loss(*tensors, beta=0.2, nll_weight=1.0, **LENGTHS)
    assert output.nll is not None
    carries = [t.requires_grad for t in (output.loss, output.chosen_reward, output.rejected_reward, output.nll)]
    assert carries == [True, False, False, False]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"beta": 0.0}, "--learner.beta"),
        ({"beta": math.nan}, "--learner.beta"),
        ({"label_smoothing": 0.5}, "--learner.label-smoothing"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "--learner.label-smoothing"),
        ({"loss_type": "hinge"}, "--learner.loss"),
        ({"nll_weight": -0.1}, "--learner.nll-weight"),
        ({"nll_weight": math.nan}, "--learner.nll-weight"),
    ],
)
def test_settings_without_meaning_are_the_users_error(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        loss([0.0] * 4, **settings)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda tokens: None, "chosen_tokens is missing"),
        (lambda tokens: torch.cat([tokens, tokens]), "shape"),
        (lambda tokens: tokens.float(), "integers"),
        (lambda tokens: tokens > 0, "integers"),
        (lambda tokens: tokens * 0, "at least one token"),
    ],
)
@pytest.mark.parametrize("settings", [{"length_normalized": True}, {"nll_weight": 1.0}])
def test_lengths_that_are_no_counts_are_refused(
    spoil: Callable[[Tensor], Tensor | None], problem: str, settings: dict[str, Any]
) -> None:
    lengths = LENGTHS | {"chosen_tokens": spoil(LENGTHS["chosen_tokens"])}
    with pytest.raises(ValueError, match=problem):
        loss(VALUES, **lengths, **settings)


def test_normalisation_needs_the_rejected_lengths_too() -> None:
    with pytest.raises(ValueError, match="rejected_tokens is missing"):
        loss(VALUES, chosen_tokens=LENGTHS["chosen_tokens"], length_normalized=True)


def test_log_probabilities_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1), torch.zeros(2), beta=0.1)


def test_steps_on_the_loss_prefer_the_chosen_response(llama_base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_base)
    got = batch()

    def logprobs() -> Tensor:
        logits = model(input_ids=got.input_ids, attention_mask=got.attention_mask).logits
        return sequence_logprobs(logits, got.input_ids, got.response_mask)

    reference = logprobs().detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        chosen, rejected = logprobs().chunk(2)
        output = dpo_loss(chosen, rejected, *reference.chunk(2), beta=0.1)
        torch.autograd.backward(output.loss.mean())
        optimizer.step()
    chosen, rejected = (logprobs().detach() - reference).chunk(2)
    assert (chosen > rejected).all()
