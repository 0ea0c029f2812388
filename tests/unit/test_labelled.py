"""Replies labelled one by one: what is read from a record, what is positive, and metrics that are no means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from wildreward_ray.cluster.schema import DATASET
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.estimate import compare, measure
from wildreward_ray.reward.benchmarks.items import Floats, Item, Outcomes, Reading, Row
from wildreward_ray.reward.benchmarks.labelled import LABELLED, weighted_spearman


def read(*records: dict[str, Any]) -> Reading:
    return LABELLED.read(Row("part.jsonl", number, record) for number, record in enumerate(records, start=1))


def record(label: Any, **fields: Any) -> dict[str, Any]:
    return {"prompt": "p", "response": "r", "label": label, **fields}


def positive(*labels: Any) -> list[bool]:
    return [item.correct[0] for item in read(*(record(label) for label in labels)).items]


def simulated(n: int, seed: int, *, levels: int = 4) -> tuple[list[Item], list[Floats]]:
    rng = np.random.default_rng(seed)
    items = read(*(record(int(label)) for label in rng.integers(1, levels + 1, size=n - 2)), record(1), record(levels))
    score = [np.array([rng.normal() + item.attributes["label"]]) for item in items.items]
    return list(items.items), score


def test_rows_of_an_extracted_dataset_are_read() -> None:
    row = {
        "interaction_id": "c1:2",
        "history": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "prompt": "And?",
        "response": "Well.",
        "label": 4,
        "language": "English",
        "origin": "judge",
    }
    rows = pa.Table.from_pylist([row, {**row, "interaction_id": "c2:1", "label": 1, "language": None}], schema=DATASET)
    first, second = read(*rows.to_pylist()).items
    assert first == Item(
        "c1:2",
        "English",
        ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}),
        "And?",
        ("Well.",),
        (True,),
        {"label": 4},
    )
    assert (second.group, second.correct) == ("unknown", (False,))


def test_messages_are_read_and_come_after_the_history() -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (one, two) = read(
        {"id": 7, "label": True, "messages": [{"role": "system", "content": "s"}, *talk], "text": "not read"},
        {"label": False, "history": [{"role": "user", "content": "before"}], "messages": talk},
    ).items
    assert one.history == ({"role": "system", "content": "s"},)
    assert (one.own_id, one.prompt, one.responses, one.correct, one.group) == ("7", "q", ("a",), (True,), "all")
    assert two.history == ({"role": "user", "content": "before"},)
    assert (two.own_id, two.correct) == ("2", (False,))


def test_an_empty_reply_is_a_reply() -> None:
    assert read(record(0, response=""), record(1)).items[0].responses == ("",)


def test_groups_are_the_origin_only_where_no_record_has_a_language() -> None:
    with_language = read(record(0, origin="judge", language="English"), record(1, origin="judge"))
    without = read(record(0, origin="judge"), record(1, origin="mined"))
    assert [item.group for item in with_language.items] == ["English", "unknown"]
    assert [item.group for item in without.items] == ["judge", "mined"]


def test_positive_is_the_upper_half_of_the_levels_or_what_0_and_1_say() -> None:
    assert positive(1, 2, 3, 4) == [False, False, True, True]
    assert positive(1, 2, 3, 4, 5) == [False, False, False, True, True]
    assert positive(1, 2) == [False, True]
    assert positive(0, 1) == positive(False, True) == positive("0", 1.0) == [False, True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((1, 1), "labels 1 only: positive and negative"),
        ((0, 0), "labels 0 only: positive and negative"),
        ((0, 1, 2), "labels 0, 1, 2: they must be 0 and 1, or levels from 1"),
        ((-1, 1), "labels -1, 1: they must be"),
        ((1, 11), "labels 1, 11: they must be"),
        ((), "no labelled replies"),
    ],
)
def test_labels_that_cannot_be_judged_are_refused(labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(*(record(label) for label in labels))
    assert error.value.flag == "--data"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(2.5), "label = 2.5: a whole number"),
        (record(None), "label = None: a whole number"),
        (record(1, prompt=" "), "prompt"),
        (record(1, response=["r"]), "response is a list"),
        ({"label": 1, "prompt": "p"}, "no reply: messages"),
        ({"label": 1, "messages": [{"role": "assistant", "content": "a"}]}, "messages end with assistant"),
        ({"label": 1, "messages": [{"role": "user", "content": "a"}] * 2}, "messages end with user, user"),
        (record(1, history=[{"role": "judge", "content": "a"}]), "message 1 of history has the role 'judge'"),
        (record(1, history=[{"role": "user"}]), "message 1 of history has no content"),
        (record(1, language="accuracy"), "a group can't be called 'accuracy'"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused_by_name(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(record(0), bad)
    assert "record 2 of part.jsonl" in str(error.value)


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(UserError, match="1 ids stand twice in the benchmark: 'all/x'"):
        read(record(0, id="x"), record(1, id="x"))


def test_the_metrics_are_those_of_the_raw_scores_and_their_intervals_hold_them() -> None:
    items, scores = simulated(400, 0)
    found = measure(LABELLED, LABELLED.outcomes(items, scores), resamples=400, seed=0)
    flat, label = np.concatenate(scores), [item.attributes["label"] for item in items]
    assert list(found) == ["accuracy", "spearman"]
    assert found["accuracy"].value == pytest.approx(roc_auc_score([item.correct[0] for item in items], flat))
    assert found["spearman"].value == pytest.approx(spearmanr(flat, label).statistic)
    for one in found.values():
        assert one.low is not None
        assert one.value is not None
        assert one.high is not None
        assert one.low < one.value < one.high < one.low + 0.15


def test_two_labels_have_no_rank_correlation_and_groups_have_an_area_each() -> None:
    items = read(*(record(i % 2, language=("en", "zh")[i // 4]) for i in range(8))).items
    # In order within each language; the languages' scores lie apart.
    scores = [np.array([float(i % 2 + 10 * (i // 4))]) for i in range(8)]
    found = measure(LABELLED, LABELLED.outcomes(items, scores), resamples=200, seed=0)
    assert {name: one.value for name, one in found.items()} == {"accuracy": 0.75, "en": 1.0, "zh": 1.0}


def test_rank_correlation_of_a_resample_is_that_of_its_rows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, size=30).astype(float), rng.integers(1, 5, size=30).astype(float)
    counts = rng.integers(0, 4, size=(6, 30))
    got = weighted_spearman(x, y, counts.astype(float))
    for found, count in zip(got, counts, strict=True):
        assert found == pytest.approx(spearmanr(np.repeat(x, count), np.repeat(y, count)).statistic)
    assert np.isnan(weighted_spearman(np.zeros(30), y, np.ones((1, 30)))).all()


def test_models_with_scores_of_another_size_are_compared_alike() -> None:
    items, a = simulated(150, 1)
    rng = np.random.default_rng(2)
    b = [score + rng.normal(scale=1.5) for score in a]
    first = LABELLED.outcomes(items, a)
    near, far = (LABELLED.outcomes(items, [s * k + c for s in b]) for k, c in ((1, 0), (4096, -5)))
    found = compare(LABELLED, first, near, resamples=400, seed=0)
    assert found == compare(LABELLED, first, far, resamples=400, seed=0)
    assert found["accuracy"].p is not None
    assert found["accuracy"].p < 0.05
    assert found["accuracy"].low is not None
    assert found["accuracy"].low > 0


def test_models_that_are_equally_good_are_seldom_told_apart() -> None:
    small = 0
    for seed in range(100):
        items, truth = simulated(80, seed)
        rng = np.random.default_rng([9, seed])
        # The second model's scores are a hundred times larger.
        a, b = (LABELLED.outcomes(items, [k * (s + rng.normal()) for s in truth]) for k in (1, 100))
        p = compare(LABELLED, a, b, resamples=199, seed=seed)["accuracy"].p
        assert p is not None
        small += p <= 0.1
    assert 3 <= small <= 18


def test_there_are_no_pairs_and_no_means_to_combine() -> None:
    items, scores = simulated(10, 0)
    assert [LABELLED.pairs(item) for item in items] == [()] * 10
    with pytest.raises(TypeError, match=r"Benchmark\.whole"):
        LABELLED.combine({}, {})
    assert isinstance(LABELLED.outcomes(items, scores), Outcomes)
