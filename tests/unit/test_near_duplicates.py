"""Texts that differ in a few words meet in a band, unrelated ones don't, and keys never depend on the machine."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wildreward_ray.feedback import near_duplicates
from wildreward_ray.feedback.near_duplicates import (
    BANDS,
    PERMUTATIONS,
    ROWS,
    MinHasher,
    estimated_similarity,
    exact_key,
    normalised,
    shingles,
)

SHARED = Path(__file__).parents[3] / "shared" / "data" / "rm_bench"
SAMPLE = Path(near_duplicates.__file__).parents[1] / "sample" / "conversations.parquet"
HASHER = MinHasher()
EXACT_KEY = -5873085466704915265
FIRST_BANDS = [5998462898060650844, 5982566818853312768]

PROMPT = (
    "I have a table of orders in postgres with about ten million rows and a query that joins it to customers takes forty "
    "seconds every morning, although both columns of the join have an index. What should I look at first, and how do I read "
    "the plan that explain analyze prints for it? Please keep the answer short."
)
CHINESE = (
    "我有一张订单表，里面大约有一千万行数据，每天早上和客户表关联查询都要四十秒，虽然两个字段都建了索引。我应该先看什么？"
    "请用简单的语言解释一下执行计划应该怎么读，并给出一个优化的例子。"
)


def share_a_band(one: str, other: str) -> bool:
    return bool(set(HASHER.bands(one).tolist()) & set(HASHER.bands(other).tolist()))


def similarity(one: str, other: str) -> float:
    a, b = (set(shingles(normalised(text)).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


def collision(s: float) -> float:
    """The probability that texts of this similarity share a band."""
    return float(1 - (1 - s**ROWS) ** BANDS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sort a list, please!", "  sort A LIST please"),
        ("ｆｕｌｌ　ｗｉｄｔｈ １２３ text", "full width 123 text"),
        ("Straße und Fluß im Regen", "STRASSE UND FLUSS IM REGEN"),
        ("请解释一下，快速排序。", "请解释一下 快速排序"),
        ("", "?!… 🙂"),
        ("a", "A."),
    ],
)
def test_texts_equal_but_for_case_width_and_punctuation_share_all_keys(one: str, other: str) -> None:
    assert HASHER.bands(one).tolist() == HASHER.bands(other).tolist()
    assert exact_key(one) == exact_key(other)
    assert estimated_similarity(HASHER.signature(one), HASHER.signature(other)) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "a"),
        ("a", "b"),
        ("ab", "abc"),
        ("你好", "您好"),
        ("हिन्दी में", "हन्द म"),
        ("sort a list", "sort the list"),
        ("abcd", "abcde"),
    ],
)
def test_different_short_texts_share_nothing(one: str, other: str) -> None:
    assert not share_a_band(one, other)
    assert exact_key(one) != exact_key(other)


def test_keys_have_the_documented_shapes_and_differ_between_bands() -> None:
    assert HASHER.signature(PROMPT).shape == (PERMUTATIONS,)
    assert HASHER.signature(PROMPT).dtype == np.uint64
    for text in (PROMPT, "", "a", "你"):
        assert HASHER.bands(text).dtype == np.int64
        assert len(set(HASHER.bands(text).tolist())) == BANDS
    assert -(2**63) <= exact_key(PROMPT) < 2**63


def test_keys_are_the_same_in_every_process_and_version() -> None:
    # Written down from a first run: keys are stored, so a change of them is a change of the format.
    assert exact_key("Sort a list") == EXACT_KEY
    assert HASHER.bands("Sort a list")[:2].tolist() == FIRST_BANDS
    code = (
        "from wildreward_ray.feedback.near_duplicates import MinHasher, exact_key\n"
        f"print(exact_key({CHINESE!r}), *MinHasher().bands({CHINESE!r}))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert [int(key) for key in done.stdout.split()] == [exact_key(CHINESE), *HASHER.bands(CHINESE).tolist()]


def test_half_of_the_pairs_of_similarity_four_fifths_meet() -> None:
    assert collision(0.8) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("s", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_sets_of_known_similarity_meet_as_often_as_the_formula_says(s: float) -> None:
    generator = np.random.default_rng(7)
    pairs, size = 600, 380
    common = round(size * s)
    hits, estimates = 0, []
    for _ in range(pairs):
        union = generator.integers(0, 2**64, size, dtype=np.uint64)
        only_one = common + (size - common) // 2
        a = HASHER.signature_of_set(union[:only_one])
        b = HASHER.signature_of_set(np.concatenate([union[:common], union[only_one:]]))
        hits += bool((HASHER.bands_of_signature(a) == HASHER.bands_of_signature(b)).any())
        estimates.append(estimated_similarity(a, b))
    expected = collision(common / size)
    # Four standard errors of a share of 600 pairs, and of the mean of their estimates.
    assert hits / pairs == pytest.approx(expected, abs=4 * (expected * (1 - expected) / pairs) ** 0.5 + 0.002)
    assert np.mean(estimates) == pytest.approx(common / size, abs=4 * (0.25 / PERMUTATIONS / pairs) ** 0.5)


def test_a_prompt_with_a_few_words_changed_is_met_again() -> None:
    generator = random.Random(5)
    met = 0
    for _ in range(200):
        words = PROMPT.split()
        for place in generator.sample(range(len(words)), 2):
            words[place] = generator.choice(["slow", "table", "morning", "value", "index"])
        met += share_a_band(PROMPT, " ".join(words))
    assert met >= 190


def test_chinese_prompts_with_a_few_characters_changed_are_met_again() -> None:
    generator = random.Random(5)
    met = 0
    for _ in range(200):
        characters = list(CHINESE)
        for place in generator.sample(range(len(characters)), 2):
            characters[place] = generator.choice("好大来去年")
        met += share_a_band(CHINESE, "".join(characters))
    assert met >= 150
    assert not share_a_band(CHINESE, "请写一首关于秋天的诗，要有月亮和桂花，不超过八行，并解释每一行的意思。")


def test_prompts_from_one_template_about_different_things_do_not_meet() -> None:
    template = "Write a short story about {} and explain what the reader should learn from it"
    things = [
        "a lighthouse keeper",
        "two rival bakers",
        "the last train home",
        "an honest thief",
        "my grandmother's piano",
    ]
    texts = [template.format(thing) for thing in things]
    assert max(similarity(a, b) for a in texts for b in texts if a != b) < 0.75
    met = sum(share_a_band(a, b) for i, a in enumerate(texts) for b in texts[:i])
    assert met <= 3


def real_prompts() -> list[str]:
    prompts = [
        message["content"]
        for row in pq.read_table(SAMPLE, columns=["conversation"]).to_pylist()
        for message in row["conversation"]
        if message["role"] == "user"
    ]
    for file in sorted(SHARED.glob("*.json")):
        prompts += [row["prompt"] for row in json.loads(file.read_text(encoding="utf-8"))]
    return sorted({prompt for prompt in prompts if len(prompt) >= 40})


def test_no_two_unlike_prompts_of_real_text_meet() -> None:
    texts = real_prompts()
    assert len(texts) >= 100
    seen: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        for key in HASHER.bands(text).tolist():
            seen.setdefault(key, []).append(i)
    pairs = {(a, b) for group in seen.values() for a in group for b in group if a < b}
    unlike = [(texts[a], texts[b]) for a, b in pairs if similarity(texts[a], texts[b]) < 0.6]
    assert unlike == []


def test_benchmark_prompts_with_a_word_changed_are_met_again() -> None:
    if not SHARED.is_dir():
        pytest.skip("the prompts of RM-Bench are not at hand")
    generator = random.Random(3)
    texts = [text for text in real_prompts() if len(text.split()) >= 20]
    met, expected = 0, 0.0
    for text in texts:
        words = text.split()
        words[generator.randrange(len(words))] = "something"
        met += share_a_band(text, " ".join(words))
        expected += collision(similarity(text, " ".join(words)))
    assert met == pytest.approx(expected, abs=0.05 * len(texts))
    assert met >= 0.8 * len(texts)


def test_long_texts_keep_their_similarity() -> None:
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnop", k=6)) for _ in range(5000)]
    changed = [word if i % 40 else "changed" for i, word in enumerate(words)]
    other = [word if i % 3 else "changed" for i, word in enumerate(words)]
    a, b, c = (HASHER.signature(" ".join(text)) for text in (words, changed, other))
    assert estimated_similarity(a, b) > 0.8
    assert estimated_similarity(a, c) < 0.6


def test_signatures_read_both_ends_and_exact_keys_all_of_a_text() -> None:
    middle = "x" * 100_000
    one, other = PROMPT * 100 + middle + CHINESE * 400, PROMPT * 100 + middle + "y" + CHINESE * 400
    assert HASHER.bands(one).tolist() == HASHER.bands(other).tolist()
    assert exact_key(one) != exact_key(other)
    assert HASHER.bands(one).tolist() != HASHER.bands(PROMPT * 100 + middle).tolist()


@pytest.mark.parametrize("text", ["\ud800 lone", "\x00", "a" * 5, "İstanbul'da", "ﷺ", "e\u0301" * 3, "𠮷野家"])
def test_odd_texts_have_keys(text: str) -> None:
    assert len(HASHER.bands(text)) == BANDS
    assert exact_key(text) == exact_key(text + "!")


def test_a_megabyte_takes_no_more_than_a_second() -> None:
    generator = random.Random(1)
    text = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz ", k=1_000_000))
    HASHER.bands(CHINESE)
    started = time.monotonic()
    HASHER.bands(text)
    exact_key(text)
    assert time.monotonic() - started < 1
