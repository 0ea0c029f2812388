"""What the API does with inputs before an engine sees them: too long ones are refused by number, prompts are told apart."""

from __future__ import annotations

import pickle

import pytest
from transformers import PreTrainedTokenizerFast

from wildreward_ray.core.service import ServiceError
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.inputs import InputEncoder, Item
from wildreward_ray.stages.serve_api import encode, prompt_hash

TEMPLATE = (
    "{% for m in history %}{{ m.role }}: {{ m.content }} {% endfor %}user: {{ prompt }} assistant: {{ response }}"
)


def words(count: int) -> str:
    return " ".join(f"w{i % 300}" for i in range(count))


@pytest.fixture
def encoder(llama_tokenizer: PreTrainedTokenizerFast) -> InputEncoder:
    return InputEncoder(llama_tokenizer, RewardTemplate(TEMPLATE), 40)


def test_history_and_prompt_may_be_cut_and_the_response_may_not(encoder: InputEncoder) -> None:
    history = [{"role": "user", "content": words(50)}, {"role": "assistant", "content": words(50)}]
    fits = encoder.room
    cases: list[Item] = [(history, "w1", words(10)), ([], words(100), words(10)), ([], "w1", words(fits))]
    for case in cases:
        (ids,) = encode(encoder, [case], cut=False)
        assert len(ids) <= 40
    with pytest.raises(ServiceError) as refused:
        encode(encoder, [([], "w1", "w2"), ([], "w1", words(fits + 1))], cut=False)
    assert (refused.value.status, refused.value.code, refused.value.item) == (422, "too_long", 1)
    assert str(fits + 1) in refused.value.detail
    assert len(encode(encoder, [([], "w1", words(fits + 1))], cut=True)[0]) == 40


def test_a_rendered_text_that_is_too_long_is_refused_and_one_that_fits_is_not(encoder: InputEncoder) -> None:
    assert len(encode(encoder, [words(encoder.room)], cut=False)[0]) == 40
    with pytest.raises(ServiceError, match="the text has"):
        encode(encoder, [words(encoder.room + 1)], cut=False)


def test_padding_that_is_taken_from_the_end_does_not_hide_that_a_response_was_cut(encoder: InputEncoder) -> None:
    pad = str(encoder.tokenizer.pad_token)
    with pytest.raises(ServiceError, match="the response has"):
        encode(encoder, [([], "w1", f"{words(encoder.room)} {pad} {pad} {pad}")], cut=False)


def test_replies_to_one_prompt_have_one_hash_however_they_are_asked_for() -> None:
    marker = " assistant: "
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    same = {prompt_hash((history, "p", reply), marker) for reply in ("x", "y", "")}
    assert len(same) == 1
    assert prompt_hash((history, "q", "x"), marker) not in same
    assert prompt_hash(([], "p", "x"), marker) not in same
    texts = {prompt_hash(f"user: p assistant: {reply}", marker) for reply in ("x", "y")}
    assert len(texts) == 1
    assert prompt_hash("user: q assistant: x", marker) not in texts
    assert prompt_hash("a", "") != prompt_hash("b", "")


def test_a_service_error_crosses_process_borders_whole() -> None:
    error = ServiceError(503, "loading", "the model is being loaded", item=3, retry_after_s=5)
    found = pickle.loads(pickle.dumps(error))
    assert vars(found) == vars(error)
    assert str(found) == str(error)
