"""What a stage says: the same line for people as ever, one JSON object a line for machines, and the run both belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wildreward_ray.cli import main
from wildreward_ray.cluster import run_log
from wildreward_ray.cluster.artifact import open_artifact
from wildreward_ray.cluster.run_log import JsonFormatter, is_running, json_line, run_id, run_name, running, say, set_up
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import MANIFEST, Manifest

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILDREWARD_LOG", "json")
    monkeypatch.setattr(run_log, "_command", "extract")


@pytest.fixture(autouse=True)
def as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WILDREWARD_LOG", raising=False)


@contextmanager
def fresh_logging() -> Iterator[None]:
    """The root logger as a fresh process has it; pytest's own handlers come before every test, after its fixtures."""
    root = logging.getLogger()
    handlers, level, command = root.handlers[:], root.level, run_log._command
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        run_log._command = command


def said(captured: Captured) -> list[dict[str, Any]]:
    """All lines on standard error, each of which must be one JSON object; standard output must be empty."""
    shown = captured.readouterr()
    assert shown.out == ""
    return [json.loads(line) for line in shown.err.splitlines()]


def test_the_line_for_people_is_the_stage_and_the_text_and_nothing_else(capfd: Captured) -> None:
    say("judge", "1,200 interactions, 31.1/s", event="progress", done=1200, per_s=31.1)
    say("judge", "going on", prefix="")
    shown = capfd.readouterr()
    assert shown.err == "[judge] 1,200 interactions, 31.1/s\ngoing on\n"
    assert shown.out == ""


@pytest.mark.usefixtures("as_json")
def test_the_line_for_machines_has_event_run_and_fields(capfd: Captured) -> None:
    with running("s3://bucket/out") as run:
        say("judge", "1 of 2", done=1, total=None, idle={"rollout": 0.5})
    (line,) = [line for line in said(capfd) if line["event"] == "progress"]
    assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
    assert line == {
        "level": "info", "stage": "judge", "run": run, "event": "progress", "text": "1 of 2",
        "done": 1, "total": None, "idle": {"rollout": 0.5},
    }  # fmt: skip


@pytest.mark.usefixtures("as_json")
def test_a_line_stays_one_line_and_json_whatever_is_said(capfd: Captured) -> None:
    say(
        "train", 'a\nb\x1b[31m" è\u2028', loss=float("nan"), parts=[float("inf"), 1.0], seconds={"learn": float("-inf")}
    )
    (line,) = said(capfd)
    assert line["text"] == 'a\nb\x1b[31m" è\u2028'
    assert (line["loss"], line["parts"], line["seconds"]) == (None, [None, 1.0], {"learn": None})
    assert line["run"] is None


def test_a_field_that_would_hide_one_of_every_line_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['run', 'time'\]"):
        json_line("train", "x", event="step", level="info", fields={"time": 1, "run": 2, "loss": 0.1})


def test_a_form_that_nobody_knows_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILDREWARD_LOG", "jsn")
    with pytest.raises(UserError, match=r"WILDREWARD_LOG is 'jsn'.*did you mean 'json'"):
        set_up("extract", logging.WARNING)


def test_the_command_line_tells_its_errors_in_the_form_that_was_asked_for(
    capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_logging():
        assert main(["score", "--nonsense", "1"]) == 2
    assert capfd.readouterr().err.startswith("wildreward score: error: unknown flag '--nonsense'")
    monkeypatch.setenv("WILDREWARD_LOG", "json")
    with fresh_logging():
        assert main(["score", "--nonsense", "1"]) == 2
    (line,) = said(capfd)
    assert (line["event"], line["level"], line["stage"], line["exit_code"]) == ("error", "error", "score", 2)
    assert line["text"].startswith("unknown flag '--nonsense'")


def test_log_records_become_lines_of_the_same_form_with_their_traceback(
    capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WILDREWARD_LOG", "json")
    log = logging.getLogger("wildreward_ray.test")
    with fresh_logging():
        set_up("train", logging.WARNING)
        log.info("unheard")
        try:
            raise OSError("disk")
        except OSError:
            log.exception("no %s", "luck")
    (line,) = said(capfd)
    assert (line["stage"], line["event"], line["level"], line["text"]) == ("train", "log", "error", "no luck")
    assert line["logger"] == "wildreward_ray.test"
    assert line["traceback"].splitlines()[-1] == "OSError: disk"


def test_log_records_for_people_look_as_they_always_did(capfd: Captured) -> None:
    with fresh_logging():
        set_up("train", logging.WARNING)
        logging.getLogger("wildreward_ray.test").warning("mind %d", 3)
    assert capfd.readouterr().err == "WARNING wildreward_ray.test: mind 3\n"


def test_a_record_has_its_own_time() -> None:
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "m", (), None)
    record.created = 0.0
    assert json.loads(JsonFormatter().format(record))["time"] == "1970-01-01T00:00:00.000+00:00"


def test_a_run_is_named_after_its_output_and_its_second() -> None:
    first = run_name("s3://b/out", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    again = run_name("s3://b/out", datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC))
    other = run_name("s3://b/out2", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert first.partition("-")[2] == "20260102T030405"
    assert first.partition("-")[0] == again.partition("-")[0] != other.partition("-")[0]
    assert len({first, again, other}) == 3


def test_a_run_inside_another_has_what_is_said_and_gives_it_back() -> None:
    assert run_id() == ""
    with running("out") as outer:
        with running("out/runs/1") as inner:
            assert run_id() == inner != outer
            assert is_running(outer)
        assert run_id() == outer
        assert not is_running(inner)
    assert (run_id(), is_running(outer)) == ("", False)


@pytest.mark.usefixtures("as_json")
def test_a_run_that_fails_says_so_and_ends(capfd: Captured) -> None:
    with pytest.raises(UserError), running("s3://key:secret@b/out?token=t", resumed=True) as run:
        raise UserError("no room at s3://key:secret@b/out")
    began, failed = said(capfd)
    assert (began["event"], began["resumed"], began["output"]) == ("started", True, "s3://***@b/out")
    assert (failed["event"], failed["level"], failed["run"]) == ("failed", "error", run)
    assert failed["error"] == "UserError: no room at s3://***@b/out"
    assert "secret" not in json.dumps([began, failed])
    assert not is_running(run)


def test_people_are_told_nothing_of_runs(capfd: Captured) -> None:
    with running("out"):
        pass
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("as_json")
def test_an_artefacts_manifest_names_the_run_that_its_lines_name(tmp_path: Path, capfd: Captured) -> None:
    with open_artifact(str(tmp_path / "out"), overwrite=False) as artifact:
        say("score", "half", done=1)
        manifest = Manifest.model_validate({"kind": "scores", "inputs": [], "config": {}, "seconds": 0.0})
        artifact.commit(manifest, [])
    lines = said(capfd)
    assert [line["event"] for line in lines] == ["started", "progress", "finished"]
    written = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    assert {line["run"] for line in lines} == {written["run"]}
