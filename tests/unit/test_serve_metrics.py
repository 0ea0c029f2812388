"""Metrics and access log of the reward service: what is added up, what reaches Ray, and what must not reach a log."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.service import ModelCard, RequestRecord, ServiceError
from wildreward_ray.stages import serve_metrics
from wildreward_ray.stages.serve_access_log import ACCESS_LOGGER, AccessLog, Observers, line
from wildreward_ray.stages.serve_metrics import EngineMetrics, ServiceMetrics, observer
from wildreward_ray.stages.serve_recorder import Metric, Ticker, ray_metric

Key = tuple[str, ...]
NEVER_S = 3600.0


class Kept:
    """Keeps what it is handed, by name and labels, and is as strict as Ray is."""

    def __init__(self) -> None:
        self.counts: dict[Key, float] = defaultdict(float)
        self.values: dict[Key, list[float]] = defaultdict(list)
        self.gauges: dict[Key, float] = {}

    def make(self, metric: Metric) -> Any:
        kept = self

        class Handle:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind == "Counter"
                assert value > 0
                kept.counts[key(tags)] += value

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind == "Gauge"
                kept.gauges[key(tags)] = value

            def observe(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind == "Histogram"
                kept.values[key(tags)].append(value)

        def key(tags: dict[str, str]) -> Key:
            assert tuple(tags) == metric.labels
            assert all(isinstance(value, str) for value in tags.values())
            return (metric.name.removeprefix("wildreward_"), *tags.values())

        return Handle()


def card(version: str = "v1", levels: int = 4) -> ModelCard:
    return ModelCard(
        id="rm",
        source="/models/rm",
        version=version,
        engine="vllm",
        levels=levels,
        max_length=512,
        dtype="float32",
        calibrated=False,
        created=0,
    )


def record(scores: list[float] | None = None, **fields: Any) -> RequestRecord:
    """A request of the native protocol that was answered in 20 ms."""
    given = {
        "request_id": "r",
        "method": "POST",
        "path": "/v1/score",
        "protocol": "native",
        "status": 200,
        "seconds": 0.02,
    }
    scored = {"scores": scores, "items": len(scores), "version": "v1"} if scores else {}
    return RequestRecord(**{**given, **scored, **fields})


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def cards() -> list[ModelCard]:
    """The last one is served."""
    return [card()]


@pytest.fixture
def metrics(kept: Kept, cards: list[ModelCard]) -> Iterator[ServiceMetrics]:
    made = ServiceMetrics(lambda: cards[-1], lambda: 100, kept.make, NEVER_S)
    yield made
    made.close()


def tell(metrics: ServiceMetrics, *records: RequestRecord) -> None:
    for one in records:
        metrics.began()
        metrics.ended(one)
    metrics.flush()


def test_requests_are_counted_by_protocol_status_and_code(metrics: ServiceMetrics, kept: Kept) -> None:
    refused = record(status=422, code="too_long", items=3)
    tell(metrics, record([2.0, 3.0], tokens=70), record([1.5], tokens=30), refused)
    tell(metrics, refused)
    assert kept.counts == {
        ("requests_total", "native", "200", ""): 2,
        ("requests_total", "native", "422", "too_long"): 2,
        ("items_total",): 3,
        ("tokens_total",): 100,
    }
    assert kept.values["request_seconds", "native"] == [0.02] * 4
    assert kept.values["score", "v1"] == [2.0, 3.0, 1.5]


def test_paths_that_clients_make_up_are_one_label(metrics: ServiceMetrics, kept: Kept) -> None:
    tell(metrics, *(record(path=f"/{i}", protocol="", status=404, code="not_found") for i in range(50)))
    assert kept.counts == {("requests_total", "other", "404", "not_found"): 50}


def test_a_flush_without_requests_adds_nothing_but_keeps_gauges_alive(metrics: ServiceMetrics, kept: Kept) -> None:
    tell(metrics, record([2.0]))
    counts, observed = dict(kept.counts), len(kept.values["score", "v1"])
    kept.gauges.clear()
    metrics.flush()
    assert (dict(kept.counts), len(kept.values["score", "v1"])) == (counts, observed)
    assert kept.gauges == {("requests_in_flight",): 0, ("score_mean", "v1"): 2.0}


def test_requests_in_flight_are_those_that_began_and_have_not_ended(metrics: ServiceMetrics, kept: Kept) -> None:
    for _ in range(3):
        metrics.began()
    metrics.ended(record(status=499, code="client_closed"))
    metrics.flush()
    assert kept.gauges["requests_in_flight",] == 2


def test_drift_is_told_once_two_windows_are_full(metrics: ServiceMetrics, kept: Kept) -> None:
    rng = np.random.default_rng(0)
    tell(metrics, *(record([float(s)]) for s in rng.uniform(1, 2, 199)))
    assert ("score_psi", "v1") not in kept.gauges
    tell(metrics, record([3.5] * 100))
    assert kept.gauges["score_psi", "v1"] > 1
    assert kept.gauges["score_shift", "v1"] > 5
    assert kept.gauges["score_mean", "v1"] == pytest.approx(3.5)


def test_a_new_model_has_a_reference_of_its_own(
    metrics: ServiceMetrics, kept: Kept, cards: list[ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(metrics, record([1.5] * 200))
    cards.append(card("v2", levels=10))
    tell(metrics, record([9.5] * 200, version="v2"), record([1.5], version="v1"))
    assert kept.gauges["score_psi", "v1"] == pytest.approx(0)
    assert kept.gauges["score_psi", "v2"] == pytest.approx(0)
    monkeypatch.setattr(serve_metrics, "FORGET_S", 0.0)
    tell(metrics, record([9.5], version="v2"))
    kept.gauges.clear()
    metrics.flush()
    assert {key[1] for key in kept.gauges if len(key) == 2} == {"v2"}


def test_scores_of_a_version_whose_levels_are_unknown_are_not_measured_by_another_scale(
    metrics: ServiceMetrics, kept: Kept, cards: list[ModelCard]
) -> None:
    cards.append(card("v2"))
    tell(metrics, record([7.0], version="v0"))
    assert kept.values["score", "v0"] == [7.0]
    assert ("score_mean", "v0") not in kept.gauges


def test_metrics_go_on_while_no_model_is_served(kept: Kept) -> None:
    def no_card() -> ModelCard:
        raise ServiceError(503, "loading", "the model is being loaded")

    made = ServiceMetrics(no_card, lambda: 100, kept.make, NEVER_S)
    tell(made, record([2.0]))
    made.close()
    assert kept.counts["items_total",] == 1


def test_nothing_is_lost_or_counted_twice_while_the_thread_flushes(kept: Kept) -> None:
    made = ServiceMetrics(card, lambda: 100, kept.make, 0.001)

    def ask() -> None:
        for _ in range(500):
            made.began()
            made.ended(record([2.0, 3.0], tokens=10))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    assert kept.counts["requests_total", "native", "200", ""] == 2000
    assert kept.counts["tokens_total",] == 20_000
    assert len(kept.values["score", "v1"]) == 4000
    assert kept.gauges["requests_in_flight",] == 0


def test_a_failure_of_one_flush_is_logged_and_does_not_end_the_next(caplog: pytest.LogCaptureFixture) -> None:
    calls, enough = 0, threading.Event()

    def fail_first() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the agent is gone")
        enough.set()

    ticker = Ticker(fail_first, 0.001)
    assert enough.wait(10)
    ticker.close()
    assert "the agent is gone" in caplog.text


def test_the_score_histogram_has_the_same_buckets_for_every_number_of_levels() -> None:
    # Ray drops what comes with other boundaries than the first process of a node has named.
    boundaries = serve_metrics.SCORE.boundaries
    assert (boundaries[0], boundaries[1], boundaries[-1]) == (1.0, 1.25, 10.0)


def test_every_metric_is_one_that_ray_takes() -> None:
    found = [value for value in vars(serve_metrics).values() if isinstance(value, Metric)]
    assert len({metric.name for metric in found}) == len(found) == 16
    for metric in found:
        made = ray_metric(metric)
        assert made.info["tag_keys"] == metric.labels
        assert metric.boundaries == tuple(made.info.get("boundaries", ()))
        assert metric.name.endswith("_total") == (metric.kind == "Counter")
        assert list(metric.boundaries) == sorted(set(metric.boundaries))


def test_an_engine_tells_its_batches_its_cache_and_what_it_lost(kept: Kept) -> None:
    made = EngineMetrics(kept.make, NEVER_S)
    made.batch(3, 200, 0.1)
    made.prompt(200, 0)
    made.prompt(100, 64)
    made.waiting(5)
    made.waiting(2)
    made.lost("not_finite")
    made.close()
    assert kept.counts == {
        ("prompt_tokens_total",): 300,
        ("cached_tokens_total",): 64,
        ("lost_rewards_total", "not_finite"): 1,
    }
    assert kept.values == {("batch_items",): [3], ("batch_tokens",): [200], ("batch_seconds",): [0.1]}
    assert kept.gauges == {("engine_waiting",): 2}


def test_a_line_of_the_access_log_is_one_json_object_without_what_was_asked() -> None:
    given = record([2.0, 3.0], tokens=70, request_id="abc", seconds=0.0123456)
    written = json.loads(line(given, datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)))
    assert written == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/score",
        "protocol": "native",
        "status": 200,
        "code": "",
        "ms": 12.35,
        "items": 2,
        "tokens": 70,
        "version": "v1",
    }


@pytest.mark.parametrize(
    "hostile", ['\n{"status":200}', "\r\x1b[2J", "\u2028\x85", '"},"status":"', "\ud800", "x" * 9000]
)
def test_what_a_client_chose_can_not_begin_a_line_of_its_own(hostile: str) -> None:
    given = record(request_id=hostile, path="/" + hostile, method=hostile, status=404)
    text = line(given, datetime.now(UTC))
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 2000
    assert json.loads(text)["status"] == 404


def test_a_query_string_is_not_logged() -> None:
    text = line(record(path="/v1/score?token=hunter2"), datetime.now(UTC))
    assert "hunter2" not in text
    assert json.loads(text)["path"] == "/v1/score"


class Lines(logging.Handler):
    """Keeps the lines of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def access() -> Iterator[Lines]:
    lines, log = Lines(), logging.getLogger(ACCESS_LOGGER)
    log.addHandler(lines)
    yield lines
    log.removeHandler(lines)


def test_the_access_log_can_be_turned_off_and_on_while_it_runs(access: Lines) -> None:
    on = True
    log = AccessLog(lambda: on)
    log.began()
    log.ended(record(request_id="first"))
    on = False
    log.ended(record(request_id="second"))
    assert [json.loads(text)["request_id"] for text in access.lines] == ["first"]


def test_without_a_handler_of_the_operators_own_lines_go_to_standard_error_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger(ACCESS_LOGGER)
    before = log.handlers[:], log.propagate, log.level
    log.handlers, log.level = [], logging.NOTSET
    try:
        AccessLog()
        AccessLog().ended(record(request_id="only"))
    finally:
        log.handlers, log.propagate, log.level = before
    (written,) = capfd.readouterr().err.splitlines()
    assert json.loads(written)["request_id"] == "only"


def test_one_observer_that_fails_keeps_no_record_from_the_others(
    access: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def began(self) -> None:
            raise RuntimeError("broken at the beginning")

        def ended(self, record: RequestRecord) -> None:
            raise RuntimeError("broken at the end")

    observers = Observers(Broken(), AccessLog())
    observers.began()
    observers.ended(record())
    assert len(access.lines) == 1
    assert "broken at the beginning" in caplog.text
    assert "broken at the end" in caplog.text


def test_the_observer_of_a_replica_follows_its_settings(
    access: Lines, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ServiceMetrics] = []

    def keep(card: Callable[[], ModelCard], window: Callable[[], int]) -> ServiceMetrics:
        made.append(ServiceMetrics(card, window, kept.make, NEVER_S))
        return made[-1]

    monkeypatch.setattr(serve_metrics, "ServiceMetrics", keep)
    config = ServeConfig(model="rm", drift_window=150)
    told = observer(lambda: config, card)
    told.began()
    told.ended(record([2.0] * 299))
    config = ServeConfig(model="rm", drift_window=150, access_log=False)
    told.ended(record([2.0]))
    made[0].flush()
    made[0].close()
    assert len(access.lines) == 1
    assert kept.counts["items_total",] == 300
    assert kept.gauges["score_psi", "v1"] == 0


def test_a_request_costs_microseconds(kept: Kept) -> None:
    made = ServiceMetrics(card, lambda: 1000, kept.make, NEVER_S)
    one, n = record([2.0] * 8, tokens=800), 2000
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(n):
            made.began()
            made.ended(one)
        best = min(best, (time.perf_counter() - begin) / n)
    made.close()
    # It takes some 3; a call into Ray for each of its ten numbers would take more than this.
    assert best < 30e-6
