"""The reward-input template: what it renders, and what it must never evaluate."""

from __future__ import annotations

import pickle

import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import RewardTemplate, split_messages

HISTORY = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}]
HOSTILE = "{{ 7 * 6 }} {% for x in (1, 2) %}loop{% endfor %} {# gone #} {{ response.__class__ }} {% raw %} }} %}"


def test_default_template_shows_history_prompt_and_response_in_order_and_ends_with_the_response() -> None:
    text = RewardTemplate().render(HISTORY, "third", "fourth")
    assert [text.index(part) for part in ("user: first", "assistant: second", "user: third", "fourth")] == sorted(
        text.index(part) for part in ("user: first", "assistant: second", "user: third", "fourth")
    )
    assert text.endswith("assistant: fourth")


def test_replies_to_one_prompt_share_everything_before_the_reply() -> None:
    template = RewardTemplate()
    one, other = template.render(HISTORY, "p", "REPLY-A"), template.render(HISTORY, "p", "REPLY-B")
    assert one.removesuffix("REPLY-A") == other.removesuffix("REPLY-B")


def test_stored_text_renders_the_same_bytes() -> None:
    template = RewardTemplate("{{ history|length }}\n{{ prompt }} -> {{ response }}\n")
    assert template.render(HISTORY, "p", "r") == "2\np -> r\n"
    assert RewardTemplate(template.text).render(HISTORY, "p", "r") == "2\np -> r\n"


@pytest.mark.parametrize("text", [HOSTILE, "<b>&amp;</b>", "trailing space \n\n", "中文 {{ prompt }}"])
def test_conversation_text_passes_through_untouched(text: str) -> None:
    rendered = RewardTemplate().render([{"role": "user", "content": text}], text, text)
    assert rendered.count(text) == 3


def test_pickled_template_renders_the_same() -> None:
    template = RewardTemplate("{{ prompt }}|{{ response }}")
    template.render([], "a", "b")
    assert pickle.loads(pickle.dumps(template)).render([], "a", "b") == "a|b"


@pytest.mark.parametrize(("text", "part"), [("{{ prompt }}", "response"), ("{{ response }}", "prompt")])
def test_template_that_drops_a_part_is_an_error(text: str, part: str) -> None:
    with pytest.raises(UserError, match=f"drops the {part}.*--template"):
        RewardTemplate(text)


def test_unknown_variable_is_an_error_and_not_an_empty_string() -> None:
    with pytest.raises(UserError, match=r"answer.*undefined.*--template"):
        RewardTemplate("{{ prompt }} {{ response }} {{ answer }}")


def test_invalid_template_is_an_error() -> None:
    with pytest.raises(UserError, match=r"not valid Jinja.*--template"):
        RewardTemplate("{{ prompt }} {{ response ")


@pytest.mark.parametrize(
    "escape",
    ["{{ ''.__class__.__mro__ }}", "{{ history.append(1) }}", "{{ prompt.format.__globals__ }}"],
)
def test_template_runs_in_a_sandbox(escape: str) -> None:
    with pytest.raises(UserError):
        RewardTemplate("{{ prompt }} {{ response }} " + escape)


def test_messages_split_into_history_prompt_and_response() -> None:
    messages = [*HISTORY, {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    assert split_messages(messages) == (HISTORY, "p", "r")


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user"], ["assistant", "user"], ["system", "assistant"]])
def test_messages_that_do_not_end_in_prompt_and_reply_are_refused(roles: list[str]) -> None:
    with pytest.raises(UserError, match="the last two must be"):
        split_messages([{"role": role, "content": "x"} for role in roles])
