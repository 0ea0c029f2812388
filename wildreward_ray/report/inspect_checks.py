"""What can be wrong with an extraction, measured: every check has a threshold, a reason to care, and the flags that change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wildreward_ray.core.scale import LEVEL_NAMES
from wildreward_ray.report.inspect_groups import FURTHER, NOT_RECORDED
from wildreward_ray.report.inspect_stats import MAX_ENTROPY, Statistics
from wildreward_ray.report.values import count, counts, decimal, mapping, number, percent, rows, total

MAX_LABEL_SHARE = 0.9
MAX_JUDGE_SHARE = 0.9
MAX_ENTROPY_SHARE = 0.9
MIN_ENTROPY_SPREAD = 0.02
MAX_USER_SHARE = 0.05
MAX_LENGTH_CORRELATION = 0.3
MAX_LOST_SHARE = 0.2
TEST_SHARES = (0.05, 0.4)
# Fewer rows than this and a share or a correlation beyond its threshold may be chance.
MIN_ROWS = 30
_MAX_NAMED = 8
# Steps in which a row is lost because it could not be read, and reasons that say so in any step.
_LOSING_STEPS = ("files", "read", "judge")
_LOSING_REASONS = ("quarantined", "unparseable")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what it looks at.
        state: `warning`, `passed`, or `skipped` where there is nothing to measure.
        measured: a sentence with the value and the threshold, or why it was skipped.
        why: why it matters.
        change: which flags of which command change it.
    """

    name: str
    state: Literal["warning", "passed", "skipped"]
    measured: str
    why: str
    change: str


def checks(stats: Statistics, manifest: Mapping[str, Any], min_prior_rows: int) -> list[Check]:
    """All checks, warnings first.

    Args:
        stats: counts over all rows.
        manifest: the extraction's manifest.
        min_prior_rows: rows from which a language has a prior of its own.
    """
    found = [
        _one_label(stats),
        _one_judge_level(stats),
        _entropy_level(stats),
        _entropy_spread(stats),
        _length(stats),
        _one_user(stats),
        _lost(manifest),
        _test_share(stats),
        _languages(stats, manifest, min_prior_rows),
        _whole(stats, manifest),
    ]
    order = ("warning", "passed", "skipped")
    return sorted(found, key=lambda check: order.index(check.state))


def _check(name: str, wrong: bool | None, measured: str, why: str, change: str) -> Check:
    """A check's outcome; `wrong` is None where nothing could be measured."""
    return Check(name, "skipped" if wrong is None else "warning" if wrong else "passed", measured, why, change)


def _one_label(stats: Statistics) -> Check:
    rule = f"the limit is {percent(MAX_LABEL_SHARE)}"
    n = total({str(label): float(rows) for label, rows in stats.labels.items()})
    if n < MIN_ROWS:
        label, share = None, None
        measured = _too_few("kept rows with a training label", n)
    else:
        label, most = min(stats.labels.items(), key=lambda item: (-item[1], item[0]))
        share = most / n
        measured = f"Training label {label} makes up {percent(share)} of {count(n)} kept rows; {rule}."
    return _check(
        "One training label",
        None if share is None else share > MAX_LABEL_SHARE,
        measured,
        "A reward model that always gives the commonest label would be right that often without reading anything, and "
        "training tends towards it.",
        "extract --judge.expected-shares, --judge.prior, --judge.model or --levels",
    )


def _one_judge_level(stats: Statistics) -> Check:
    judged = stats.judge_levels
    n = int(judged.sum())
    share = None
    measured = _too_few("rows with the judge's own level", n)
    if n >= MIN_ROWS:
        level = int(judged.argmax()) + 1
        share = judged[level - 1] / n
        measured = (
            f"The judge gave level {level}, {LEVEL_NAMES[level]}, to {percent(share)} of {count(n)} interactions; the "
            f"limit is {percent(MAX_JUDGE_SHARE)}."
        )
    return _check(
        "One judge level",
        None if share is None else bool(share > MAX_JUDGE_SHARE),
        measured,
        "A judge that gives one answer to nearly everything is likely not reading: its prompt may not suit it, or it "
        "prefers a verdict word whatever it reads.",
        "extract --judge.prompt-style, --judge.prior, --judge.expected-shares or --judge.model",
    )


def _entropy_level(stats: Statistics) -> Check:
    mean, limit = stats.entropy_mean, MAX_ENTROPY_SHARE * MAX_ENTROPY
    enough = mean is not None and stats.entropy_n >= MIN_ROWS
    return _check(
        "The judge guesses",
        mean > limit if mean is not None and enough else None,
        f"The judge's mean entropy is {decimal(mean)} nats over {count(stats.entropy_n)} interactions; the limit is "
        f"{decimal(limit)}, {percent(MAX_ENTROPY_SHARE)} of what five equal probabilities have."
        if enough
        else _too_few("rows with the judge's probabilities", stats.entropy_n),
        "Near the maximum the five levels are about equally likely, and the one that is taken is close to a throw of dice.",
        "extract --judge.model or --judge.prompt-style; --quality.min-confidence drops the least sure labels",
    )


def _entropy_spread(stats: Statistics) -> Check:
    spread = stats.entropy_spread
    enough = spread is not None and stats.entropy_n >= MIN_ROWS
    return _check(
        "The judge is always equally sure",
        spread < MIN_ENTROPY_SPREAD if spread is not None and enough else None,
        f"The judge's entropy has a standard deviation of {decimal(spread)} nats over {count(stats.entropy_n)} "
        f"interactions; the least is {decimal(MIN_ENTROPY_SPREAD)}."
        if enough
        else _too_few("rows with the judge's probabilities", stats.entropy_n),
        "Easy and hard messages should differ in how sure the judge is. Where they don't, its probabilities can't tell "
        "good labels from bad ones, and a filter by confidence does nothing.",
        "extract --judge.model or --judge.prompt-style",
    )


def _length(stats: Statistics) -> Check:
    n = stats.lengths.rows
    rho = stats.lengths.spearman() if n >= MIN_ROWS else None
    measured = (
        f"Spearman's correlation of response length and final level is {decimal(rho)} over {count(n)} interactions; the "
        f"limit is {decimal(MAX_LENGTH_CORRELATION)} either way."
        if rho is not None
        else _too_few("rows with a response and a level, or they are all alike", n)
    )
    return _check(
        "Length tells the level",
        None if rho is None else abs(rho) > MAX_LENGTH_CORRELATION,
        measured,
        "A reward model then learns to measure length, and a policy trained on it learns to write longer, or shorter.",
        "extract --quality.min-response, --judge.model or --judge.prompt-style",
    )


def _one_user(stats: Statistics) -> Check:
    known = len(stats.users) > 0
    share = stats.users.largest_kept() / stats.kept if known and stats.kept else None
    measured = "User ids are not recorded." if not known else "No rows were kept, or it isn't recorded which."
    if share is not None:
        measured = (
            f"One user wrote {percent(share)} of {count(stats.kept)} kept rows, of {count(len(stats.users))} users in "
            f"all; the limit is {percent(MAX_USER_SHARE)}."
        )
    return _check(
        "One user",
        None if share is None else share > MAX_USER_SHARE,
        measured,
        "The dataset then holds that person's taste, or a script's, and the split puts all of it on one side.",
        "extract --quality.max-per-user, or --input with logs of more users",
    )


def _lost(manifest: Mapping[str, Any]) -> Check:
    shares = []
    for step in rows(manifest.get("funnel")):
        dropped, n_in = counts(step.get("dropped")), number(step.get("rows_in"))
        losing = step.get("name") in _LOSING_STEPS
        lost = sum(n for reason, n in dropped.items() if losing or reason.startswith(_LOSING_REASONS))
        if n_in and (losing or lost):
            shares.append((lost / n_in, lost, n_in, str(step.get("unit")), str(step.get("name"))))
    measured = "The manifest's funnel has no step that reads or judges."
    if shares:
        share, lost, n_in, unit, name = max(shares)
        measured = (
            f"The step “{name}” could not use {percent(share)} of its {unit} ({count(lost)} of {count(n_in)}); the limit "
            f"is {percent(MAX_LOST_SHARE)}."
        )
    return _check(
        "Unreadable input",
        max(shares)[0] > MAX_LOST_SHARE if shares else None,
        measured,
        "What can't be read is seldom a random part: one source or one format may be missing as a whole. quarantine/ "
        "holds every record with its reason.",
        "extract --format or --input; for the judge, --judge.model",
    )


def _test_share(stats: Statistics) -> Check:
    low, high = TEST_SHARES
    split = {side: n for side, n in stats.counts["split"].items() if side is not None}
    n = sum(split.values())
    share = split.get("test", 0) / n if n else None
    measured = "No row is on a side of the split, or it isn't recorded."
    if share is not None:
        measured = f"The test side holds {percent(share)} of {count(n)} kept rows; it should hold {percent(low)} to {percent(high)}."
    return _check(
        "Size of the test side",
        None if share is None else not low <= share <= high,
        measured,
        "With too few rows the held-out metrics are noise, and with too many the model has too little to learn from. "
        "Whole users go to one side, so a heavy user can tip it.",
        "extract --split.test-share or --split.salt",
    )


def _languages(stats: Statistics, manifest: Mapping[str, Any], min_rows: int) -> Check:
    judge = mapping(manifest.get("judge"))
    without = "prior_logprobs" in judge and mapping(judge["prior_logprobs"]).get("overall") is None
    mix = stats.mixes["language"]
    known = {name: mix.rows(name) for name in mix.counts if name not in (NOT_RECORDED, FURTHER)}
    few = sorted(((n, name) for name, n in known.items() if n < min_rows), reverse=True)
    named = ", ".join(f"{name} {n:,}" for n, name in few[:_MAX_NAMED])
    more = f" and {len(few) - _MAX_NAMED:,} others" if len(few) > _MAX_NAMED else ""
    if without:
        measured = "No prior was subtracted from the judge's log-probabilities."
    elif not known:
        measured = "Languages are not recorded."
    elif few:
        measured = (
            f"{len(few):,} of {len(known):,} languages have fewer than the {min_rows} rows that a prior of their own takes: "
            f"{named}{more}."
        )
    else:
        measured = f"Each of {len(known):,} languages has the {min_rows} rows that a prior of its own takes."
    return _check(
        "Rare languages",
        None if without or not known else bool(few),
        measured,
        "A judge's preference for some verdicts differs between languages. Levels in a rare language are read with a "
        "prior that was learnt from other languages.",
        "extract --input or --limit (more rows), --quality.languages (which ones are kept), or --judge.prior none",
    )


def _whole(stats: Statistics, manifest: Mapping[str, Any]) -> Check:
    written = counts(mapping(manifest.get("labels")).get("level"))
    found, said = int(stats.levels[1:].sum()), total(written)
    return _check(
        "Rows match the manifest",
        found != said if written else None,
        f"feedback/ holds {count(found)} rows with a level, and the manifest counted {count(said)}."
        if written
        else "The manifest counts no levels.",
        "Where the two differ, files were lost or added after the extraction, and nothing on this page can be trusted.",
        "extract --overwrite true, or copy the directory again",
    )


def _too_few(what: str, n: float) -> str:
    return f"There are {count(n)} {what}; the check takes {MIN_ROWS}."
