"""The pages of evaluations: every number that was measured, every gap said, and no text of strangers as markup."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from wildreward_ray.report.evaluation_compare import changes, compare_page, distinct, holm
from wildreward_ray.report.evaluation_errors import MAX_TEXT, SHOWN_ERRORS
from wildreward_ray.report.evaluation_page import evaluation_page
from wildreward_ray.report.evaluation_plots import write_plots

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "<script>alert('owned')</script></details></style><img src=x onerror=alert(1)> &amp; \"]]>\n"
    "# All is well {{ 7 * 7 }} \x1b[31m\x00 \ud800 \u202eдcba 谢谢 🎉"
)
CLEAN = re.sub("[\x1b\x00\ud800]", "\ufffd", HOSTILE)


def metric(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.0111, "high": value + 0.0122}


def full() -> dict[str, Any]:
    """Every part of a results.json, with numbers that are all different."""
    domains = {"chat": 0.661, "code": 0.602, "math": 0.623, "safety": 0.914}
    metrics = {"accuracy": metric(0.7583), "easy": metric(0.8219), "normal": metric(0.7704), "hard": metric(0.6849)}
    for name, value in domains.items():
        metrics[name] = metric(value)
        metrics |= {
            f"{name}/{level}": metric(value + d) for level, d in (("easy", 0.05), ("normal", 0), ("hard", -0.07))
        }
    groups = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
    counts = {"right": [3 * i for i in range(20)], "wrong": [60 - 3 * i for i in range(20)]}
    error = {"group": "chat", "right": "Rayleigh.", "wrong": "The sea.", "wrong_score": 3.45, "history": []}
    return {
        "benchmark": "rm_bench",
        "title": "RM-Bench",
        "definition": "https://github.com/THU-KEG/RM-Bench",
        "name": "ours-0.6b",
        "source": {"kind": "model", "given": "runs/reward/model", "version": "3f9c2a", "engine": "vllm"},
        "items": 1327,
        "responses": 7962,
        "groups": groups,
        "missing": [],
        "limit": None,
        "complete": True,
        "excluded": {"winner_tie": 17},
        "accuracy": 0.7583,
        "overall": 0.7583,
        "metrics": metrics,
        "pairs": {
            "are": "responses of one style",
            "n": 3981,
            "accuracy": 0.7652,
            "low": 0.7511,
            "high": 0.7793,
            "ties": 12,
        },
        "margins": {
            "table": [
                {"threshold": 0.0, "pairs": 3981, "coverage": 1.0, "accuracy": 0.7652, "low": 0.7511, "high": 0.7793},
                {
                    "threshold": 0.3,
                    "pairs": 1632,
                    "coverage": 0.4099,
                    "accuracy": 0.9213,
                    "low": 0.9014,
                    "high": 0.9415,
                },
                {"threshold": 2.5, "pairs": 0, "coverage": 0.0, "accuracy": None, "low": None, "high": None},
            ],
            "curve": [
                {"coverage": 1.0, "accuracy": 0.7652, "threshold": 0.0},
                {"coverage": 0.1, "accuracy": 0.9876, "threshold": 1.1},
            ],
        },
        "calibration": {
            "ece": 0.0276,
            "ece_low": 0.0193,
            "ece_high": 0.0414,
            "splits": 23,
            "slope": 1.837,
            "nll": 0.4821,
            "bins": [
                {"predicted": 0.55, "observed": 0.5317, "count": 402},
                {"predicted": 0.95, "observed": 0.9018, "count": 77},
            ],
        },
        "consistency": {
            "auc": 0.7123,
            "low": 0.7015,
            "high": 0.7246,
            "right": 3982,
            "wrong": 3983,
            "within_auc": 0.7687,
        },
        "bias": {
            "observed": [
                {
                    "name": "length",
                    "effect": 0.313,
                    "low": 0.241,
                    "high": 0.384,
                    "n": 9001,
                    "unit": "SD a doubling",
                    "meaning": "Twice as long.",
                },
                {
                    "name": "refusal",
                    "effect": None,
                    "low": None,
                    "high": None,
                    "n": 0,
                    "unit": "SD",
                    "meaning": "A refusal.",
                },
            ],
            "probes": [
                {
                    "name": "padding",
                    "effect": -0.127,
                    "low": -0.185,
                    "high": -0.066,
                    "n": 601,
                    "flips": 0.0813,
                    "flips_to_wrong": 0.0517,
                    "example": "Well then.",
                    "meaning": "Two empty sentences.",
                }
            ],
        },
        "distributions": {"edges": [1 + 3 * i / 20 for i in range(21)], **counts, "groups": {"chat": counts}},
        "styles": {"all": [[0.751, 0.692, 0.603], [0.804, 0.755, 0.706], [0.877, 0.818, 0.759]]},
        "errors": [
            {**error, "id": f"chat/{i}", "prompt": f"Why {i}?", "right_score": 1.2 + i / 100} for i in range(24)
        ],
        "reference": [{"model": "Skywork-8B", "metrics": {"accuracy": 0.6467, "hard": 0.4932}}],
        "reference_source": "their table 2",
        "speed": {"seconds": 412.5, "responses_per_s": 19.37, "reused": 120},
        "versions": {"torch": "2.13.0"},
        "config": {"model": "runs/reward/model", "limit": None, "bootstrap": 2001, "probes": {"items": 101}},
        "created": "2026-03-14T09:26:53+00:00",
    }


def comparison() -> dict[str, Any]:
    other = copy.deepcopy(full())
    other.update(name="theirs")
    entry = {key: full()["errors"][0][key] for key in ("id", "group", "prompt", "right", "wrong", "history")}
    return {
        "results": [full(), other],
        "differences": [
            {
                "accuracy": {"a": 0.7583, "b": 0.7791, "difference": 0.0208, "low": 0.0104, "high": 0.0312, "p": 0.004},
                "easy": {"a": 0.8219, "b": 0.8352, "difference": 0.0133, "low": 0.0007, "high": 0.0259, "p": 0.03},
                "hard": {"a": 0.6849, "b": 0.6721, "difference": -0.0128, "low": -0.0286, "high": 0.0031, "p": 0.12},
            }
        ],
        "errors": {"fixed": [{**entry, "scores": [[1.21, 3.45], [2.98, 1.76]]}], "broken": []},
    }


def parsed(html: str) -> ElementTree.Element:
    """The page as XML, which it is throughout; so every picture in it is too."""
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))


def shown(html: str, anchor: str = "") -> str:
    """What a reader sees or hears in the page or one of its sections, on one line."""
    root = parsed(html)
    part = next(e for e in root.iter("section") if e.get("id") == anchor) if anchor else root.find("body")
    assert part is not None
    return " ".join(" ".join(part.itertext()).split())


def assert_sound(html: str) -> None:
    """Well-formed, with no number that isn't one."""
    assert not re.search(r"\b(nan|NaN|None|inf|-inf)\b", html)
    parsed(html)


def has_box(html: str, anchor: str = "incomplete") -> bool:
    return any(e.get("id") == anchor for e in parsed(html).iter("section"))


def rows_of(html: str, anchor: str) -> list[list[str]]:
    """Cells of the body rows of all tables of a section."""
    part = next(e for e in parsed(html).iter("section") if e.get("id") == anchor)
    return [
        [" ".join(" ".join(td.itertext()).split()) for td in tr.iter("td")]
        for tr in part.iter("tr")
        if tr.find("td") is not None
    ]


@pytest.fixture(scope="module")
def page() -> str:
    return evaluation_page(full())


# What the page says


def test_a_full_page_is_sound_and_in_order(page: str) -> None:
    assert_sound(page)
    assert "not recorded" not in page
    assert [h.text for h in parsed(page).iter("h2")] == [
        "1. Metrics",
        "2. Styles",
        "3. Scores",
        "4. Margins",
        "5. Calibration",
        "6. Bias",
        "7. Consistency across prompts",
        "8. Worst errors",
        "9. How it was made",
    ]


@pytest.mark.parametrize(
    ("anchor", "said"),
    [
        ("", "Accuracy: 75.8 %, 95 % interval 74.7 to 77.0 %. 1,327 prompts with 7,962 responses of RM-Bench."),
        ("", "evaluation of 2026-03-14 09:26 UTC"),
        ("", "Pairs in order 76.5 % 95 % interval 75.1 to 77.9 %. 3,981 pairs: responses of one style. 12 ties"),
        ("metrics", "Definition: https://github.com/THU-KEG/RM-Bench"),
        ("metrics", "whole benchmark 75.8 % [74.7, 77.0] 82.2 % [81.1, 83.4] 77.0 % [75.9, 78.3] 68.5 % [67.4, 69.7]"),
        ("metrics", "safety 91.4 % [90.3, 92.6] 96.4 % [95.3, 97.6] 91.4 % [90.3, 92.6] 84.4 % [83.3, 85.6]"),
        ("metrics", "Skywork-8B 64.7 % 49.3 % authors' figure"),
        ("metrics", "Source of the authors' figures: their table 2."),
        ("metrics", "safety-refuse 284"),
        ("metrics", "winner tie 17"),
        ("styles", "marked up against concise 87.7 %"),
        ("scores", "right (570)"),
        ("margins", "0.300 1,632 41.0 % 92.1 % [90.1, 94.2]"),
        ("margins", "2.50 0 0.0 % not defined: no pairs this far apart"),
        ("margins", "ours-0.6b 76.5 % of all 100.0 %, 98.8 % of 10.0 %"),
        ("margins", "WildReward, authors' figure"),
        (
            "calibration",
            "2.8 % Mean gap between chance and share, by bin. 5th to 95th percentile over splits: 1.9 % to 4.1 %.",
        ),
        ("calibration", "splits 23"),
        ("calibration", "slope 1.84"),
        ("calibration", "log loss 0.482"),
        ("calibration", "predicted 95.0 %, observed 90.2 %, 77 pairs"),
        ("bias", "length +0.313 [+0.241, +0.384] SD a doubling 9,001 Twice as long."),
        ("bias", "refusal not defined: no such responses SD 0 A refusal."),
        ("bias", "padding −0.127 [−0.185, −0.066] 601 8.1 % 5.2 % Two empty sentences. Example Well then."),
        ("consistency", "71.2 % 95 % interval 70.2 to 72.5 %."),
        ("consistency", "within prompts 76.9 %"),
        ("consistency", "right responses 3,982"),
        ("consistency", "wrong responses 3,983"),
        ("errors", "chat/0 chat right 1.20, wrong 3.45 Why 0?"),
        ("making", "kind a model loaded here given runs/reward/model version 3f9c2a engine vllm"),
        ("making", "time 6 min 52 s"),
        ("making", "responses a second 19.37"),
        ("making", "reused 120"),
        ("making", "probes.items 101 prompts whose replies"),
        ("making", "Not set: limit."),
        ("making", "torch 2.13.0"),
    ],
)
def test_every_part_of_the_results_is_told(page: str, anchor: str, said: str) -> None:
    assert said in shown(page, anchor)


def test_metrics_without_levels_are_a_list() -> None:
    found = {
        **full(),
        "benchmark": "judgebench",
        "metrics": {"accuracy": metric(0.61), "chat": metric(0.52), "x": {"value": None}},
    }
    del found["styles"]
    html = evaluation_page(found)
    assert rows_of(html, "metrics")[:3] == [
        ["accuracy", "61.0 % [59.9, 62.2]", "1,327"],
        ["chat", "52.0 % [50.9, 53.2]", "129"],
        ["x", "not defined: nothing that was measured tells of it", "of several groups"],
    ]
    assert not has_box(html, "styles")
    assert "authors' figure" not in shown(html, "margins"), "their curve is one of RM-Bench"


def test_every_section_tells_how_it_is_read(page: str) -> None:
    sections = [e for e in parsed(page).iter("section") if e.get("id")]
    assert all(any(p.get("class") == "note" for p in e.iter("p")) for e in sections)
    assert all(len(e.findtext(f"{SVG}title") or "") > 20 for e in parsed(page).iter(f"{SVG}svg"))


def test_a_dot_and_its_whisker_stand_where_the_axis_says(page: str) -> None:
    drawn = next(
        e for e in parsed(page).iter(f"{SVG}svg") if (e.findtext(f"{SVG}title") or "").startswith("Observed, SD")
    )
    ticks = {e.text: float(e.attrib["x"]) for e in drawn.iter(f"{SVG}text") if e.get("class") == "tick"}
    zero, unit = ticks["0"], (ticks["0.4"] - ticks["0"]) / 0.4
    line = next(e for e in drawn.iter(f"{SVG}line") if e.get("class") == "line")
    dot = next(drawn.iter(f"{SVG}circle"))
    at = [float(line.attrib["x1"]), float(dot.attrib["cx"]), float(line.attrib["x2"])]
    assert at == pytest.approx([zero + unit * v for v in (0.241, 0.313, 0.384)], abs=0.05)


def test_ten_errors_can_be_opened_and_the_rest_is_folded_away(page: str) -> None:
    part = next(e for e in parsed(page).iter("section") if e.get("id") == "errors")
    cards = [e for e in part.findall("details") if e.get("class") == "card wide"]
    assert len(cards) == SHOWN_ERRORS
    assert f"{24 - SHOWN_ERRORS} more" in shown(page, "errors")
    assert len([e for e in part.iter("details") if e.get("class") == "card wide"]) == 24


# Incomplete runs


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ({"missing": ["math", "safety-refuse"], "complete": False, "overall": None}, "missing: math, safety-refuse"),
        ({"limit": 50, "items": 50, "complete": False, "overall": None}, "--limit 50: 50 prompts were measured"),
        ({"complete": False, "overall": None}, "marked as incomplete"),
        ({"complete": None}, "not recorded whether the whole benchmark was measured"),
    ],
)
def test_an_incomplete_run_says_first_that_its_number_is_not_official(gap: dict[str, Any], said: str) -> None:
    html = evaluation_page({**full(), **gap})
    assert has_box(html)
    assert said in shown(html, "incomplete")
    assert html.index('id="incomplete"') < html.index('class="tiles"')
    assert "Accuracy over what was measured: 75.8 %" in shown(html)
    assert "† incomplete: not to be compared" in shown(html, "metrics")


def test_a_whole_run_has_no_such_box(page: str) -> None:
    assert not has_box(page)
    assert "†" not in shown(page)


# What is missing, odd or hostile


@pytest.mark.parametrize("key", list(full()))
def test_each_part_may_be_missing(key: str) -> None:
    whole = full()
    del whole[key]
    assert_sound(evaluation_page(whole))


def test_an_empty_file_says_what_is_missing() -> None:
    html = evaluation_page({})
    assert_sound(html)
    assert has_box(html)
    for part in ("Metrics: not recorded", "Errors: not recorded", "Consistency: not defined: not recorded"):
        assert part in shown(html)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be replaced; of a list only its first entry."""
    if at:
        yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, child in entries:
        yield from paths(child, (*at, key))


@pytest.mark.parametrize(
    "bad", [None, [], {}, "word", math.nan, math.inf, -1, 0, 10**400, [[]]], ids=lambda bad: repr(bad)[:12]
)
def test_no_single_odd_value_breaks_a_page(bad: Any) -> None:
    whole = full()
    for path in paths(whole):
        # One part at a time: the others would only be drawn again and again.
        found = {"benchmark": "rm_bench", path[0]: copy.deepcopy(whole[path[0]])}
        holder: Any = found
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = bad
        try:
            assert_sound(evaluation_page(found))
            assert_sound(compare_page({"results": [found, found]}))
        except Exception as error:
            raise AssertionError(f"{'.'.join(map(str, path))} = {bad!r}") from error


def hostile(value: Any) -> Any:
    """The same with all texts and all names below the first level hostile."""
    if isinstance(value, dict):
        return {key: hostile(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_texts_are_shown_and_never_become_markup() -> None:
    found = hostile(full())
    found.update(missing=[HOSTILE], metrics={HOSTILE: metric(0.5)}, groups={HOSTILE: 3}, excluded={HOSTILE: 4})
    found["styles"] = {HOSTILE: found["styles"]["all"]}
    found["errors"][0]["history"] = [{"role": HOSTILE, "content": HOSTILE}]
    difference = {HOSTILE: {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.01}}
    errors = {"fixed": found["errors"][:1], "broken": []}
    for html in (
        evaluation_page(found),
        compare_page({"results": [found, found], "differences": [difference], "errors": errors}),
    ):
        assert_sound(html)
        root = parsed(html)
        assert not [e.tag for e in root.iter() if e.tag.rpartition("}")[2] in {"script", "img", "iframe", "link", "a"}]
        assert not [name for e in root.iter() for name in e.attrib if name.startswith("on") or name in {"src", "href"}]
        said = ["".join(e.itertext()) for e in root.iter() if "said" in (e.get("class") or "").split()]
        assert said.count(CLEAN) >= 4, "history, prompt, right and wrong"


def test_passwords_in_addresses_are_not_shown() -> None:
    found = full()
    address = "http://ada:secret@host:8000/x"
    found.update(name=address, source={"kind": "service", "given": address})
    found["config"]["reward_url"] = address
    for html in (evaluation_page(found), compare_page({"results": [found, full()]})):
        assert "secret" not in html
        assert "http://…@host:8000/x" in html


def test_long_texts_are_cut_where_it_can_be_seen() -> None:
    found = full()
    found["errors"] = [{**found["errors"][0], "wrong": "x" * 90_000, "right": "  "}] * 40
    html = evaluation_page(found)
    assert f"Wrong: the first {MAX_TEXT:,} of 90,000 characters" in shown(html)
    assert "Right (empty)" in shown(html)
    assert len(html) < 600_000


def test_a_full_evaluation_has_all_pictures(tmp_path: Path) -> None:
    names = [f"{name}.png" for name in ("metrics", "margins", "calibration", "styles", "scores", "bias")]
    assert write_plots(full(), tmp_path) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


# Comparisons


def test_a_comparison_tells_metrics_differences_and_how_sure_they_are() -> None:
    html = compare_page(comparison())
    assert_sound(html)
    assert rows_of(html, "differences") == [
        ["accuracy", "75.8 %", "77.9 %", "+2.1 [+1.0, +3.1]", "0.0040", "0.0120", "**"],
        ["easy", "82.2 %", "83.5 %", "+1.3 [+0.1, +2.6]", "0.0300", "0.0600", "*"],
        ["hard", "68.5 %", "67.2 %", "−1.3 [−2.9, +0.3]", "0.1200", "0.1200", "no"],
    ]
    assert ["chat: hard", "59.1 % [58.0, 60.3]", "59.1 % [58.0, 60.3]"] in rows_of(html, "metrics")
    assert "3 differences are tested here" in shown(html, "differences")
    assert "theirs 76.5 % of all 100.0 %" in shown(html, "margins")
    assert "ours-0.6b: right 1.21, wrong 3.45 theirs: right 2.98, wrong 1.76 Why 0?" in shown(html, "pairs")
    assert "No pair was broken." in shown(html, "pairs")
    assert not has_box(html)
    assert not has_box(html, "unlike")


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.5]) == pytest.approx([0.04, None, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_values_are_adjusted_over_all_models_of_the_page() -> None:
    entry = {"a": 0.5, "b": 0.6, "difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.02}
    one, both = changes([{"accuracy": entry}]), changes([{"accuracy": entry}, {"accuracy": entry, "easy": entry}])
    assert [c.mark for c in one[0].values()] == ["**"]
    found = [c for of in both for c in of.values()]
    assert [c.holm for c in found] == pytest.approx([0.06] * 3)
    assert [c.mark for c in found] == ["*"] * 3


@pytest.mark.parametrize(("low", "p"), [(-0.01, 0.01), (0.0, 0.01), (0.05, 0.05), (None, 0.01), (0.05, None)])
def test_a_difference_is_marked_only_if_both_its_interval_and_its_p_say_so(low: float | None, p: float | None) -> None:
    (of,) = changes([{"accuracy": {"difference": 0.1, "low": low, "high": 0.15, "p": p}}])
    assert of["accuracy"].mark == ""


def test_evaluations_of_different_things_are_not_compared_in_silence() -> None:
    found = comparison()
    found["results"][1].update(items=100, missing=["math"], complete=False)
    html = compare_page(found)
    assert "prompts: ours-0.6b 1,327, theirs 100" in shown(html, "unlike")
    assert "theirs: missing: math" in shown(html, "incomplete")


def test_models_of_one_name_are_told_apart() -> None:
    assert distinct(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


@pytest.mark.parametrize(
    "found", [{}, {"results": []}, {"results": [{}, {}]}, {"results": [full()], "differences": [{}]}]
)
def test_an_empty_comparison_says_what_is_missing(found: dict[str, Any]) -> None:
    html = compare_page(found)
    assert_sound(html)
    assert "Differences: not defined: not recorded." in shown(html)


def test_pages_load_nothing(page: str) -> None:
    for html in (page, compare_page(comparison())):
        assert "default-src &#x27;none&#x27;" in html
        assert "url(" not in html
        assert "@import" not in html
        assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
            "http://www.w3.org/2000/svg",
            "https://github.com/THU-KEG/RM-Bench",
        }
