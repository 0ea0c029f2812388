"""Languages, scripts and lengths of texts in languages with and without spaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wildreward_ray.feedback.language import LanguageIdentifier, has_units, is_cjk, language_group, length_units


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


def test_script_of_a_long_text_is_read_from_both_ends() -> None:
    code = "for i in range(10): print(i)\n" * 200
    assert is_cjk("请解释一下这段代码的作用，并指出其中的错误。" * 20 + code)
    assert is_cjk(code + "请解释一下这段代码的作用，并指出其中的错误。" * 20)
    assert not is_cjk(code + "请解释")


@pytest.mark.parametrize(
    "text", ["", "  \n", "one", " one  two\nthree ", "五个汉字吗", "五个 汉字\n吗", "word " * 50, "字" * 50]
)
def test_asking_for_a_least_length_agrees_with_counting(text: str) -> None:
    length = length_units(text)
    for count in range(max(0, length - 2), length + 3):
        assert has_units(text, count) == (length >= count)


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier()


SENTENCES = [
    ("English", "How do I kill a process that listens on a port?"),
    ("English", "The model said it cannot open the document, so what should I try next?"),
    ("Chinese", "请帮我写一个快速排序函数"),
    ("Chinese", "用 Python 写一个 sort function"),
    ("Chinese", "帮我把这句话改得更礼貌一些，不要太长：I want my money back because the kettle is broken"),
    ("Japanese", "ありがとうございます、とても助かりました"),
    ("Korean", "정말 감사합니다 도와주셔서"),
    ("Russian", "Как мне установить Python на Windows 10?"),
    ("Ukrainian", "Будь ласка, поясніть, як працює двигун внутрішнього згоряння"),
    ("Spanish", "¿Puedes explicarme cómo funciona la fotosíntesis en las plantas?"),
    ("Portuguese", "Você pode me explicar como funciona o motor de um carro?"),
    ("French", "Pouvez-vous m'expliquer la différence entre une liste et un tuple ?"),
    ("German", "Kannst du mir bitte erklären, wie ein Kühlschrank funktioniert?"),
    ("Turkish", "Bana Türkiye'nin en güzel şehirlerini anlatır mısın?"),
    ("Arabic", "من فضلك اشرح لي كيف يعمل المحرك"),
    ("Hindi", "हिन्दी में मुझे एक कहानी सुनाओ"),
    ("Thai", "ช่วยอธิบายเรื่องนี้ให้หน่อย"),
    ("Vietnamese", "Hãy giải thích cho tôi cách nấu phở bò"),
    ("Finnish", "Lapset leikkivät pihalla kun äiti tekee ruokaa"),
    ("Czech", "Děti si hrají venku, zatímco jejich matka vaří večeři"),
    ("Irish", "Dia duit, conas atá tú inniu? Tá an aimsir go breá"),
    ("Welsh", "Mae'r plant yn chwarae yn yr ardd tra bod eu mam yn coginio swper"),
    ("Yoruba", "Ọmọ náà ń ṣeré ní ìta nígbà tí ìyá rẹ̀ ń se oúnjẹ"),
]


@pytest.mark.parametrize(("language", "text"), SENTENCES)
def test_language_is_named_as_wildchat_names_it(identifier: LanguageIdentifier, language: str, text: str) -> None:
    assert identifier.identify(text) == language


@pytest.mark.parametrize(
    "text", ["", " \n", "12345 !!", "🙂🙂", "```python\nprint('hello my friend')\n```", "https://example.com/hello"]
)
def test_text_without_words_has_no_language(identifier: LanguageIdentifier, text: str) -> None:
    assert identifier.identify(text) is None


def test_code_and_addresses_around_a_sentence_do_not_decide(identifier: LanguageIdentifier) -> None:
    code = "```\n" + "the result of the function is returned to the caller\n" * 20 + "```\n"
    assert identifier.identify(code + "Kannst du mir bitte erklären, was das hier macht?") == "German"
    address = "https://example.com/how-to-write-good-english-letters-to-your-friends-and-family"
    assert identifier.identify(f"{address} Kannst du das bitte erklären?") == "German"


def test_english_replies_of_a_benchmark_are_all_but_all_english(identifier: LanguageIdentifier) -> None:
    file = Path(__file__).parents[3] / "shared" / "data" / "rm_bench" / "chat_filtered.json"
    if not file.is_file():
        pytest.skip(f"{file.name} of RM-Bench is not at hand")
    texts = [row["prompt"] + "\n" + row["chosen"][1] for row in json.loads(file.read_text(encoding="utf-8"))]
    named = [identifier.identify(text) for text in texts]
    assert named.count("English") >= 0.98 * len(texts)
