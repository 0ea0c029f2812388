"""Telling refusals from answers, and what the second verdict does to a level."""

from __future__ import annotations

import pytest

from wildreward_ray.feedback.refusal import MAX_REFUSAL_WORDS, is_refusal, validated_level

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m really sorry, but I can’t assist with that request.",
    "Sorry, I cannot provide instructions for picking locks.",
    "I am unable to create images.",
    "As an AI language model, I can't give medical advice.",
    "I must respectfully decline to write this.",
    "That request goes against my guidelines.",
    "It is not appropriate to joke about this.",
    "抱歉，我无法提供这方面的帮助。",
    "对不起，这个我不能写。",
    "我无法回答这个问题。",
    "该请求违反了使用政策。",
    "这违反了我的使用准则。",
]
ANSWERS = [
    "To kill a process on Linux, run `kill -9 PID`.",
    "I'm sorry, I misread your question. The answer is 42.",
    "I'm sorry, I made a mistake: it is Canberra.",
    "I'm sorry for the confusion. The capital is Canberra.",
    "I am sorry to hear that you are ill. Rest and drink water.",
    "I can't wait to see your garden! Start with the roses.",
    "It is against the law to park there.",
    "If you cannot provide a receipt, ask the shop for a copy.",
    "You can't write to a frozen dataclass.",
    "抱歉，我刚才算错了，答案是42。",
    "这不符合语法规则，应该用“他们”。",
    "我不能确定，但答案大概是3。",
    "这违反了交通规则，会被罚款。",
]


@pytest.mark.parametrize("reply", REFUSALS)
def test_reply_that_declines_is_a_refusal(reply: str) -> None:
    assert is_refusal(reply)


@pytest.mark.parametrize("reply", ANSWERS)
def test_reply_that_answers_is_none(reply: str) -> None:
    assert not is_refusal(reply)


@pytest.mark.parametrize(("phrase", "word"), [("I can't help with that.", "but"), ("我无法提供帮助。", "但")])
def test_long_reply_with_such_a_phrase_goes_on_to_answer(phrase: str, word: str) -> None:
    separator = " " if word.isascii() else ""
    assert is_refusal(phrase + separator + separator.join([word] * (MAX_REFUSAL_WORDS // 2)))
    assert not is_refusal(phrase + separator + separator.join([word] * (MAX_REFUSAL_WORDS + 1)))


def test_phrase_far_from_the_start_is_part_of_an_answer() -> None:
    answer = "The steps are listed in the manual and they are simple. " * 5
    assert len(answer.split()) < MAX_REFUSAL_WORDS
    assert not is_refusal(answer + "I can't help with that.")


@pytest.mark.parametrize("level", range(1, 6))
def test_right_refusal_is_best_wrong_one_is_worst_and_no_refusal_keeps_its_level(level: int) -> None:
    assert validated_level(level, "justified") == 5
    assert validated_level(level, "unjustified") == 1
    assert validated_level(level, "not_a_refusal") == level
