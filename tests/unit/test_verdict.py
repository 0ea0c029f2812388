"""Reading verdicts: only a last line that is nothing else counts, votes give no certainty, listed tokens add up."""

from __future__ import annotations

import math

import pytest

from wildreward_ray.feedback.verdict import listed_logprobs, parse_verdict, votes_to_logprobs

LEVELS = ("useless", "wrong", "unknown", "interesting", "perfect")


@pytest.mark.parametrize(
    "text",
    [
        "Verdict: 4",
        "The user builds on it.\n\nVerdict: 4\n\n  \n",
        "verdict:4",
        "**Verdict: 4**",
        "**Verdict:** 4.",
        "__Verdict__: **4**",
        "### Verdict: 4",
        "`Verdict: 4`",
        "Verdict： ４",
        "Verdict: 1\nOn second thoughts:\nVERDICT: 4.",
        "<think>Verdict: 1</think>\nVerdict: 4",
        "no opening tag\nVerdict: 2\n</think>\n\nVerdict: 4",
        "<|channel|>analysis<|message|>Verdict: 1<|end|><|start|>assistant<|channel|>final<|message|>Verdict: 4",
    ],
)
def test_a_last_line_that_is_the_verdict_counts(text: str) -> None:
    assert parse_verdict(text, 5) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "4",
        "Level: 4",
        "The user wrote `Verdict: 4`",
        "Verdict: 4\nThat is all.",
        "Verdict: 4, because the user thanks",
        "Verdict: 4 or 5",
        "Verdict: 4/5",
        "Verdict: 4 5",
        "Verdict: 3-4",
        "Verdict: 3 Verdict: 4",
        "Verdict: four",
        "Verdict: N",
        "Verdict: 0",
        "Verdict: 6",
        "Verdict: -4",
        "Verdict: 4.5",
        "Verdict: 44444444444444444444",
        "My verdict: 4",
        "Verdict: 4</think>",
        "Verdict: 4</think>\nI can't tell.",
        "<think>\nVerdict: 4",
        "<|channel|>analysis<|message|>I think\nVerdict: 4",
        "Verdict: ④④",
        "Verdict: ٤",
    ],
)
def test_anything_else_is_no_verdict(text: str) -> None:
    assert parse_verdict(text, 5) is None


def test_number_must_be_one_of_the_classes() -> None:
    assert [parse_verdict(f"Verdict: {n}", 3) for n in range(5)] == [None, 1, 2, 3, None]


@pytest.mark.parametrize("votes", [[1], [5, 5, 5], [1, 2, 3], [2, 2, 5, 1]])
def test_votes_give_probabilities_that_add_up_and_are_never_zero(votes: list[int]) -> None:
    probs = [math.exp(x) for x in votes_to_logprobs(votes, 5)]
    assert sum(probs) == pytest.approx(1)
    assert min(probs) > 0
    for a in range(1, 6):
        for b in range(1, 6):
            assert (probs[a - 1] > probs[b - 1]) == (votes.count(a) > votes.count(b))


def test_prior_weighs_as_much_as_one_vote() -> None:
    assert math.exp(votes_to_logprobs([5, 5, 5], 5)[4]) == pytest.approx(0.8)
    assert math.exp(votes_to_logprobs([1, 1, 2], 3)[0]) == pytest.approx((2 + 1 / 3) / 4)
    assert votes_to_logprobs([1, 2, 5], 5) == votes_to_logprobs([5, 1, 2], 5)


@pytest.mark.parametrize("votes", [[], [0], [6]])
def test_no_votes_and_unknown_ones_are_an_error(votes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"1\.\.5"):
        votes_to_logprobs(votes, 5)


def test_listed_spellings_and_unambiguous_beginnings_of_a_verdict_add_up() -> None:
    tokens = [(" perfect", 0.2), ("Perfect", 0.1), (" per", 0.05), ("Ġperf", 0.05), (" wrong", 0.3), ("\n", 0.1)]
    found = listed_logprobs([(t, math.log(p)) for t, p in tokens], LEVELS)
    assert found is not None
    assert math.exp(found.logprobs[4]) == pytest.approx(0.4)
    assert math.exp(found.logprobs[1]) == pytest.approx(0.3)


def test_verdict_that_is_not_listed_gets_the_least_listed_probability_and_is_counted() -> None:
    found = listed_logprobs([(" wrong", -1.0), (" the", -7.0), (" perfect", -2.0), ("x", -math.inf)], LEVELS)
    assert found is not None
    assert found.logprobs == [-7.0, -1.0, -7.0, -7.0, -2.0]
    assert found.censored == 3


def test_token_that_several_verdicts_begin_with_counts_for_none() -> None:
    assert (
        listed_logprobs([("u", -0.1), ("un", -0.2), ("", -0.3), (" ", -0.4)], ("unknown", "unlike", "useless")) is None
    )


def test_a_verdict_that_begins_another_is_itself() -> None:
    found = listed_logprobs([("1", -1.0), ("10", -2.0)], ("1", "10"))
    assert found is not None
    assert found.logprobs == [-1.0, -2.0]


def test_no_verdict_among_the_tokens_is_told() -> None:
    assert listed_logprobs([(" the", -0.1), ("p", -0.2)], LEVELS) is None
    assert listed_logprobs([], LEVELS) is None
