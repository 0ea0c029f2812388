"""The fuzzer of the service: its requests in this process against a real tiny model, and that it sees what is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from scripts.fuzz_requests import Request
from scripts.fuzz_serve import Answer, Checker, Findings, try_generated, try_hand_requests, try_tokens
from tests.unit.reward_backends import CARD, GOOD, HandMade, OfModel, Watch, ask, tiny_scorer
from wildreward_ray.core.protocols import DIALECTS
from wildreward_ray.core.service import Reward
from wildreward_ray.stages.serve_http import RewardHttp
from wildreward_ray.stages.serve_openapi import openapi

DOCUMENT = openapi(DIALECTS, secured=False)
JSON = {"content-type": "application/json"}


def answer(status: int, body: Any, headers: dict[str, str] = JSON) -> Answer:
    return Answer(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def test_no_generated_request_breaks_the_service(tmp_path_factory: pytest.TempPathFactory) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is in the dev extra")
    watch = Watch()
    app = RewardHttp(OfModel(tiny_scorer(tmp_path_factory.mktemp("model"))), watch, None, {})
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    findings = Findings()
    try_generated(schema, 200, Checker(schema.raw_schema, CARD.levels), findings, headers={})
    assert findings.faults == []
    assert sum(findings.counts.values()) >= 150
    for dialect in DIALECTS:
        statuses = {status for operation, status in findings.counts if operation == f"POST {dialect.path}"}
        assert {200, 422} <= statuses, f"{dialect.path}: {statuses}"
    assert watch.began_count == len(watch.records)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (answer(500, {"detail": "d", "code": "internal"}), "internal"),
        (answer(503, {"detail": "d", "code": "timeout"}), "timeout"),
        (answer(200, b"<html>", {"content-type": "text/html"}), "content-type"),
        (Answer(0, {}, b"connection reset"), "connection reset"),
        (answer(422, b"oops"), "not JSON"),
        (answer(422, {"error": "d"}), "breaks its schema"),
        (answer(200, {"rewards": [1.0]}), "breaks its schema"),
        (answer(200, b'{"model":"m","version":"v","scores":[{"score":NaN,"level_probs":[],"p_gt":[]}]}'), "NaN"),
        (answer(200, {"model": "m", "version": "v", "scores": []}), "no rewards"),
        (
            answer(200, {"model": "m", "version": "v", "scores": [{"score": 4.5, "level_probs": [], "p_gt": []}]}),
            "not in [1, 4]",
        ),
    ],
)
def test_what_is_wrong_with_a_reply_is_seen(fault: Answer, seen: str) -> None:
    (first, *_) = Checker(DOCUMENT, 4).faults("POST", "/v1/score", fault)
    assert seen in first


def test_a_refusal_and_a_reward_in_range_are_no_faults() -> None:
    checker = Checker(DOCUMENT, 4)
    good = {"model": "m", "version": "v", "scores": [GOOD._asdict()]}
    assert checker.faults("POST", "/v1/score", answer(200, good)) == []
    assert checker.faults("POST", "/v1/score", answer(422, {"detail": "d", "code": "c", "field": "items"})) == []


def test_faults_of_a_running_application_are_found_by_generated_requests() -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is in the dev extra")
    app = RewardHttp(HandMade(lambda inputs: [Reward(math.nan, [], [])] * len(inputs)), Watch(), None, {})
    findings = Findings()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path="/get_reward")
    try_generated(schema, 10, Checker(DOCUMENT, CARD.levels), findings, headers={})
    assert any("bad_reward" in fault for fault in findings.faults)


def test_another_status_than_the_right_one_is_a_fault_and_everything_is_counted() -> None:
    app, findings, checker = RewardHttp(HandMade(), Watch(), None, {}), Findings(), Checker(DOCUMENT, CARD.levels)

    def send(request: Request) -> Answer:
        reply = ask(app, request.method, request.path, body=request.body, headers=request.headers)
        return Answer(reply.status_code, dict(reply.headers), reply.content)

    body = b'{"query":["text"]}'
    fine = Request("fine", "/get_reward", body, right=frozenset({200}))
    try_hand_requests([fine, Request("refused?", "/get_reward", body)], send, checker, findings)
    assert findings.counts == {("POST /get_reward", 200): 2}
    assert ["refused?" in fault for fault in findings.faults] == [True]
    try_tokens(send, checker, open_service := Findings())
    assert len(open_service.faults) == sum(open_service.counts.values()) > 0
