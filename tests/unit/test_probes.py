"""Probes change what they promise and nothing else, once, and alike for equal seeds; flips and effects by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.template import Message
from wildreward_ray.feedback.refusal import is_refusal
from wildreward_ray.reward.benchmarks.items import Item
from wildreward_ray.reward.benchmarks.probe_texts import EXCHANGES, FLATTERY, PADDING, REFUSALS
from wildreward_ray.reward.benchmarks.probes import PROBES, Probe, probe_effects, vary

BY_NAME: dict[str, Probe] = {probe.name: probe for probe in PROBES}
REPLY_PROBES = ["padding", "markdown", "refusal", "flattery"]
HISTORY_PROBES = ["history near", "history far", "history long"]

PROMPT = "What should I know about the town?"
RIGHT = 'It lies on the river, e.g. near the mill. Dr. A. Smith founded it in 1820. "Come," he said, "and see!"'
WRONG = "Nobody knows the town. It was never there."
RIGHT_ZH = "这座城市位于河边。它建于1820年！你可以去看看磨坊。"
WRONG_ZH = "没有人知道这座城市。它从来没有存在过。"
SYSTEM: Message = {"role": "system", "content": "Be brief."}
TALK: tuple[Message, ...] = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello, too."})


def item(*responses: str, own_id: str = "1", prompt: str = PROMPT, history: tuple[Message, ...] = ()) -> Item:
    """The first response is right."""
    correct = (True,) + (False,) * (len(responses) - 1)
    return Item(own_id, "g", history, prompt, responses, correct)


ENGLISH = item(RIGHT, WRONG, history=TALK)
CHINESE = item(RIGHT_ZH, WRONG_ZH, prompt="这座城市有什么特点？", history=TALK)


def replies(name: str, one: Item, seed: int = 0) -> tuple[str, ...]:
    case = vary(BY_NAME[name], one, seed, is_refusal)
    assert case is not None, name
    assert case[:2] == (one.history, one.prompt)
    return case[2]


def history(name: str, one: Item, seed: int = 0) -> tuple[Message, ...]:
    case = vary(BY_NAME[name], one, seed, is_refusal)
    assert case is not None, name
    assert case[1:] == (one.prompt, one.responses)
    return case[0]


@pytest.mark.parametrize("one", [ENGLISH, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_equal_seeds_give_equal_changes_and_no_change_is_made_twice(probe: Probe, one: Item) -> None:
    case = vary(probe, one, 5, is_refusal)
    assert case is not None
    assert case == vary(probe, one, 5, is_refusal)
    assert case != (one.history, one.prompt, one.responses)
    again = Item(one.own_id, one.group, case[0], case[1], case[2], one.correct)
    assert all(vary(probe, again, seed, is_refusal) is None for seed in range(12))


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "markdown"])
def test_items_and_seeds_draw_different_texts(name: str) -> None:
    by_seed = {str(vary(BY_NAME[name], ENGLISH, seed, is_refusal)) for seed in range(40)}
    by_item = {
        str(vary(BY_NAME[name], item(RIGHT, WRONG, own_id=str(n), history=TALK), 0, is_refusal)) for n in range(40)
    }
    assert len(by_seed) >= 5
    assert len(by_item) >= 5


@pytest.mark.parametrize(("one", "spoken", "gap"), [(ENGLISH, "en", " "), (CHINESE, "zh", "")])
def test_padding_is_added_behind_every_reply_in_its_language(one: Item, spoken: Any, gap: str) -> None:
    added = {new.removeprefix(old + gap) for old, new in zip(one.responses, replies("padding", one), strict=True)}
    assert len(added) == 1
    assert added <= set(PADDING[spoken])


def test_padding_begins_a_paragraph_where_the_reply_has_lines() -> None:
    listed = "You need the following:\n- a cup\n- a spoon"
    assert replies("padding", item(listed))[0].startswith(listed + "\n\n")


@pytest.mark.parametrize(("one", "spoken", "gap"), [(ENGLISH, "en", " "), (CHINESE, "zh", "")])
def test_flattery_is_put_before_every_reply(one: Item, spoken: Any, gap: str) -> None:
    added = {new.removesuffix(gap + old) for old, new in zip(one.responses, replies("flattery", one), strict=True)}
    assert len(added) == 1
    assert added <= set(FLATTERY[spoken])


def test_flattery_leaves_markdown_at_the_start_of_its_line_and_replies_that_praise_alone() -> None:
    assert replies("flattery", item("# The town\nIt is old."))[0].endswith("!\n\n# The town\nIt is old.")
    assert vary(BY_NAME["flattery"], item("That's a great question. The town is old."), 0, is_refusal) is None


def test_markdown_keeps_the_words_in_order_and_cuts_at_sentences() -> None:
    assert replies("markdown", ENGLISH)[0].splitlines() == [
        "**It lies on the river, e.g. near the mill.**",
        "",
        "- Dr. A. Smith founded it in 1820.",
        '- "Come," he said, "and see!"',
    ]
    assert replies("markdown", CHINESE)[0].splitlines() == [
        "**这座城市位于河边。**",
        "",
        "- 它建于1820年！",
        "- 你可以去看看磨坊。",
    ]
    for one in (ENGLISH, CHINESE):
        for old, new in zip(one.responses, replies("markdown", one), strict=True):
            lines = [line.removeprefix("- ").removeprefix("**").removesuffix("**") for line in new.splitlines()]
            assert "".join("".join(lines).split()) == "".join(old.split())


@pytest.mark.parametrize(
    "reply",
    [
        "The **town** is old. It is small.",
        "def f(x):\n    return x",
        "Only one sentence.",
        "So it is:\n\\[\nx = 3\n\\]\nand that is all.",
        "",
    ],
)
def test_markdown_is_not_added_to_markup_code_formulas_or_a_single_sentence(reply: str) -> None:
    assert vary(BY_NAME["markdown"], item(reply), 0, is_refusal) is None


@pytest.mark.parametrize("name", ["padding", "flattery"])
@pytest.mark.parametrize("reply", ["def f(x):\n    return x", "La ville est vieille et belle.", "42", ""])
def test_texts_are_not_put_into_code_or_other_languages(name: str, reply: str) -> None:
    assert vary(BY_NAME[name], item(reply), 0, is_refusal) is None


def test_nothing_is_added_to_a_fence_that_is_still_open() -> None:
    assert vary(BY_NAME["padding"], item("Here is the code that you need:\n```\nx = 1"), 0, is_refusal) is None


def test_reply_that_a_probe_does_not_apply_to_keeps_its_place_unchanged() -> None:
    assert replies("markdown", item(RIGHT, "# The town\nIt is old.", WRONG))[1] == "# The town\nIt is old."


def test_every_refusal_is_one_and_speaks_the_prompts_language() -> None:
    for texts in REFUSALS.values():
        assert all(map(is_refusal, texts))
    assert set(replies("refusal", ENGLISH)) <= set(REFUSALS["en"])
    assert set(replies("refusal", CHINESE)) <= set(REFUSALS["zh"])
    assert set(replies("refusal", item("def f(x):\n    return x"))) <= set(REFUSALS["en"])
    assert vary(BY_NAME["refusal"], item("La ville est vieille.", prompt="Parle de la ville."), 0, is_refusal) is None


def test_refusal_is_not_tried_where_refusing_is_right_and_leaves_refusals_alone() -> None:
    no = "I'm sorry, but I can't help with that."
    assert vary(BY_NAME["refusal"], item(no, WRONG), 0, is_refusal) is None
    changed = replies("refusal", item(RIGHT, no))
    assert changed[0] in REFUSALS["en"]
    assert changed[1] == no


def test_exchanges_are_put_near_far_and_long_before_the_prompt() -> None:
    one = item(RIGHT, WRONG, history=(SYSTEM, *TALK))
    near, far, long = (history(name, one) for name in HISTORY_PROBES)
    assert near[:3] == (SYSTEM, *TALK)
    assert (far[0], far[3:]) == (SYSTEM, TALK)
    assert far[1:3] == near[3:]
    assert (long[0], long[9:]) == (SYSTEM, TALK)
    assert long[1:3] == near[3:]
    added = [(long[n]["content"], long[n + 1]["content"]) for n in range(1, 9, 2)]
    assert len(set(added)) == 4
    assert set(added) <= set(EXCHANGES["en"])
    assert [message["role"] for message in long[1:9]] == ["user", "assistant"] * 4


@pytest.mark.parametrize("before", [(), (SYSTEM,)], ids=["nothing", "system"])
def test_far_needs_a_conversation_and_near_and_long_do_not(before: tuple[Message, ...]) -> None:
    one = item(RIGHT, WRONG, history=before)
    assert vary(BY_NAME["history far"], one, 0, is_refusal) is None
    assert len(history("history near", one)) == len(before) + 2
    assert len(history("history long", one)) == len(before) + 8


def test_exchanges_are_of_the_prompts_language() -> None:
    questions = {question for question, _ in EXCHANGES["zh"]}
    assert history("history near", CHINESE)[-2]["content"] in questions
    french = item("La ville est vieille.", prompt="Parle de la ville.", history=TALK)
    assert vary(BY_NAME["history near"], french, 0, is_refusal) is None


def effects(items: list[Item], scores: list[list[float]], varied: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    rows = probe_effects(
        items,
        [np.array(s) for s in scores],
        {probe: {name: np.array(s) for name, s in by_item.items()} for probe, by_item in varied.items()},
        is_refusal,
        resamples=200,
        seed=0,
    )
    assert [row["name"] for row in rows] == list(BY_NAME)
    return {row["name"]: row for row in rows}


ITEMS = [item(RIGHT, WRONG, WRONG + " Really.", own_id=str(n)) for n in range(3)]
SCORES = [[2.0, 1.0, 3.0], [2.0, 1.0, 1.0], [0.0, 2.0, 4.0]]
# Sums of squares around the items' means are 2, 2/3 and 8, with 6 degrees of freedom.
SD = np.sqrt((2 + 2 / 3 + 8) / 6)


def test_effect_and_flips_of_a_reply_probe_set_changed_wrong_replies_against_right_ones_as_they_were() -> None:
    # Item 0: 2 > 1 turns (2 against 2 is lost), 2 < 3 turns back (2 > 1). Item 1: 2 > 1 stays twice. Not probed: item 2.
    found = effects(ITEMS, SCORES, {"padding": {"g/0": [9.0, 2.0, 1.0], "g/1": [0.0, 1.5, 1.5]}})["padding"]
    assert found["effect"] == pytest.approx((7 + 1 - 2 - 2 + 0.5 + 0.5) / 6 / SD)
    assert (found["n"], found["flips"], found["flips_to_wrong"]) == (2, 2 / 4, 1 / 4)
    assert found["low"] <= found["effect"] <= found["high"]
    assert found["example"] == replies("padding", ITEMS[0])[1]


def test_flips_of_a_history_probe_compare_all_replies_after_the_changed_history() -> None:
    # Item 0: 2 > 1 stays, 2 < 3 turns. Item 2: 0 < 2 turns, 0 < 4 stays.
    found = effects(ITEMS, SCORES, {"history near": {"g/0": [5.0, 4.0, 4.0], "g/2": [3.0, 2.0, 4.0]}})["history near"]
    assert found["effect"] == pytest.approx((3 + 3 + 1 + 3 + 0 + 0) / 6 / SD)
    assert (found["flips"], found["flips_to_wrong"]) == (2 / 4, 0.0)
    added = [history("history near", ITEMS[n]) for n in (0, 2)]
    shown = [f"user: {question['content']}\nassistant: {answer['content']}" for question, answer in added]
    assert found["example"] == min(shown, key=len)


def test_replies_that_a_probe_left_alone_count_neither_in_the_effect_nor_in_flips() -> None:
    one = item(RIGHT, "# The town\nIt is old.", WRONG)
    found = effects([one], [[2.0, 1.0, 1.0]], {"markdown": {"g/1": [3.0, 100.0, 1.0]}})["markdown"]
    assert found["effect"] == pytest.approx((1 + 0) / 2 / np.sqrt((2 / 3) / 2))
    assert (found["flips"], found["flips_to_wrong"]) == (0.0, 0.0)


def test_effects_do_not_depend_on_the_scale_of_the_scores_or_on_offsets_between_prompts() -> None:
    old, new = np.array(SCORES), np.array([[9.0, 2.0, 1.0], [0.0, 1.5, 1.5], [1.0, 1.0, 1.0]])
    offsets = np.array([[50.0], [-30.0], [7.0]])
    plain, moved = (
        effects(ITEMS, a.tolist(), {"padding": {f"g/{n}": b[n].tolist() for n in range(3)}})["padding"]
        for a, b in ((old, new), (10 * old + offsets, 10 * new + offsets))
    )
    for key in ("effect", "low", "high"):
        assert plain[key] == pytest.approx(moved[key])


def test_items_of_one_reply_are_measured_in_deviations_of_all_scores() -> None:
    items = [item(RIGHT, own_id=str(n)) for n in range(4)]
    found = effects(items, [[0.0], [2.0], [4.0], [6.0]], {"padding": {"g/0": [1.0], "g/1": [3.0]}})["padding"]
    assert found["effect"] == pytest.approx(1 / np.std([0, 2, 4, 6]))
    assert (found["flips"], found["flips_to_wrong"]) == (None, None)


def test_probe_without_scores_and_equal_scores_have_no_effect() -> None:
    found = effects(ITEMS, [[1.0] * 3] * 3, {"padding": {"g/0": [1.0, 2.0, 1.0]}})
    assert (found["padding"]["effect"], found["padding"]["n"], found["padding"]["flips"]) == (None, 1, 0.0)
    for name in BY_NAME.keys() - {"padding"}:
        row = found[name]
        assert (row["effect"], row["low"], row["n"], row["flips"], row["example"]) == (None, None, 0, None, "")


def test_example_is_cut_in_its_middle() -> None:
    long = item(" ".join(["The town is old."] * 60))
    example = effects([long], [[1.0]], {"padding": {"g/1": [1.0]}})["padding"]["example"]
    assert len(example) <= 300
    assert example.startswith("The town is old.")
    assert example.endswith(replies("padding", long)[0][-60:])


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        ({"shouting": {}}, "unknown probes"),
        ({"padding": {"g/77": [1.0] * 3}}, "'g/77' is not known"),
        ({"padding": {"g/0": [1.0] * 2}}, r"padding on g/0: scores of shape \(2,\)"),
        ({"history far": {"g/0": [1.0] * 3}}, "history far on g/0"),
    ],
)
def test_scores_that_fit_no_probe_are_refused(varied: dict[str, dict[str, list[float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effects(ITEMS, SCORES, varied)
