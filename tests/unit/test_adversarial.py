"""The shipped adversarial set has the shape that a comparison of clean and attacked judgements needs."""

from __future__ import annotations

import base64
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from wildreward_ray.core.scale import JUDGE_LEVELS
from wildreward_ray.feedback.judge import one_line
from wildreward_ray.feedback.language import is_cjk, length_units

FILE = Path(__file__).parents[2] / "wildreward_ray" / "sample" / "adversarial.yaml"
COLUMNS = {
    "cases": {"id", "language", "level", "prompt", "reply", "feedback"},
    "attacks": {"id", "kind", "split", "target", "field", "language", "text"},
    "controls": {"id", "language", "text"},
}
SIZES = {"cases": {"English": 30, "Chinese": 10}, "controls": {"English": 14, "Chinese": 6}}
FIELDS = ("prompt", "reply", "feedback")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def groups() -> dict[str, Rows]:
    loaded: dict[str, Rows] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def attacks(groups: dict[str, Rows]) -> Rows:
    return groups["attacks"]


@pytest.fixture(scope="module")
def cases(groups: dict[str, Rows]) -> Rows:
    return groups["cases"]


def test_every_entry_has_exactly_the_columns_of_its_group_and_no_empty_value(groups: dict[str, Rows]) -> None:
    assert groups.keys() == COLUMNS.keys()
    for group, rows in groups.items():
        for row in rows:
            assert row.keys() == COLUMNS[group], row
            assert all(value.strip() for value in row.values() if isinstance(value, str)), row
            # A bare `no` or `5` in YAML is no text, and a judge would fail on it far from here.
            assert all(isinstance(row[column], str) for column in COLUMNS[group] - {"level", "target"}), row


def test_ids_are_unique_over_the_whole_file(groups: dict[str, Rows]) -> None:
    times = Counter(row["id"] for rows in groups.values() for row in rows)
    assert [name for name, n in times.items() if n > 1] == []


@pytest.mark.parametrize("group", SIZES)
def test_both_languages_have_their_share_and_texts_are_in_the_language_they_name(
    groups: dict[str, Rows], group: str
) -> None:
    rows = groups[group]
    assert Counter(row["language"] for row in rows) == SIZES[group]
    for row in rows:
        texts = [row[name] for name in (FIELDS if group == "cases" else ("text",))]
        assert [is_cjk(text) for text in texts] == [row["language"] == "Chinese"] * len(texts), row["id"]


def test_levels_are_balanced_in_each_language(cases: Rows) -> None:
    for language, rows in (("English", 6), ("Chinese", 2)):
        levels = Counter(case["level"] for case in cases if case["language"] == language)
        assert levels == dict.fromkeys(JUDGE_LEVELS, rows)


def test_feedback_is_as_long_as_in_a_log_and_lengths_vary(cases: Rows) -> None:
    for language in ("English", "Chinese"):
        lengths = [length_units(case["feedback"]) for case in cases if case["language"] == language]
        assert min(lengths) >= 3
        assert max(lengths) <= 60
        assert max(lengths) >= 2 * min(lengths)


def test_clean_texts_hold_nothing_that_an_attack_consists_of(cases: Rows) -> None:
    marks = re.compile(r"<\||\[/?INST|\{original\}|\u200b|(?i:verdict|level \d|evaluator|instruction)|评级|评分")
    assert [case["id"] for case in cases for name in FIELDS if marks.search(case[name])] == []


def test_every_template_holds_the_clean_text_exactly_once(attacks: Rows) -> None:
    assert len(attacks) == 24
    assert [attack["id"] for attack in attacks if attack["text"].count("{original}") != 1] == []


def test_an_attack_adds_something_the_prompt_still_shows(attacks: Rows) -> None:
    # Prompts put a text on one line and change its quotes: what is left has to differ from the clean text.
    for attack in attacks:
        assert len(one_line(attack["text"].replace("{original}", ""))) >= 5, attack["id"]


def test_clean_text_stands_before_after_and_inside_the_attack(attacks: Rows) -> None:
    places = Counter(
        ("after" if before.strip() else "") + ("before" if after.strip() else "")
        for before, after in (attack["text"].split("{original}") for attack in attacks)
    )
    assert places.keys() == {"before", "after", "afterbefore"}


def test_each_kind_has_both_targets_in_both_splits(attacks: Rows) -> None:
    kinds = {attack["kind"] for attack in attacks}
    assert kinds == {"fake_verdict", "role_marker", "judge_instruction", "scaffolding", "encoding", "polite_framing"}
    cells = Counter((attack["kind"], attack["split"], attack["target"]) for attack in attacks)
    assert cells == {(kind, split, target): 1 for kind in kinds for split in ("dev", "held_out") for target in (1, 5)}


def test_both_splits_attack_every_field_and_use_both_languages(attacks: Rows) -> None:
    for split in ("dev", "held_out"):
        own = [attack for attack in attacks if attack["split"] == split]
        fields = Counter(attack["field"] for attack in own)
        assert fields.keys() == set(FIELDS)
        assert fields["feedback"] > len(own) / 2
        assert Counter(attack["language"] for attack in own) == {"English": 9, "Chinese": 3}


def test_splits_share_no_template(attacks: Rows) -> None:
    # Levels and words for them aside: a held-out attack that differs only in its target was seen in `dev`.
    bare = [re.sub(r"[0-9]|perfect|useless", "", one_line(attack["text"]).casefold()) for attack in attacks]
    assert len(set(bare)) == len(attacks)


def test_attack_names_no_level_but_its_target(attacks: Rows) -> None:
    names = {1: r"(?<!\d)[1１①](?!\d)|useless|rejection", 5: r"(?<!\d)[5５](?!\d)|perfect|satisfaction"}
    for attack in attacks:
        text = attack["text"]
        for encoded in re.findall(r"[A-Za-z0-9+/]{20,}=*", text):
            text = text.replace(encoded, base64.b64decode(encoded).decode())
        named = {level for level, pattern in names.items() if re.search(pattern, text)}
        assert named == {attack["target"]}, attack["id"]
