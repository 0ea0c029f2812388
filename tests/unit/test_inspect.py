"""The page of an extraction: its numbers are those of the rows, its warnings fire where they should, and no text writes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from tests.unit.inspect_artefact import HOSTILE, RTL, clean_rows, entropy, manifest, probabilities, table, write
from wildreward_ray.cli import main
from wildreward_ray.core.config.inspect import InspectConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.report.inspect_browser import MAX_TEXT
from wildreward_ray.report.inspect_checks import Check, checks
from wildreward_ray.report.inspect_groups import EXACT_LENGTHS, LengthTable, Users
from wildreward_ray.report.inspect_sample import Sample, Sampler, allocate
from wildreward_ray.report.inspect_stats import CONFIDENCE_STEPS, Statistics
from wildreward_ray.report.page import own_file, page
from wildreward_ray.stages.inspect import run

Rows = list[dict[str, Any]]
CLEAN = clean_rows()
NEW_COLUMNS = ("judge_probs", "judged_by", "masked", "pii")


class Markup(HTMLParser):
    """The elements of a page as a browser finds them, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text.append(data)


def inspected(folder: Path, uri: str, **settings: Any) -> str:
    output = folder / "page.html"
    run(InspectConfig(uri=uri, output=str(output), **settings))
    return output.read_text(encoding="utf-8")


def embedded(html: str) -> Rows:
    found: Rows = json.loads(Markup(html).scripts[0])["rows"]
    return found


def statistics(rows: Rows, *, batch_rows: int = 1000, without: tuple[str, ...] = ()) -> Statistics:
    stats = Statistics()
    for batch in table(rows, without=without).to_batches(batch_rows):
        stats.add(batch)
    return stats


def failed(rows: Rows, **changes: Any) -> list[Check]:
    made = manifest(rows, **changes).model_dump(mode="json")
    return [c for c in checks(statistics(rows), made, 30) if c.state == "warning"]


@pytest.fixture(scope="module")
def clean_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clean")
    return inspected(folder, write(folder / "extraction", CLEAN), limit=300)


# The page


def test_page_is_one_file_that_loads_nothing_and_runs_its_own_script_only(clean_page: str) -> None:
    found = Markup(clean_page)
    loading = {"src", "href", "action", "srcset", "data", "formaction", "background", "poster"}
    assert not [(tag, names) for tag, names in found.tags if loading & names.keys() or tag in {"link", "iframe", "img"}]
    assert set(re.findall(r"https?://[^\"' ]+", clean_page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in clean_page
    assert "url(" not in clean_page
    policy = next(a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(found.scripts) == 2
    assert found.scripts[1] == own_file("inspect.js")


def test_script_of_the_page_never_parses_markup() -> None:
    script = own_file("inspect.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|setAttribute\(\"on", script
    )


@pytest.mark.parametrize("script", ["a </script> b", "a </SCRIPT", "<!-- a", "x = '<script>'"])
def test_a_script_that_would_end_its_element_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match="must hold neither"):
        page("t", script=script)


def test_a_page_without_a_script_allows_none() -> None:
    assert "script" not in page("t", "body")


def test_hostile_texts_stay_texts_everywhere(tmp_path: Path) -> None:
    rows = [dict(row) for row in CLEAN[:200]]
    for row in rows:
        for name in ("interaction_id", "prompt", "response", "feedback", "language", "model", "timestamp", "judged_by"):
            row[name] = HOSTILE + (row["interaction_id"] if name == "interaction_id" else "")
        row["refusal_verdict"] = row["evidence_id"] = row["origin"] = HOSTILE
        row["history"] = [{"role": HOSTILE, "content": HOSTILE}]
        row["pii"], row["drop_reason"], row["split"] = [HOSTILE], HOSTILE, None
    made = {"model": HOSTILE, "prompt_version": HOSTILE}
    html = inspected(tmp_path, write(tmp_path / "extraction", rows, judge=made, inputs=[HOSTILE]))
    found = Markup(html)
    assert len(found.scripts) == 2
    assert not [tag for tag, _ in found.tags if tag in {"img", "iframe", "b onclick"}]
    assert not [name for _, names in found.tags for name in names if name.startswith("on")]
    assert found.scripts[1] == own_file("inspect.js")
    # Characters that have no picture are shown as U+FFFD; nothing else changes.
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    entries = embedded(html)
    assert len(entries) == 200
    for entry in entries:
        assert entry["prompt"] == entry["response"] == entry["origin"] == shown
        assert entry["history"] == [[shown, shown]]
        assert entry["flags"][-1] == f"pii: {shown}"


def test_long_texts_are_cut_and_the_page_tells_by_how_much(tmp_path: Path) -> None:
    rows = [dict(row) for row in CLEAN[:3]]
    rows[0]["response"] = "r" * 100_000
    rows[0]["history"] = [{"role": "user", "content": "a" * 5_000}, {"role": "assistant", "content": "b" * 3_000}]
    rows[1]["prompt"] = RTL * 500
    rows[2]["response"], rows[2]["prompt"] = "s" * MAX_TEXT, "short"
    html = inspected(tmp_path, write(tmp_path / "extraction", rows))
    by_id = {entry["id"]: entry for entry in embedded(html)}
    first, second, third = (by_id[row["interaction_id"]] for row in rows)
    assert first["cut"]["response"] == 100_000 - MAX_TEXT == first["length"] - len(first["response"])
    assert first["history"] == [["user", "a" * 1_000], ["assistant", "b" * 3_000]]
    assert first["cut"]["history"] == 4_000
    assert second["prompt"] + (RTL * 500)[MAX_TEXT:] == RTL * 500
    assert "cut" not in third


# The checks


def test_clean_data_passes_every_check(clean_page: str) -> None:
    found = checks(statistics(CLEAN), manifest(CLEAN).model_dump(mode="json"), 30)
    assert [c.state for c in found] == ["passed"] * 10
    text = "\n".join(Markup(clean_page).text)
    assert "All 10 checks passed." in text
    assert all(c.name in text and c.measured in text for c in found)


def each(change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Rows:
    return [{**row, **change(i, row)} for i, row in enumerate(CLEAN)]


KEPT = {"drop_reason": None}
FLAWS: dict[str, tuple[Rows, dict[str, Any]]] = {
    "One training label": (
        each(lambda i, r: {"label": (1 if i % 20 else 2) if r["drop_reason"] is None else None}),
        {},
    ),
    "One judge level": (each(lambda i, r: {"judge_level": 3 if i % 20 else 1}), {}),
    "The judge guesses": (each(lambda i, r: {"judge_probs": probabilities(3, 0.2 + 0.2 * (i % 2))}), {}),
    "The judge is always equally sure": (
        each(lambda i, r: {"judge_probs": probabilities(3, 0.5 + 0.005 * (i % 2))}),
        {},
    ),
    "Length tells the level": (each(lambda i, r: {"response": "y" * (100 * r["level"] + i % 200)}), {}),
    "One user": (each(lambda i, r: {"user_id": "bot"} if i % 12 == 0 else {}), {}),
    "Unreadable input": (
        CLEAN,
        {"funnel": [{"name": "read", "unit": "records", "rows_in": 100, "rows_out": 79, "dropped": {"bad": 21}}]},
    ),
    "Size of the test side": (each(lambda i, r: {"split": "train" if r["split"] else None}), {}),
    "Rare languages": (each(lambda i, r: {"language": "Italian"} if i < 29 else {}), {}),
    "Rows match the manifest": (CLEAN, {"labels": {"level": {"1": len(CLEAN) - 1}}}),
}


@pytest.mark.parametrize("name", FLAWS)
def test_each_warning_fires_on_its_flaw_and_alone(name: str) -> None:
    rows, changes = FLAWS[name]
    changes = {"labels": manifest(rows).model_dump()["labels"], **changes}
    found = failed(rows, **changes)
    assert [c.name for c in found] == [name]
    assert found[0].why
    assert "--" in found[0].change


def test_flags_that_warnings_name_exist() -> None:
    from wildreward_ray.core.config.base import flag_of, leaves
    from wildreward_ray.core.config.extract import ExtractConfig

    known = {flag_of(name) for name, _ in leaves(ExtractConfig)}
    named = {
        flag
        for c in checks(statistics(CLEAN), manifest(CLEAN).model_dump(mode="json"), 30)
        for flag in re.findall(r"--[a-z.-]+[a-z]", c.change)
    }
    assert named - known == set()
    assert len(named) > 10


@pytest.mark.parametrize(
    ("step", "fires"),
    [
        ({"name": "judge", "rows_in": 100, "rows_out": 70, "dropped": {"unparseable": 30}}, True),
        ({"name": "judge", "rows_in": 100, "rows_out": 80, "dropped": {"unparseable": 20}}, False),
        ({"name": "quality", "rows_in": 100, "rows_out": 10, "dropped": {"email": 90}}, False),
        ({"name": "select", "rows_in": 100, "rows_out": 10, "dropped": {"over_limit": 90}}, False),
    ],
)
def test_only_what_could_not_be_read_or_judged_counts_as_unreadable(step: dict[str, Any], fires: bool) -> None:
    found = failed(CLEAN, funnel=[{"unit": "interactions", **step}])
    assert [c.name for c in found] == (["Unreadable input"] if fires else [])


def test_a_large_test_side_is_a_warning_too() -> None:
    rows = each(lambda i, r: {"split": "test" if i % 2 else "train"} if r["split"] else {})
    assert [c.name for c in failed(rows)] == ["Size of the test side"]


def test_too_few_rows_are_not_judged() -> None:
    rows = [{**row, "label": 1, "drop_reason": None, "language": None, "user_id": None} for row in CLEAN[:5]]
    by_name = {c.name: c for c in checks(statistics(rows), manifest(rows).model_dump(mode="json"), 30)}
    for name in ("One training label", "One judge level", "The judge guesses", "Length tells the level", "One user"):
        assert by_name[name].state == "skipped"
    assert "There are 5 kept rows" in by_name["One training label"].measured


def test_without_a_prior_rare_languages_do_not_matter() -> None:
    rows, _ = FLAWS["Rare languages"]
    assert failed(rows, judge={"prior_logprobs": {"overall": None}}) == []


# The numbers


@pytest.mark.parametrize("batch_rows", [1, 64, 10_000])
def test_numbers_equal_direct_counts_whatever_the_batches(batch_rows: int) -> None:
    rows = CLEAN if batch_rows > 1 else CLEAN[:300]
    stats = statistics(rows, batch_rows=batch_rows)
    kept = [r for r in rows if r["drop_reason"] is None]
    assert (stats.rows, stats.kept) == (len(rows), len(kept))
    assert stats.levels.tolist() == [sum(r["level"] == level for r in rows) for level in range(6)]
    assert stats.labels == Counter(r["label"] for r in kept)
    for judge in range(1, 6):
        for level in range(1, 6):
            n = sum(r["judge_level"] == judge and r["level"] == level for r in rows)
            assert stats.matrix[judge - 1, level - 1] == n
    keys: dict[str, Callable[[dict[str, Any]], str]] = {
        "language": lambda r: str(r["language"]),
        "model": lambda r: str(r["model"]),
        "origin": lambda r: str(r["origin"]),
        "turn": lambda r: str(r["turn"] + 1) if r["turn"] < 4 else "5 and later",
        "response length": lambda r: length_class(len(r["response"])),
        "prompt length": lambda r: length_class(len(r["prompt"])),
    }
    for name, key in keys.items():
        expected = Counter((key(r), r["level"]) for r in rows)
        counts = stats.mixes[name].counts
        assert {(k, i): int(n) for k, row in counts.items() for i, n in enumerate(row) if n} == expected, name
    entropies = [entropy(r["judge_probs"]) for r in rows]
    assert stats.entropy_mean == pytest.approx(np.mean(entropies), abs=1e-6)
    assert stats.entropy_spread == pytest.approx(np.std(entropies), abs=1e-6)
    assert stats.entropy_bins.sum() == len(rows)
    shares = [side_share(r) for r in kept]
    assert stats.confidence_bins.sum() == len(kept)
    assert stats.unsure == {step: sum(s < step for s in shares) for step in CONFIDENCE_STEPS}
    assert stats.flags["pii"] == stats.pii["email"] == sum(bool(r["pii"]) for r in rows)
    assert stats.flags["toxic"] == sum(r["toxic"] for r in rows)
    assert stats.counts["judged_by"] == Counter(r["judged_by"] for r in rows)
    assert stats.users.largest_kept() == max(Counter(r["user_id"] for r in kept).values())


def length_class(n: int) -> str:
    for low, high in ((0, 50), (50, 200), (200, 500), (500, 2_000), (2_000, 8_000)):
        if n < high:
            return f"{low:,} to {high - 1:,}"
    return "8,000 and more"


def side_share(row: dict[str, Any]) -> float:
    probs = np.float32(row["level_probs"]).astype(float)
    side = probs[3:] if row["level"] > 3 else probs[:2]
    return float(side.sum() / (probs[:2].sum() + probs[3:].sum()))


def test_rank_correlation_equals_the_one_of_the_rows_with_ties() -> None:
    rng = random.Random(1)
    level = np.array([rng.choice([1, 2, 4, 5, 0]) for _ in range(3_000)])
    length = np.array([min(rng.randrange(1, 400) * (1 + v), EXACT_LENGTHS - 1) for v in level])
    counted = LengthTable()
    counted.add(length[:1_000], level[:1_000])
    counted.add(length[1_000:], level[1_000:])
    assert counted.spearman() == pytest.approx(spearmanr(length[level > 0], level[level > 0]).statistic, abs=1e-12)
    long = LengthTable()
    long.add(length * 1_000, level)
    assert long.spearman() == pytest.approx(counted.spearman(), abs=2e-3)
    assert LengthTable().spearman() is None


def test_users_who_wrote_as_much_share_a_decile() -> None:
    users = Users()
    names = ["once1", "once2", "once3", "once4", "once5", *["thrice"] * 3, *["often"] * 9, None]
    level = np.array([1] * 5 + [2] * 3 + [5] * 9 + [4])
    users.add(pa.array(names), level, None)
    assert [(name, row.tolist()) for name, row in users.deciles()] == [
        ("1: 1 row", [0, 5, 0, 0, 0, 0]),
        ("8: 3 rows", [0, 0, 3, 0, 0, 0]),
        ("9: 9 rows", [0, 0, 0, 0, 0, 9]),
    ]


def test_rows_without_a_level_or_probabilities_are_counted_apart() -> None:
    rows = [{**row, "level": None, "level_probs": None, "judge_probs": None} for row in CLEAN[:10]] + CLEAN[10:20]
    stats = statistics(rows)
    assert stats.levels[0] == 10
    assert (stats.rows, stats.entropy_n, stats.lengths.rows) == (20, 10, 10)


@pytest.mark.parametrize("bad", [{"level": 6}, {"judge_level": -1}, {"level_probs": [0.5, 0.5]}])
def test_values_that_no_extraction_has_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"there are 5 levels|levels lie in 1\.\.5"):
        statistics([{**CLEAN[0], **bad}])


def test_older_extractions_say_what_they_did_not_record(tmp_path: Path) -> None:
    html = inspected(tmp_path, write(tmp_path / "extraction", CLEAN[:300], without=[*NEW_COLUMNS, "user_id", "model"]))
    text = Markup(html).text
    assert text.count("not recorded") == 3
    assert text.count("Not recorded.") == 2
    stats = statistics(CLEAN[:300], without=NEW_COLUMNS)
    assert stats.entropy_mean == pytest.approx(np.mean([r["entropy"] for r in CLEAN[:300]]), abs=1e-6)
    assert all("by" not in entry and "judge_probs" not in entry for entry in embedded(html))


# The sample


def draw(rows: Rows, limit: int) -> Sample:
    sampler = Sampler(limit)
    sampler.add(*([r[name] for r in rows] for name in ("interaction_id", "origin", "level", "evidence_id")))
    return sampler.choose()


def test_sample_depends_on_the_ids_alone(tmp_path: Path) -> None:
    shuffled = random.Random(5).sample(CLEAN, len(CLEAN))
    assert draw(CLEAN, 200) == draw(shuffled, 200)
    pages = [
        inspected(tmp_path, write(tmp_path / str(files), rows, files=files, created="2026-01-01"), limit=200)
        for files, rows in ((1, CLEAN), (7, shuffled))
    ]
    assert embedded(pages[0]) == embedded(pages[1])


def test_sample_shows_every_group_and_fills_its_places() -> None:
    found = draw(CLEAN, 200)
    assert len(found.ids) == len(set(found.ids)) <= 200
    assert len(found.ids) >= 198
    sizes = Counter((r["origin"], r["level"]) for r in CLEAN)
    assert {(origin, level): n for origin, level, n, _ in found.strata} == sizes
    assert all(taken >= min(n, 90 // len(sizes)) for _, _, n, taken in found.strata)
    by_id = {r["interaction_id"]: r for r in CLEAN}
    sources = {by_id[name]["evidence_id"] for name in found.ids} - {None}
    assert 0 < found.evidence <= 20
    assert set(found.ids[-found.evidence :]) <= sources


def test_a_limit_above_the_rows_takes_them_all() -> None:
    assert sorted(draw(CLEAN, 5_000).ids) == sorted(r["interaction_id"] for r in CLEAN)


def test_a_doubled_id_is_shown_once(tmp_path: Path) -> None:
    html = inspected(tmp_path, write(tmp_path / "extraction", [*CLEAN[:50], *CLEAN[:50]]))
    assert len(embedded(html)) == 50


@pytest.mark.parametrize("places", [0, 1, 7, 50, 99, 113, 500])
def test_places_are_all_used_and_none_is_given_twice(places: int) -> None:
    sizes = {("a", 1): 1, ("a", 2): 100, ("b", 1): 9, ("b", 2): 3, ("c", 5): 0}
    given = allocate(sizes, places)
    assert sum(given.values()) == min(places, sum(sizes.values()))
    assert all(0 <= given[key] <= n for key, n in sizes.items())


def test_the_page_holds_what_was_drawn_and_says_how(clean_page: str) -> None:
    entries = embedded(clean_page)
    assert 250 < len(entries) <= 300
    assert f"{len(entries)} of 2,500 interactions are here." in "".join(Markup(clean_page).text)
    row = next(r for r in CLEAN if r["interaction_id"] == entries[0]["id"])
    assert entries[0]["level"] == row["level"]
    assert entries[0]["turn"] == row["turn"] + 1
    assert entries[0]["outcome"] == (f"dropped:{row['drop_reason']}" if row["drop_reason"] else row["split"])
    assert entries[0]["entropy"] == pytest.approx(row["entropy"], abs=1e-3)
    assert math.isclose(sum(entries[0]["probs"]), 1, abs_tol=1e-3)


# The command


def test_command_prints_warnings_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = FLAWS["One judge level"]
    uri, output = write(tmp_path / "extraction", rows), tmp_path / "p.html"
    assert main(["inspect", uri, "--output", str(output), "--limit", "10"]) == 0
    said = capsys.readouterr().out
    assert "warning: One judge level: The judge gave level 3" in said
    assert "2,500 interactions, warnings: 1\n" in said
    assert f"page: {output} (10 interactions to browse)" in said
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_missing_uri_is_asked_for_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 2
    assert "'uri' is required (URI)" in capsys.readouterr().err


def test_errors_name_value_rule_and_flag(tmp_path: Path) -> None:
    uri = write(tmp_path / "whole", CLEAN[:20])
    with pytest.raises(StorageError, match=r"unfinished.*\(URI\)"):
        run(InspectConfig(uri=str(tmp_path)))
    with pytest.raises(StorageError, match=r"is a scores artefact, not a feedback one \(URI\)"):
        run(InspectConfig(uri=write(tmp_path / "scores", CLEAN[:20], kind="scores")))
    with pytest.raises(StorageError, match=r"no-such-folder' does not exist \(--output\)"):
        run(InspectConfig(uri=uri, output=str(tmp_path / "no-such-folder" / "p.html")))
    with pytest.raises(StorageError, match=r"is a directory.*\(--output\)"):
        run(InspectConfig(uri=uri, output=str(tmp_path)))
    with pytest.raises(UserError, match="no column 'level'"):
        run(
            InspectConfig(uri=write(tmp_path / "other", CLEAN[:20], without=["level"]), output=str(tmp_path / "p.html"))
        )
    (tmp_path / "whole" / "feedback" / "1.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(StorageError, match=r"can't read .*whole/feedback.*\(URI\)"):
        run(InspectConfig(uri=uri, output=str(tmp_path / "p.html")))
    assert not (tmp_path / "p.html").exists()
