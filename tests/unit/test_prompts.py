"""Reading prompts: a record that is no prompt costs itself and is counted; and which prompts a step uses."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.wire import ChatMessage
from wildreward_ray.stages.prompts import ROLES, Prompt, Prompts, batch, load_prompts

from .conftest import word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = word_tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>")
    found.chat_template = TEMPLATE
    return found


def settings(place: Path, **values: Any) -> OnlineDpoConfig:
    given = {"policy": "p", "reward_url": "http://x", "prompts": str(place), "output": "o", "eval.prompts": 0}
    return OnlineDpoConfig.load(None, {**given, **{k.replace("__", "."): v for k, v in values.items()}})


def write(folder: Path, *records: Any, name: str = "prompts.jsonl") -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOOD = {"prompt": "w1 w2"}
TURNS = [user("w1"), reply("w2"), user("w3")]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "w3"}, "no_prompt"),
        ({"prompt": None, "messages": None}, "no_prompt"),
        ({"messages": []}, "no_prompt"),
        ({"messages": [reply("w3")]}, "no_prompt"),
        ({"messages": [user("w3"), {"role": "system", "content": "w4"}]}, "no_prompt"),
        ({"prompt": 3}, "not_text"),
        ({"prompt": [user("w3")]}, "not_text"),
        ({"prompt": "w3", "history": "w4"}, "not_text"),
        ({"prompt": "w3", "history": ["w4"]}, "not_text"),
        ({"messages": [user([{"type": "text", "text": "w3"}])]}, "not_text"),
        ({"messages": [user("w1"), reply(None), user("w3")]}, "not_text"),
        ({"prompt": "w3 \ud83d"}, "not_text"),
        ({"messages": [{"role": "human", "content": "w3"}, reply("w2")]}, "bad_role"),
        ({"messages": [{"role": ["user"], "content": "w3"}]}, "bad_role"),
        ({"prompt": " \n\t"}, "empty"),
        ({"messages": [user("w3"), user("w4")]}, "template_failed"),
        ({"prompt": " ".join(["w3"] * 40)}, "too_long"),
        ({"prompt": "w1  w2"}, "duplicate"),
        ("[1, 2]", "not_an_object"),
        ('{"prompt": "w3', "invalid_json"),
    ],
)
def test_a_record_that_is_no_prompt_is_counted_by_its_reason_and_costs_no_other(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, record: Any, reason: str
) -> None:
    place = write(tmp_path, GOOD, record, {"prompt": "w9"})
    found = load_prompts(settings(place, max_prompt_tokens=20), tokenizer)
    assert sorted(p.prompt for p in found.usable) == ["w1 w2", "w9"]
    assert found.dropped == {reason: 1}
    (unusable,) = found.quarantine
    assert (unusable.file, unusable.record, unusable.reason) == (str(place), 2, reason)
    assert unusable.detail
    funnel = found.funnel()
    funnel.check()
    assert (funnel.rows_in, funnel.rows_out, funnel.dropped) == (3, 2, {reason: 1})


def test_history_and_messages_give_one_and_the_same_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    place = write(tmp_path, {"messages": [*TURNS, reply("w8"), reply("w9")]}, {"prompt": "w3", "history": TURNS[:2]})
    found = load_prompts(settings(place), tokenizer)
    assert found.dropped == {"duplicate": 1}
    (prompt,) = found.usable
    assert (prompt.history, prompt.prompt) == (tuple(TURNS[:2]), "w3")
    assert " ".join(tokenizer.decode(prompt.token_ids).split()) == "user: w1 assistant: w2 user: w3 assistant:"


def test_a_prompt_leaves_room_for_the_longest_reply(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    place = write(tmp_path, GOOD, {"prompt": "w1 w2 w3"})
    exact = load_prompts(settings(place, rollout__engine__max_model_len=64, rollout__max_tokens=60), tokenizer)
    assert [(p.prompt, len(p.token_ids)) for p in exact.usable] == [("w1 w2", 4)]
    assert exact.dropped == {"too_long": 1}
    assert "--rollout.max-tokens" in exact.quarantine[0].detail


def test_the_system_prompt_joins_only_chats_that_have_none(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    own = {"messages": [{"role": "system", "content": "w7"}, user("w2")]}
    found = load_prompts(settings(write(tmp_path, GOOD, own), system_prompt="w5"), tokenizer)
    assert sorted(p.history[0]["content"] for p in found.usable) == ["w5", "w7"]
    assert all(len(p.history) == 1 for p in found.usable)


def test_a_template_that_refuses_a_system_message_drops_those_prompts_only(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    strict = word_tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>")
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    )
    place = write(tmp_path, GOOD, {"messages": [{"role": "system", "content": "w7"}, user("w2")]})
    found = load_prompts(settings(place), strict)
    assert (len(found.usable), found.dropped) == (1, {"template_failed": 1})
    assert "no system" in found.quarantine[0].detail
    with pytest.raises(UserError, match="template_failed 2"):
        load_prompts(settings(place, system_prompt="w5"), strict)


def test_the_quarantine_shows_three_of_each_reason_and_the_counts_show_all(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    place = write(tmp_path, *[{}] * 5, "", "{damaged", GOOD, *[{"prompt": ""}] * 2)
    found = load_prompts(settings(place), tokenizer)
    assert found.dropped == {"no_prompt": 5, "invalid_json": 1, "empty": 2}
    shown = [(u.record, u.reason) for u in found.quarantine]
    numbers = {reason: [n for n, word in shown if word == reason] for _, reason in shown}
    assert numbers == {"no_prompt": [1, 2, 3], "invalid_json": [6], "empty": [8, 9]}, "a blank line is no record"


def test_too_few_usable_prompts_are_an_error_that_says_where_the_others_went(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    place = write(tmp_path, GOOD, {"prompt": "w3"}, {"prompt": ""}, {}, {})
    assert len(load_prompts(settings(place, eval__prompts=1), tokenizer).usable) == 2
    with pytest.raises(UserError) as error:
        load_prompts(settings(place, eval__prompts=2), tokenizer)
    for part in ("2 usable", "no_prompt 2, empty 1", "at least 3", "record 4", "--prompts"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="--limit"):
        load_prompts(settings(place, eval__prompts=2, limit=2), tokenizer)


def test_the_order_follows_from_the_seed_and_the_limit_ends_reading(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    place = write(tmp_path, *[{"prompt": f"w{i}"} for i in range(50)], {})
    texts = [[p.prompt for p in load_prompts(settings(place, seed=seed), tokenizer).usable] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert sorted(texts[0]) == sorted(texts[2])
    few = load_prompts(settings(place, limit=10), tokenizer)
    assert sorted(p.prompt for p in few.usable) == [f"w{i}" for i in range(10)]
    assert not few.dropped


def test_parquet_of_both_shapes_and_packed_lines_are_read_beside_each_other(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pq.write_table(
        pa.table({"prompt": ["w1", None], "history": [TURNS[:2], None], "x": [1, 2]}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"messages": [TURNS, [user("w4")]]}), tmp_path / "b.parquet")
    packed = gzip.compress(b'{"prompt": "w5"}\n{"prompt": "w6"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(packed)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "w7"}\n{"prompt": "w8"}\n')[:-9])
    found = load_prompts(settings(tmp_path), tokenizer)
    assert {"w1", "w3", "w4", "w5", "w6"} <= {p.prompt for p in found.usable}
    assert found.dropped == {"no_prompt": 1, "truncated_file": 1}
    assert {(Path(u.file).name, u.record) for u in found.quarantine if u.reason == "no_prompt"} == {("a.parquet", 2)}


def test_a_parquet_file_that_holds_no_prompts_or_is_broken_is_an_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pq.write_table(pa.table({"text": ["w1"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"neither a column 'prompt' nor 'messages' \(it has text\)"):
        load_prompts(settings(tmp_path), tokenizer)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"a\.parquet.*can't be read as Parquet"):
        load_prompts(settings(tmp_path), tokenizer)


def test_roles_are_those_that_the_reward_service_takes() -> None:
    assert set(get_args(ChatMessage.model_fields["role"].annotation)) == set(ROLES)


# Batches.


def numbered(n: int) -> list[Prompt]:
    return [Prompt((), str(i), (i,)) for i in range(n)]


def taken(n: int, size: int, steps: int, seed: int = 0) -> list[str]:
    prompts = numbered(n)
    return [p.prompt for step in range(1, steps + 1) for p in batch(prompts, step, size, seed)]


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 10), (10, 25), (7, 3), (1, 2)])
def test_every_pass_has_every_prompt_once_whatever_the_size_of_a_batch(n: int, size: int) -> None:
    order = taken(n, size, steps=4 * n)
    passes = [order[i : i + n] for i in range(0, len(order), n)]
    assert len(order) == 4 * n * size
    assert all(Counter(p) == Counter(map(str, range(n))) for p in passes)


def test_passes_have_orders_of_their_own_that_follow_from_the_seed() -> None:
    order = taken(20, 5, steps=12)
    passes = {tuple(order[i : i + 20]) for i in range(0, 60, 20)}
    assert len(passes) == 3
    assert order == taken(20, 5, steps=12) != taken(20, 5, steps=12, seed=1)


def test_the_place_depends_on_the_step_alone() -> None:
    prompts = numbered(10)
    order = taken(10, 4, steps=9)
    assert [p.prompt for p in batch(prompts, 9, 4, 0)] == order[32:]
    assert [p.prompt for p in batch(prompts, 3, 4, 0)] == order[8:12], "which crosses the border of two passes"


def test_the_order_is_the_same_in_every_process() -> None:
    assert [p.prompt for p in batch(numbered(8), 1, 8, 0)] == list("71364025")


def test_an_empty_reading_has_a_funnel_that_adds_up() -> None:
    Prompts().funnel().check()
