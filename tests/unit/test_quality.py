"""Every filter drops what it is for and leaves what only looks like it."""

from __future__ import annotations

import time

import pytest

from wildreward_ray.core.config.extract import QualitySection
from wildreward_ray.feedback.quality import RULES, Candidate, QualityLimits, drop_reason

REPLY = "This is a reply that is long enough to be kept by the filters."
ALL = tuple(RULES)


def reason(
    prompt: str, response: str = REPLY, feedback: str = "ok", history: int = 0, rules: tuple[str, ...] = ALL
) -> str | None:
    return drop_reason(Candidate(history, prompt, response, feedback), QualityLimits(), rules)


DROPPED = [
    ("email", "please write to anna.smith+work@mail.example.co.uk about the invoice"),
    ("email", "请发邮件到 zhang@example.cn 告诉他明天开会"),
    ("phone", "you can call me at +49 170 1234567 after six today"),
    ("phone", "my number is (415) 555-0132 if you need it"),
    ("phone", "我的电话是13812345678，请写一条短信给他"),
    ("image_request", "create a picture of a cat on a red sofa"),
    ("image_request", "draw me a horse running on the beach please"),
    ("image_request", "write a midjourney prompt for a castle at night"),
    ("image_request", "请画一张猫坐在沙发上的图片给我看"),
    ("media_request", "generate a video of the sunrise over the hills"),
    ("media_request", "please transcribe this recording for the meeting notes"),
    ("media_request", "帮我生成一个三十秒的产品宣传视频"),
    ("search_request", "search the web for cheap flights to Lisbon"),
    ("search_request", "summarize https://example.com/article for me in short"),
    ("search_request", "帮我上网查一下最近的火车票价格"),
    ("identity_request", "hey what model are you and how big"),
    ("identity_request", "tell me now, who created you and why"),
    ("identity_request", "你是什么模型？请如实回答我"),
    ("missing_file", "read the attached contract and list the risks in it"),
    ("missing_file", "summarize the pdf and give me five points"),
    ("missing_file", "请看我上传的文件并总结要点"),
    ("prompt_too_short", "sort a list"),
    ("prompt_too_short", "写诗"),
]
KEPT = [
    "how do I write a decorator with @app.route in flask",
    "npm install lodash@4.17.21 fails, what does the error mean",
    "why did the war last from 1939-1945 and not longer",
    "the total is $1,250,000.00 and the fee is 12.5 percent, which is more",
    "the server 192.168.100.100 does not answer on port 8080, why",
    "round 3.14159265358979 and 1680000000 to three digits please",
    "Draw a conclusion from the results in the table below",
    "draw the line between confidence and arrogance for me please",
    "explain image processing in Python with an example",
    "write a poem about a painter who lost her brush",
    "how do I implement binary search in Rust for a sorted slice",
    "what does the model in this economics paper say about wages",
    "who created the first compiler and in which year",
    "how do I kill a process that listens on a port",
    "how do I read a csv with pandas and skip the header",
    "explain how video compression works in simple words",
    "如何用Python做图像处理，请举例说明",
    "请解释一下二分查找的原理和复杂度",
    "这个模型的训练数据应该怎么划分",
    "2019年到2023年的房价变化说明了什么",
]


@pytest.mark.parametrize(("rule", "prompt"), DROPPED)
def test_filter_drops_what_it_is_for(rule: str, prompt: str) -> None:
    assert reason(prompt) == rule


@pytest.mark.parametrize("prompt", KEPT)
def test_near_miss_is_kept(prompt: str) -> None:
    assert reason(prompt) is None


def test_every_filter_has_a_case_here() -> None:
    assert {rule for rule, _ in DROPPED} | {"response_too_short", "history_too_long"} == set(RULES)


@pytest.mark.parametrize("personal", ["mail bob@example.com", "call +49 170 1234567"])
def test_personal_data_is_looked_for_in_prompt_reply_and_feedback(personal: str) -> None:
    plain = "an ordinary prompt of seven whole words"
    assert reason(plain) is None
    for dropped in (
        reason(f"{plain} {personal}"),
        reason(plain, response=f"{REPLY} {personal}"),
        reason(plain, feedback=personal),
    ):
        assert dropped in ("email", "phone")


def test_request_filters_look_at_the_request_only() -> None:
    words = "create a picture of a cat; search the web; who are you; see the attached file; https://example.com"
    assert reason("an ordinary prompt of seven whole words", response=f"{REPLY} {words}", feedback=words) is None


def test_lengths_are_counted_in_words_and_in_characters_for_chinese() -> None:
    prompt = "one two three four five"
    assert reason(prompt) is None
    assert reason(prompt.removesuffix(" five")) == "prompt_too_short"
    assert reason(prompt, response="word " * 10) is None
    assert reason(prompt, response="word " * 9) == "response_too_short"
    assert reason("五个字刚好", response="这句话一共有十个汉字") is None
    assert reason("五个字刚好", response="这句话不足十个字") == "response_too_short"
    assert reason("四个字啊") == "prompt_too_short"


def test_history_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert reason("one two three four five", history=20) is None
    assert reason("one two three four five", history=21) == "history_too_long"


def test_first_rule_in_the_given_order_names_the_reason() -> None:
    prompt = "draw a@b.com"
    assert reason(prompt, rules=("email", "prompt_too_short")) == "email"
    assert reason(prompt, rules=("prompt_too_short", "email")) == "prompt_too_short"


def test_rule_that_is_left_out_drops_nothing() -> None:
    assert reason("mail bob@example.com about the late invoice", rules=tuple(r for r in ALL if r != "email")) is None
    assert reason("x", response="y", feedback="z", history=99, rules=()) is None


def test_settings_know_exactly_the_filters_that_exist_and_ask_them_in_the_same_order() -> None:
    assert QualitySection().rules == ALL


def test_limits_of_settings_and_of_filters_are_the_same_by_default() -> None:
    section, limits = QualitySection(), QualityLimits()
    assert (section.min_prompt, section.min_response, section.max_history) == (
        limits.min_prompt,
        limits.min_response,
        limits.max_history,
    )


@pytest.mark.parametrize("piece", ["a", "1 ", "+", "please ", "search ", "create ", "画一张", "a@", "a.", "+1 ", "12 "])
def test_megabytes_of_hostile_text_take_no_more_than_seconds(piece: str) -> None:
    text = piece * (500_000 // len(piece))
    started = time.monotonic()
    reason(text, response=text, feedback=text)
    assert time.monotonic() - started < 10
