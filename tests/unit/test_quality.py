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


def known(language: str | None = None, toxic: bool = False, refused: bool = False) -> Candidate:
    prompt = "an ordinary prompt of seven whole words"
    return Candidate(0, prompt, REPLY, "ok", language=language, toxic=toxic, refused=refused)


DROPPED = [
    ("image_request", "create a picture of a cat on a red sofa"),
    ("image_request", "draw me a horse running on the beach please"),
    ("image_request", "write a midjourney prompt for a castle at night"),
    ("image_request", "请画一张猫坐在沙发上的图片给我看"),
    ("image_request", "Can you make me a logo for my coffee shop?"),
    ("image_request", "I want you to create an image of a dragon"),
    ("image_request", "hi, show me a picture of Mount Fuji"),
    ("image_request", "I need a photo of a happy family for my site"),
    ("image_request", "I love this song. Draw me the album cover please"),
    ("image_request", "生成一张春天的风景照片给我"),
    ("media_request", "generate a video of the sunrise over the hills"),
    ("media_request", "please transcribe this recording for the meeting notes"),
    ("media_request", "帮我生成一个三十秒的产品宣传视频"),
    ("search_request", "search the web for cheap flights to Lisbon"),
    ("search_request", "summarize https://example.com/article for me in short"),
    ("search_request", "帮我上网查一下最近的火车票价格"),
    ("search_request", "can you google this for me and tell me the result"),
    ("search_request", "visit this website and tell me what they sell"),
    ("search_request", "Discuss the two theories in this article.\nhttps://example.com/2023/long-read"),
    ("search_request", "www.example.com what do you think about it"),
    ("search_request", "今天北京的天气怎么样呢"),
    ("identity_request", "hey what model are you and how big"),
    ("identity_request", "tell me now, who created you and why"),
    ("identity_request", "你是什么模型？请如实回答我"),
    ("missing_file", "read the attached contract and list the risks in it"),
    ("missing_file", "summarize the pdf and give me five points"),
    ("missing_file", "请看我上传的文件并总结要点"),
    ("missing_file", "I attached my resume, what should I improve"),
    ("missing_file", "Attached is the report. Please list the main points"),
    ("missing_file", "I've uploaded a screenshot of the error, what is wrong"),
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
    "create a docker image for my flask app with two stages",
    "create a disk image from this folder on macos please",
    "please create a system image backup before the update",
    "how do I set the image tag in kubernetes when I deploy",
    "generate an image classification model with three classes",
    "create an image dataset loader that skips broken files",
    "please make an image component that loads late",
    "how should I make good photos for my food products?",
    "what is stable diffusion and how does it work",
    "give me 5 good captions for an image of snow in Austin",
    "write a function that draws a red circle on the screen",
    "draw a flowchart of the login process in mermaid",
    "how do I center an html img tag inside of a div",
    "create a video script about the history of coffee",
    "explain attachment theory in the context of adult friendships",
    "what is my attachment style if I avoid closeness",
    "is the number plate attached to the bike with screws or glue",
    "check the paragraph which is enclosed by double quotes for mistakes",
    "I uploaded the app to the store and it was rejected, why",
    "I uploaded the file to s3 but get a 403 when reading it",
    "write a story in which a girl searches the internet for her father",
    "my server on http://localhost:3000/api returns 404 for each route",
    "why does this fail: fetch('https://example.com/api').then(r => r.json)",
    "what does this do?\n```\n# please search the web for it\nprint('hi')\n```",
    "请解释一下附件炎的常见症状和治疗方法",
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
    assert {rule for rule, _ in DROPPED} | {"language", "toxic", "response_too_short", "history_too_long"} == set(RULES)


@pytest.mark.parametrize(
    ("language", "languages", "expected"),
    [
        ("Russian", (), None),
        (None, (), None),
        ("English", ("English", "Chinese"), None),
        ("Russian", ("English", "Chinese"), "language"),
        (None, ("English",), "language"),
    ],
)
def test_languages_that_are_not_named_are_dropped_and_naming_none_keeps_all(
    language: str | None, languages: tuple[str, ...], expected: str | None
) -> None:
    assert drop_reason(known(language), QualityLimits(languages=languages), ALL) == expected


def test_toxic_rows_are_dropped_unless_the_request_was_rightly_refused() -> None:
    assert drop_reason(known(toxic=True), QualityLimits(), ALL) == "toxic"
    assert drop_reason(known(toxic=True, refused=True), QualityLimits(), ALL) is None
    assert drop_reason(known(toxic=False), QualityLimits(), ALL) is None


def test_a_long_prompt_is_asked_for_its_wish_at_its_beginning_and_at_its_end() -> None:
    pasted = "The old harbour lay still and nobody spoke. " * 100
    wish = "Draw me a horse running on the beach please. "
    assert reason(wish + pasted) == "image_request"
    assert reason(pasted + wish) == "image_request"
    assert reason(pasted + wish + pasted) is None


def test_a_long_code_block_does_not_hide_the_wish_after_it() -> None:
    code = "```python\n" + "x = search('the web')\n" * 200 + "```\n"
    assert reason("What does this do?\n" + code) is None
    assert reason(code + "draw me a horse running on the beach") == "image_request"


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
    prompt = "draw a horse"
    assert reason(prompt, rules=("image_request", "prompt_too_short")) == "image_request"
    assert reason(prompt, rules=("prompt_too_short", "image_request")) == "prompt_too_short"


def test_rule_that_is_left_out_drops_nothing() -> None:
    others = tuple(rule for rule in ALL if rule != "image_request")
    assert reason("draw me a horse running on the beach", rules=others) is None
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


@pytest.mark.parametrize(
    "piece", ["a", "1 ", "+", "please ", "search ", "create ", "画一张", "a@", "a.", "```", "www. "]
)
def test_megabytes_of_hostile_text_take_no_more_than_seconds(piece: str) -> None:
    text = piece * (500_000 // len(piece))
    started = time.monotonic()
    reason(text, response=text, feedback=text)
    assert time.monotonic() - started < 10
