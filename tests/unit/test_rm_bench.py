"""RM-Bench: cells, domains and averages against values worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from wildreward_ray.core.config.evaluate import BenchmarkName
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Floats, Item, Outcomes, Reading, Row
from wildreward_ray.reward.benchmarks.published import reference_rows
from wildreward_ray.reward.benchmarks.rm_bench import RM_BENCH, SIZES, style_matrices

DATA = Path(__file__).parents[3] / "shared" / "data" / "rm_bench"
CELLS = [(i, j) for i in range(3) for j in range(3)]


def record(id: object = 1, **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": "Why?", "chosen": ["a", "bb", "ccc"], "rejected": ["d", "ee", "fff"], **fields}


def rows(*records: Mapping[str, Any], file: str = "chat_filtered.json") -> list[Row]:
    return [Row(file, number, value) for number, value in enumerate(records, start=1)]


def read(**groups: int) -> Reading:
    """So many prompts of each group; underscores stand for hyphens."""
    found = []
    for name, count in groups.items():
        group = name.replace("_", "-")
        found += rows(*(record(id) for id in range(count)), file=f"{group}_filtered.json")
    return RM_BENCH.read(found)


def metrics(items: Sequence[Item], scores: Sequence[Floats]) -> dict[str, float]:
    outcomes = RM_BENCH.outcomes(items, scores)
    return {name: float(value) for name, value in RM_BENCH.combine(*group_means(outcomes)).items()}


def group_means(outcomes: Outcomes) -> tuple[dict[str, Floats], dict[str, int]]:
    names = dict.fromkeys(outcomes.groups)
    groups = np.array(outcomes.groups)
    means = {name: outcomes.values[groups == name].mean(axis=0) for name in names}
    return means, {name: int((groups == name).sum()) for name in names}


def of(*scores: float) -> Floats:
    return np.array(scores, dtype=np.float64)


ALWAYS = of(1, 1, 1, 0, 0, 0)
NEVER = of(0, 0, 0, 1, 1, 1)
TIED = of(0, 0, 0, 0, 0, 0)
# Chosen 1, 2, 3 against rejected 2, 2, 0: the cells (0, 2), (1, 2), (2, 0), (2, 1) and (2, 2) are won. Of the three
# below the diagonal two, on it one, above it two.
MIXED = of(1, 2, 3, 2, 2, 0)


def test_the_cells_of_a_prompt_are_named_by_the_styles_that_meet() -> None:
    outcomes = RM_BENCH.outcomes(read(chat=1).items, [MIXED])
    assert outcomes.names == tuple(f"{i}>{j}" for i, j in CELLS)
    won = {name for name, value in zip(outcomes.names, outcomes.values[0], strict=True) if value == 1}
    assert won == {"0>2", "1>2", "2>0", "2>1", "2>2"}
    assert set(outcomes.values[0]) == {0.0, 1.0}
    assert (outcomes.groups, outcomes.ids) == (("chat",), ("chat/0",))


def test_every_metric_is_the_one_worked_out_by_hand() -> None:
    items = read(chat=2, code=2, math=3, safety_refuse=1, safety_response=3).items
    scores = [MIXED, ALWAYS, NEVER, ALWAYS, ALWAYS, ALWAYS, MIXED, ALWAYS, NEVER, NEVER, MIXED]
    third = Fraction(1, 3)
    mixed = {"easy": 2 * third, "normal": third, "hard": 2 * third}
    # Each domain's level is the mean over its prompts; safety is the mean of safety-refuse and safety-response.
    by_hand = {
        "chat": {level: (value + 1) / 2 for level, value in mixed.items()},
        "code": dict.fromkeys(mixed, Fraction(1, 2)),
        "math": {level: (2 + value) / 3 for level, value in mixed.items()},
        "safety": {level: (1 + value / 3) / 2 for level, value in mixed.items()},
        "safety-refuse": dict.fromkeys(mixed, Fraction(1)),
        "safety-response": {level: value / 3 for level, value in mixed.items()},
    }
    four = ("chat", "code", "math", "safety")
    overall = {level: sum((by_hand[name][level] for name in four), Fraction(0)) / 4 for level in mixed}
    expected = {"accuracy": sum(overall.values(), Fraction(0)) / 3, **overall}
    expected |= {name: sum(levels.values(), Fraction(0)) / 3 for name, levels in by_hand.items()}
    expected["safety-pooled"] = sum((1 + value for value in mixed.values()), Fraction(0)) / 3 / 4
    expected |= {f"{name}/{level}": value for name, levels in by_hand.items() for level, value in levels.items()}
    got = metrics(items, scores)
    assert got == pytest.approx({name: float(value) for name, value in expected.items()})
    assert list(got)[:6] == ["accuracy", "easy", "normal", "hard", "chat", "code"]
    # The same figures as plain numbers: chat 7/9, code 1/2, math 23/27, safety (1 + 5/27) / 2.
    assert got["accuracy"] == pytest.approx((7 / 9 + 1 / 2 + 23 / 27 + 16 / 27) / 4)


def test_safety_is_the_mean_of_its_parts_and_is_also_given_with_their_prompts_pooled() -> None:
    items = read(safety_refuse=1, safety_response=3).items
    got = metrics(items, [ALWAYS, NEVER, NEVER, NEVER])
    assert (got["safety"], got["safety-refuse"], got["safety-response"]) == (0.5, 1.0, 0.0)
    assert (got["accuracy"], got["safety-pooled"]) == (0.5, 0.25)
    assert "safety-pooled" not in metrics(items[:1], [ALWAYS]), "there is nothing to pool in one part"


def test_equal_scores_are_no_win() -> None:
    got = metrics(read(chat=1, code=1, math=1, safety_refuse=1, safety_response=1).items, [TIED] * 5)
    assert set(got.values()) == {0.0}


def test_a_scorer_of_length_alone_wins_easy_and_loses_hard() -> None:
    reading = read(chat=2, code=2, math=2, safety_refuse=2, safety_response=2)
    got = metrics(reading.items, [of(*map(len, item.responses)) for item in reading.items])
    # Replies of one style are equally long here.
    assert (got["easy"], got["normal"], got["hard"]) == (1.0, 0.0, 0.0)
    assert got["accuracy"] == pytest.approx(1 / 3)


def test_what_is_missing_is_named_and_left_out_of_the_means() -> None:
    reading = read(code=1, safety_response=2)
    assert reading.missing == ("chat", "code (1 of 228)", "math", "safety-refuse", "safety-response (2 of 157)")
    got = metrics(reading.items, [ALWAYS, NEVER, ALWAYS])
    assert (got["code"], got["safety"], got["safety-response"]) == (1.0, 0.5, 0.5)
    assert got["accuracy"] == 0.75
    assert not {"chat", "math", "safety-refuse", "math/hard"} & set(got)


def test_nothing_is_missing_of_the_whole_benchmark_and_one_prompt_less_is_noticed() -> None:
    whole = {"chat": 129, "code": 228, "math": 529, "safety_refuse": 284, "safety_response": 157}
    assert read(**whole).missing == ()
    assert read(**{**whole, "math": 528}).missing == ("math (528 of 529)",)


def test_many_resamples_are_combined_at_once_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    units = {"chat": 2, "code": 2, "math": 3, "safety-refuse": 1, "safety-response": 3}
    means = {group: rng.random((5, 9)) for group in units}
    together = RM_BENCH.combine(means, units)
    for k in range(5):
        alone = RM_BENCH.combine({group: values[k] for group, values in means.items()}, units)
        assert {name: values[k] for name, values in together.items()} == pytest.approx(alone)


def test_style_matrices_have_the_right_replys_style_as_their_row() -> None:
    items = read(chat=1, safety_refuse=1, safety_response=3).items
    got = style_matrices(items, [MIXED, ALWAYS, NEVER, NEVER, NEVER])
    assert list(got) == ["all", "chat", "safety", "safety-refuse", "safety-response"]
    assert got["chat"] == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]
    assert got["safety"] == [[0.5] * 3] * 3
    # The mean over domains, not over the five prompts.
    assert got["all"] == [[0.25, 0.25, 0.75], [0.25, 0.25, 0.75], [0.75, 0.75, 0.75]]
    overall = metrics(items, [MIXED, ALWAYS, NEVER, NEVER, NEVER])
    assert np.mean(np.diag(got["all"])) == pytest.approx(overall["normal"])
    assert np.mean([got["all"][i][j] for i, j in CELLS if i < j]) == pytest.approx(overall["hard"])


def test_pairs_are_those_of_one_style() -> None:
    item = read(chat=1).items[0]
    assert item.responses == ("a", "bb", "ccc", "d", "ee", "fff")
    assert item.correct == (True, True, True, False, False, False)
    assert RM_BENCH.pairs(item) == [(0, 3), (1, 4), (2, 5)]


def test_the_domain_field_stands_before_the_files_name() -> None:
    items = RM_BENCH.read(
        rows(record(1, domain="math"), record(1, domain="safety-refuse"), file="total_dataset.json")
    ).items
    assert [item.id for item in items] == ["math/1", "safety-refuse/1"]
    assert RM_BENCH.read(rows(record(1, domain="math"))).items[0].group == "math"


@pytest.mark.parametrize(
    ("value", "file", "told"),
    [
        (
            record(),
            "mine.json",
            "record 1 of mine.json: no domain, and the file's name is not such as chat_filtered.json",
        ),
        (record(), "poems_filtered.json", "record 1 of poems_filtered.json: the file's name says 'poems'"),
        (record(domain="poems"), "chat_filtered.json", "record 1 of chat_filtered.json: domain = 'poems'"),
        (record(chosen=["a", "b"]), "chat_filtered.json", "chosen has 2 texts: 3 are needed"),
        (record(rejected=["a", "b", "c", "d"]), "chat_filtered.json", "rejected has 4 texts: 3 are needed"),
        (record(rejected=["a", "b", None]), "chat_filtered.json", "rejected = ['a', 'b', None]"),
        (record(prompt=" "), "chat_filtered.json", "prompt = ' '"),
        (record(id=None), "chat_filtered.json", "id = None"),
    ],
)
def test_a_record_that_can_not_be_used_is_named(value: dict[str, Any], file: str, told: str) -> None:
    with pytest.raises(UserError) as e:
        RM_BENCH.read(rows(value, file=file))
    assert told in str(e.value)
    assert f"record 1 of {file}" in str(e.value)
    assert e.value.flag == "--data"


def test_an_id_may_stand_in_two_domains_but_not_twice_in_one() -> None:
    both = [*rows(record(7)), *rows(record(7), file="code_filtered.json")]
    assert [item.id for item in RM_BENCH.read(both).items] == ["chat/7", "code/7"]
    with pytest.raises(UserError, match="1 ids stand twice in the benchmark: 'chat/7'"):
        RM_BENCH.read(rows(record(7), record("7")))


def test_a_folder_with_both_forms_of_the_benchmark_is_refused_with_what_to_do() -> None:
    both = [*rows(record(7)), *rows(record(7, domain="chat"), file="total_dataset.json")]
    with pytest.raises(UserError) as e:
        RM_BENCH.read(both)
    assert (
        "'total_dataset.json', whose records have a domain, holds prompts of files such as 'chat_filtered.json'"
        in str(e.value)
    )
    assert e.value.hint == "give the file of the whole benchmark or those of its domains"


def test_the_published_rows_are_shares_with_accuracy_as_their_mean() -> None:
    got = {row["model"]: row["metrics"] for row in reference_rows("rm_bench")}
    assert got["WildReward-8B"] == pytest.approx({"accuracy": 2.316 / 3, "easy": 0.835, "normal": 0.784, "hard": 0.697})
    assert next(iter(got["WildReward-8B"])) == "accuracy"
    assert len(got) == 8
    # Each column where it belongs.
    last = {
        name: reference_rows(name)[-1]["metrics"]["accuracy"]
        for name in get_args(BenchmarkName)
        if reference_rows(name)
    }
    assert last == pytest.approx(
        {
            "rm_bench": 0.772,
            "rewardbench": 0.86,
            "ppe_human": 0.625,
            "ppe_correctness": 0.656,
            "judgebench": 0.66,
        }
    )
    assert reference_rows("rewardbench2") == []


def test_every_name_of_the_settings_is_a_benchmark() -> None:
    from wildreward_ray.reward.benchmarks.registry import BENCHMARKS

    assert tuple(BENCHMARKS) == get_args(BenchmarkName)
    assert all(benchmark.name == name for name, benchmark in BENCHMARKS.items())


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the benchmark's files are not at {DATA}")
def test_the_real_files_are_read_whole_and_prefer_long_replies_where_it_is_easy() -> None:
    found: list[Row] = []
    for file in sorted(DATA.glob("*.json")):
        found += rows(*json.loads(file.read_text(encoding="utf-8")), file=file.name)
    reading = RM_BENCH.read(found)
    counts = [sum(item.group == group for item in reading.items) for group in SIZES]
    assert counts == [129, 228, 0, 284, 157]
    assert (reading.missing, reading.excluded) == (("math",), {})
    got = metrics(reading.items, [of(*map(len, item.responses)) for item in reading.items])
    assert got["easy"] > 0.6 > got["hard"]
