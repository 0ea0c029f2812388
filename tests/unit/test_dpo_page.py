"""The page of an online DPO run: says what the run measured and no more, survives what is missing, lets no text write markup."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.unit.dpo_run import HOSTILE, REASONS, full_run
from wildreward_ray.report.dpo_charts import Line, Mark, Point, line, line_chart, stacked_columns
from wildreward_ray.report.dpo_outcome import Estimate, difference, outcome, verdict
from wildreward_ray.report.dpo_page import dpo_page
from wildreward_ray.report.dpo_samples import MAX_SHOWN, MAX_TEXT, ranked

SVG = "{http://www.w3.org/2000/svg}"
PARTS = ("summary", "steps", "evals", "samples", "config", "manifest")


@pytest.fixture(scope="module")
def page() -> str:
    return dpo_page(full_run())


def parsed(html: str) -> ElementTree.Element:
    """The page as XML, which it is throughout; so every picture in it is too."""
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))


def shown(html: str) -> str:
    """What a reader sees or hears: all text outside the stylesheet, on one line."""
    body = parsed(html).find("body")
    assert body is not None
    return " ".join(" ".join(body.itertext()).split())


def tile(html: str, name: str) -> tuple[str, str]:
    """Value and note of a headline number."""
    for found in parsed(html).iter("div"):
        parts = ["".join(child.itertext()) for child in found]
        if found.get("class") == "tile" and parts[0] == name:
            return parts[1], parts[2]
    raise AssertionError(f"no tile {name}")


def alarm_box(html: str) -> tuple[str, str]:
    """Its class, and its text."""
    box = next(e for e in parsed(html).iter("section") if e.get("id") == "alarms")
    return box.get("class") or "", " ".join(" ".join(box.itertext()).split())


def pictures(html: str) -> dict[str, ElementTree.Element]:
    """Every picture, by the words that a screen reader says of it."""
    return {found.findtext(f"{SVG}title") or "": found for found in parsed(html).iter(f"{SVG}svg")}


def assert_sound(html: str) -> None:
    """Well-formed, with no number that isn't one."""
    assert not re.search(r"\b(nan|NaN|None|inf|-inf)\b", html)
    parsed(html)


def evals_of(*rewards: tuple[float, float, float]) -> list[dict[str, Any]]:
    return [
        {"step": i * 10, "reward_mean": mean, "reward_low": low, "reward_high": high}
        for i, (mean, low, high) in enumerate(rewards)
    ]


# What the page says


def test_full_page_is_sound_and_complete(page: str) -> None:
    assert_sound(page)
    assert "not run" not in page
    # There is no win rate at the start.
    assert shown(page).count("n/a") == 2
    assert [h.text for h in parsed(page).iter("h2")] == [
        "No alarm",
        "1. Held-out prompts",
        "2. Training",
        "3. Pairs",
        "4. Time",
        "5. Replies before and after",
        "6. Prompts",
        "7. How it was made",
    ]


def test_every_picture_is_told_in_words_and_every_figure_has_a_sentence(page: str) -> None:
    told = pictures(page)
    assert len(told) == sum(1 for _ in parsed(page).iter(f"{SVG}svg")) == 25
    assert all(len(words) > 20 for words in told)
    assert any("reward: 2.21 at step 0, 2.55 at step 24" in words for words in told)
    assert any("Dashed line: limit 4" in words for words in told)
    assert all(e.get("role") == "img" for e in told.values())
    captions = [f.find("figcaption") for f in parsed(page).iter("figure")]
    assert all(c is not None and "".join(c.itertext()).endswith(".") for c in captions)


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        ("Held-out reward", "2.21 → 2.55", "A change of +0.340, 95 % interval +0.205 to +0.475."),
        ("Win rate against the start", "63.8 %", "95 % interval 58.8 to 68.8 %, above an even chance."),
        ("Length of replies", "210 → 255", "a change of +21.4 %."),
        ("Distance from the start", "2.60 nats", "The run's limit is 4."),
        ("Margin of the first pairs", "0 → 0.214", "shows that learning itself works"),
        ("Steps", "24 of 24", "14.2 s a step, 6 min 53 s in all."),
    ],
)
def test_tiles_show_the_numbers_of_the_run(page: str, name: str, value: str, note: str) -> None:
    found = tile(page, name)
    assert found[0] == value
    assert note in found[1]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((2.0, 1.9, 2.1), (2.5, 2.4, 2.6), "rose by 0.500"),
        ((2.5, 2.4, 2.6), (2.0, 1.9, 2.1), "fell by 0.500"),
        ((2.0, 1.9, 2.1), (2.05, 1.9, 2.2), "changed by +0.050, from 2 to 2.05, which may be chance"),
        ((2.0, 1.9, 2.1), (1.95, 1.8, 2.1), "changed by −0.050, from 2 to 1.95, which may be chance"),
        ((2.0, None, None), (2.5, 2.4, 2.6), "by +0.500; without an interval this may be chance"),
        # Ends on the wrong side of their value are no interval.
        ((2.0, 2.1, 1.9), (2.5, 2.4, 2.6), "without an interval this may be chance"),
    ],
)
def test_the_verdict_claims_a_change_only_where_the_interval_excludes_none(before: Any, after: Any, said: str) -> None:
    assert said in verdict(outcome({}, evals_of(before, after)))


def test_the_interval_of_a_change_joins_those_of_its_ends() -> None:
    found = difference(Estimate(1.0, 0.7, 1.4), Estimate(2.0, 1.7, 2.3))
    assert found.value == 1.0
    assert found.interval == pytest.approx((1 - math.hypot(0.3, 0.4), 1 + math.hypot(0.3, 0.3)))


def test_the_last_evaluation_counts_whatever_the_order_of_rows() -> None:
    rows = evals_of((2.0, 1.9, 2.1), (9.0, 8.9, 9.1), (2.5, 2.4, 2.6))
    found = outcome({}, [rows[2], rows[0], rows[1]])
    assert (found.before, found.after, found.step) == ((2.0, 1.9, 2.1), (2.5, 2.4, 2.6), 20)


def test_a_run_with_its_first_evaluation_only_claims_nothing() -> None:
    run = full_run()
    assert "on 32 prompts" in shown(dpo_page({**run, "summary": None}))
    run["evals"], run["summary"] = run["evals"][:1], None
    html = dpo_page(run)
    assert "nothing to compare yet" in shown(html)
    assert tile(html, "Held-out reward")[0] == "2.21 → n/a"
    assert "left no summary" in alarm_box(html)[1]


def test_without_evaluations_the_summary_is_believed() -> None:
    run = full_run()
    run["summary"]["eval"].update(reward_before_interval=[2.0, 2.4], reward_after_interval=[2.5, 2.6])
    html = dpo_page({**run, "evals": None})
    assert "Evaluation on held-out prompts: not run." in shown(html)
    assert tile(html, "Held-out reward")[0] == "2.21 → 2.55"
    assert "95 % interval +0.144 to +0.556" in tile(html, "Held-out reward")[1]


def test_nothing_evaluated_is_said_and_raises_no_all_clear() -> None:
    html = dpo_page({"steps": full_run()["steps"], "evals": []})
    assert "the policy was not evaluated on held-out prompts" in shown(html)
    assert alarm_box(html)[0] == "alarms unknown"


# Alarms


def test_a_quiet_run_says_what_was_watched(page: str) -> None:
    kind, said = alarm_box(page)
    assert kind == "alarms none"
    assert "a KL beyond 4 nats a reply, replies longer or shorter by a factor of 2, a second reward model" in said


def test_alarms_and_the_reason_of_a_stop_stand_before_all_numbers() -> None:
    run = full_run()
    run["summary"].update(
        stopped="KL 4.2 is beyond the limit",
        alarms=[
            {"step": 8, "kind": "second_reward", "text": "replies got worse"},
            "a bare text",
            {"step": 9, "text": None},
        ],
    )
    html = dpo_page(run)
    kind, said = alarm_box(html)
    assert kind == "alarms raised"
    assert said == (
        "Alarms: 3 Stopped early: KL 4.2 is beyond the limit Step 8, second reward: replies got worse "
        "Step n/a: a bare text Step 9: n/a"
    )
    assert html.index('id="alarms"') < html.index('class="tiles"')


def test_a_stop_without_an_alarm_is_no_all_clear() -> None:
    run = full_run()
    run["summary"]["stopped"] = "the reward service is gone"
    assert alarm_box(dpo_page(run)) == ("alarms raised", "Stopped early Stopped early: the reward service is gone")


def test_a_run_without_a_summary_tells_the_alarms_of_its_evaluations() -> None:
    run = full_run()
    run["summary"] = None
    run["evals"][2]["alarms"] = ["too long"]
    kind, said = alarm_box(dpo_page(run))
    assert kind == "alarms raised"
    assert "Alarms: 1" in said
    assert "Step 8: too long" in said


def test_many_alarms_are_counted_and_not_all_listed() -> None:
    run = full_run()
    run["summary"]["alarms"] = [{"step": i, "kind": "kl", "text": "word " * 1000} for i in range(500)]
    html = dpo_page(run)
    assert "Alarms: 500" in alarm_box(html)[1]
    assert "480 more are in the run's records." in alarm_box(html)[1]
    assert len(html) < 300_000


# Pictures


def test_bands_and_marks_stand_where_the_axis_says() -> None:
    points = [Point(0, 1.0, 0.0, 2.0), Point(10, 3.0, 2.5, 4.0)]
    drawn = line_chart("t", [Line("a", points)], y_title="y", mark=Mark("half", 0.5))
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    grid = [float(e.attrib["y1"]) for e in root.iter(f"{SVG}line") if e.get("class") == "grid"]
    low, high = max(grid), min(grid)  # the axis runs from 0 to 4

    def at(*values: float) -> list[float]:
        return [low + value / 4 * (high - low) for value in values]

    band = next(e for e in root.iter(f"{SVG}polygon")).attrib["points"].split()
    assert [float(p.split(",")[1]) for p in band] == pytest.approx(at(2, 4, 2.5, 0), abs=0.06)
    mark = next(e for e in root.iter(f"{SVG}line") if e.get("class") == "marker")
    assert [float(mark.attrib[y]) for y in ("y1", "y2")] == pytest.approx(at(0.5, 0.5), abs=0.06)


def test_a_band_breaks_where_it_was_not_measured() -> None:
    points = [Point(i, 1.0, *((None, None) if i == 2 else (0.5, 1.5))) for i in range(4)]
    drawn = line_chart("t", [Line("a", points)], y_title="y")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    assert len(list(root.iter(f"{SVG}polygon"))) == 1
    uprights = [e for e in root.iter(f"{SVG}line") if e.get("class") == "line"]
    assert len(uprights) == 1
    assert uprights[0].attrib["x1"] == uprights[0].attrib["x2"]


def test_points_are_read_in_order_of_steps_and_without_numbers_left_out() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 3, "a": {"b": 1.0}},
        {"step": 1, "a": {"b": 2.0}},
        {"step": 2, "a": {"b": math.nan}},
        {"step": 4},
    ]
    assert [p[:2] for p in line("n", rows, "a.b").points] == [(1.0, 2.0), (3.0, 1.0)]


def test_a_lone_line_of_several_possible_ones_is_named() -> None:
    drawn = line_chart("t", [Line("first", []), Line("second", [Point(1, 1.0, None, None)])], y_title="y")
    assert drawn is not None
    assert "second" in [e.text for e in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def test_columns_add_up_to_the_prompts_of_a_step() -> None:
    kinds = [("a", "A", "red"), ("b", "B", "blue"), ("c", "C", "green")]
    drawn = stacked_columns("t", [(1, {"a": 3, "b": 1}), (2, {"b": 4})], kinds, y_title="prompts")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    columns: dict[float, list[tuple[float, float]]] = {}
    for rect in root.iter(f"{SVG}rect"):
        if rect.find(f"{SVG}title") is not None:
            y, height = float(rect.attrib["y"]), float(rect.attrib["height"])
            columns.setdefault(float(rect.attrib["x"]), []).append((y, y + height))
    tops = {min(y for y, _ in parts) for parts in columns.values()}
    bottoms = {max(end for _, end in parts) for parts in columns.values()}
    assert len(columns) == 2
    assert len({round(y) for y in tops}) == len({round(y) for y in bottoms}) == 1
    assert "In all: A 3, B 5." in (root.findtext(f"{SVG}title") or "")
    assert stacked_columns("t", [(1, {"a": 0})], kinds, y_title="prompts") is None


def test_every_reason_is_drawn_and_counted_and_unknown_ones_are_others() -> None:
    skipped = {reason: 10 + i for i, reason in enumerate(REASONS)}
    html = dpo_page({"steps": [{"step": 1, "pairs": 5, "skipped": {**skipped, "moonlight": 7}}]})
    words = next(w for w in pictures(html) if w.startswith("What became of the prompts"))
    for reason, n in skipped.items():
        assert f"{reason.replace('_', ' ')} {n}" in words
    assert "pairs 5," in words
    assert words.endswith("other 7.")
    for name in ("pairs", *REASONS, "other"):
        assert html.count(f"--pair-{name.replace('_', '-')}:") == 2, "one colour for light, one for dark"
        assert f"var(--pair-{name.replace('_', '-')})" in html


def test_a_limit_far_off_is_told_and_not_drawn() -> None:
    run = full_run()
    run["config"]["alarms"]["max_kl"] = 500.0
    html = dpo_page(run)
    assert "limit of 500 lies far above" in shown(html)
    assert not any("limit 500" in words for words in pictures(html))


def test_what_most_runs_lack_is_left_out() -> None:
    run = full_run()
    for row in run["steps"]:
        del row["nll"]
        row["beta"] = 0.1
    for row in run["evals"]:
        row.update(dict.fromkeys(("second_reward_mean", "second_win_rate", "second_win_low", "second_win_high")))
    html = dpo_page(run)
    heads = [h.text for h in parsed(html).iter("h3")]
    assert not {"Second reward model", "Beta", "Likelihood of the better reply"} & set(heads)
    assert "Second reward" not in [h.text for h in parsed(html).iter("th")]
    assert len(pictures(html)) == 22


# Samples


def test_gains_and_losses_are_ranked_by_the_change_of_reward() -> None:
    rows = [{"reward_before": 1.0, "reward_after": 1.0 + d, "n": i} for i, d in enumerate([0.5, -0.25, 0, 2, -1, 0.5])]
    found = ranked([*rows, {"reward_before": 1.0}, {"reward_before": 1.0, "reward_after": math.nan}])
    assert [row["n"] for _, row in found.gains] == [3, 0, 5]
    assert [row["n"] for _, row in found.losses] == [4, 1]
    assert (found.same, found.unknown) == (1, 2)


def test_both_ends_are_shown_and_the_rest_is_counted() -> None:
    rows = [
        {"prompt": f"p{i:03}", "before": "b", "after": "a", "reward_before": 0, "reward_after": i - 40}
        for i in range(100)
    ]
    html = dpo_page({"samples": rows})
    prompts = re.findall(r"\bp\d{3}\b", shown(html))
    assert prompts == [f"p{i:03}" for i in range(99, 99 - MAX_SHOWN, -1)] + [f"p{i:03}" for i in range(MAX_SHOWN)]
    assert "Largest gains: 12 of 59" in html
    assert "Largest losses: 12 of 40" in html
    assert "stayed the same on 1." in html


def test_hostile_texts_are_shown_and_never_become_markup(page: str) -> None:
    root = parsed(page)
    banned = {"script", "img", "iframe", "link", "a", "form"}
    assert not [e.tag for e in root.iter() if e.tag.rpartition("}")[2] in banned]
    assert not [name for e in root.iter() for name in e.attrib if name.startswith("on") or name in {"src", "href"}]
    said = ["".join(e.itertext()) for e in root.iter() if "said" in (e.get("class") or "").split()]
    clean = HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert said.count(clean) == 4  # prompt, before, after, and a message of the history


def test_hostile_names_and_values_are_escaped_everywhere() -> None:
    run = full_run()
    run["steps"][0]["skipped"] = {HOSTILE: 3}
    run["summary"].update(policy=HOSTILE, stopped=HOSTILE, alarms=[{"step": HOSTILE, "kind": HOSTILE, "text": HOSTILE}])
    run["summary"]["time"]["slowest_part"] = HOSTILE
    run["evals"][1]["alarms"] = [HOSTILE]
    run["config"][HOSTILE] = {HOSTILE: HOSTILE}
    run["manifest"].update(versions={HOSTILE: HOSTILE}, reward={"model": HOSTILE}, created=HOSTILE)
    run["manifest"]["funnel"][0].update(name=HOSTILE, unit=HOSTILE, dropped={HOSTILE: 104})
    html = dpo_page(run)
    assert_sound(html)
    assert "<script" not in html
    assert "<img" not in html


def test_long_texts_are_cut_where_it_can_be_seen(page: str) -> None:
    assert f"After: the first {MAX_TEXT:,} of 26,000 characters" in shown(page)
    longest = max(("".join(e.itertext()) for e in parsed(page).iter() if e.get("class") == "said"), key=len)
    assert len(longest) == MAX_TEXT


def test_an_empty_reply_is_told_from_one_that_was_not_recorded() -> None:
    rows = [{"prompt": "p", "before": " \n", "after": None, "reward_before": 0, "reward_after": 1}]
    text = shown(dpo_page({"samples": rows}))
    assert "Before (empty)" in text
    assert "After n/a" in text


# Settings and prompts


def test_settings_that_were_changed_stand_before_the_defaults(page: str) -> None:
    tables = [t for t in parsed(page).iter("table") if t.findtext("thead/tr/th") == "Setting"]
    changed, rest = ({row.findtext("td"): row for row in t.iter("tr")} for t in tables)
    assert {"policy", "steps", "alarms.max_kl", "learner.nll_weight", "eval.second_reward_url"} <= changed.keys()
    assert {"staleness", "learner.beta", "pairs.min_accuracy", "rollout.engine.seed"} - rest.keys() <= {
        "rollout.engine.seed"
    }
    assert not {"staleness", "learner.beta"} & changed.keys()
    assert "limit of the KL divergence" in "".join(changed["alarms.max_kl"].itertext())
    assert "not set" in "".join(rest["pairs.min_accuracy"].itertext())


def test_passwords_in_addresses_are_not_shown() -> None:
    run = full_run()
    run["config"]["reward_url"] = "http://ada:secret@host:8000/x"
    html = dpo_page(run)
    assert "ada:" not in html
    assert "secret@" not in html
    assert "http://…@host:8000/x" in html


def test_a_funnel_that_does_not_add_up_says_so() -> None:
    run = full_run()
    run["manifest"]["funnel"][0]["rows_out"] -= 5
    assert "not accounted for: 5" in dpo_page(run)
    assert "not accounted for" not in dpo_page(full_run())


# What is missing, odd or large


@pytest.mark.parametrize("run", [{}, dict.fromkeys(PARTS), {name: [] for name in PARTS}, {name: {} for name in PARTS}])
def test_an_empty_run_says_what_is_missing(run: dict[str, Any]) -> None:
    html = dpo_page(run)
    assert_sound(html)
    for part in ("Evaluation on held-out prompts", "Training", "Pairing", "Measurement of time", "Samples"):
        assert f"{part}: not run." in html
    for part in ("Count of prompts", "Time and reward", "Settings"):
        assert f"{part}: not recorded." in html
    assert alarm_box(html)[0] == "alarms unknown"
    assert "limit" not in shown(html), "nothing is known of the settings"


@pytest.mark.parametrize("missing", PARTS)
def test_each_part_may_be_missing(missing: str) -> None:
    assert_sound(dpo_page({**full_run(), missing: None}))


def test_one_step_is_drawn() -> None:
    html = dpo_page(full_run(steps=1, every=1, samples=1))
    assert_sound(html)
    assert any("reward: 2.21 at step 0, 2.55 at step 1" in words for words in pictures(html))
    assert any(re.search(r"loss: \S+ at step 1\.", words) for words in pictures(html))


def test_a_run_of_nulls_is_drawn_as_nothing() -> None:
    run = full_run()
    for name in ("steps", "evals", "samples"):
        run[name] = [dict.fromkeys(row) for row in run[name]]
    html = dpo_page(run)
    assert_sound(html)
    assert not any("at step" in words for words in pictures(html))


def test_two_thousand_steps_are_thinned_and_the_page_stays_small() -> None:
    run = full_run(steps=2_000, every=1, samples=500)
    for row in run["samples"]:
        row.update(before="'&\"" * 10_000, after="长" * 50_000, history=[{"role": "user", "content": "x" * 9_000}] * 30)
    html = dpo_page(run)
    assert_sound(html)
    assert len(html.encode()) < 3_000_000
    assert "mean of 5 neighbouring steps" in html
    assert "Every 34th of 2,001 evaluations" in html
    assert "30 messages before the prompt, the last 4 of them here" in html
    lines = [e.attrib["points"].count(",") for e in parsed(html).iter(f"{SVG}polyline")]
    assert max(lines) <= 401
    columns = next(svg for words, svg in pictures(html).items() if words.startswith("What became of the prompts"))
    titles = {(e.findtext(f"{SVG}title") or "").partition(":")[0] for e in columns.iter(f"{SVG}rect")} - {""}
    assert len(titles) <= 60
    assert "steps 1 to 34, a step" in titles


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be replaced; of a list only its first entry."""
    if at:
        yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, child in entries:
        yield from paths(child, (*at, key))


@pytest.mark.parametrize(
    "bad",
    [None, [], "word", math.nan, -1, 0, 10**400, [[]]],
    ids=lambda bad: repr(bad)[:12],
)
def test_no_single_odd_value_breaks_the_page(bad: Any) -> None:
    whole = full_run(steps=2, every=1, samples=2)
    # All settings take the same way to the page.
    whole["config"] = {name: whole["config"][name] for name in ("policy", "steps", "staleness", "eval", "alarms")}
    for path in paths(whole):
        # One part at a time: the others would only be drawn again and again.
        run: dict[str, Any] = {path[0]: copy.deepcopy(whole[path[0]])}
        holder: Any = run
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = bad
        try:
            assert_sound(dpo_page(run))
        except Exception as error:
            raise AssertionError(f"{'.'.join(map(str, path))} = {bad!r}") from error


def test_page_loads_nothing(page: str) -> None:
    policy = "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;"
    assert policy in page
    assert "url(" not in page
    assert "@import" not in page
    addresses = set(re.findall(r"https?://[^\"' <]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://127.0.0.1:8000", "http://127.0.0.1:8001"}


def test_the_synthetic_run_is_what_a_run_stores() -> None:
    run = full_run()
    assert json.loads(json.dumps(run)) == run
    assert all(row["pairs"] + sum(row["skipped"].values()) == 16 for row in run["steps"])
