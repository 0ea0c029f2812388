"""Building inputs: what is cut, what never is, and that a row's ids don't depend on its neighbours."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import DEFAULT_TEMPLATE, Message, RewardTemplate
from wildreward_ray.reward.inputs import InputEncoder, Item

PLAIN = "{% for m in history %}{{ m.role }}: {{ m.content }} {% endfor %}user: {{ prompt }} assistant: {{ response }}"


def words(first: int, count: int) -> str:
    return " ".join(f"w{(first + i) % 300}" for i in range(count))


def turns(*sizes: int) -> list[Message]:
    return [
        {"role": "user" if i % 2 == 0 else "assistant", "content": words(20 * i, size)} for i, size in enumerate(sizes)
    ]


def encoder(tokenizer: PreTrainedTokenizerFast, max_length: int, template: str = PLAIN) -> InputEncoder:
    return InputEncoder(tokenizer, RewardTemplate(template), max_length)


def text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids))


def test_settings_saved_in_the_tokenizer_neither_cut_nor_pad(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    long = encoder(bert_tokenizer, 100).encode([], words(0, 30), words(50, 30))
    assert len(long) == 2 + 60 + 2
    short = encoder(bert_tokenizer, 100).encode([], "w1", "w2")
    assert text(bert_tokenizer, short) == "[CLS] user: w1 assistant: w2 [SEP]"


def test_the_oldest_messages_go_first_and_go_whole(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    history = turns(5, 6, 7)
    # CLS, SEP, two role words, prompt and response are 10; messages cost their words and a role.
    ids = encoder(bert_tokenizer, 10 + 8 + 7).encode(history, "w200 w201 w202", "w210 w211 w212")
    assert text(bert_tokenizer, ids) == (
        f"[CLS] assistant: {words(20, 6)} user: {words(40, 7)} user: w200 w201 w202 assistant: w210 w211 w212 [SEP]"
    )
    one_less = encoder(bert_tokenizer, 10 + 8 + 6).encode(history, "w200 w201 w202", "w210 w211 w212")
    assert text(bert_tokenizer, one_less).startswith(f"[CLS] user: {words(40, 7)} user: w200")


def test_as_little_history_as_possible_is_dropped(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    for _ in range(60):
        history = turns(*(rng.choice([0, 1, 3, 10, 30]) for _ in range(rng.randint(1, 25))))
        limit = rng.randint(12, 90)
        ids = encoder(bert_tokenizer, limit).encode(history, "w1 w2", "w3 w4")
        whole = encoder(bert_tokenizer, 10_000)
        fitting = (whole.encode(history[d:], "w1 w2", "w3 w4") for d in range(len(history) + 1))
        assert ids == next(candidate for candidate in fitting if len(candidate) <= limit)


def test_long_histories_cost_few_renderings(
    bert_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    render = RewardTemplate.render

    def counted(self: RewardTemplate, history: Sequence[Message], prompt: str, response: str) -> str:
        nonlocal calls
        calls += 1
        return render(self, history, prompt, response)

    subject = encoder(bert_tokenizer, 60)
    monkeypatch.setattr(RewardTemplate, "render", counted)
    subject.encode(turns(*([4] * 2000)), "w1", "w2")
    assert calls <= 5


@pytest.mark.parametrize("template", [PLAIN, DEFAULT_TEMPLATE, PLAIN + " w299"])
def test_the_end_of_the_response_always_survives(bert_tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    for limit in (8, 9, 20, 57):
        ids = encoder(bert_tokenizer, limit, template).encode(turns(9, 9), words(0, 40), words(100, 80))
        assert len(ids) == limit
        assert (ids[0], ids[-1]) == (bert_tokenizer.cls_token_id, bert_tokenizer.sep_token_id)
        tail = words(100, 80) + (" w299" if template.endswith("w299") else "")
        assert tail.endswith(text(bert_tokenizer, ids[1:-1]).removeprefix("user: "))


def test_a_batch_gives_every_row_the_ids_it_gets_alone(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    items: list[Item] = [
        ([], "w1", "w2"),
        (turns(30, 30), "w1", words(5, 9)),
        ([], words(0, 90), "w3"),
        (turns(1), "w1", ""),
    ]
    subject = encoder(bert_tokenizer, 24)
    batch = subject.encode_batch(items)
    assert batch == [subject.encode(*item) for item in items]
    assert batch[::-1] == subject.encode_batch(items[::-1])
    assert subject.encode_batch([]) == []


def test_encode_text_agrees_with_encode_and_cuts_the_left(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    subject = encoder(bert_tokenizer, 10)
    rendered = subject.template.render([], "w1", "w2")
    assert subject.encode_text(rendered) == subject.encode([], "w1", "w2")
    assert text(bert_tokenizer, subject.encode_text(words(0, 50))) == f"[CLS] {words(42, 8)} [SEP]"


def test_special_tokens_written_by_the_template_are_not_doubled(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    subject = encoder(bert_tokenizer, 30, "[CLS] " + PLAIN + " [SEP]")
    assert text(bert_tokenizer, subject.encode([], "w1", "w2")) == "[CLS] user: w1 assistant: w2 [SEP]"
    cut = encoder(bert_tokenizer, 8, "[CLS] " + PLAIN + " [SEP]").encode([], "w1", words(0, 20))
    assert text(bert_tokenizer, cut) == f"[CLS] {words(14, 6)} [SEP]"


def test_bos_is_there_once_whether_or_not_the_text_has_it(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    with_bos = encoder(llama_tokenizer, 30, "<s> " + PLAIN).encode([], "w1", "w2")
    without = encoder(llama_tokenizer, 30).encode([], "w1", "w2")
    assert with_bos == without
    assert with_bos.count(llama_tokenizer.bos_token_id) == 1


def test_ids_never_end_in_padding_where_padding_is_end_of_text(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    for response in ("w2", "w2 </s>", "w2 </s> </s>"):
        assert text(tokenizer, encoder(tokenizer, 30).encode([], "w1", response)) == "<s> user: w1 assistant: w2"


def test_a_length_without_room_is_the_users_error(bert_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="--max-length"):
        encoder(bert_tokenizer, 2)
