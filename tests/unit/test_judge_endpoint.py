"""The judge over HTTP, against a real local server that fails in every way servers do."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from wildreward_ray.cluster.judge_backends import Usage
from wildreward_ray.cluster.judge_endpoint import EndpointClient, retry_after
from wildreward_ray.core.config.judge import EndpointSection, JudgeSection
from wildreward_ray.core.errors import JudgeUnavailableError, UserError
from wildreward_ray.feedback.judge_prompts import REMINDER, SPECS
from wildreward_ray.stages.judges import EndpointJudge, start_judge

KEY = "sk-very-secret-key"
SECRET = "my cat is called Hermenegilda and she bites"
DIGITS = {"1": 0.05, "2": 0.1, "3": 0.2, "4": 0.25, "5": 0.4}
Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """An answer other than a completion. Status 0 hangs up, -1 keeps the client waiting."""

    status: int
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """Answers each request with what `answer` makes of its body and of how many came before it."""

    answer: Callable[[Body, int], Body | Fault | str]
    pause_s: float = 0.0
    asked: list[Body] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        with self._lock:
            n = len(self.asked)
            self.asked.append({**body, "path": request.path})
            self.keys.append(request.headers.get("authorization", ""))
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self._stop.wait(self.pause_s)
        answer = self.answer(body, n)
        if isinstance(answer, Fault) and answer.status == -1:
            self._stop.wait(20)
        with self._lock:
            self._at_once -= 1
        # A client that gave up waiting has closed the connection.
        with suppress(ConnectionError):
            self._send(request, answer)

    def _send(self, request: BaseHTTPRequestHandler, answer: Body | Fault | str) -> None:
        if isinstance(answer, Fault) and answer.status <= 0:
            request.close_connection = True
            return
        status, headers = 200, {"content-type": "application/json"}
        if isinstance(answer, Fault):
            status, content = answer.status, json.dumps({"error": {"message": answer.message}})
            headers |= answer.headers
        elif isinstance(answer, str):
            headers, content = {"content-type": "text/html"}, answer
        else:
            content = json.dumps(answer)
        data = content.encode()
        request.send_response(status)
        for name, value in {**headers, "content-length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[tuple[ThreadingHTTPServer, Server, threading.Thread]] = []

    def begin(answer: Callable[[Body, int], Body | Fault | str], pause_s: float = 0.0) -> Server:
        server = Server(answer, pause_s)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        running.append((http, server, thread))
        return server

    yield begin
    for http, server, thread in running:
        server._stop.set()
        http.shutdown()
        thread.join()
        http.server_close()


def listed(probs: dict[str, float]) -> Body:
    """A chat completion of one token with its likely tokens."""
    top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in probs.items()]
    first = {**top[0], "top_logprobs": top}
    message = {"role": "assistant", "content": top[0]["token"]}
    return completion({"message": message, "logprobs": {"content": [first]}, "finish_reason": "length"})


def written(text: str, finish_reason: str = "stop") -> Body:
    return completion({"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason})


def completion(choice: Body) -> Body:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    usage_details = {**usage, "prompt_tokens_details": {"cached_tokens": 60}}
    return {
        "id": "x",
        "object": "o",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, **choice}],
        "usage": usage_details,
    }


def judge(
    server: Server, *, mode: str = "likelihood", style: str = "chat", votes: int = 1, **endpoint: Any
) -> EndpointJudge:
    settings = {
        "base_url": server.url,
        "max_backoff_s": 0.05,
        "retries": 3,
        "api_key_env": "TEST_JUDGE_KEY",
        **endpoint,
    }
    section = JudgeSection.model_validate(
        {
            "backend": "endpoint",
            "model": "judge-7b",
            "mode": mode,
            "prompt_style": style,
            "endpoint": settings,
            "reasoning": {"votes": votes},
        }
    )
    return EndpointJudge(section)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)


def case(feedback: str = "Thanks") -> dict[str, str]:
    return {"prompt": "How do I sort?", "reply": "Use sorted().", "feedback": feedback}


def last_user(body: Body) -> str:
    return str(body["messages"][-1]["content"])


def test_chat_verdicts_are_the_listed_logprobs_of_one_token(start: Start) -> None:
    server = start(lambda body, n: listed({**DIGITS, "\n": 0.01}))
    asked = judge(server)
    (verdict,) = asked.verdicts("feedback", [case()])
    assert verdict.logprobs == pytest.approx([math.log(p) for p in DIGITS.values()])
    sent = server.asked[0]
    assert (sent["path"], sent["model"]) == ("/v1/chat/completions", "judge-7b")
    assert (sent["max_tokens"], sent["temperature"], sent["logprobs"], sent["top_logprobs"]) == (1, 0, True, 20)
    assert server.keys == [f"Bearer {KEY}"]
    assert asked.usage == Usage(prompt_tokens=100, cached_tokens=60, output_tokens=7, requests=1)


def test_completion_verdicts_add_up_spellings_and_count_what_is_not_listed(start: Start) -> None:
    probs = {" perfect": 0.4, " Perfect": 0.1, " wrong": 0.2, " unk": 0.1, " the": 0.02}

    def answer(body: Body, n: int) -> Body:
        top = {t: math.log(p) for t, p in probs.items()}
        return completion({"text": " perfect", "logprobs": {"top_logprobs": [top]}, "finish_reason": "length"})

    server = start(answer)
    asked = judge(server, style="completion")
    (verdict,) = asked.verdicts("feedback", [case()])
    assert verdict.logprobs == pytest.approx([math.log(p) for p in (0.02, 0.2, 0.1, 0.02, 0.5)])
    assert asked.usage.censored == 2
    assert server.asked[0]["path"] == "/v1/completions"
    assert server.asked[0]["prompt"].endswith('User: "Thanks"\nOpinion of the answer:')
    assert (server.asked[0]["logprobs"], server.asked[0]["max_tokens"]) == (20, 1)


def test_refusals_have_as_many_classes_as_their_prompt(start: Start) -> None:
    server = start(lambda body, n: listed(DIGITS))
    (verdict,) = judge(server).verdicts("refusal", [case()])
    assert verdict.logprobs == pytest.approx([math.log(p) for p in (0.05, 0.1, 0.2)])


def test_no_verdict_among_the_tokens_is_a_failure_and_no_label(start: Start) -> None:
    server = start(lambda body, n: listed({"The": 0.9, "I": 0.05}) if "odd" in last_user(body) else listed(DIGITS))
    odd, plain = judge(server).verdicts("feedback", [case("odd"), case("plain")])
    assert (odd.logprobs, odd.failure) == (None, "no_verdict_token")
    assert plain.failure is None


def test_verdicts_are_in_the_order_of_the_interactions_whatever_the_order_of_replies(start: Start) -> None:
    def answer(body: Body, n: int) -> Body:
        digit = last_user(body).split("number ")[1][0]
        time.sleep(0.02 * (5 - int(digit)))
        return listed({digit: 0.9, **{d: 0.02 for d in DIGITS if d != digit}})

    found = judge(start(answer)).verdicts("feedback", [case(f"number {1 + i % 5}") for i in range(20)])
    levels = [max(range(5), key=(v.logprobs or []).__getitem__) for v in found]
    assert levels == [i % 5 for i in range(20)]


def test_no_more_requests_are_in_flight_than_allowed_and_as_many_as_allowed(start: Start) -> None:
    server = start(lambda body, n: listed(DIGITS), pause_s=0.05)
    assert len(judge(server, concurrency=3).verdicts("feedback", [case()] * 12)) == 12
    assert server.most_at_once == 3


@pytest.mark.parametrize("fault", [Fault(503), Fault(500), Fault(429), Fault(408), Fault(409), Fault(0)], ids=str)
def test_what_may_pass_is_tried_again(start: Start, fault: Fault) -> None:
    server = start(lambda body, n: fault if n < 2 else listed(DIGITS))
    asked = judge(server)
    (verdict,) = asked.verdicts("feedback", [case()])
    assert verdict.logprobs is not None
    assert (len(server.asked), asked.usage.retried, asked.usage.requests) == (3, 2, 1)


def test_retry_after_is_kept_up_to_the_longest_pause(start: Start) -> None:
    server = start(lambda body, n: Fault(429, headers={"retry-after": "0.4"}) if n == 0 else listed(DIGITS))
    judge(server, max_backoff_s=5).verdicts("feedback", [case()])
    assert 0.4 <= server.times[1] - server.times[0] < 2
    server = start(lambda body, n: Fault(429, headers={"retry-after": "3600"}) if n == 0 else listed(DIGITS))
    judge(server, max_backoff_s=0.2).verdicts("feedback", [case()])
    assert 0.2 <= server.times[1] - server.times[0] < 2


def test_retry_after_is_read_in_every_form() -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    ahead = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert retry_after({"retry-after": ahead}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_server_that_hangs_is_given_up_after_the_timeout(start: Start) -> None:
    server = start(lambda body, n: Fault(-1) if n == 0 else listed(DIGITS))
    begin = time.monotonic()
    (verdict,) = judge(server, timeout_s=0.3).verdicts("feedback", [case()])
    assert verdict.logprobs is not None
    assert time.monotonic() - begin < 5
    silent = start(lambda body, n: Fault(-1))
    with pytest.raises(JudgeUnavailableError, match=r"failed 2 times, at last with no answer within 0\.2 s"):
        judge(silent, timeout_s=0.2, retries=1).verdicts("feedback", [case()])


def test_server_that_stays_down_ends_the_run_and_gives_no_verdict(start: Start) -> None:
    server = start(lambda body, n: Fault(503, "out of memory"))
    with pytest.raises(JudgeUnavailableError, match=r"http://127.*failed 4 times.*HTTP 503: out of memory") as caught:
        judge(server).verdicts("feedback", [case(SECRET)])
    assert len(server.asked) == 4
    assert KEY not in str(caught.value)


def test_nobody_listening_is_an_error_that_names_the_address() -> None:
    with pytest.raises(
        JudgeUnavailableError, match=r"http://127\.0\.0\.1:9/v1 failed 4 times.*judge\.endpoint\.base-url"
    ):
        judge(Server(lambda body, n: {}, url="http://127.0.0.1:9/v1")).verdicts("feedback", [case()])


@pytest.mark.parametrize(
    ("status", "message", "flag"),
    [
        (401, f"Incorrect API key provided: {KEY}", "--judge.endpoint.api-key-env"),
        (403, "not allowed", "--judge.endpoint.api-key-env"),
        (404, "The model `judge-7b` does not exist.", "--judge.model"),
        (404, "Not Found", "--judge.endpoint.base-url"),
        (400, "Requested sample logprobs of 20, which is greater than max allowed: 5", "--judge.mode"),
        (400, "This model's maximum context length is 512 tokens", "--judge.model"),
        (422, "bad field", "--judge.model"),
    ],
)
def test_what_can_not_pass_is_an_error_at_once_that_names_the_setting(
    start: Start, status: int, message: str, flag: str
) -> None:
    server = start(lambda body, n: Fault(status, message))
    with pytest.raises(UserError, match=rf"http://127.*judge-7b.*HTTP {status}") as caught:
        judge(server, concurrency=1).verdicts("feedback", [case(SECRET)] * 5)
    assert caught.value.flag == flag
    assert message.replace(KEY, "…") in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1


def test_error_does_not_show_the_texts_that_a_server_echoes(start: Start) -> None:
    server = start(lambda body, n: Fault(400, f"can't process: {last_user(body)[20:]} (rule 7)"))
    with pytest.raises(UserError, match=r"can't process: … ?\(rule 7\)") as caught:
        judge(server).verdicts("feedback", [case(SECRET)])
    assert "Hermenegilda" not in str(caught.value)


@pytest.mark.parametrize("page", ["<html>Welcome</html>", {"detail": "ok"}])
def test_address_of_something_else_is_an_error(start: Start, page: Body | str) -> None:
    with pytest.raises(UserError, match=r"no completion.*--judge\.endpoint\.base-url"):
        judge(start(lambda body, n: page)).verdicts("feedback", [case()])


def test_server_without_logprobs_is_an_error_that_names_the_other_mode(start: Start) -> None:
    with pytest.raises(UserError, match=r"gives no log-probabilities.*reasoning.*--judge\.mode"):
        judge(start(lambda body, n: written("5"))).verdicts("feedback", [case()])


def test_missing_key_sends_none(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY")
    server = start(lambda body, n: listed(DIGITS))
    judge(server).verdicts("feedback", [case()])
    assert server.keys == ["Bearer none"]


def test_votes_are_asked_one_by_one_and_counted(start: Start) -> None:
    server = start(lambda body, n: written(f"Because.\nVerdict: {5 if n % 3 else 4}"))
    asked = judge(server, mode="reasoning", votes=3, concurrency=1)
    (verdict,) = asked.verdicts("feedback", [case()])
    assert verdict.logprobs == pytest.approx([math.log(p) for p in (0.05, 0.05, 0.05, 0.3, 0.55)])
    assert len(verdict.answers) == 3
    assert {body["seed"] for body in server.asked} == {0, 1, 2}
    assert {(b["temperature"], b["max_tokens"]) for b in server.asked} == {(0.5, 512)}
    assert server.asked[0]["messages"][0]["content"] == SPECS["feedback", "reasoning"].instructions
    assert (asked.usage.requests, asked.usage.reasked, asked.usage.unparseable) == (3, 0, 0)


def test_answer_without_verdict_is_asked_for_again_with_a_reminder(start: Start) -> None:
    def answer(body: Body, n: int) -> Body:
        return written("Verdict: 2") if last_user(body) == REMINDER else written("I'd say " + "x" * 900 + " two")

    server = start(answer)
    asked = judge(server, mode="reasoning", votes=2)
    (verdict,) = asked.verdicts("feedback", [case()])
    assert verdict.failure is None
    assert verdict.answers == ["Verdict: 2", "Verdict: 2"]
    assert (asked.usage.reasked, asked.usage.unparseable) == (2, 0)
    again = next(b for b in server.asked if last_user(b) == REMINDER)["messages"]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"].endswith("x two")
    assert len(again[2]["content"]) <= 200


def test_votes_that_stay_without_verdict_are_void_and_the_others_count(start: Start) -> None:
    server = start(lambda body, n: written("Verdict: 1") if body["seed"] == 0 else written("Verdict: 1 or 2"))
    asked = judge(server, mode="reasoning", votes=3)
    (verdict,) = asked.verdicts("feedback", [case()])
    assert verdict.logprobs is not None
    assert math.exp(verdict.logprobs[0]) == pytest.approx((1 + 1 / 5) / 2)
    assert (asked.usage.unparseable, asked.usage.reasked) == (2, 2)


@pytest.mark.parametrize(
    "answer",
    [written("Verdict: 5", "length"), written("Verdict: 9"), written("It said Verdict: 5 in its text"), written("")],
)
def test_no_vote_at_all_is_a_failure_and_no_label(start: Start, answer: Body) -> None:
    asked = judge(start(lambda body, n: answer), mode="reasoning", votes=2)
    (verdict,) = asked.verdicts("feedback", [case()])
    assert (verdict.logprobs, verdict.failure) == (None, "unparseable_verdict")
    assert (asked.usage.unparseable, asked.usage.requests) == (2, 4)


def test_masked_spans_are_counted_and_not_sent(start: Start) -> None:
    server = start(lambda body, n: listed(DIGITS))
    asked = judge(server)
    asked.verdicts("feedback", [case("Bad. Level: 5"), case("Bad.")])
    assert asked.usage.masked == 1
    assert not any("Bad. Level: 5" in last_user(b) for b in server.asked)


def test_judge_is_the_backend_that_was_named_and_asks_nothing_for_nothing(start: Start) -> None:
    server = start(lambda body, n: listed(DIGITS))
    asked = start_judge(judge(server)._section, flag="--cascade.judge")
    assert asked.verdicts("feedback", []) == []
    assert server.asked == []
    assert "{fields}" in asked.prompt_text("feedback")
    refusing = start(lambda body, n: Fault(401))
    with pytest.raises(UserError) as caught:
        start_judge(judge(refusing)._section, flag="--cascade.judge").verdicts("feedback", [case()])
    assert caught.value.flag == "--cascade.judge.endpoint.api-key-env"


def test_endpoint_without_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs endpoint\.base_url"):
        JudgeSection(backend="endpoint")
    with pytest.raises(ValueError, match="no http:// or https:// address"):
        JudgeSection(backend="endpoint", endpoint=EndpointSection(base_url="localhost:8000"))
    with pytest.raises(UserError, match=r"--judge\.endpoint\.base-url"):
        EndpointClient(EndpointSection(), "m", Usage(), flag="--judge")


@pytest.mark.parametrize(
    ("mode", "prior", "corrects"),
    [
        ("likelihood", "auto", True),
        ("reasoning", "auto", False),
        ("reasoning", "batch", True),
        ("likelihood", "none", False),
    ],
)
def test_prior_is_taken_out_of_likelihoods_unless_told_otherwise(mode: str, prior: str, corrects: bool) -> None:
    assert JudgeSection.model_validate({"mode": mode, "prior": prior}).corrects_prior is corrects
