"""The HTTP application: who gets rewards, what everybody else gets told, and what is known of a request afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from scripts.fuzz_requests import Request, hand_requests
from scripts.fuzz_serve import REWARDS, Answer, Checker
from tests.unit.reward_backends import CARD, GOOD, HandMade, OfModel, Watch, ask, tiny_scorer
from wildreward_ray.core.protocols import DIALECTS, Dialect
from wildreward_ray.core.service import Input, RequestRecord, Reward, Scored, ServiceError
from wildreward_ray.stages.scoring import Scorer
from wildreward_ray.stages.serve_http import RewardHttp
from wildreward_ray.stages.serve_openapi import EXAMPLES, openapi
from wildreward_ray.stages.serve_reply import check_rewards, json_reply

PAGES = {"/": ("text/html; charset=utf-8", b"<p>play</p>"), "/docs": ("text/html; charset=utf-8", b"<p>docs</p>")}
ITEM = {"prompt": "p", "response": "r"}
ONE = {"items": [ITEM]}
TOKEN = "s3cr\u00e9t"
by_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return tiny_scorer(tmp_path_factory.mktemp("model"))


def application(
    backend: Any = None, *, watch: Watch | None = None, token: str | None = None, **settings: Any
) -> RewardHttp:
    return RewardHttp(backend or HandMade(**settings), watch or Watch(), token, PAGES)


def failing(error: Exception) -> HandMade:
    def answer(inputs: Sequence[Input]) -> Any:
        raise error

    return HandMade(answer)


def send_raw(
    app: RewardHttp,
    messages: list[dict[str, Any]],
    *,
    method: str = "POST",
    path: str = "/v1/score",
    headers: Any = (),
) -> list[dict[str, Any]]:
    """What the application sends after these ASGI messages; asking for more of them than there are is a failure."""
    left, sent = list(messages), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": list(headers)}, receive, send))
    return sent


def test_rewards_are_the_models_own_in_the_order_of_the_request(scorer: Scorer) -> None:
    items = [{"prompt": "Why?", "response": text} for text in ("Because.", "No.", "I can't say, ask a doctor.", "")]
    reply = ask(application(OfModel(scorer)), "POST", "/v1/score", json={"items": items}).json()
    expected = scorer.score([scorer.encoder.encode([], item["prompt"], item["response"]) for item in items])
    assert [s["score"] for s in reply["scores"]] == pytest.approx(expected.score.tolist(), abs=1e-5)
    assert len({round(s["score"], 4) for s in reply["scores"]}) == len(items)
    for score in reply["scores"]:
        assert score["score"] == pytest.approx(1 + sum(score["p_gt"]))
        assert score["score"] == pytest.approx(sum(i * p for i, p in enumerate(score["level_probs"], start=1)))
    assert (reply["model"], reply["version"]) == ("tiny", "v1")


@by_dialect
def test_every_protocols_example_is_scored_as_the_document_says(dialect: Dialect, scorer: Scorer) -> None:
    reply = ask(application(OfModel(scorer)), "POST", dialect.path, json=EXAMPLES[dialect.name])
    answer = Answer(reply.status_code, dict(reply.headers), reply.content)
    assert reply.status_code == 200, reply.text
    assert Checker(openapi(DIALECTS, secured=False), CARD.levels).faults("POST", dialect.path, answer) == []
    assert len(REWARDS[dialect.name](reply.json())) == 1


@pytest.mark.parametrize("request_", hand_requests(), ids=lambda request: request.name)
def test_a_broken_request_is_told_what_is_wrong_and_an_odd_one_is_scored(request_: Request, scorer: Scorer) -> None:
    reply = ask(
        application(OfModel(scorer)), request_.method, request_.path, body=request_.body, headers=request_.headers
    )
    answer = Answer(reply.status_code, dict(reply.headers), reply.content)
    assert reply.status_code in request_.right, reply.text[:300]
    assert Checker(openapi(DIALECTS, secured=False), CARD.levels).faults(request_.method, request_.path, answer) == []


def test_a_key_that_comes_twice_is_no_request() -> None:
    reply = ask(application(), "POST", "/v1/score", body=b'{"items":[{"prompt":"p","response":"a","response":"b"}]}')
    assert (reply.status_code, reply.json()["field"]) == (422, "response")


def test_rewards_need_the_token_and_health_and_pages_do_not() -> None:
    backend = HandMade()
    app = application(backend, token=TOKEN)
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer s3cr"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
    ]
    for headers in wrong:
        encoded: Any = {name: value.encode() for name, value in headers.items()}
        for method, path in (("POST", "/v1/score"), ("GET", "/v1/models"), ("GET", "/openapi.json")):
            reply = ask(app, method, path, json=ONE if method == "POST" else None, headers=encoded)
            assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized"), (headers, path)
            assert reply.headers["www-authenticate"] == "Bearer"
    assert backend.asked == []
    right: Any = {"authorization": f"bearer {TOKEN}".encode()}
    assert ask(app, "POST", "/v1/score", json=ONE, headers=right).status_code == 200
    for path in ("/healthz", "/readyz", "/", "/docs"):
        assert ask(app, "GET", path).status_code == 200


def test_checks_go_from_the_path_to_the_body() -> None:
    app = application(token=TOKEN)
    assert ask(app, "POST", "/nowhere").status_code == 404
    assert ask(app, "GET", "/v1/score").status_code == 405
    large = {"content-length": str(10**9)}
    assert ask(app, "POST", "/v1/score", body=b"x", headers=large).status_code == 401


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    for length in (b"8388609", b"1" * 5000):
        sent = send_raw(application(max_body_mb=8), [], headers=[(b"content-length", length)])
        assert sent[0]["status"] == 413
    for length in (b"", b"-1", b"1e3"):
        assert send_raw(application(), [], headers=[(b"content-length", length)])[0]["status"] == 400


def test_a_body_of_unknown_length_is_read_to_the_limit_and_no_further() -> None:
    body = json.dumps(ONE).encode()
    chunks = [{"type": "http.request", "body": body[i : i + 7], "more_body": True} for i in range(0, len(body), 7)]
    sent = send_raw(application(), [*chunks, {"type": "http.request"}])
    assert (sent[0]["status"], len(json.loads(sent[1]["body"])["scores"])) == (200, 1)
    endless = [{"type": "http.request", "body": b"x" * 2**19, "more_body": True}] * 3
    sent = send_raw(application(max_body_mb=1), endless)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    reply = ask(application(request_timeout_s=0.05), "POST", "/v1/score", body=endless())
    assert (reply.status_code, reply.json()["code"]) == (408, "body_timeout")


def test_a_client_that_hangs_up_before_its_body_is_there_gets_nothing_and_is_recorded() -> None:
    watch = Watch()
    app = application(watch=watch)
    assert send_raw(app, [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]) == []
    assert [(r.status, r.code) for r in watch.records] == [(499, "client_closed")]


def test_a_cancelled_request_cancels_its_scoring_and_is_recorded() -> None:
    backend, watch = HandMade(seconds=60), Watch()
    app = application(backend, watch=watch)
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(ONE).encode()}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async def hang_up() -> None:
        request = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.sleep(0.05)
        request.cancel()
        await request

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(hang_up())
    assert backend.cancelled == 1
    assert [(r.status, r.code, r.items) for r in watch.records] == [(499, "client_closed", 1)]


@pytest.mark.parametrize(("service_s", "header"), [(0.05, None), (0.05, "60000"), (60.0, "50")])
def test_scoring_that_takes_too_long_is_cancelled_and_worth_another_try(service_s: float, header: str | None) -> None:
    backend = HandMade(seconds=5, request_timeout_s=service_s)
    headers = None if header is None else {"x-request-timeout-ms": header}
    reply = ask(application(backend), "POST", "/v1/score", json=ONE, headers=headers)
    assert (reply.status_code, reply.json()["code"], backend.cancelled) == (503, "timeout", 1)
    assert int(reply.headers["retry-after"]) >= 1


@by_dialect
def test_an_input_without_reward_is_named_as_its_protocol_names_it(dialect: Dialect) -> None:
    error = ServiceError(422, "too_long", "the text has 900 tokens and the model reads at most 512", item=0)
    reply = ask(application(failing(error)), "POST", dialect.path, json=EXAMPLES[dialect.name])
    assert reply.status_code == 422
    assert reply.json() == {"detail": error.detail, "code": "too_long", "field": dialect.item_field(0)}


@pytest.mark.parametrize(("status", "given", "expected"), [(503, None, "1"), (503, 0.2, "1"), (503, 4.1, "5")])
def test_a_busy_service_says_when_to_try_again(status: int, given: float | None, expected: str) -> None:
    error = ServiceError(status, "overloaded", "too many items are waiting", retry_after_s=given)
    reply = ask(application(failing(error)), "POST", "/v1/score", json=ONE)
    assert (reply.status_code, reply.headers["retry-after"]) == (status, expected)


@pytest.mark.parametrize("error", [RuntimeError("saw: my diary"), TimeoutError("my diary"), OSError("my diary")])
def test_an_unforeseen_failure_tells_the_client_nothing_and_the_log_everything(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    with caplog.at_level(logging.ERROR):
        reply = ask(application(failing(error), watch=watch), "POST", "/v1/score", json=ONE)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "diary" not in reply.text
    assert "Traceback" in caplog.text
    assert watch.records[0].request_id in caplog.text


NAN, INF = math.nan, math.inf
BAD_REWARDS: dict[str, list[Any]] = {
    "NaN score": [Reward(NAN, GOOD.level_probs, GOOD.p_gt)],
    "infinite score": [Reward(INF, GOOD.level_probs, GOOD.p_gt)],
    "score below the scale": [Reward(0.999, GOOD.level_probs, GOOD.p_gt)],
    "score above the scale": [Reward(4.001, GOOD.level_probs, GOOD.p_gt)],
    "NaN probability": [Reward(2.0, [NAN, 0.5, 0.25, 0.25], GOOD.p_gt)],
    "infinite threshold probability": [Reward(2.0, GOOD.level_probs, [INF, 0.5, 0.2])],
    "negative probability": [Reward(2.0, [-0.1, 0.6, 0.25, 0.25], GOOD.p_gt)],
    "other levels": [Reward(2.0, [0.5, 0.3, 0.2], [0.5, 0.2])],
    "too few": [],
    "too many": [GOOD, GOOD],
}


@pytest.mark.parametrize("rewards", BAD_REWARDS.values(), ids=BAD_REWARDS)
def test_a_reward_that_is_none_is_never_a_number_in_any_protocol(rewards: list[Any]) -> None:
    for dialect in DIALECTS:
        watch = Watch()
        app = application(HandMade(lambda _: rewards), watch=watch)
        reply = ask(app, "POST", dialect.path, json=EXAMPLES[dialect.name])
        assert (reply.status_code, reply.json()["code"]) == (500, "bad_reward"), dialect.name
        assert watch.records[0].scores == []


@pytest.mark.parametrize("rewards", BAD_REWARDS.values(), ids=BAD_REWARDS)
def test_a_bad_reward_is_found_before_a_protocol_writes_it(rewards: list[Any]) -> None:
    with pytest.raises(ServiceError) as error:
        check_rewards(Scored(rewards, CARD, 0), 1)
    assert error.value.code == "bad_reward"


def test_no_reply_can_hold_a_number_that_is_not_finite() -> None:
    for number in (NAN, INF, -INF):
        with pytest.raises(ValueError, match="JSON compliant"):
            json_reply({"rewards": [number]})


@pytest.mark.parametrize("score", [1.0, 4.0])
def test_the_ends_of_the_scale_are_rewards(score: float) -> None:
    certain = Reward(score, [float(score == 1), 0.0, 0.0, float(score == 4)], [float(score == 4)] * 3)
    reply = ask(application(HandMade(lambda _: [certain])), "POST", "/v1/score", json=ONE)
    assert reply.json()["scores"][0]["score"] == score


def test_only_the_model_that_is_served_answers_to_a_name() -> None:
    backend = HandMade()
    app = application(backend)
    for name in (CARD.id, CARD.source):
        assert ask(app, "POST", "/v1/score", json={**ONE, "model": name}).status_code == 200
    reply = ask(app, "POST", "/v1/score", json={**ONE, "model": "gpt"})
    assert (reply.status_code, reply.json()["code"], reply.json()["field"]) == (404, "model_not_found", "model")
    assert len(backend.asked) == 2


def test_more_items_than_allowed_reach_no_model() -> None:
    backend = HandMade(max_items=3)
    app = application(backend)
    assert ask(app, "POST", "/v1/score", json={"items": [ITEM] * 3}).status_code == 200
    for path, body in (("/v1/score", {"items": [ITEM] * 4}), ("/get_reward", {"query": ["x"] * 4})):
        reply = ask(app, "POST", path, json=body)
        assert (reply.status_code, reply.json()["code"]) == (413, "too_many_items")
    assert len(backend.asked) == 1


def test_an_id_that_is_printable_ascii_comes_back_and_another_is_replaced() -> None:
    app = application()
    for given in ("a", "run-7 step/3", "x" * 128):
        assert ask(app, "POST", "/v1/score", json=ONE, headers={"x-request-id": given}).headers["x-request-id"] == given
    bad: Any
    for bad in ("", "x" * 129, "tab\there", "\u00e9".encode()):
        made = ask(app, "POST", "/v1/score", json=ONE, headers={"x-request-id": bad}).headers["x-request-id"]
        assert len(made) == 32
    assert ask(app, "GET", "/healthz").headers["x-request-id"] != ask(app, "GET", "/healthz").headers["x-request-id"]


def test_no_id_is_sent_where_the_proxy_sends_it() -> None:
    app = RewardHttp(HandMade(), Watch(), None, {}, sends_request_id=False)
    assert "x-request-id" not in ask(app, "GET", "/healthz").headers


def test_every_request_is_told_of_once_and_without_its_text() -> None:
    watch = Watch()
    app = application(watch=watch)
    secret = "diary" * 20
    body = {"items": [{"prompt": secret, "response": secret}] * 2}
    ask(app, "POST", "/v1/score", json=body, headers={"x-request-id": "mine"})
    ask(app, "POST", "/get_reward", json={"query": secret})
    ask(app, "GET", "/nowhere")
    ask(app, "HEAD", "/")
    scored, refused, lost, page = watch.records
    assert watch.began_count == 4
    assert scored.seconds > 0
    scored.seconds = 0.0
    assert scored == RequestRecord(
        "mine", "POST", "/v1/score", "native", 200, "", 0.0, items=2, tokens=14, version="v1", scores=[2.5, 2.5]
    )
    assert (refused.protocol, refused.status, refused.scores, refused.tokens) == ("wildreward", 422, [], 0)
    assert (lost.protocol, lost.status, lost.code) == ("", 404, "not_found")
    assert (page.method, page.status, page.code) == ("HEAD", 200, "")
    assert not any(secret in repr(record) for record in watch.records)


def test_health_is_that_of_the_engines() -> None:
    for path in ("/healthz", "/readyz"):
        reply = ask(application(), "GET", path)
        assert reply.json() == {
            "status": "ok",
            "model": "tiny",
            "version": "v1",
            "engine": "transformers",
            "levels": 4,
        }
        down = failing(ServiceError(503, "no_engine", "no engine replica is up", retry_after_s=5))
        reply = ask(application(down), "GET", path)
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "no_engine", "5")


def test_a_service_without_a_model_yet_is_not_ready_but_shows_its_pages() -> None:
    class Loading(HandMade):
        def __getattribute__(self, name: str) -> Any:
            if name == "config":
                raise ServiceError(503, "loading", "the model is being loaded", retry_after_s=5)
            return super().__getattribute__(name)

    app = application(Loading())
    for method, path in (("GET", "/readyz"), ("POST", "/v1/score"), ("POST", "/get_reward")):
        reply = ask(app, method, path, json=ONE if method == "POST" else None)
        assert (reply.status_code, reply.json()["code"]) == (503, "loading")
    assert ask(app, "GET", "/").text == "<p>play</p>"
    assert ask(app, "GET", "/openapi.json").status_code == 200


def test_the_model_is_listed_and_found_by_its_name_and_by_its_path() -> None:
    app = application()
    listed = ask(app, "GET", "/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert model == {**CARD.model_dump(), "object": "model", "owned_by": "wildreward"}
    for name in ("tiny", "/models/tiny", "%2Fmodels%2Ftiny"):
        assert ask(app, "GET", f"/v1/models/{name}").json() == model
    assert ask(app, "GET", "/v1/models/other").json()["code"] == "model_not_found"


def test_head_has_the_headers_of_get_and_no_body() -> None:
    for path in ("/healthz", "/v1/models", "/openapi.json", "/docs"):
        (get, got), (head, nothing) = (
            send_raw(application(), [], method=method, path=path) for method in ("GET", "HEAD")
        )
        assert (len(got["body"]) > 0, nothing["body"]) == (True, b"")
        for name in (b"content-type", b"content-length"):
            assert dict(head["headers"])[name] == dict(get["headers"])[name]


def test_a_wrong_method_is_told_the_right_ones() -> None:
    for method, path, allowed in (
        ("GET", "/v1/score", "POST"),
        ("DELETE", "/predict", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
        ("OPTIONS", "/v1/models/x", "GET, HEAD"),
    ):
        reply = ask(application(), method, path)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


def test_a_path_that_is_nearly_right_is_pointed_to_the_right_one() -> None:
    assert "'/v1/score'" in ask(application(), "POST", "/v1/scores").json()["detail"]


def test_pages_may_load_nothing_from_elsewhere() -> None:
    reply = ask(application(), "GET", "/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("secured", [False, True])
def test_the_document_is_openapi_and_asks_for_a_token_where_one_is_needed(secured: bool) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="comes with moto, of the dev extra")
    document = ask(
        application(token="x" if secured else None), "GET", "/openapi.json", headers={"authorization": "Bearer x"}
    ).json()
    validator.validate(document)
    assert {dialect.path for dialect in DIALECTS} < document["paths"].keys()
    assert ("security" in document, "401" in document["paths"]["/v1/score"]["post"]["responses"]) == (secured, secured)
    assert document["paths"]["/healthz"]["get"]["security"] == []


def test_a_server_can_start_and_stop_the_application_and_sockets_are_closed() -> None:
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "anything"}

    async def run() -> None:
        for kind in ("lifespan", "websocket"):
            await application()({"type": kind, "headers": []}, receive, send)

    asyncio.run(run())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
