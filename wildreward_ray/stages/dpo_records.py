"""The records of an online DPO run: rows of evals.jsonl, what summary.json says, and the lines on the console.

Plain functions of rows; nothing here starts or waits for anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.policy.comparison import Evaluation, WinRate, interval, win_rate

_PARTS = ("rollout", "score", "learn", "sync")
_ACTORS = ("rollout", "reward", "learner")
# The first steps compile and fill caches; they are left out where enough others remain.
_WARM_UP, _FEW = 2, 4
_RECENT = 10


def evaluation_row(
    step: int,
    now: Evaluation,
    start: Evaluation | None,
    *,
    kl: float | None,
    second_now: Evaluation | None = None,
    second_start: Evaluation | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """A row of evals.jsonl.

    Args:
        step: steps done.
        now: replies of the policy as it is.
        start: replies of the policy before the first step; None where `now` is these, and then there are no win rates.
        kl: nats a reply from the reference, on the replies of `now`; None where it was not measured.
        second_now, second_start: the same replies with the rewards of the second service; None without one.
        seed: of the intervals.

    Returns:
        `step`; `prompts` with a reward and `unscored` ones; `reward_mean`, `reward_low`, `reward_high`; `win_rate`,
        `win_low`, `win_high`; `length_mean` in tokens; `finished_share`; `kl`; `second_reward_mean`, `second_win_rate`,
        `second_win_low`, `second_win_high`; `alarms`, empty until a monitor has seen the row.
    """
    low, high = interval(now.reward_by_prompt, seed)
    won = _won(start, now, seed)
    second = _won(second_start, second_now, seed)
    return {
        "step": step,
        "prompts": now.prompts,
        "unscored": len(now.rewards) - now.prompts,
        "reward_mean": now.reward_mean,
        "reward_low": low,
        "reward_high": high,
        "win_rate": won.rate,
        "win_low": won.low,
        "win_high": won.high,
        "length_mean": now.length_mean,
        "finished_share": now.finished_share,
        "kl": kl,
        "second_reward_mean": None if second_now is None else second_now.reward_mean,
        "second_win_rate": second.rate,
        "second_win_low": second.low,
        "second_win_high": second.high,
        "alarms": [],
    }


def outcome(before: Evaluation, after: Evaluation, *, seed: int) -> dict[str, Any]:
    """The first and the last evaluation side by side. An interval is [low, high], or None with fewer than two prompts.

    `prompts` are those with a reward both times, which the win rate is over; `replies` are the scored ones of the last
    evaluation.
    """
    rate, low, high = win_rate(before, after, seed=seed)
    return {
        "prompts": sum(bool(b) and bool(a) for b, a in zip(before.rewards, after.rewards, strict=True)),
        "replies": after.replies,
        "reward_before": before.reward_mean,
        "reward_after": after.reward_mean,
        "reward_before_interval": _both(*interval(before.reward_by_prompt, seed)),
        "reward_after_interval": _both(*interval(after.reward_by_prompt, seed)),
        "length_before": before.length_mean,
        "length_after": after.length_mean,
        "win_rate": rate,
        "win_rate_interval": _both(low, high),
    }


def time_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where the time of the steps went; the first two are left out where there are more than four. None without steps.

    Returns:
        `step_seconds`: mean wall time of a step; `slowest_part`: the one of rollout, score, learn and sync with the largest
        mean; `overlap_ratio`: mean step over mean of that part, 1 where all else is hidden behind it (None if it took no
        time); `idle`: mean share of the time that rollout, reward and learner had nothing to do.
    """
    timed = rows[_WARM_UP:] if len(rows) > _FEW else rows
    if not timed:
        return None
    step = statistics.fmean(row["seconds"]["step"] for row in timed)
    parts = {part: statistics.fmean(row["seconds"][part] for row in timed) for part in _PARTS}
    slowest = max(parts, key=parts.__getitem__)
    return {
        "step_seconds": step,
        "slowest_part": slowest,
        "overlap_ratio": step / parts[slowest] if parts[slowest] else None,
        "idle": {actor: statistics.fmean(row["idle"][actor] for row in timed) for actor in _ACTORS},
    }


def numbers(row: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    """The numbers of a row by flat names, `train/seconds/step`, for trackers; neither `step` itself nor texts."""
    flat: dict[str, float | None] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}/{name}")
        elif name != "step" and (value is None or isinstance(value, int | float)):
            flat[f"{prefix}/{name}"] = value
    return flat


def step_line(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """The console's line on the last of `rows`; what was not measured is left out.

    Args:
        rows: metrics of all steps so far; the time left is the median of the last ten for each step to come.
        steps: of the whole run.
    """
    row = rows[-1]
    parts = [
        _part("reward", row["reward_mean"], ".2f"),
        _pairs(row),
        _part("loss", row["dpo_loss"], ".3f"),
        _part("margin", row["dpo_margin"], ".3f"),
        _part("KL", row["kl"], ".2f"),
        _part("length", row["response_length"], ".0f"),
        _part("lag", row["staleness"], "d"),
        f"{row['seconds']['step']:.1f} s",
    ]
    if left := steps - row["step"]:
        pace = statistics.median(r["seconds"]["step"] for r in rows[-_RECENT:])
        parts.append(f"about {_duration(pace * left)} left")
    return f"step {row['step']}/{steps}: {', '.join(part for part in parts if part)}"


def evaluation_line(row: Mapping[str, Any], start: Mapping[str, Any] | None) -> str:
    """The console's line on an evaluation, beside the one before the first step where this is another."""
    parts = [
        _part("reward", row["reward_mean"], ".3f", row["reward_low"], row["reward_high"]) or "no rewards",
        _part("win rate", row["win_rate"], ".2f", row["win_low"], row["win_high"]),
        _part("length", row["length_mean"], ".0f"),
        _part("KL", row["kl"], ".2f"),
        _part("second reward", row["second_reward_mean"], ".3f"),
        _part("its win rate", row["second_win_rate"], ".2f", row["second_win_low"], row["second_win_high"]),
    ]
    before = ""
    if start is not None and start["reward_mean"] is not None:
        before = f" (at the start {start['reward_mean']:.3f} and {start['length_mean']:.0f} tokens)"
    where = f"after step {row['step']}" if row["step"] else "before the first step"
    return f"held-out prompts {where}: {', '.join(part for part in parts if part)}{before}"


def _won(start: Evaluation | None, now: Evaluation | None, seed: int) -> WinRate:
    return WinRate(None, None, None) if start is None or now is None else win_rate(start, now, seed=seed)


def _both(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [low, high]


def _part(name: str, value: float | None, style: str, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return ""
    spread = "" if low is None or high is None else f" ({low:{style}} to {high:{style}})"
    return f"{name} {value:{style}}{spread}"


def _pairs(row: Mapping[str, Any]) -> str:
    skipped = {reason: n for reason, n in row["skipped"].items() if n}
    text = f"{row['pairs']} pairs"
    if not skipped:
        return text
    why = ": " + ", ".join(f"{reason} {n}" for reason, n in skipped.items()) if not row["pairs"] else ""
    return f"{text} ({sum(skipped.values())} skipped{why})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
