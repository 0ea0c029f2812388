"""The pipeline's metrics: what the stages hand to Ray and under which names, and that nothing happens without Ray."""

from __future__ import annotations

import ast
import logging
import pickle
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.test_dpo_monitor import config as dpo_config
from tests.unit.test_dpo_monitor import held_out, no_pairs
from tests.unit.test_dpo_monitor import row as dpo_row
from tests.unit.test_label_and_refine import ASK, LONG, ScriptedJudge, conversation
from wildreward_ray.cluster import telemetry
from wildreward_ray.cluster.metric_channel import COMMON_LABELS, Channel, Metric, ray_metric
from wildreward_ray.cluster.run_log import running
from wildreward_ray.cluster.schema import CONVERSATIONS
from wildreward_ray.cluster.telemetry import METRICS, Telemetry, telemetry_of
from wildreward_ray.cluster.tracking import Trackers
from wildreward_ray.core.config.extract import RefusalSection
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.manifest import FunnelStep
from wildreward_ray.reward.loop import StepRecord
from wildreward_ray.stages import evaluate_scoring, label, serve_metrics
from wildreward_ray.stages.chunks import pack
from wildreward_ray.stages.dpo_monitor import Monitor
from wildreward_ray.stages.serve_recorder import Metric as ServiceMetric
from wildreward_ray.stages.train_monitor import TrainMonitor

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "observability.md"
Key = tuple[str, ...]


class Kept:
    """Keeps what it is handed by name and labels, and is as strict as Ray is."""

    def __init__(self) -> None:
        self.up = True
        self.broken = False
        self.made: list[str] = []
        self.counts: dict[Key, float] = defaultdict(float)
        self.gauges: dict[Key, float] = {}
        self.sets: dict[Key, int] = defaultdict(int)

    def make(self, metric: Metric) -> Any:
        kept = self
        self.made.append(metric.name)

        class Handle:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind == "Counter"
                assert value > 0
                if kept.broken:
                    raise RuntimeError("refused")
                kept.counts[key(tags)] += value

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind == "Gauge"
                kept.gauges[key(tags)] = value
                kept.sets[key(tags)] += 1

        def key(tags: dict[str, str]) -> Key:
            assert sorted(tags) == sorted((*COMMON_LABELS, *metric.labels))
            assert all(isinstance(value, str) and value.isascii() for value in tags.values())
            return (metric.name.removeprefix("wildreward_"), *(tags[name] for name in metric.labels))

        return Handle()

    def names(self) -> set[str]:
        return {f"wildreward_{key[0]}" for key in [*self.counts, *self.gauges]}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    found = Kept()
    with running("out"):
        monkeypatch.setattr(telemetry, "_channel", Channel(found.make, lambda: found.up, every_s=3600.0))
        yield found


def letter(step: int = 3, **values: Any) -> dict[str, Any]:
    """What the first training worker reports after a step."""
    record = StepRecord(
        step=step, epoch=0, loss=0.4, learning_rate=1e-5, grad_norm=1.5, tokens=900, seconds=2.0, workers=2
    )
    return {**asdict(record), "total": 10, **values}


def drive(told: Telemetry) -> None:
    """Everything that any stage tells."""
    usage = {"prompt_tokens": 300, "cached_tokens": 250, "output_tokens": 7, "retried": 1}
    told.progress("rows", 3, 10)
    told.judged({"judged": 5, "failed:unparseable_verdict": 2, **usage})
    told.funnel([FunnelStep(name="judge", unit="interactions", rows_in=7, rows_out=5, dropped={"unparseable": 2})])
    told.train_step(letter())
    told.train_worker_failed()
    told.dpo_step(dpo_row(1), 100)
    told.dpo_held_out(held_out(1, win_rate=0.6))
    told.dpo_alarm("kl")
    told.responses(3, 1)


# The table.


def test_names_are_unique_say_what_kind_they_are_and_are_none_of_the_services() -> None:
    names = [metric.name for metric in METRICS]
    service = {value.name for value in vars(serve_metrics).values() if isinstance(value, ServiceMetric)}
    assert len(set(names)) == len(names) > 20
    assert len(service) > 10
    assert not service & set(names)
    for metric in METRICS:
        assert re.fullmatch(r"wildreward_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "Counter"), metric.name
        assert metric.description.isascii()
        assert not set(metric.labels) & set(COMMON_LABELS)


def test_every_metric_is_handed_over_by_what_some_stage_tells(kept: Kept) -> None:
    drive(Telemetry("any", "run"))
    assert kept.names() == {metric.name for metric in METRICS}


def test_every_way_to_tell_something_is_called_by_a_stage() -> None:
    ways = {
        name
        for name, value in vars(Telemetry).items()
        if callable(value) and not name.startswith("_") and name not in ("add", "set")
    }
    called = set()
    for file in (
        *(ROOT / "wildreward_ray" / "stages").glob("*.py"),
        ROOT / "wildreward_ray" / "cluster" / "progress.py",
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = (
                    owner.attr if isinstance(owner, ast.Attribute) else getattr(getattr(owner, "func", None), "id", "")
                )
                if name in ("_telemetry", "telemetry_of"):
                    called.add(node.func.attr)
    assert called == ways
    assert len(ways) == 9


def test_the_page_lists_exactly_these_metrics() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (counter|gauge) \| (.*?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    listed = [(name, kind, re.findall(r"`(\w+)`", labels), text) for name, kind, labels, text in rows]
    assert listed == [
        (metric.name.removeprefix("wildreward_"), metric.kind.lower(), list(metric.labels), metric.description)
        for metric in METRICS
    ]


def test_ray_takes_every_metric_as_it_is_described() -> None:
    for metric in METRICS:
        info = ray_metric(metric).info
        assert (info["name"], info["tag_keys"]) == (metric.name, (*COMMON_LABELS, *metric.labels))


# What the stages tell.


def test_a_judge_tells_verdicts_failures_and_tokens_of_each_chunk_once(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader(ScriptedJudge):
        def verdicts(self, task: Any, fields: Sequence[Mapping[str, str]]) -> Any:
            self.usage.prompt_tokens += 100 * len(fields)
            self.usage.cached_tokens += 80 * len(fields)
            return super().verdicts(task, fields)

    monkeypatch.setattr(label, "start_judge", lambda section: Reader())
    actor = label.JudgeActor(JudgeSection(), RefusalSection(enabled=False), None, telemetry_of("extract"))
    rows = [conversation("c", f"{ASK} Rome", LONG, "level 5", LONG, "no digit here", LONG, "level 2")]
    for part in ("a-000000", "a-000001-end"):
        list(actor(pack(part, pa.Table.from_pylist(rows, schema=CONVERSATIONS))))
    assert dict(kept.counts) == {
        ("judged_total", "first"): 4,
        ("judge_failures_total", "first", "unparseable_verdict"): 2,
        ("judge_prompt_tokens_total", "first"): 600,
        ("judge_cached_tokens_total", "first"): 480,
    }


def test_a_funnel_tells_what_was_kept_and_what_was_dropped_by_reason(kept: Kept) -> None:
    steps = [
        FunnelStep(
            name="judge", unit="interactions", rows_in=7, rows_out=5, dropped={"no_verdict_token": 2, "none": 0}
        ),
        FunnelStep(name="choose", unit="rows", rows_in=5, rows_out=5),
    ]
    telemetry_of("extract").funnel(steps)
    assert dict(kept.counts) == {
        ("funnel_rows_total", "judge", "kept"): 5,
        ("funnel_rows_total", "judge", "no_verdict_token"): 2,
        ("funnel_rows_total", "choose", "kept"): 5,
    }


def test_a_pass_shows_how_far_it_is_until_it_is_done(kept: Kept) -> None:
    told = telemetry_of("judge")
    told.progress("interactions", 40, 100)
    assert kept.gauges == {("progress", "interactions"): 40, ("progress_goal", "interactions"): 100}
    told.progress("interactions", None, 100)
    assert not telemetry.channel().refresh()


def test_a_training_step_sets_its_numbers_and_adds_its_tokens(kept: Kept) -> None:
    monitor = object.__new__(TrainMonitor)
    monitor._trackers, monitor._telemetry, monitor._first = Trackers([]), telemetry_of("train"), None
    monitor._log("step", letter(3))
    monitor._log("step", letter(4, loss=0.3, workers=1))
    assert kept.counts[("train_tokens_total",)] == 1800
    assert (kept.gauges[("train_step",)], kept.gauges[("train_steps",)]) == (4, 10)
    assert (kept.gauges[("train_loss",)], kept.gauges[("train_workers",)]) == (0.3, 1)


def test_an_online_dpo_run_tells_steps_evaluations_and_alarms(kept: Kept) -> None:
    watch = Monitor(dpo_config(alarms__max_kl=1.0), Trackers([]))
    watch.evaluation(held_out(0))
    watch.step(dpo_row(1, skipped={"margin": 4, "unsure": 0}))
    watch.evaluation(held_out(1, kl=3.0, win_rate=0.6))
    assert kept.counts == {
        ("dpo_pairs_total",): 60,
        ("dpo_skipped_total", "margin"): 4,
        ("dpo_alarms_total", "kl"): 1,
    }
    assert kept.gauges[("dpo_seconds", "learn")] == 4.0
    assert kept.gauges[("dpo_idle_share", "reward")] == 0.8
    assert (kept.gauges[("dpo_held_out_kl",)], kept.gauges[("dpo_held_out_win_rate",)]) == (3.0, 0.6)


def test_a_step_without_pairs_leaves_no_old_loss_standing(kept: Kept) -> None:
    watch = Monitor(dpo_config(), Trackers([]))
    watch.step(dpo_row(1))
    watch.step(no_pairs(2, margin=64))
    before = kept.sets[("dpo_loss",)]
    telemetry.channel().refresh()
    assert kept.sets[("dpo_loss",)] == before
    assert kept.gauges[("dpo_step",)] == 2


def test_responses_without_a_score_are_counted_apart(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scorer:
        def score(self, inputs: Sequence[Any]) -> list[Any]:
            return [1.0, ValueError("not finite"), 2.0]

    monkeypatch.setattr(evaluate_scoring, "load_response_scorer", lambda config: Scorer())
    actor = evaluate_scoring.EvaluateActor(None, None, telemetry_of("evaluate"))  # type: ignore[arg-type]
    rows = [{"name": "c", "ids": ["a", "b"], "sizes": [2, 1], "inputs": [[1], [2], [3]]}]
    actor(pa.Table.from_pylist(rows, schema=evaluate_scoring._ENCODED))
    assert dict(kept.counts) == {("responses_scored_total",): 2, ("responses_failed_total",): 1}


# The way to Ray.


def test_without_ray_nothing_is_made_and_ray_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from wildreward_ray.cluster.telemetry import telemetry_of\n"
        "from wildreward_ray.cluster.run_log import running\n"
        "with running('out'):\n"
        "    told = telemetry_of('train')\n"
        "    told.responses(3, 1)\n"
        "    told.dpo_held_out({'reward_mean': 1.0, 'win_rate': None, 'kl': 0.1})\n"
        "import threading\n"
        "print('ray' in sys.modules, threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("False 1\n", "")


def test_a_ray_that_is_not_joined_gets_nothing_and_one_that_is_joined_later_gets_what_comes_then(kept: Kept) -> None:
    kept.up = False
    drive(telemetry_of("any"))
    assert kept.made == []
    kept.up = True
    telemetry_of("any").responses(2)
    assert dict(kept.counts) == {("responses_scored_total",): 2}


def test_a_gauge_is_set_again_until_its_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Kept()
    monkeypatch.setattr(telemetry, "_channel", Channel(found.make, lambda: True, every_s=0.01))
    with running("out"):
        telemetry_of("train").train_step(letter())
        _wait_for(lambda: found.sets[("train_loss",)] > 3)
    _wait_for(lambda: telemetry.channel()._thread is None)
    seen = found.sets[("train_loss",)]
    time.sleep(0.1)
    assert found.sets[("train_loss",)] == seen
    with running("out2"):
        telemetry_of("train").train_step(letter())
        _wait_for(lambda: found.sets[("train_loss",)] > seen + 3)


def test_a_number_that_is_none_or_not_finite_takes_its_gauge_away(kept: Kept) -> None:
    told = telemetry_of("online-dpo")
    for gone in (None, float("nan"), float("inf")):
        told.set(telemetry.DPO_KL, 0.5)
        assert telemetry.channel().refresh()
        told.set(telemetry.DPO_KL, gone)
        assert not telemetry.channel().refresh()
    assert kept.gauges == {("dpo_kl",): 0.5}


def test_metrics_that_ray_refuses_are_switched_off_with_one_warning_and_the_stage_goes_on(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.broken = True
    with caplog.at_level(logging.WARNING):
        telemetry_of("score").responses(1)
        telemetry_of("score").responses(1)
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are switched off, the run goes on: wildreward_responses_scored_total: refused"
    ]


def test_metrics_name_stage_and_run_and_go_to_actors_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Handle:
        def inc(self, value: float, tags: dict[str, str]) -> None:
            seen.append(tags)

    monkeypatch.setattr(telemetry, "_channel", Channel(lambda metric: Handle(), lambda: True))
    with running("out") as run:
        sent = pickle.dumps(telemetry_of("extract"))
    pickle.loads(sent).add(telemetry.DPO_SKIPPED, 1, reason="zu kurz: \u00fc")
    assert seen == [{"stage": "extract", "run": run, "reason": "zu kurz: \\xfc"}]


def test_labels_that_a_metric_does_not_have_are_refused(kept: Kept) -> None:
    with pytest.raises(ValueError, match=r"wildreward_dpo_skipped_total has the labels \('reason',\), not \('why',\)"):
        telemetry_of("online-dpo").add(telemetry.DPO_SKIPPED, 1, why="margin")
    assert kept.made == []


def _wait_for(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)
