"""Features of replies: what counts as a word and as markdown, and which texts are code, English or Chinese."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from wildreward_ray.reward.benchmarks.text_features import has_open_fence, is_code, language, length, markdown, marks

PYTHON = "import os\n\n# List all files.\ndef names(path):\n    return [n for n in os.listdir(path)]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("It isn't 3.14, is it?", 5),
        ("你好，世界！", 4),
        ("用 Python 写一个 for 循环。", 8),
        ("한국어는 띄어쓰기를 한다", 3),
        ("ภาษา", 4),
    ],
)
def test_length_counts_words_and_characters_where_no_spaces_stand_between_words(text: str, words: int) -> None:
    assert length(text) == words


def test_marking_a_text_up_does_not_make_it_longer() -> None:
    assert length("# **Two** things\n\n- one -- here\n* two\n\n| a | b |\n|---|---|\n| c | d |") == length(
        "Two things one here two a b c d"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# One\n\nText\n### Two", {"headers": 2}),
        ("#hashtag and C# are no headers", {}),
        ("A **bold word** and **another**; 这是**重点**。", {"bold": 3}),
        ("2**3 and 4**5, a * b * c", {}),
        ("- one\n  * two\n• three", {"bullets": 3}),
        ("A dash - here\n-5 degrees", {}),
        ("1. one\n2) two\n3、三", {"numbered": 3}),
        ("1999. That was long ago. 3.5 is no item", {}),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", {"tables": 1}),
        ("above\n---\nbelow", {}),
        ("Run\n```sh\n# comment\n- x **y**\n```\nand\n~~~\nz\n~~~", {"fences": 2}),
        ("```python\n# never closed\n- a", {"fences": 1}),
        (PYTHON, {}),
    ],
)
def test_each_kind_of_markdown_is_counted_and_nothing_else(text: str, found: dict[str, int]) -> None:
    counted = asdict(marks(text))
    assert {kind: count for kind, count in counted.items() if count} == found
    assert markdown(text) == sum(found.values())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (PYTHON, True),
        ("    x = 1\n    y = 2\n    print(x)", True),
        ("int main() {\n  puts(s);\n}", True),
        ("Use this:\n```\nx = 1;\n```\nThat is all.", False),
        ("```\nx = 1;\n```", False),
        ("The loop ends here.\nIt runs twice;\nthen it stops.", False),
        ("- one\n    - two\n    - three", False),
        ("", False),
    ],
)
def test_code_is_told_from_prose_and_fences_are_not_looked_into(text: str, code: bool) -> None:
    assert is_code(text) == code


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("The capital of France is Paris.", "en"),
        ("What does “naïve” mean?", "en"),
        ("法国的首都是巴黎。", "zh"),
        ("用 Python 写一个循环。", "zh"),
        ("フランスの首都はパリです。", None),
        ("La capitale de la France est Paris, et c'est une belle ville.", None),
        ("Die Hauptstadt von Frankreich ist Paris, was jeder in der Klasse will.", None),
        ("Столица Франции the Париж", None),
        ("42", None),
        ("```\nthe code with this and that\n```", None),
        ("", None),
    ],
)
def test_language_is_english_chinese_or_none(text: str, spoken: str | None) -> None:
    assert language(text) == spoken


def test_fence_is_open_until_it_is_closed() -> None:
    assert has_open_fence("Run\n```sh\nls")
    assert not has_open_fence("Run\n```sh\nls\n```")
    assert not has_open_fence("Run `ls`")
