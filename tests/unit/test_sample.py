"""The shipped sample is what its source says, looks like WildChat, and has an expected level for every interaction."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from wildreward_ray.core.config.extract import QualitySection
from wildreward_ray.core.scale import JUDGE_LEVELS
from wildreward_ray.feedback.conversation import interaction_id
from wildreward_ray.feedback.pii import PiiFinder
from wildreward_ray.feedback.quality import Candidate, QualityLimits, drop_reason
from wildreward_ray.feedback.refusal import is_refusal
from wildreward_ray.stages import ingest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "wildreward_ray" / "sample"
WILDCHAT_COLUMNS = {
    "conversation_hash",
    "model",
    "timestamp",
    "conversation",
    "turn",
    "language",
    "toxic",
    "redacted",
    "state",
    "country",
    "hashed_ip",
}


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    lines = (SAMPLE / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What the pipeline reads from the sample."""
    plan = ingest.plan((str(SAMPLE / "conversations.parquet"),), "auto", strict=True)
    chunks = ingest.read_chunks(plan.shards, size=32, limit=None, done={})
    return [row for _, table in chunks for row in table.to_pylist()]


def replies(rows: list[dict[str, Any]]) -> dict[str, Candidate]:
    """The texts of every interaction, by id."""
    return {
        interaction_id(row["conversation_id"], reply): Candidate(
            reply - 1, *(row["messages"][i]["content"] for i in (reply - 1, reply, reply + 1))
        )
        for row in rows
        if row["kind"] == "conversation"
        for reply in row["turns"]
    }


def test_shipped_files_are_exactly_what_the_source_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.build_sample", "--target", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    built, shipped = (pq.read_table(folder / "conversations.parquet") for folder in (tmp_path, SAMPLE))
    assert shipped.schema.equals(built.schema)
    assert shipped.equals(built)
    assert (SAMPLE / "expected.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_sample_is_small_enough_to_ship() -> None:
    assert sum(f.stat().st_size for f in SAMPLE.iterdir()) < 500_000


def test_sample_has_the_columns_of_wildchat() -> None:
    schema = pq.read_schema(SAMPLE / "conversations.parquet")
    assert set(schema.names) == WILDCHAT_COLUMNS
    message = {field.name for field in schema.field("conversation").type.value_type}
    assert message >= {"content", "role", "hashed_ip", "language", "toxic", "redacted", "timestamp", "turn_identifier"}


def test_sample_has_enough_conversations_users_and_both_languages() -> None:
    table = pq.read_table(SAMPLE / "conversations.parquet")
    assert 130 <= table.num_rows <= 170
    assert 30 <= len(set(table["hashed_ip"].to_pylist())) <= 60
    assert len(set(table["conversation_hash"].to_pylist())) == table.num_rows
    languages = Counter(table["language"].to_pylist())
    assert languages.keys() == {"English", "Chinese"}
    # A language needs enough turns for a prior of its own.
    assert min(languages.values()) >= 30


def test_every_interaction_has_exactly_one_expected_level_and_the_other_way_round(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    times = Counter(e["interaction_id"] for e in expected)
    assert set(times.values()) == {1}
    assert replies(rows).keys() == times.keys()


def test_all_levels_occur_before_and_after_refinement(expected: list[dict[str, Any]]) -> None:
    for column in ("level", "final_level"):
        counts = Counter(e[column] for e in expected)
        assert set(counts) == set(JUDGE_LEVELS)
        assert min(counts.values()) >= 20


def test_expected_refinements_follow_the_rules_of_the_refiners(expected: list[dict[str, Any]]) -> None:
    for e in expected:
        if e["origin"] == "explicit":
            assert e["final_level"] == e["level"]
        elif e["origin"] == "hindsight":
            assert e["level"] == 3
            assert e["final_level"] in (4, 5)
        else:
            assert e["origin"] == "refusal"
            assert e["final_level"] in (1, 5)
    assert {e["origin"] for e in expected} == {"explicit", "hindsight", "refusal"}


def test_sample_shows_oddities_and_nothing_unreadable(rows: list[dict[str, Any]]) -> None:
    assert not [r for r in rows if r["kind"] == "quarantine"]
    counts: Counter[str] = Counter()
    for row in rows:
        if row["kind"] == "summary":
            counts.update(json.loads(row["counts"]))
    assert {name for name, n in counts.items() if name.startswith("oddity:") and n} >= {
        "oddity:system_first",
        "oddity:assistant_first",
        "oddity:merged_same_role",
        "oddity:empty_message",
    }
    assert any(r["toxic"] for r in rows)


def test_refusals_of_the_sample_are_all_noticed_and_few_other_replies_are(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    texts = replies(rows)
    noticed = {key for key, texts_of in texts.items() if is_refusal(texts_of.response)}
    refusals = {e["interaction_id"] for e in expected if e["origin"] == "refusal"}
    assert refusals <= noticed
    assert len(noticed - refusals) <= 0.03 * len(texts)


def test_what_has_to_be_filtered_is_and_little_else(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    rules = {
        "pii": {"pii"},
        "image": {"image_request"},
        "search": {"search_request"},
        "identity": {"identity_request"},
        "missing_file": {"missing_file"},
    }
    texts = replies(rows)
    names = tuple(sorted(set().union(*rules.values()) - {"pii"}))
    finder = PiiFinder(QualitySection().pii_entities)
    unexpected = 0
    for e in expected:
        candidate = texts[e["interaction_id"]]
        written = (candidate.prompt, candidate.response, candidate.feedback)
        personal = any(finder.find(text) for text in written)
        found = "pii" if personal else drop_reason(candidate, QualityLimits(), names)
        if e["quality_drop"] in rules:
            assert found in rules[e["quality_drop"]], e["interaction_id"]
        else:
            unexpected += found is not None
    assert unexpected <= 0.02 * len(expected)
