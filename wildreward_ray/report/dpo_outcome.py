"""What an online DPO run came to: the held-out reward at its end against that at its start, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wildreward_ray.report.values import ABSENT, count, decimal, items, mapping, number, percent, string


class Estimate(NamedTuple):
    """A measured value and its 95 % interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Outcome:
    """The comparison of the end of a run with its start; what wasn't measured is None.

    Attributes:
        prompts: held-out prompts.
        before, after: mean reward of replies to them before the first step and at the last evaluation.
        win: chance that a reply of the last evaluation beats one of the start to the same prompt.
        second_win: the same by a second reward model.
        length_before, length_after: mean tokens a reply.
        kl: divergence from the reference at the last evaluation, in nats a reply.
        step: of the last evaluation.
    """

    prompts: float | None
    before: Estimate | None
    after: Estimate | None
    win: Estimate | None
    second_win: float | None
    length_before: float | None
    length_after: float | None
    kl: float | None
    step: float | None

    @property
    def change(self) -> Estimate | None:
        """How much the reward rose, with its interval."""
        return None if self.before is None or self.after is None else difference(self.before, self.after)


class Alarm(NamedTuple):
    """A warning of the run; what wasn't recorded is `n/a`."""

    step: str
    kind: str
    text: str


def outcome(summary: Mapping[str, Any], evals: Sequence[Mapping[str, Any]]) -> Outcome:
    """The outcome by the evaluations; by the summary where they don't hold both a start (step 0) and a later one.

    Args:
        summary: content of `summary.json`.
        evals: rows of `evals.jsonl`.
    """
    held_out = mapping(summary.get("eval"))
    prompts = number(held_out.get("prompts"))
    stepped = [(step, row) for row in evals if (step := number(row.get("step"))) is not None]
    first = next((row for step, row in stepped if step == 0), None)
    step, last = max(stepped, key=lambda entry: entry[0], default=(0.0, None))
    if first is None or last is None or step <= 0:
        win = _estimate(held_out, "win_rate", *_ends(held_out, "win_rate_interval"))
        return Outcome(
            prompts,
            _estimate(held_out, "reward_before", *_ends(held_out, "reward_before_interval"))
            or (_from_row(first, "reward") if first else None),
            _estimate(held_out, "reward_after", *_ends(held_out, "reward_after_interval")),
            win,
            None,
            number(held_out.get("length_before")),
            number(held_out.get("length_after")),
            None,
            None,
        )
    return Outcome(
        prompts if prompts is not None else number(last.get("prompts")),
        _from_row(first, "reward"),
        _from_row(last, "reward"),
        _estimate(last, "win_rate", last.get("win_low"), last.get("win_high")),
        number(last.get("second_win_rate")),
        number(first.get("length_mean")),
        number(last.get("length_mean")),
        number(last.get("kl")),
        step,
    )


def difference(before: Estimate, after: Estimate) -> Estimate:
    """`after - before` with an interval made of theirs, as if the two were measured on different prompts.

    Zou and Donner 2008, Statistics in Medicine 27, doi:10.1002/sim.3095: the distances of the ends from their values
    add up as squares. Both were measured on the same prompts, where rewards mostly rise and fall together, so that the
    interval is too wide rather than too narrow.
    """
    value = after.value - before.value
    a, b = after.interval, before.interval
    if a is None or b is None:
        return Estimate(value)
    return Estimate(
        value,
        value - math.hypot(after.value - a[0], b[1] - before.value),
        value + math.hypot(a[1] - after.value, before.value - b[0]),
    )


def verdict(found: Outcome) -> str:
    """Whether the held-out reward rose, in sentences."""
    change = found.change
    if change is None or found.before is None or found.after is None:
        if found.before is not None:
            return "The policy was evaluated before its first step only, so there is nothing to compare yet."
        return "Whether the held-out reward rose is unknown: the policy was not evaluated on held-out prompts."
    on = "" if found.prompts is None else f" on {count(found.prompts)} prompts that it was not trained on"
    moved = f"from {decimal(found.before.value)} to {decimal(found.after.value)}{on}"
    ends = change.interval
    if ends is None:
        said = f"The held-out reward went {moved}, by {signed(change.value)}; without an interval this may be chance."
    else:
        by = f"(95 % interval of the change {signed(ends[0])} to {signed(ends[1])})"
        if ends[0] > 0:
            said = f"The held-out reward rose by {decimal(change.value)}, {moved} {by}."
        elif ends[1] < 0:
            said = f"The held-out reward fell by {decimal(-change.value)}, {moved} {by}."
        else:
            said = f"The held-out reward changed by {signed(change.value)}, {moved}, which may be chance {by}."
    return " ".join([said, *_wins(found)])


def compared(win: Estimate) -> str:
    """Where the interval of a win rate stands against an even chance."""
    ends = win.interval
    if ends is None:
        return "No interval was measured."
    where = "above" if ends[0] > 0.5 else "below" if ends[1] < 0.5 else "on both sides of"
    return f"95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %, {where} an even chance."


def signed(value: float) -> str:
    """A change with its sign."""
    return f"{'+' if value > 0 else ''}{decimal(value)}".replace("-", "−")


def _wins(found: Outcome) -> list[str]:
    said = []
    if found.win is not None:
        said.append(f"A new reply beats an old one to the same prompt {percent(found.win.value)} of the time.")
    if found.second_win is not None:
        said.append(f"By the second reward model it does {percent(found.second_win)} of the time.")
    return said


def _from_row(row: Mapping[str, Any], name: str) -> Estimate | None:
    return _estimate(row, f"{name}_mean", row.get(f"{name}_low"), row.get(f"{name}_high"))


def _estimate(holder: Mapping[str, Any], key: str, low: Any, high: Any) -> Estimate | None:
    value, a, b = number(holder.get(key)), number(low), number(high)
    if value is None:
        return None
    # Ends that don't enclose their value are no interval.
    return Estimate(value, a, b) if a is not None and b is not None and a <= value <= b else Estimate(value)


def _ends(holder: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    low, high = [*items(holder.get(key)), None, None][:2]
    return low, high


def alarms(summary: Mapping[str, Any], evals: Sequence[Mapping[str, Any]]) -> list[Alarm] | None:
    """Alarms by the summary, or by the evaluations of a run without one; None if neither tells."""
    if isinstance(summary.get("alarms"), list):
        return [
            Alarm(decimal(a.get("step")), string(a.get("kind")), string(a.get("text")))
            if isinstance(a, Mapping)
            else Alarm(ABSENT, ABSENT, string(a))
            for a in summary["alarms"]
        ]
    if not evals:
        return None
    return [Alarm(decimal(row.get("step")), ABSENT, string(text)) for row in evals for text in items(row.get("alarms"))]
