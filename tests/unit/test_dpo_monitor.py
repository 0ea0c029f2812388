"""Watching a run: what is told and when, what a resumed run keeps, and what the summary says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from wildreward_ray.cluster.tracking import Trackers
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.policy.comparison import Evaluation
from wildreward_ray.stages.dpo_monitor import Alarm, Monitor
from wildreward_ray.stages.dpo_records import evaluation_line, evaluation_row, step_line, time_figures


class Curves:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, dict(values)))

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        raise AssertionError("the one who opened trackers closes them")


def config(**settings: Any) -> OnlineDpoConfig:
    given = {"policy": "p", "reward_url": "http://x", "prompts": "q", "output": "o", "steps": 100}
    return OnlineDpoConfig.load(None, {**given, **{k.replace("__", "."): v for k, v in settings.items()}})


def monitor(**settings: Any) -> Monitor:
    return Monitor(config(**settings), Trackers([]))


def row(step: int, **values: Any) -> dict[str, Any]:
    seconds = {"rollout": 8.0, "score": 2.0, "learn": 4.0, "sync": 0.2, "step": 14.2, **values.pop("seconds", {})}
    return {
        "step": step, "policy_version": step - 1, "staleness": 1, "reward_mean": 2.41, "reward_std": 0.3,
        "reward_range": 0.9, "response_length": 212.4, "finished_share": 0.9, "pairs": 60, "skipped": {"margin": 4},
        "margin": 0.8, "dpo_loss": 0.67, "dpo_margin": 0.02, "dpo_accuracy": 0.6, "kl": 0.8,
        "beta": 0.1, "learning_rate": 5e-7, "grad_norm": 1.0, "rollout_tokens_per_s": 900.0, "learn_tokens_per_s": 800.0,
        "seconds": seconds, "idle": {"rollout": 0.4, "reward": 0.8, "learner": 0.5}, **values,
    }  # fmt: skip


def no_pairs(step: int, **skipped: int) -> dict[str, Any]:
    learnt = dict.fromkeys(("margin", "dpo_loss", "dpo_margin", "dpo_accuracy", "kl", "grad_norm"))
    return row(step, pairs=0, skipped=skipped, **learnt)


def held_out(step: int, **values: Any) -> dict[str, Any]:
    won = dict.fromkeys(
        (
            "win_rate",
            "win_low",
            "win_high",
            "second_reward_mean",
            "second_win_rate",
            "second_win_low",
            "second_win_high",
        )
    )
    return {
        "step": step, "prompts": 8, "unscored": 0, "reward_mean": 2.0, "reward_low": 1.8, "reward_high": 2.2,
        "length_mean": 100.0, "finished_share": 0.9, "kl": 0.0, "alarms": [], **won, **values,
    }  # fmt: skip


def evaluation(*rewards: list[float], length: int = 10) -> Evaluation:
    return Evaluation(rewards, [[length] * len(r) for r in rewards], [[True] * len(r) for r in rewards])


# Lines.


def test_the_line_of_a_step_tells_what_was_measured_and_the_time_left() -> None:
    assert step_line([row(12)], 100) == (
        "step 12/100: reward 2.41, 60 pairs (4 skipped), loss 0.670, margin 0.020, KL 0.80, length 212, lag 1, "
        "14.2 s, about 21 min left"
    )


def test_a_step_without_pairs_says_why_and_shows_no_numbers_that_are_not_there() -> None:
    line = step_line([no_pairs(99, margin=3, unfinished=5) | {"reward_mean": None}], 100)
    assert (
        line == "step 99/100: 0 pairs (8 skipped: margin 3, unfinished 5), length 212, lag 1, 14.2 s, about 14 s left"
    )
    assert step_line([row(100)], 100).endswith("14.2 s")


def test_the_time_left_does_not_follow_one_slow_step() -> None:
    rows = [row(step) for step in range(1, 10)] + [row(10, seconds={"step": 5000.0})]
    assert step_line(rows, 100).endswith("about 21 min left")
    assert "left" in step_line(rows[:1], 10_000)
    assert step_line(rows[:1], 10_000).endswith("h left")


def test_the_line_of_an_evaluation_shows_intervals_and_the_start() -> None:
    start = held_out(0)
    now = held_out(50, reward_mean=2.4, win_rate=0.61, win_low=0.52, win_high=0.7, kl=3.2)
    assert (
        evaluation_line(start, None)
        == "held-out prompts before the first step: reward 2.000 (1.800 to 2.200), length 100, KL 0.00"
    )
    assert evaluation_line(now, start) == (
        "held-out prompts after step 50: reward 2.400 (1.800 to 2.200), win rate 0.61 (0.52 to 0.70), length 100, KL 3.20 "
        "(at the start 2.000 and 100 tokens)"
    )
    assert "no rewards" in evaluation_line(held_out(50, reward_mean=None, reward_low=None, reward_high=None), start)


def test_trackers_get_every_number_under_a_flat_name_and_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    curves = Curves()
    watch = Monitor(config(alarms__max_kl=1.0), Trackers([curves]))
    watch.evaluation(held_out(0))
    watch.step(row(1, dpo_loss=None))
    watch.evaluation(held_out(1, kl=2.0))
    (zero, start), (one, step), (_, later) = curves.logged
    assert (zero, one) == (0, 1)
    assert start["held_out/reward_mean"] == 2.0
    assert "held_out/win_rate" not in start
    assert step["train/seconds/rollout"] == 8.0
    assert step["train/skipped/margin"] == 4
    assert not {"train/step", "train/dpo_loss"} & set(step)
    assert later["held_out/kl"] == 2.0
    assert capsys.readouterr().err.count("[online-dpo] ") == 4, "three rows and an alarm"


# Alarms.


def kinds(alarms: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in alarms]


@pytest.mark.parametrize(("length", "told"), [(201.0, True), (49.0, True), (200.0, False), (50.0, False), (0.0, True)])
def test_length_alarms_in_both_directions_beyond_the_factor_only(length: float, told: bool) -> None:
    watch = monitor()
    assert watch.evaluation(held_out(0)) == []
    alarms = watch.evaluation(held_out(5, length_mean=length))
    assert kinds(alarms) == (["length"] if told else [])
    for alarm in alarms:
        assert f"have {length:.0f} tokens on average and had 100" in alarm.text
        assert ("longer" if length > 100 else "shorter") in alarm.text
        assert "the limit is 2 (--alarms.max-length-ratio)" in alarm.text
        assert (alarm.step, alarm.action) == (5, "warn")


def test_length_is_held_against_the_start_not_against_the_last_evaluation() -> None:
    watch = monitor()
    for step, length in enumerate([100.0, 140.0, 190.0]):
        assert watch.evaluation(held_out(step, length_mean=length)) == []
    assert kinds(watch.evaluation(held_out(3, length_mean=230.0))) == ["length"]


def test_no_limit_no_alarm() -> None:
    watch = monitor(alarms__max_length_ratio=None)
    watch.evaluation(held_out(0))
    assert watch.evaluation(held_out(1, length_mean=1000.0, kl=1e6)) == []


@pytest.mark.parametrize("action", ["warn", "stop", "raise_beta"])
def test_kl_beyond_its_limit_asks_for_the_configured_action(action: str) -> None:
    watch = monitor(alarms__max_kl=10.0, alarms__kl_action=action)
    watch.evaluation(held_out(0))
    assert watch.evaluation(held_out(1, kl=10.0)) == []
    (alarm,) = watch.evaluation(held_out(2, kl=10.5))
    assert (alarm.kind, alarm.action) == ("kl", action)
    assert "10.5 nats" in alarm.text
    assert "the limit is 10 (--alarms.max-kl)" in alarm.text


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_no_number_does_not_pass_the_limit(kl: float) -> None:
    watch = monitor(alarms__max_kl=10.0, alarms__kl_action="warn")
    assert kinds(watch.evaluation(held_out(1, kl=kl))) == ["kl"]
    assert watch.evaluation(held_out(2, kl=kl)) == [], "it can't get worse"
    assert json.loads(json.dumps(watch.state()["told"], allow_nan=False))


def test_an_alarm_is_told_again_only_when_worse_by_a_tenth_or_after_it_had_gone() -> None:
    watch = monitor(alarms__max_kl=10.0, alarms__kl_action="raise_beta")
    values = [11.0, 11.5, 12.0, 12.2, 13.0, 9.0, 11.0]
    told = [bool(watch.evaluation(held_out(step, kl=kl))) for step, kl in enumerate(values)]
    assert told == [True, False, False, True, False, False, True]
    assert [alarm.step for alarm in watch.alarms] == [0, 3, 6]
    assert [bool(found["alarms"]) for found in watch.evals] == [True] * 5 + [False, True], "rows say what holds"


def test_an_alarm_that_stops_the_run_is_told_every_time() -> None:
    watch = monitor(alarms__max_kl=10.0)
    assert [kinds(watch.evaluation(held_out(step, kl=11.0))) for step in (1, 2)] == [["kl"], ["kl"]]


def test_the_second_model_alarms_only_if_the_reward_rose_and_its_whole_interval_is_below_half() -> None:
    watch = monitor()
    watch.evaluation(held_out(0))
    won = {"second_win_low": 0.3, "second_win_rate": 0.38}
    assert watch.evaluation(held_out(1, reward_mean=2.5, second_win_high=0.5, **won)) == []
    assert watch.evaluation(held_out(2, reward_mean=2.0, second_win_high=0.45, **won)) == []
    assert watch.evaluation(held_out(3, reward_mean=2.5)) == []
    (alarm,) = watch.evaluation(held_out(4, reward_mean=2.5, second_win_high=0.45, **won))
    assert alarm.kind == "second_reward"
    for part in ("2.000 to 2.500", "0.38 (0.30 to 0.45)", "0.50", "--eval.second-reward-url"):
        assert part in alarm.text


def test_rewards_that_no_longer_differ_for_five_steps_are_told_once_at_the_step() -> None:
    watch = monitor()
    told = [kinds(watch.step(no_pairs(step, margin=50, identical=14))) for step in range(1, 9)]
    assert told == [[], [], [], [], ["spread"], [], [], []]
    text = watch.alarms[0].text
    assert "none of 320 prompts" in text
    assert "margin 250, identical 70" in text
    assert "(--pairs.min-margin)" in text
    found = held_out(8)
    assert watch.evaluation(found) == [], "it was told"
    assert found["alarms"] == [text]
    watch.step(row(9))
    again = [kinds(watch.step(no_pairs(step, identical=64))) for step in range(10, 15)]
    assert again == [[], [], [], [], ["spread"]]
    assert "(--rollout.temperature)" in watch.alarms[-1].text


@pytest.mark.parametrize(
    ("skipped", "told"),
    [({"unfinished": 1}, False), ({"unsure": 1}, False), ({"refused": 60}, True), ({"unavailable": 9}, True)],
)
def test_spread_asks_for_every_prompt_that_was_scored(skipped: dict[str, int], told: bool) -> None:
    watch = monitor()
    for step in range(1, 6):
        watch.step(no_pairs(step, margin=4, **skipped))
    assert kinds(watch.alarms) == (["spread"] if told else [])


def test_steps_whose_prompts_were_never_scored_say_nothing_about_spread() -> None:
    watch = monitor()
    for step in range(1, 8):
        watch.step(no_pairs(step, refused=64))
    assert watch.alarms == []


# Going on.


def run(watch: Monitor, first: int, last: int) -> None:
    if first == 1:
        watch.evaluation(held_out(0))
    for step in range(first, last + 1):
        watch.step(row(step) if step < 4 else no_pairs(step, similar=8))
        if step % 3 == 0:
            watch.evaluation(held_out(step, kl=10.0 + step, reward_mean=2 + step / 10))


@pytest.mark.parametrize("checkpoint", [1, 3, 6, 8, 9])
def test_a_run_that_goes_on_keeps_what_the_run_that_went_through_keeps(checkpoint: int) -> None:
    settings = {"alarms__max_kl": 5.0, "alarms__kl_action": "warn"}
    whole, broken, resumed = monitor(**settings), monitor(**settings), monitor(**settings)
    run(whole, 1, 12)
    run(broken, 1, checkpoint)
    resumed.restore(json.loads(json.dumps(broken.state())))
    run(resumed, checkpoint + 1, 12)
    assert resumed.state() == whole.state()
    assert [r["step"] for r in resumed.rows] == list(range(1, 13))


def test_what_a_state_has_of_steps_behind_the_checkpoint_is_dropped_and_told_again() -> None:
    settings = {"alarms__max_kl": 5.0, "alarms__kl_action": "warn"}
    whole, later, resumed = monitor(**settings), monitor(**settings), monitor(**settings)
    run(whole, 1, 9)
    run(later, 1, 9)
    resumed.restore(later.state(), step=2)
    assert ([r["step"] for r in resumed.rows], [r["step"] for r in resumed.evals], resumed.alarms) == ([1, 2], [0], [])
    run(resumed, 3, 9)
    assert resumed.state() == whole.state()


def test_a_step_or_an_evaluation_done_twice_is_there_once() -> None:
    watch = monitor()
    run(watch, 1, 6)
    run(watch, 5, 6)
    assert [r["step"] for r in watch.rows] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in watch.evals] == [0, 3, 6]
    watch.evaluation(held_out(6))
    assert [r["step"] for r in watch.evals] == [0, 3, 6]
    assert len(watch.rows) == 6, "an evaluation comes after its step and must not drop it"


# Summary.


def test_evaluation_rows_compare_with_the_start_and_the_start_with_nothing() -> None:
    start, now = evaluation([1.0, 2.0], [2.0, 3.0]), evaluation([2.0, 3.0], [3.0, 4.0], length=12)
    zero = evaluation_row(0, start, None, kl=0.0)
    assert (zero["win_rate"], zero["win_low"], zero["second_win_rate"], zero["reward_mean"]) == (None, None, None, 2.0)
    assert zero["reward_low"] < 2.0 < zero["reward_high"]
    found = evaluation_row(
        9, now, start, kl=1.5, second_now=evaluation([1.0], [1.0]), second_start=evaluation([1.0], [2.0])
    )
    assert found["win_rate"] == pytest.approx(0.875)
    assert (found["second_reward_mean"], found["second_win_rate"], found["second_win_high"]) == (1.0, 0.25, 0.5)
    assert (found["length_mean"], found["finished_share"], found["kl"], found["alarms"]) == (12.0, 1.0, 1.5, [])
    missing = evaluation_row(9, Evaluation([[1.0], []], [[3], [3]], [[True], [False]]), None, kl=None)
    assert (missing["prompts"], missing["unscored"], missing["reward_low"]) == (1, 1, None)


def test_the_summary_agrees_with_the_last_evaluation_row() -> None:
    before = evaluation([1.0, 2.0], [2.0, 3.0], [1.0, 1.0])
    after = evaluation([2.0, 3.0], [3.0, 4.0], [0.5, 1.0], length=12)
    watch = monitor(alarms__max_kl=1.0, alarms__kl_action="warn")
    watch.evaluation(evaluation_row(0, before, None, kl=0.0))
    for step in range(1, 8):
        watch.step(row(step))
    last = evaluation_row(7, after, before, kl=2.0, seed=0)
    watch.evaluation(last)
    margins = {"margin_before": 0.0, "margin_after": 0.2}
    found = watch.summary(before=before, after=after, first_pairs=margins, stopped=None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["policy"], found["steps_done"], found["stopped"], found["first_pairs"]) == ("p", 7, None, margins)
    compared = found["eval"]
    assert (compared["prompts"], compared["replies"]) == (3, 6)
    assert compared["win_rate"] == last["win_rate"]
    assert compared["win_rate_interval"] == [last["win_low"], last["win_high"]]
    assert compared["reward_after_interval"] == [last["reward_low"], last["reward_high"]]
    assert (compared["reward_before"], compared["reward_after"]) == (pytest.approx(5 / 3), last["reward_mean"])
    assert (compared["length_before"], compared["length_after"]) == (10.0, 12.0)
    (alarm,) = found["alarms"]
    assert (alarm["step"], alarm["kind"], alarm["text"]) == (7, "kl", last["alarms"][0])


def test_a_run_without_held_out_prompts_or_steps_has_a_summary() -> None:
    found = monitor().summary(before=None, after=None, first_pairs=None, stopped="interrupted")
    assert (found["eval"], found["time"], found["steps_done"], found["stopped"]) == (None, None, 0, "interrupted")


def test_time_figures_leave_out_the_warm_up_where_enough_steps_remain() -> None:
    slow = {"step": 1000.0, "rollout": 900.0}
    rows = [row(step, seconds=slow if step <= 2 else {}) for step in range(1, 6)]
    found = time_figures(rows)
    assert found is not None
    assert found["step_seconds"] == pytest.approx(14.2)
    assert found["slowest_part"] == "rollout"
    assert found["overlap_ratio"] == pytest.approx(14.2 / 8)
    assert found["idle"] == pytest.approx({"rollout": 0.4, "reward": 0.8, "learner": 0.5})
    few = time_figures(rows[:4])
    assert few is not None
    assert few["step_seconds"] == pytest.approx((2000 + 2 * 14.2) / 4)
