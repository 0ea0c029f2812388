"""Judges behind a server, and two of them in a row, in a whole extraction."""

from __future__ import annotations

from pathlib import Path

from tests.ray.helpers import assert_connected, json_of, rows_of, wildreward
from tests.ray.judge_server import judge_flags, judge_server

CASCADE = ("--cascade.enabled", "--cascade.judge.backend", "endpoint", "--cascade.judge.model", "large")


def test_only_what_the_first_judge_is_unsure_of_goes_to_the_second_and_its_word_counts(
    sample: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with judge_server() as small, judge_server() as large:
        second = [*CASCADE, "--cascade.judge.endpoint.base-url", large.url, "--cascade.entropy", "1.52"]
        second += ["--cascade.audit-share", "0.1", "--hindsight.enabled", "false"]
        finished = wildreward("extract", "--input", sample, "--output", str(output), *judge_flags(small), *second)
        assert finished.returncode == 0, finished.stderr
        asked = sum(large.asked.values())
    manifest = json_of(output / "manifest.json")
    assert_connected(manifest["funnel"])
    counts = manifest["cascade"]
    rows = rows_of(output / "feedback", ["judged_by", "interaction_id"])
    by_second = sum(row["judged_by"] == "cascade" for row in rows)
    assert len(rows) == 529
    assert by_second == counts["asked"] == asked
    assert 0 < counts["audited"] < counts["asked"] < len(rows)
    assert 0 <= counts["audit_agrees"] <= counts["audit_agrees_side"] <= counts["audited"]
    notes = next(step["notes"] for step in manifest["funnel"] if step["name"] == "judge")
    assert notes["second_judge"] == by_second


def test_a_judge_that_goes_away_stops_the_run_without_a_label_and_the_same_command_goes_on(
    sample: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with judge_server() as server:
        flags = [
            "--judge.batch-size",
            "8",
            "--hindsight.enabled",
            "false",
            "--judge.endpoint.retries",
            "1",
            "--limit",
            "300",
        ]
        command = ["extract", "--input", sample, "--output", str(output), *judge_flags(server), *flags]
        server.answers = 150
        stopped = wildreward(*command)
        assert stopped.returncode == 1
        error = stopped.stderr.strip().splitlines()[-1]
        assert error.startswith("wildreward extract: error:")
        assert server.url in error
        assert not (output / "manifest.json").exists()
        assert any((output / "_unfinished" / "judged").glob("*.parquet"))
        server.answers = 1_000_000
        finished = wildreward(*command)
        assert finished.returncode == 0, finished.stderr
    names = [row["interaction_id"] for row in rows_of(output / "feedback", ["interaction_id"])]
    assert len(names) == len(set(names)) == 300


def test_a_server_that_knows_nobody_stops_the_run_at_once(sample: str, tmp_path: Path) -> None:
    with judge_server() as server:
        server.status = 401
        command = ["extract", "--input", sample, "--output", str(tmp_path / "out"), *judge_flags(server)]
        refused = wildreward(*command, "--hindsight.enabled", "false", env={"OPENAI_API_KEY": "secret-of-mine"})
    assert refused.returncode == 2
    assert "--judge.endpoint.api-key-env" in refused.stderr
    assert "secret-of-mine" not in refused.stderr
    # Every request that was in flight, and none twice.
    assert set(server.asked.values()) <= {1}
