"""The page of an online DPO run: what came of it and its alarms first, then its curves, its replies and what made it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wildreward_ray.report.dpo_figures import held_out_section, training_section
from wildreward_ray.report.dpo_flow import pairs_section, time_section
from wildreward_ray.report.dpo_making import making_section, prompts_section
from wildreward_ray.report.dpo_outcome import Alarm, Outcome, alarms, compared, outcome, signed, verdict
from wildreward_ray.report.dpo_samples import samples_section
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import own_file, page, table, tile, tiles
from wildreward_ray.report.values import (
    ABSENT,
    change,
    count,
    decimal,
    items,
    mapping,
    moment,
    number,
    percent,
    rows,
    seconds,
    string,
    with_unit,
    words,
)

TITLE = "Online DPO run"
_MAX_EVALS, _MAX_ALARMS, _MAX_ALARM = 60, 20, 600


def dpo_page(run: Mapping[str, Any]) -> str:
    """The page of a run as one HTML text that loads nothing from anywhere. Whatever is missing is said to be missing.

    Args:
        run: `summary` (content of summary.json), `steps` (rows of metrics.jsonl), `evals` (rows of evals.jsonl), `samples`
            (rows of samples.jsonl), `config` (the settings as plain data) and `manifest` (of it `created`, `seconds`, `funnel`,
            `reward` and `versions` are read). Each may be missing or None.
    """
    summary, config, manifest = (mapping(run.get(name)) for name in ("summary", "config", "manifest"))
    steps, evals, samples = (rows(run.get(name)) for name in ("steps", "evals", "samples"))
    found = outcome(summary, evals)
    limits = mapping(config.get("alarms"))
    max_kl = number(limits.get("max_kl"))
    return str(
        page(
            TITLE,
            el("h1", TITLE),
            el("p", _origin(summary, config, manifest), class_="made"),
            el("p", verdict(found), class_="lead"),
            _alarm_box(summary, evals, config),
            tiles(_headline(found, max_kl, summary, steps, config, manifest)),
            held_out_section(evals, max_kl, _eval_table(evals) if evals else None),
            training_section(steps),
            pairs_section(steps, number(config.get("staleness"))),
            time_section(steps, summary),
            samples_section(samples),
            prompts_section(manifest),
            making_section(config, manifest),
            style=own_file("dpo.css"),
        )
    )


def _origin(summary: Mapping[str, Any], config: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    policy = string(summary.get("policy") or config.get("policy"))
    when = moment(manifest.get("created"))
    return f"WildReward on Ray, policy {policy}" + (f", run of {when}" if when != ABSENT else "")


def _alarm_box(summary: Mapping[str, Any], evals: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Html:
    """What the run warned of and why it stopped early, or that it did neither."""
    raised, stopped = alarms(summary, evals), summary.get("stopped")
    body: list[Html] = []
    if stopped:
        body.append(el("p", el("b", "Stopped early: "), _cut(string(stopped))))
    if not summary:
        body.append(el("p", "The run has left no summary: it is under way, or it broke off."))
    if raised:
        listed = [_alarm(alarm) for alarm in raised[:_MAX_ALARMS]]
        body.append(el("ul", *listed))
        if len(raised) > _MAX_ALARMS:
            body.append(el("p", f"{len(raised) - _MAX_ALARMS:,} more are in the run's records."))
        title, kind = f"Alarms: {len(raised):,}", "raised"
    elif raised is None:
        title, kind = "Alarms: not recorded", "unknown"
    elif stopped:
        title, kind = "Stopped early", "raised"
    else:
        body.append(el("p", f"Nothing was out of bounds. {_watched(config)}"))
        title, kind = "No alarm", "none"
    return el("section", el("h2", title), *body, class_=f"alarms {kind}", id="alarms")


def _alarm(alarm: Alarm) -> Html:
    kind = f"{words(alarm.kind)}: " if alarm.kind != ABSENT else ""
    return el("li", el("b", f"Step {alarm.step}, {kind}" if kind else f"Step {alarm.step}: "), _cut(alarm.text))


def _watched(config: Mapping[str, Any]) -> str:
    """What could have raised an alarm, as far as the settings tell."""
    if not config:
        return ""
    limits = mapping(config.get("alarms"))
    max_kl, ratio = number(limits.get("max_kl")), number(limits.get("max_length_ratio"))
    watched = ["rewards that no longer differ"]
    if max_kl is not None:
        watched.append(f"a KL beyond {decimal(max_kl)} nats a reply")
    if ratio is not None:
        watched.append(f"replies longer or shorter by a factor of {decimal(ratio)}")
    if mapping(config.get("eval")).get("second_reward_url"):
        watched.append("a second reward model that disagrees")
    without = "" if max_kl is not None else " The KL has no limit (--alarms.max-kl)."
    return f"Watched for: {', '.join(watched)}.{without}"


def _headline(
    found: Outcome,
    max_kl: float | None,
    summary: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> list[Html]:
    done = number(summary.get("steps_done"))
    done = float(len(steps)) if done is None and steps else done
    wanted = number(config.get("steps"))
    before, after = (None if e is None else e.value for e in (found.before, found.after))
    limit = (
        f" The run's limit is {decimal(max_kl)}." if max_kl is not None else " The run has no limit." if config else ""
    )
    first = mapping(summary.get("first_pairs"))
    return [
        tile("Held-out reward", change(before, after), _reward_note(found)),
        tile(
            "Win rate against the start",
            percent(found.win.value if found.win else None),
            f"Chance that a new reply scores above an old one to the same prompt. {compared(found.win)}"
            if found.win
            else "Chance that a new reply scores above an old one to the same prompt.",
        ),
        tile("Length of replies", change(found.length_before, found.length_after), _length_note(found)),
        tile(
            "Distance from the start",
            with_unit(found.kl, "nats"),
            f"KL divergence a reply on held-out prompts.{limit}",
        ),
        tile(
            "Margin of the first pairs",
            change(first.get("margin_before"), first.get("margin_after")),
            "How much more than the reference the policy prefers the better reply of the first step's pairs, before and after "
            "training: shows that learning itself works.",
        ),
        tile(
            "Steps",
            count(done) if wanted is None else f"{count(done)} of {count(wanted)}",
            _time_note(summary, manifest),
        ),
    ]


def _reward_note(found: Outcome) -> str:
    by = found.change
    when = "before and after" if found.step is None else f"before the first step and at step {found.step:g}"
    what = f"Mean reward on prompts never trained on, {when}."
    if by is None:
        return what
    ends = by.interval
    said = f"A change of {signed(by.value)}"
    if ends is not None:
        said += f", 95 % interval {signed(ends[0])} to {signed(ends[1])}"
    return f"{said}. {what}"


def _length_note(found: Outcome) -> str:
    before, after = found.length_before, found.length_after
    if before is None or after is None or before <= 0:
        return "Mean tokens of a reply before and after."
    by = f"{100 * (after / before - 1):+,.1f}".replace("-", "−")
    return f"Mean tokens of a reply before and after, a change of {by} %."


def _time_note(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    a_step, whole = mapping(summary.get("time")).get("step_seconds"), manifest.get("seconds")
    said = [f"{seconds(a_step)} a step" if number(a_step) is not None else ""]
    said.append(f"{seconds(whole)} in all" if number(whole) is not None else "")
    return f"{', '.join(s for s in said if s)}.".capitalize() if any(said) else "Updates of the weights."


def _eval_table(evals: Sequence[Mapping[str, Any]]) -> Html:
    """Every evaluation as numbers; of a great many every n-th, the first and the last."""
    run = math.ceil(len(evals) / _MAX_EVALS)
    shown = [row for i, row in enumerate(evals) if i % run == 0 or i == len(evals) - 1]
    second = any(number(row.get(f"second_{key}")) is not None for row in evals for key in ("reward_mean", "win_rate"))
    more = ["Second reward", "Second win rate"] if second else []
    header = ["Step", "Reward [95 %]", "Win rate [95 %]", "Tokens", "Finished", "KL, nats", *more, "Alarms"]
    cells = [
        [
            decimal(row.get("step")),
            _with_ends(row, "reward_mean", "reward", decimal),
            _with_ends(row, "win_rate", "win", percent),
            decimal(row.get("length_mean")),
            percent(row.get("finished_share")),
            decimal(row.get("kl")),
            *(
                [decimal(row.get("second_reward_mean")), _with_ends(row, "second_win_rate", "second_win", percent)]
                if second
                else []
            ),
            _cut("; ".join(map(string, items(row.get("alarms"))))) or "none",
        ]
        for row in shown
    ]
    left = f"Every {run}th of {len(evals):,} evaluations and the last one are listed." if run > 1 else None
    numeric = range(len(header) - 1)
    # A table that may scroll sideways must be reachable by keyboard.
    region = el(
        "div",
        table(header, cells, numeric=numeric),
        class_="region",
        tabindex=0,
        role="region",
        aria_label="Evaluations",
    )
    return join(region, el("p", left, class_="note") if left else None)


def _with_ends(row: Mapping[str, Any], key: str, name: str, write: Callable[[Any], str]) -> Html:
    value, low, high = row.get(key), row.get(f"{name}_low"), row.get(f"{name}_high")
    known = number(low) is not None and number(high) is not None
    return join(write(value), el("div", f"[{write(low)}, {write(high)}]", class_="soft") if known else None)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_ALARM else text[:_MAX_ALARM] + "…"
