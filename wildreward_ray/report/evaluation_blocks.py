"""Blocks that the pages of evaluations share."""

from __future__ import annotations

from typing import Any

from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.evaluation_tables import (
    UNDEFINED,
    Measured,
)
from wildreward_ray.report.markup import Child, Html, el
from wildreward_ray.report.values import (
    number,
    percent,
)

RM_BENCH = "rm_bench"


def alone(block: Html) -> Html:
    """A picture that has the line to itself, no wider than it can be drawn."""
    return el("div", block, class_="alone")


def absent(what: str, why: str) -> Html:
    """What stands where something isn't defined."""
    return el("p", f"{what}: {UNDEFINED}: {why}.", class_="absent")


def fold(title: str, *body: Child) -> Html:
    """What is opened by a click on its title."""
    return el("details", el("summary", el("span", title, class_="more flush")), *body, class_="history")


def or_undefined(value: Any) -> str:
    """A share in percent, or that it isn't defined."""
    return UNDEFINED if number(value) is None else percent(value)


def ends(m: Measured) -> str:
    """The interval of a share as the beginning of a sentence; nothing where there is none."""
    return f"95 % interval {100 * m.ends[0]:.1f} to {percent(m.ends[1])}. " if m.ends else ""


def signed_ends(m: Measured) -> str:
    """The interval of a quantity that may be negative."""
    return f"[{signed(m.ends[0])}, {signed(m.ends[1])}]" if m.ends else "no interval"
