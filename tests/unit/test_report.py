"""The report of a run: shows what the summary says, survives what it lacks, and lets no conversation write markup."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.unit.report_summary import HOSTILE, LONG, full_summary
from wildreward_ray.core.manifest import FunnelStep
from wildreward_ray.report import loop

SVG = "{http://www.w3.org/2000/svg}svg"


@pytest.fixture(scope="module")
def page() -> str:
    return loop.render(full_summary())


def parsed(html: str) -> ElementTree.Element:
    """The page as XML, which it is throughout; so every picture in it is too."""
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))


def shown(html: str) -> str:
    """What a reader sees or hears: all text outside the stylesheet."""
    body = parsed(html).find("body")
    assert body is not None
    return "\n".join(body.itertext())


def assert_sound(html: str) -> None:
    """Well-formed, with no number that isn't one. Texts of the synthetic conversations hold neither word."""
    assert not re.search(r"\b(nan|NaN|None|inf|-inf|null)\b", html)
    parsed(html)


def test_synthetic_funnel_adds_up() -> None:
    for step in full_summary()["funnel"]:
        FunnelStep(**step).check()


def test_full_page_is_sound_and_complete(page: str) -> None:
    assert_sound(page)
    assert "not run" not in page
    assert len(parsed(page).findall(f".//{SVG}")) == 21
    assert [h.text for h in parsed(page).iter("h2")] == [
        "1. Funnel",
        "2. Labels",
        "3. Examples",
        "4. Reward model",
        "5. Service",
        "6. Online DPO",
        "7. How it was made",
    ]


@pytest.mark.parametrize("summary", [{}, dict.fromkeys(full_summary()), {key: [] for key in full_summary()}])
def test_empty_page_says_what_did_not_run(summary: dict[str, Any]) -> None:
    html = loop.render(summary)
    assert_sound(html)
    for part in ("Extraction", "Labelling", "Agreement", "Examples", "Training", "Service", "Online DPO"):
        assert f"{part}: not run." in html
    assert [t.text for t in parsed(html).iter("div") if t.get("class") == "tile-value"] == ["n/a"] * 6


def test_tiles_show_the_numbers_of_the_summary(page: str) -> None:
    tiles = [t.text for t in parsed(page).iter("div") if t.get("class") == "tile-value"]
    assert tiles == ["431", "67.8 %", "0.743", "84.60 ms", "0 → 0.214", "2.22 → 2.19"]


@pytest.mark.parametrize(
    "written",
    [
        "broken json 1, no roles 1",  # why rows left
        "relabelled 37, topic switch 12",  # what refinements changed
        "61.2 %",  # prefix cache
        "5.17 a second",  # judged per engine second
        "40.6 %",  # majority share
        "121",  # a cell of the confusion
        "22,713,987",
        "85.2 %",  # accuracy above level 1
        "141.9 ms",
        "3.1e-07",  # parity
        "identical 8",  # skips summed over steps
        "56",  # pairs summed over steps
        "43.8 %",  # win rate
        "2 min 11 s",  # extraction
        "8 min 18 s",  # total
        "2.60.0",
    ],
)
def test_numbers_come_from_the_summary(page: str, written: str) -> None:
    assert written in shown(page)


def test_hostile_text_is_shown_and_never_becomes_markup(page: str) -> None:
    root = parsed(page)
    assert not [
        e.tag for e in root.iter() if e.tag.rpartition("}")[2] in {"script", "img", "iframe", "link", "a", "form"}
    ]
    assert not [name for e in root.iter() for name in e.attrib if name.startswith("on") or name in {"src", "href"}]
    said = ["".join(e.itertext()) for e in root.iter() if "said" in (e.get("class") or "").split()]
    assert HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd") in said
    assert LONG in said


def test_hostile_names_are_escaped_everywhere() -> None:
    summary = json.loads(json.dumps(full_summary()).replace('"English"', '"<b onclick=x>\\u0000"'))
    summary["funnel"][0]["name"] = summary["online_dpo"]["policy"] = summary["judge"]["model"] = HOSTILE
    summary["versions"][HOSTILE] = HOSTILE
    html = loop.render(summary)
    assert "<b " not in html
    assert "<script" not in html
    assert_sound(html)


def test_page_loads_nothing(page: str) -> None:
    addresses = set(re.findall(r"https?://[^\"' ]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src &#x27;none&#x27;" in page


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be replaced; of a list only its first entry."""
    if at:
        yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, child in entries:
        yield from paths(child, (*at, key))


@pytest.mark.parametrize(
    "bad",
    [None, [], {}, "word", math.nan, math.inf, -1, 0, 10**400, sys.float_info.max, True, [[]]],
    ids=lambda bad: repr(bad)[:12],
)
def test_no_single_odd_value_breaks_the_page(bad: Any) -> None:
    whole = full_summary()
    # Long lists make no other paths, only a slow test.
    whole["examples"], whole["serve"]["latencies_ms"] = whole["examples"][:1], [1.0, 2.0]
    whole["train"]["curve"], whole["online_dpo"]["steps"] = (
        whole["train"]["curve"][:2],
        whole["online_dpo"]["steps"][:2],
    )
    whole["online_dpo"]["samples"] = whole["online_dpo"]["samples"][:1]
    for path in paths(whole):
        # One part at a time: the others would only be drawn again and again.
        summary: dict[str, Any] = {path[0]: copy.deepcopy(whole[path[0]])}
        holder: Any = summary
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = bad
        try:
            assert_sound(loop.render(summary))
        except Exception as error:
            raise AssertionError(f"{'.'.join(map(str, path))} = {bad!r}") from error


def test_long_runs_stay_small() -> None:
    summary = full_summary()
    curve = summary["train"]["curve"]
    summary["train"]["curve"] = [{**curve[i % 60], "step": i} for i in range(20_000)]
    steps = summary["online_dpo"]["steps"]
    summary["online_dpo"]["steps"] = [{**steps[i % 8], "step": i} for i in range(2_000)]
    summary["examples"] = [{"prompt": "word " * 40_000}] * 200
    html = loop.render(summary)
    assert len(html) < 2_000_000
    assert "mean of 50 steps" in html
    assert "steps 0 to 124" in html
    assert "The first 40 of 200 are shown" in html
    assert "more characters are not shown" in html


def test_a_funnel_that_does_not_add_up_says_so() -> None:
    summary = full_summary()
    summary["funnel"][0]["rows_out"] -= 5
    assert "not accounted for: 5" in loop.render(summary)


def test_write_makes_the_directory(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    loop.write(full_summary(), target)
    assert target.read_text(encoding="utf-8") == loop.render(full_summary())
