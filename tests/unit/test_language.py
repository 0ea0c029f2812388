"""Scripts and lengths of texts in languages with and without spaces."""

from __future__ import annotations

import pytest

from wildreward_ray.feedback.language import is_cjk, language_group, length_units


@pytest.mark.parametrize(
    "text",
    [
        "请解释一下",
        "ありがとう",
        "감사합니다",
        "用 Python 写一个快速排序函数",
        "请帮我解释一下 IndexError: list out of range",
    ],
)
def test_chinese_japanese_and_korean_are_told_by_their_script(text: str) -> None:
    assert is_cjk(text)


@pytest.mark.parametrize(
    "text", ["", "  \n", "Hello", "Привет, как дела?", "The word 你好 means hello in Chinese, right?"]
)
def test_a_quoted_word_or_no_text_at_all_is_not_cjk(text: str) -> None:
    assert not is_cjk(text)


def test_length_is_words_where_there_are_spaces_and_characters_where_there_are_none() -> None:
    assert length_units("three  words\nhere") == 3
    assert length_units("五个汉字吗") == 5
    assert length_units("五个 汉字\n吗") == 5
    assert length_units("") == 0


def test_language_named_by_the_log_outweighs_the_script() -> None:
    assert language_group("Chinese", "ok thanks") == "cjk"
    assert language_group("English", "谢谢你的帮助") == "spaced"
    assert language_group("Russian", "спасибо") == "spaced"


@pytest.mark.parametrize("unnamed", [None, ""])
def test_script_decides_where_the_log_names_no_language(unnamed: str | None) -> None:
    assert language_group(unnamed, "谢谢你的帮助") == "cjk"
    assert language_group(unnamed, "thanks a lot") == "spaced"
