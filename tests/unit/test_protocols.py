"""The protocols of the reward service: what real clients send is read right, what they read is there, and nothing ambiguous,
wrong or unsupported gets a reward."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.unit import client_bytes
from wildreward_ray.core.protocols import DIALECTS, Dialect
from wildreward_ray.core.service import Asked, ModelCard, Reward, Scored, ServiceError

NATIVE, GET_REWARD, CLASSIFY, REMOTE_RM, SCORE_EVALUATION, PREDICT = DIALECTS
CARD = ModelCard(
    id="rm",
    source="/m/rm",
    version="v1",
    engine="transformers",
    levels=4,
    max_length=512,
    dtype="float32",
    calibrated=False,
    created=1,
)
CHAT = '<|im_start|>user\nWie geht’s? 😀<|im_end|>\n<|im_start|>assistant\nGut "danke"!\n<|im_end|>'
SYSTEM, USER, REPLY = (
    {"role": "system", "content": "s"},
    {"role": "user", "content": "p"},
    {"role": "assistant", "content": "r"},
)
GOOD: dict[str, dict[str, Any]] = {
    "native": {"items": [{"prompt": "p", "response": "r"}, {"messages": [USER, REPLY]}]},
    "wildreward": {"query": ["a", "b"]},
    "verl": {"input": ["a", "b"]},
    "slime": {"prompt": "p", "response": "r"},
    "llama_factory": {"messages": ["a", "b"]},
    "tei": {"inputs": [["a"], ["p", "r"]]},
}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)


def scored(*scores: float) -> Scored:
    return Scored([Reward(s, [0.1, 0.2, 0.3, 0.4], [0.9, 0.7, 0.4]) for s in scores], CARD, tokens=7)


def reply(dialect: Dialect, asked: Asked) -> Any:
    """The reply with rewards 2.5, 2.6, …, after a journey through JSON that has no NaN."""
    rewards = scored(*(2.5 + i / 10 for i in range(len(asked.inputs))))
    return json.loads(json.dumps(dialect.write(asked, rewards), allow_nan=False))


def refused(dialect: Dialect, body: Any) -> ServiceError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ServiceError) as caught:
        dialect.read(raw)
    return caught.value


def test_openrlhf_is_read_and_finds_a_reward_a_score_and_logs_for_each_sample() -> None:
    asked = GET_REWARD.read(client_bytes.OPENRLHF)
    assert asked == Asked((CHAT,))
    answer = reply(GET_REWARD, asked)
    # It keeps `rewards` and `scores` as they are, and logs every key of `extra_logs`.
    assert answer["rewards"] == [2.5]
    assert answer["scores"] == [0.5]
    assert answer["extra_logs"] == {"p_lowest_level": [0.1], "p_highest_level": [0.4]}


def test_openrlhf_s_older_batches_are_read_in_order() -> None:
    asked = GET_REWARD.read(client_bytes.OPENRLHF_0_9)
    assert asked.inputs == (CHAT, "b")
    assert reply(GET_REWARD, asked)["rewards"] == [2.5, 2.6]


def test_openrlhf_s_scores_map_the_lowest_level_to_0_and_the_highest_to_1() -> None:
    answer = GET_REWARD.write(Asked(("a", "b", "c")), scored(1.0, 2.5, 4.0))
    assert answer["scores"] == [0.0, 0.5, 1.0]


def test_wildreward_s_router_is_read_and_finds_rewards() -> None:
    asked = GET_REWARD.read(client_bytes.WILDREWARD)
    assert asked.inputs == ("What is the capital of France?", "Gut “danke”! 😀")
    assert reply(GET_REWARD, asked)["rewards"] == [2.5, 2.6]


def test_verl_is_read_and_finds_the_reward_as_the_last_probability() -> None:
    asked = CLASSIFY.read(client_bytes.VERL)
    assert asked == Asked(('user: Wie geht’s?\nassistant: Gut "danke"! 😀',), "/m/rm")
    answer = reply(CLASSIFY, asked)
    assert answer["data"][-1]["probs"][-1] == 2.5
    assert answer["data"] == [{"index": 0, "label": None, "probs": [2.5], "num_classes": 1}]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 7


def test_slime_is_read_and_finds_the_score_under_its_key() -> None:
    asked = REMOTE_RM.read(client_bytes.SLIME_TEXT)
    assert asked.inputs == (([], "Wie geht’s?", "Gut “danke”!"),)
    assert reply(REMOTE_RM, asked)["score"] == 2.5
    messages = REMOTE_RM.read(client_bytes.SLIME_MESSAGES)
    assert messages.inputs == (([SYSTEM], "Wie geht’s?", "Gut “danke”!"),)


def test_llama_factory_is_read_and_finds_a_score_for_each_text() -> None:
    asked = SCORE_EVALUATION.read(client_bytes.LLAMA_FACTORY)
    # Its "model" is a constant, not a wish.
    assert asked == Asked((CHAT, "b"), None)
    assert reply(SCORE_EVALUATION, asked)["scores"] == [2.5, 2.6]


@pytest.mark.parametrize(
    ("inputs", "read", "written"),
    [
        ("a", ("a",), [{"score": 2.5, "label": "reward"}]),
        (["a"], ("a",), [{"score": 2.5, "label": "reward"}]),
        (["p", "r"], (([], "p", "r"),), [{"score": 2.5, "label": "reward"}]),
        ([["a"]], ("a",), [[{"score": 2.5, "label": "reward"}]]),
        (
            [["a"], ["p", "r"]],
            ("a", ([], "p", "r")),
            [[{"score": 2.5, "label": "reward"}], [{"score": 2.6, "label": "reward"}]],
        ),
    ],
)
def test_every_form_of_tei_s_inputs_gets_the_form_of_reply_tei_gives(inputs: Any, read: Any, written: Any) -> None:
    asked = PREDICT.read(json.dumps({"inputs": inputs, "raw_scores": True, "truncate": True}).encode())
    assert asked.inputs == read
    assert reply(PREDICT, asked) == written


def test_classify_takes_a_string_a_list_or_messages() -> None:
    assert CLASSIFY.read(b'{"input": "a"}').inputs == ("a",)
    assert CLASSIFY.read(b'{"input": ["a", "b"], "model": null}').inputs == ("a", "b")
    chat = json.dumps({"messages": [SYSTEM, {**USER, "name": "n"}, REPLY], "input": None, "request_id": "q1"})
    asked = CLASSIFY.read(chat.encode())
    assert asked.inputs == (([SYSTEM], "p", "r"),)
    assert reply(CLASSIFY, asked)["id"] == "classify-q1"


def test_both_forms_of_a_native_item_mean_the_same_conversation() -> None:
    body = {"items": [{"messages": [SYSTEM, USER, REPLY]}, {"history": [SYSTEM], "prompt": "p", "response": "r"}]}
    asked = NATIVE.read(json.dumps({**body, "model": "rm"}).encode())
    assert asked == Asked((([SYSTEM], "p", "r"),) * 2, "rm")
    answer = reply(NATIVE, asked)
    assert (answer["model"], answer["version"]) == ("rm", "v1")
    assert [s["score"] for s in answer["scores"]] == [2.5, 2.6]


@each_dialect
def test_what_a_dialect_writes_is_of_the_form_it_documents(dialect: Dialect) -> None:
    asked = dialect.read(json.dumps(GOOD[dialect.name]).encode())
    adapter = dialect.reply if isinstance(dialect.reply, TypeAdapter) else TypeAdapter(dialect.reply)
    answer = reply(dialect, asked)
    assert adapter.dump_python(adapter.validate_python(answer), mode="json") == answer


@each_dialect
def test_foreign_dialects_ignore_unknown_keys_and_the_native_one_names_them(dialect: Dialect) -> None:
    body = {**GOOD[dialect.name], "itmes": 1}
    if dialect is NATIVE:
        error = refused(dialect, body)
        assert (error.status, error.code, error.field) == (422, "unknown_field", "itmes")
        assert "'items'" in error.detail
    else:
        assert (
            dialect.read(json.dumps(body).encode()).inputs
            == dialect.read(json.dumps(GOOD[dialect.name]).encode()).inputs
        )


@each_dialect
def test_bodies_that_are_no_json_are_400(dialect: Dialect) -> None:
    cases = {b"": "malformed_json", b"{": "malformed_json", b"text": "malformed_json", b'{"a": NaN}': "malformed_json"}
    cases |= {
        b'{"a": -Infinity}': "malformed_json",
        b'\xef\xbb\xbf{"a": 1}': "malformed_json",
        b'{"a": "\xff"}': "not_utf8",
    }
    cases |= {b"[" * 200_000: "malformed_json", b'{"a":' * 200_000: "malformed_json"}
    cases |= {
        b'{"a": ' + b"9" * 5000 + b"}": "malformed_json",
        b'"\xed\xa0\x80"': "not_utf8",
        '{"a": 1}'.encode("utf-16"): "not_utf8",
    }
    for body, code in cases.items():
        error = refused(dialect, body)
        assert (error.status, error.code) == (400, code), body[:20]


@each_dialect
@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null", b"true"])
def test_bodies_that_are_no_object_are_422(dialect: Dialect, body: bytes) -> None:
    assert refused(dialect, body).status == 422


@each_dialect
def test_a_key_that_comes_twice_is_refused_where_either_value_might_be_meant(dialect: Dialect) -> None:
    good = json.dumps(GOOD[dialect.name])
    name = next(iter(GOOD[dialect.name]))
    error = refused(dialect, f'{good[:-1]}, "{name}": "other"}}'.encode())
    assert (error.status, error.code, error.field) == (422, "duplicate_key", name)


def test_a_reply_given_twice_in_one_item_is_refused() -> None:
    error = refused(NATIVE, b'{"items": [{"prompt": "p", "response": "good", "response": "bad"}]}')
    assert (error.code, error.field) == ("duplicate_key", "response")


@pytest.mark.parametrize(
    ("dialect", "body", "field"),
    [
        (
            NATIVE,
            rb'{"items": [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": "x\ud800"}]}',
            "items[1].response",
        ),
        (
            NATIVE,
            rb'{"items": [{"messages": [{"role": "user", "content": "\uDFFF"}, {"role": "assistant", "content": ""}]}]}',
            "items[0].messages[0].content",
        ),
        (NATIVE, rb'{"items": [{"prompt": "p", "response": "\ude00\ud83d"}]}', "items[0].response"),
        (GET_REWARD, rb'{"query": ["a", "\ud83d"]}', "query[1]"),
        (CLASSIFY, rb'{"input": "\ud83d\ud83d"}', "input"),
        (CLASSIFY, rb'{"input": "a", "model": "\ud800"}', "model"),
        (REMOTE_RM, rb'{"prompt": "p", "response": "\ud800"}', "response"),
        (SCORE_EVALUATION, rb'{"messages": ["\ud800"]}', "messages[0]"),
        (PREDICT, rb'{"inputs": [["a"], ["p", "\ud800"]]}', "inputs[1][1]"),
        (GET_REWARD, rb'{"query": ["a"], "\ud800": 1}', r"\ud800"),
    ],
)
def test_a_lone_surrogate_is_no_text_and_its_place_is_named(dialect: Dialect, body: bytes, field: str) -> None:
    error = refused(dialect, body)
    assert (error.status, error.code, error.field) == (422, "lone_surrogate", field)
    error.detail.encode()


def test_surrogate_pairs_escaped_backslashes_and_nul_are_text() -> None:
    asked = GET_REWARD.read(rb'{"query": ["\ud83d\ude00", "\\ud800", "a\u0000b"]}')
    assert asked.inputs == ("😀", "\\ud800", "a\0b")


@pytest.mark.parametrize(
    ("dialect", "body", "field", "code"),
    [
        (NATIVE, {}, "items", "missing_field"),
        (NATIVE, {"items": []}, "items", "invalid_field"),
        (NATIVE, {"items": None}, "items", "invalid_field"),
        (NATIVE, {"items": {"0": {}}}, "items", "invalid_field"),
        (NATIVE, {"items": ["text"]}, "items[0]", "invalid_field"),
        (NATIVE, {"items": [{"prompt": "p", "response": "r"}], "model": None}, "model", "invalid_field"),
        (NATIVE, {"items": [{"prompt": "p", "response": "r"}, {"prompt": "p"}]}, "items[1]", "missing_field"),
        (NATIVE, {"items": [{"prompt": "p", "response": None}]}, "items[0].response", "invalid_field"),
        (NATIVE, {"items": [{"prompt": 1, "response": "r"}]}, "items[0].prompt", "invalid_field"),
        (NATIVE, {"items": [{"prompt": "p", "response": "r", "respones": ""}]}, "items[0].respones", "unknown_field"),
        (NATIVE, {"items": [{"messages": []}]}, "items[0]", "invalid_field"),
        (NATIVE, {"items": [{"messages": [USER]}]}, "items[0]", "invalid_field"),
        (NATIVE, {"items": [{"messages": [REPLY, USER]}]}, "items[0]", "invalid_field"),
        (NATIVE, {"items": [{"messages": [USER, REPLY], "response": "r"}]}, "items[0]", "invalid_field"),
        (NATIVE, {"items": [{"messages": [USER, {"role": "judge", "content": ""}]}]}, "items[0].messages[1].role", "invalid_field"),
        (NATIVE, {"items": [{"messages": [USER, {"role": "assistant"}]}]}, "items[0].messages[1].content", "missing_field"),
        (NATIVE, {"items": [{"messages": [{**USER, "content": [1]}, REPLY]}]}, "items[0].messages[0].content", "invalid_field"),
        (GET_REWARD, {}, "query", "missing_field"),
        (GET_REWARD, {"query": []}, "query", "invalid_field"),
        (GET_REWARD, {"query": "text"}, "query", "invalid_field"),
        (GET_REWARD, {"query": ["a", 1]}, "query[1]", "invalid_field"),
        (CLASSIFY, {}, "input", "invalid_field"),
        (CLASSIFY, {"input": "a", "messages": [USER, REPLY]}, "input", "invalid_field"),
        (CLASSIFY, {"input": []}, "input", "invalid_field"),
        (CLASSIFY, {"input": [1, 2, 3]}, "input[0]", "invalid_field"),
        (CLASSIFY, {"input": {"text": "a"}}, "input", "invalid_field"),
        (CLASSIFY, {"messages": "a"}, "messages", "invalid_field"),
        (CLASSIFY, {"messages": [USER]}, "messages", "invalid_field"),
        (CLASSIFY, {"messages": [USER, {"role": "assistant", "content": 1}]}, "messages[1].content", "invalid_field"),
        (REMOTE_RM, {"prompt": "p"}, "response", "missing_field"),
        (REMOTE_RM, {"response": "r"}, "prompt", "missing_field"),
        (REMOTE_RM, {"prompt": 1, "response": "r"}, "prompt", "invalid_field"),
        (REMOTE_RM, {"prompt": [], "response": "r"}, "prompt", "invalid_field"),
        (REMOTE_RM, {"prompt": [REPLY], "response": "r"}, "prompt", "invalid_field"),
        (REMOTE_RM, {"prompt": "p", "response": None}, "response", "invalid_field"),
        (SCORE_EVALUATION, {"messages": []}, "messages", "invalid_field"),
        (SCORE_EVALUATION, {"messages": [USER]}, "messages[0]", "invalid_field"),
        (PREDICT, {}, "inputs", "missing_field"),
        (PREDICT, {"inputs": []}, "inputs", "invalid_field"),
        (PREDICT, {"inputs": None}, "inputs", "invalid_field"),
        (PREDICT, {"inputs": ["a", "b", "c"]}, "inputs", "invalid_field"),
        (PREDICT, {"inputs": ["a", ["b"]]}, "inputs", "invalid_field"),
        (PREDICT, {"inputs": [["a"], "b"]}, "inputs[1]", "invalid_field"),
        (PREDICT, {"inputs": [["a"], []]}, "inputs[1]", "invalid_field"),
        (PREDICT, {"inputs": [["a", 1]]}, "inputs[0]", "invalid_field"),
        (PREDICT, {"inputs": "a", "truncate": "yes"}, "truncate", "invalid_field"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_422_and_named(dialect: Dialect, body: Any, field: str, code: str) -> None:
    error = refused(dialect, body)
    assert (error.status, error.field, error.code) == (422, field, code)
    assert field in error.detail


@pytest.mark.parametrize(
    ("dialect", "option", "value"),
    [
        (CLASSIFY, "use_activation", True),
        (CLASSIFY, "normalize", False),
        (CLASSIFY, "task", "embed"),
        (CLASSIFY, "truncate_prompt_tokens", -1),
        (CLASSIFY, "truncation_side", "right"),
        (CLASSIFY, "priority", 1),
        (CLASSIFY, "priority", False),
        (CLASSIFY, "cache_salt", "s"),
        (CLASSIFY, "mm_processor_kwargs", {}),
        (CLASSIFY, "chat_template", "{{ messages }}"),
        (CLASSIFY, "chat_template_kwargs", {"a": 1}),
        (CLASSIFY, "add_generation_prompt", True),
        (CLASSIFY, "continue_final_message", True),
        (SCORE_EVALUATION, "max_length", 512),
        (PREDICT, "truncation_direction", "Right"),
        (PREDICT, "truncation_direction", "right"),
    ],
)
def test_an_option_that_would_change_the_reward_is_refused_and_not_ignored(
    dialect: Dialect, option: str, value: Any
) -> None:
    error = refused(dialect, {**GOOD[dialect.name], option: value})
    assert (error.status, error.code, error.field) == (422, "unsupported_option", option)


@pytest.mark.parametrize(
    ("dialect", "options"),
    [
        (CLASSIFY, {"use_activation": None, "priority": 0, "truncation_side": "left", "task": "classify", "user": "u"}),
        (CLASSIFY, {"add_special_tokens": False, "add_generation_prompt": False, "truncate_prompt_tokens": None}),
        (SCORE_EVALUATION, {"max_length": None, "model": "any"}),
        (PREDICT, {"truncation_direction": "Left", "truncate": None, "raw_scores": False}),
    ],
)
def test_options_at_values_that_mean_what_the_service_does_are_taken(dialect: Dialect, options: dict[str, Any]) -> None:
    good = GOOD[dialect.name]
    with_options = dialect.read(json.dumps({**good, **options}).encode())
    assert with_options.inputs == dialect.read(json.dumps(good).encode()).inputs


def test_errors_never_repeat_what_a_conversation_says() -> None:
    secret = "my bank card is 4111"
    bodies: list[tuple[Dialect, Any]] = [
        (NATIVE, {"items": [{"prompt": secret, "response": [secret]}]}),
        (NATIVE, {"items": [{"messages": [{"role": secret, "content": secret}, REPLY]}]}),
        (NATIVE, {"items": [{"prompt": secret}]}),
        (CLASSIFY, {"input": "a", "chat_template": secret}),
        (REMOTE_RM, {"prompt": [{"role": "user", "content": {"text": secret}}], "response": secret}),
        (PREDICT, {"inputs": [secret, 1]}),
    ]
    for dialect, body in bodies:
        error = refused(dialect, body)
        assert secret not in error.detail + str(error.field)


def test_a_key_as_long_as_a_text_is_cut_in_the_error() -> None:
    error = refused(NATIVE, {"items": [{"prompt": "p", "response": "r"}], "x" * 10_000: 1})
    assert len(error.detail) < 400
    assert error.field is not None
    assert len(error.field) < 100


@each_dialect
def test_paths_and_names_are_one_of_a_kind_and_items_have_names(dialect: Dialect) -> None:
    assert sum(d.path == dialect.path for d in DIALECTS) == 1
    assert sum(d.name == dialect.name for d in DIALECTS) == 1
    assert dialect.item_field(3).split("[")[0] in {*dialect.request.model_fields}
