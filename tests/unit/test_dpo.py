"""DPO: log-probabilities of response tokens only, and losses and gradients worked out by hand."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.dpo import DPOOutput, PairBatch, collate_pairs, dpo_loss, sequence_logprobs
from wildreward_ray.policy.pairs import Pair, Sample

PAD = 9


def made_pair(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Pair:
    return Pair(0, Sample("c", chosen, True), Sample("r", rejected, True), 2.0, 1.0)


def batch() -> PairBatch:
    return collate_pairs([[1, 2], [3]], [made_pair((4, 5, PAD), (6,)), made_pair((7,), (8, 4))], PAD)


def loss(
    values: list[float],
    *,
    beta: float = 0.1,
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid",
    smoothing: float = 0.0,
) -> tuple[DPOOutput, list[torch.Tensor]]:
    tensors = [torch.tensor([value], requires_grad=i < 2) for i, value in enumerate(values)]
    return dpo_loss(*tensors, beta=beta, loss_type=loss_type, label_smoothing=smoothing), tensors


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


def test_sigmoid_loss_and_gradient_equal_the_paper() -> None:
    beta, values = 0.3, [-10.0, -12.0, -11.0, -11.5]
    output, tensors = loss(values, beta=beta)
    h = (values[0] - values[1]) - (values[2] - values[3])
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-beta * h)))
    torch.autograd.backward(output.loss.sum())
    # DPO, section 4: the gradient on log pi(w|x) is -beta * sigmoid(rejected reward - chosen reward), and +beta on l.
    weight = beta / (1 + math.exp(beta * h))
    assert tensors[0].grad is not None
    assert tensors[1].grad is not None
    assert tensors[0].grad.item() == pytest.approx(-weight)
    assert tensors[1].grad.item() == pytest.approx(weight)


def test_smoothing_mixes_in_the_reversed_pair() -> None:
    values = [-10.0, -12.0, -11.0, -11.5]
    forward, backward = loss(values)[0].loss, loss([values[i] for i in (1, 0, 3, 2)])[0].loss
    torch.testing.assert_close(loss(values, smoothing=0.2)[0].loss, 0.8 * forward + 0.2 * backward)


def test_ipo_regresses_the_gap_to_half_over_beta() -> None:
    output, _ = loss([-10.0, -12.0, -11.0, -11.5], beta=0.25, loss_type="ipo")
    assert output.loss.item() == pytest.approx((1.5 - 2.0) ** 2)


def test_a_policy_equal_to_its_reference_has_loss_log_two_and_no_reward() -> None:
    output, _ = loss([-3.0, -4.0, -3.0, -4.0])
    assert output.loss.item() == pytest.approx(math.log(2))
    assert output.chosen_reward.item() == output.rejected_reward.item() == 0.0


def test_implicit_rewards_are_beta_times_the_log_ratio_without_gradient() -> None:
    output, _ = loss([-10.0, -12.0, -11.0, -11.5], beta=0.2)
    assert output.chosen_reward.item() == pytest.approx(0.2)
    assert output.rejected_reward.item() == pytest.approx(-0.1)
    assert not output.chosen_reward.requires_grad
    assert not output.rejected_reward.requires_grad


@pytest.mark.parametrize(
    ("beta", "loss_type", "smoothing", "flag"),
    [
        (0.0, "sigmoid", 0.0, "--beta"),
        (math.nan, "sigmoid", 0.0, "--beta"),
        (0.1, "sigmoid", 0.5, "--label-smoothing"),
        (0.1, "ipo", 0.1, "--label-smoothing"),
        (0.1, "hinge", 0.0, "--loss-type"),
    ],
)
def test_settings_without_meaning_are_the_users_error(
    beta: float, loss_type: Literal["sigmoid", "ipo"], smoothing: float, flag: str
) -> None:
    with pytest.raises(UserError, match=flag):
        loss([0.0] * 4, beta=beta, loss_type=loss_type, smoothing=smoothing)


def test_log_probabilities_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1), torch.zeros(2), beta=0.1)


def test_steps_on_the_loss_prefer_the_chosen_response(llama_base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_base)
    got = batch()

    def logprobs() -> torch.Tensor:
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
