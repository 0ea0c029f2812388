"""The reward model reads the answer, and a reply that never came to one has none."""

from __future__ import annotations

import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.policy.reasoning import answer, opening

END = "</think>"


@pytest.mark.parametrize("text", ["", "Yes.", " \n", "<think>hm", "<think>hm</think>Yes."])
def test_without_an_end_the_whole_reply_is_the_answer(text: str) -> None:
    assert answer(text, None) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think>\n\nYes.\n", "Yes.\n"),
        # A template that opens the reasoning in the prompt leaves a reply that only closes it.
        ("hm</think> Yes.", "Yes."),
        ("<think>is </think> a tag?</think>Yes, </b> too.", "Yes, </b> too."),
        ("<think>hm</think>", ""),
        ("<think>hm</think>\n\n", ""),
    ],
)
def test_the_answer_follows_the_last_end(text: str, expected: str) -> None:
    assert answer(text, END) == expected


@pytest.mark.parametrize("text", ["<think>hm", "\n <think>\nhm", "<think>"])
def test_reasoning_that_never_closed_has_no_answer(text: str) -> None:
    assert answer(text, END) is None


@pytest.mark.parametrize("text", [" Yes. ", "", "Put <think> before it.", "<thinking> is a tag", "<b>Yes</b>"])
def test_a_reply_that_did_not_reason_is_its_own_answer(text: str) -> None:
    assert answer(text, END) == text


@pytest.mark.parametrize(
    ("end", "tag"),
    [("</think>", "<think>"), ("[/THINK]", "[THINK]"), ("</seed:think>", "<seed:think>"), ("[/思考]", "[思考]")],
)
def test_the_opening_tag_follows_from_the_closing_one(end: str, tag: str) -> None:
    assert opening(end) == tag
    assert answer(f"{tag}hm", end) is None
    assert answer(f"{tag}hm{end}Yes.", end) == "Yes."


@pytest.mark.parametrize("end", ["Final answer:", "<|end_think|>", "</>", "</think]", "< /think>"])
def test_an_end_that_closes_no_known_tag_has_no_opening(end: str) -> None:
    assert opening(end) is None
    assert answer("<think>hm", end) == "<think>hm"
    assert answer(f"hm {end} Yes.", end) == "Yes."


@pytest.mark.parametrize("end", ["", " \n"])
def test_a_blank_end_is_the_users_error(end: str) -> None:
    with pytest.raises(UserError, match=r"--rollout\.reasoning-end"):
        answer("Yes.", end)
