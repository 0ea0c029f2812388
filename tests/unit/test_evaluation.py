"""What is reported of held-out rows: whole, JSON-ready, and after calibration only from fits that left the row out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wildreward_ray.core.config.train import EvalSection
from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.reward import ordinal
from wildreward_ray.reward.calibration import cross_fitted, fit
from wildreward_ray.reward.config import Calibration
from wildreward_ray.reward.evaluation import evaluate
from wildreward_ray.reward.metrics import bootstrap, ordinal_metrics, reliability_bins

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
CUTS = np.array([-1.0, 0.0, 1.0])


def rows(n: int, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Overconfident logits of four levels, and labels."""
    rng = np.random.default_rng(seed)
    latent = 2 * rng.normal(size=(n, 1))
    return 3 * (latent - CUTS), 1 + (latent + rng.logistic(size=(n, 1)) > CUTS).sum(axis=1)


def run(
    x: FloatArray,
    y: IntArray,
    *,
    languages: Sequence[str | None] | None = None,
    origins: Sequence[str | None] | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], Calibration | None]:
    section = EvalSection.model_validate({"bootstrap": 50, **settings})
    return evaluate(x, y, k=4, decoder="cumulative", settings=section, languages=languages, origins=origins, seed=1)


def test_the_parts_are_those_of_the_metrics_before_and_of_cross_fitting_after() -> None:
    x, y = rows(400)
    got, calibration = run(x, y, calibration="platt")
    before, after = ordinal.p_gt(x), cross_fitted(x, y, 4, decoder="cumulative", method="platt", seed=1)
    assert after is not None
    metrics, crossed = ordinal_metrics(before, y, 4), ordinal_metrics(after, y, 4)
    assert {name: got[name] for name in metrics} == metrics
    assert got["intervals"] == {
        name: list(ends) for name, ends in bootstrap(before, y, 4, resamples=50, seed=1).items() if ends is not None
    }
    assert got["reliability"] == reliability_bins(before, y, 4)
    assert got["reliability_calibrated"] == reliability_bins(after, y, 4)
    assert calibration == fit(x, y, 4, decoder="cumulative", method="platt")
    found = dict(got["calibration"])
    assert (found.pop("ece"), found.pop("nll")) == (crossed["ece"], crossed["nll"])
    ends = bootstrap(after, y, 4, resamples=50, seed=1)["ece"]
    assert ends is not None
    assert found.pop("ece_interval") == list(ends)
    assert Calibration.model_validate(found) == calibration
    assert got["calibration"]["ece"] < got["ece"]
    assert got["calibration"]["nll"] < got["nll"]


def test_corn_logits_are_read_as_such() -> None:
    x, y = rows(200)
    settings = EvalSection(bootstrap=0)
    got, calibration = evaluate(x, y, k=4, decoder="corn", settings=settings, languages=None, origins=None, seed=0)
    assert got["mae"] == ordinal_metrics(ordinal.p_gt(x, decoder="corn"), y, 4)["mae"]
    assert calibration == fit(x, y, 4, decoder="corn", method="temperature")


def test_everything_survives_json_even_where_the_data_define_little() -> None:
    few = rows(2)
    one_level = rows(30)[0], np.full(30, 2)
    for x, y in (rows(100), few, one_level, (np.zeros((5, 3)), np.array([1, 2, 3, 4, 4]))):
        for calibration in ("none", "temperature", "platt"):
            got, _ = run(x, y, languages=["English"] * len(y), calibration=calibration, min_group=1)
            assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_confusion_and_scores_count_every_row_once() -> None:
    x, y = rows(300)
    got, _ = run(x, y)
    score = ordinal.score(ordinal.p_gt(x))
    whole = np.floor(score + 0.5)
    expected = [[int(((y == a) & (whole == b)).sum()) for b in range(1, 5)] for a in range(1, 5)]
    assert got["confusion"] == expected
    assert sum(expected[i][i] for i in range(4)) == round(got["accuracy"] * 300)
    edges, counts = got["scores"]["edges"], got["scores"]["counts"]
    assert (len(edges), edges[0], edges[-1]) == (21, 1.0, 4.0)
    assert [len(c) for c in counts] == [20] * 4
    assert [sum(c) for c in counts] == [int((y == level).sum()) for level in range(1, 5)]
    assert counts[3][-1] == int(((y == 4) & (score >= edges[-2])).sum())


def test_scores_at_both_ends_of_the_scale_are_in_the_histogram() -> None:
    got, _ = run(np.array([[-800.0] * 3, [800.0] * 3]), np.array([1, 4]))
    assert got["scores"]["counts"][0][0] == 1
    assert got["scores"]["counts"][3][-1] == 1


def test_small_groups_are_pooled_and_rows_without_a_group_are_unknown() -> None:
    x, y = rows(100)
    names = ["English"] * 50 + [None] * 20 + ["other"] * 3 + ["Dutch"] * 9 + ["Thai"] * 8 + ["Chinese"] * 10
    got, _ = run(x, y, languages=names, min_group=10)
    groups = got["groups"]["language"]
    assert {name: group["n"] for name, group in groups.items()} == {
        "English": 50,
        "unknown": 20,
        "Chinese": 10,
        "other": 20,
    }
    assert list(groups) == ["English", "unknown", "Chinese", "other"]
    assert got["groups_left_out"] == {"language": 0}
    rest = ordinal_metrics(ordinal.p_gt(x[70:90]), y[70:90], 4)
    assert {name: groups["other"][name] for name in rest} == rest
    ends = bootstrap(ordinal.p_gt(x[:50]), y[:50], 4, resamples=50, seed=1)["mae"]
    assert ends is not None
    assert groups["English"]["intervals"]["mae"] == list(ends)


def test_a_group_that_is_called_other_is_part_of_the_pool() -> None:
    x, y = rows(100)
    got, _ = run(x, y, languages=["other"] * 60 + ["English"] * 30 + ["Thai"] * 10, min_group=20)
    sizes = [(name, group["n"]) for name, group in got["groups"]["language"].items()]
    assert sizes == [("English", 30), ("other", 70)]


def test_a_pool_that_is_too_small_itself_is_left_out_and_counted() -> None:
    x, y = rows(40)
    names = ["explicit"] * 25 + ["hindsight"] * 9 + ["refusal"] * 6
    got, _ = run(x, y, origins=names, min_group=16)
    assert list(got["groups"]["origin"]) == ["explicit"]
    assert got["groups_left_out"] == {"origin": 15}
    got, _ = run(x, y, origins=names, min_group=15)
    assert {name: group["n"] for name, group in got["groups"]["origin"].items()} == {"explicit": 25, "other": 15}


def test_no_rows_give_no_metrics_and_no_calibration() -> None:
    got, calibration = run(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), languages=[], origins=[])
    assert calibration is None
    assert (got["n"], got["mae"], got["nll"], got["calibration"], got["reliability"]) == (0, None, None, None, [])
    assert set(got["intervals"].values()) == {None}
    assert got["confusion"] == [[0] * 4] * 4
    json.dumps(got, allow_nan=False)


def test_a_calibration_that_cannot_be_measured_is_not_given() -> None:
    x, y = rows(200)
    for n, given in ((3, False), (4, True)):
        got, calibration = run(x[:n], y[:n])
        assert (calibration is not None) is given
        assert (got["calibration"] is not None) is given
        assert (got["reliability_calibrated"] is not None) is given
    got, calibration = run(x, y, calibration="none")
    assert (calibration, got["calibration"], got["reliability_calibrated"]) == (None, None, None)


def test_the_seed_alone_fixes_the_result() -> None:
    x, y = rows(60)
    assert run(x, y)[0] == run(x, y)[0]


def test_bad_rows_raise() -> None:
    x, y = rows(5)
    with pytest.raises(ValueError, match="4 group names for 5 rows"):
        run(x, y, languages=["a"] * 4)
    x[2, 0] = np.nan
    with pytest.raises(RewardUnavailableError, match="1 of 5"):
        run(x, y)
