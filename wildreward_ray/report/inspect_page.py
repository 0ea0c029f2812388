"""The page of an extraction: what is wrong with it first, then where its levels come from, then its interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wildreward_ray.report import inspect_browser
from wildreward_ray.report.inspect_checks import Check
from wildreward_ray.report.inspect_groups import NOT_RECORDED
from wildreward_ray.report.inspect_mix import certainty_section, mix_section
from wildreward_ray.report.inspect_sample import Sample
from wildreward_ray.report.inspect_stats import Statistics
from wildreward_ray.report.loop_data import funnel_section
from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import facts, note, own_file, page, section, tile, tiles
from wildreward_ray.report.values import count, items, mapping, moment, string, words

_MAX_KINDS = 12


@dataclass(frozen=True)
class Inspection:
    """What a page is made of.

    Attributes:
        uri: where the extraction stands.
        manifest: its manifest.
        stats: counts over all its rows.
        checks: as `inspect_checks.checks` gives them.
        sample: which interactions were drawn.
        entries: those interactions, as `inspect_browser.entry` gives them, in the order they are shown.
    """

    uri: str
    manifest: Mapping[str, Any]
    stats: Statistics
    checks: Sequence[Check]
    sample: Sample
    entries: Sequence[Mapping[str, Any]]


def render(found: Inspection) -> str:
    """The page as one HTML text that loads nothing from anywhere."""
    title = "Labelled interactions"
    return str(
        page(
            title,
            el("h1", title),
            el("p", f"WildReward on Ray, extraction of {moment(found.manifest.get('created'))}", class_="made"),
            el(
                "p",
                "A judge read each user's next message into a level of satisfaction with the reply before it. This page "
                "shows what came of one extraction, what may be wrong with it, and the conversations behind it. It holds "
                "texts of users: keep it where their logs may be kept.",
                class_="lead",
            ),
            check_section(found.checks),
            _origin(found),
            funnel_section(found.manifest),
            mix_section(found.stats),
            certainty_section(found.stats),
            _browse_section(found),
            style=own_file("inspect.css"),
            script=own_file("inspect.js"),
        )
    )


def check_section(found: Sequence[Check]) -> Html:
    """Warnings, or that there are none; then what else was checked, folded where there are warnings."""
    warnings = [check for check in found if check.state == "warning"]
    passed = [check for check in found if check.state == "passed"]
    skipped = [check for check in found if check.state == "skipped"]
    rest = join(*map(_check, passed), *map(_check, skipped))
    if not warnings:
        said = f"All {len(passed)} checks passed." if passed else "Nothing could be checked."
        left = f" {len(skipped)} could not be made; they say why." if passed and skipped else ""
        return section("checks", "Checks", el("p", said + left), rest)
    fold = el("summary", el("span", f"{len(passed)} passed, {len(skipped)} not made", class_="more flush"))
    return section("checks", f"Warnings: {len(warnings)}", *map(_check, warnings), el("details", fold, rest))


def _check(check: Check) -> Html:
    body: list[Child] = [el("h3", check.name), el("p", check.measured)]
    if check.state == "skipped":
        body[0] = el("h3", check.name, ": not checked")
    if check.state == "passed":
        body[0] = el("h3", check.name, ": passed")
    if check.state == "warning":
        body += [el("p", check.why), el("p", el("b", "What changes it: "), check.change)]
    return el("div", *body, class_=f"check {check.state}")


def _origin(found: Inspection) -> Html:
    stats, judge = found.stats, mapping(found.manifest.get("judge"))
    test = stats.counts["split"]["test"] if stats.has("split") else None
    users = count(len(stats.users)) if len(stats.users) else NOT_RECORDED
    return section(
        "extraction",
        "The extraction",
        tiles(
            [
                tile("Interactions", count(stats.rows), "Replies with a next message, kept or not."),
                tile(
                    "Kept", _known(stats.kept), f"Rows of the dataset; {_known(test)} of them are held out for testing."
                ),
                tile("Users", users, "People who wrote them, as far as the logs name them."),
            ]
        ),
        facts(
            ("source", found.uri, "What this page was made from."),
            ("input", ", ".join(map(string, items(found.manifest.get("inputs")))) or NOT_RECORDED, "The chat logs."),
            ("judge", _string(judge.get("model")), "The language model that read the next messages."),
            (
                "prompt version",
                _string(judge.get("prompt_version")),
                "Changes whenever the words put to the judge change.",
            ),
            ("judged by", _counted(stats, "judged_by"), "Which of two judges had the last word, if there were two."),
            ("refusals", _counted(stats, "refusal_verdict"), "Verdicts on replies that look like refusals."),
            (
                "flags",
                _flags(stats),
                "Rows that carry a mark; imitated verdicts in feedback are masked before judging.",
            ),
            ("personal data", _pii(stats), "Kinds found, by the rows they are in."),
            subject="",
        ),
        note(
            "All numbers on this page are counted over every row, in one pass that keeps counters and not rows; only rows "
            "per user take memory in proportion to users. The drawn interactions at the end are the only sample."
        ),
    )


def _browse_section(found: Inspection) -> Html:
    shown, rows = len(found.entries), found.stats.rows
    if shown == rows:
        drawn = f"All {count(rows)} interactions are here."
    else:
        drawn = (
            f"{count(shown)} of {count(rows)} interactions are here. Half of the places are divided evenly among the groups of "
            "one origin and final level, so that rare ones are seen, and half in proportion to the groups' size; in a group "
            "those with the smallest hash of their id are taken, so the choice depends on nothing else. "
            f"{count(found.sample.evidence)} of them are here because a drawn interaction's level was mined from them. "
            "Shares among the drawn are therefore not those of the extraction."
        )
    return section(
        "browse",
        "4. Interactions",
        note(drawn, f" Texts are cut after {inspect_browser.MAX_TEXT:,} characters; the search sees what is left."),
        inspect_browser.strata_table(found.sample.strata),
        el("noscript", el("p", "Browsing needs JavaScript. Everything above works without.", class_="absent")),
        inspect_browser.browser(found.entries),
        inspect_browser.embed(found.entries),
    )


def _known(value: int | None) -> str:
    return NOT_RECORDED if value is None else count(value)


def _string(value: Any) -> str:
    return NOT_RECORDED if value is None else string(value)


def _counted(stats: Statistics, name: str) -> str:
    if not stats.has(name):
        return NOT_RECORDED
    found = sorted((value, n) for value, n in stats.counts[name].items() if value is not None)
    return ", ".join(f"{words(value)} {n:,}" for value, n in found) or "none"


def _flags(stats: Statistics) -> str:
    names = ("toxic", "redacted", "masked", "topic_switch")
    return ", ".join(f"{words(n)} {stats.flags[n]:,}" if stats.has(n) else f"{words(n)} {NOT_RECORDED}" for n in names)


def _pii(stats: Statistics) -> str:
    if not stats.has("pii"):
        return NOT_RECORDED
    kinds = ", ".join(f"{words(kind)} {n:,}" for kind, n in stats.pii.most_common(_MAX_KINDS))
    return f"{stats.flags['pii']:,} rows: {kinds}" if kinds else "none"
