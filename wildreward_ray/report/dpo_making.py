"""Sections on what an online DPO run was made with: its prompts, its settings, its reward and its versions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wildreward_ray.core.config.base import leaves
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.report.blocks import Stage, bars, funnel
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import facts, figure, grid, section, table
from wildreward_ray.report.values import ABSENT, count, counts, mapping, moment, number, rows, seconds, string, words

# A name and a password in an address are nobody's business who reads the page.
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_LONGEST_VALUE = 300


def prompts_section(manifest: Mapping[str, Any]) -> Html:
    """Section 6: which prompts the run could use, and why it left out the others."""
    title = "6. Prompts"
    steps = rows(manifest.get("funnel"))
    if not steps:
        return section("prompts", title, _absent("Count of prompts"))
    stages = [
        Stage(words(s.get("name")), string(s.get("unit")), max(n_in, 0.0), max(n_out, 0.0))
        for s in steps
        if (n_in := number(s.get("rows_in"))) is not None and (n_out := number(s.get("rows_out"))) is not None
    ]
    dropped = [(words(name), [n]) for s in steps for name, n in counts(s.get("dropped")).items() if n]
    listed = [
        [words(s.get("name")), string(s.get("unit")), count(s.get("rows_in")), count(s.get("rows_out")), _dropped(s)]
        for s in steps
    ]
    return section(
        "prompts",
        title,
        grid(
            figure(
                "What was left",
                funnel("Rows in and out of every step", stages),
                "The number in the middle is what went on, the one on the right is what was left out.",
            ),
            figure(
                "Why prompts were left out",
                bars("Prompts left out, by reason", dropped)
                if dropped
                else el("p", "No prompt was left out.", class_="absent"),
                "Prompts that can't be used are counted by reason.",
            ),
        ),
        table(["Step", "Unit", "In", "Out", "Left out, by reason"], listed, numeric=(2, 3)),
    )


def making_section(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> Html:
    """Section 7: settings, those that were changed first, and what else the run was made with."""
    reward, versions = mapping(manifest.get("reward")), mapping(manifest.get("versions"))
    known = [
        ("created", moment(manifest.get("created")), "When the run's manifest was written."),
        ("time in all", seconds(manifest.get("seconds")), "Wall time of the run, start of engines included."),
        ("reward model", string(reward.get("model")), "What gave the rewards."),
        ("its version", string(reward.get("version")), "Which weights it had."),
        ("its engine", string(reward.get("engine")), "What ran it."),
    ]
    shown = [row for row in known if row[1] != ABSENT]
    return section(
        "making",
        "7. How it was made",
        facts(*shown, subject="") if shown else _absent("Time and reward"),
        el("h3", "Settings"),
        _settings(config) if config else _absent("Settings"),
        el("h3", "Versions") if versions else None,
        table(["Package", "Version"], [[string(name), string(v)] for name, v in versions.items()])
        if versions
        else None,
    )


def _settings(config: Mapping[str, Any]) -> Html:
    """Two tables of (setting, value, meaning): what differs from the defaults, and, folded, the rest."""
    known = dict(leaves(OnlineDpoConfig))
    changed: list[tuple[str, Html, str]] = []
    rest: list[tuple[str, Html, str]] = []
    for name, value in _flat(config):
        field = known.get(name)
        usual = False
        if field is not None and not field.is_required():
            default = field.get_default(call_default_factory=True)
            # JSON knows lists only, where a default may be a tuple.
            usual = value == (list(default) if isinstance(default, tuple) else default)
        row = (name, el("span", _written(value), class_="long"), (field.description or "") if field else "")
        (rest if usual else changed).append(row)
    header = ["Setting", "Value", "What it is"]
    fold = el("summary", el("span", f"{len(rest)} settings at their defaults", class_="more flush"))
    return join(
        table(header, changed) if changed else el("p", "All settings are at their defaults.", class_="absent"),
        el("details", fold, table(header, rest)) if rest else None,
    )


def _absent(what: str) -> Html:
    return el("p", f"{what}: not recorded.", class_="absent")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _written(value: Any) -> str:
    """A value as it stands in a YAML file, or nearly so."""
    if value is None:
        return "not set"
    if isinstance(value, float) and number(value) is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    said = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | tuple | dict) else str(value)
    said = _USERINFO.sub("…@", said)
    return said if len(said) <= _LONGEST_VALUE else said[:_LONGEST_VALUE] + "…"


def _dropped(step: Mapping[str, Any]) -> str:
    found = counts(step.get("dropped"))
    said = ", ".join(f"{words(name)} {count(n)}" for name, n in found.items() if n) or "none"
    n_in, n_out = number(step.get("rows_in")), number(step.get("rows_out"))
    if n_in is not None and n_out is not None and n_in - n_out != sum(found.values()):
        # A funnel that doesn't add up must look that way.
        said = f"{said}; not accounted for: {count(n_in - n_out - sum(found.values()))}".removeprefix("none; ")
    return said
