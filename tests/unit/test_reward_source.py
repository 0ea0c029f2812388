"""A trainer's source of rewards against a real local server: what is posted in every protocol, and which replies are believed."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeVar, get_args

import pytest

from wildreward_ray.cluster.reward_dialects import SPEECHES, ServiceReward
from wildreward_ray.cluster.reward_retry import Backoff
from wildreward_ray.cluster.reward_source import RewardSource
from wildreward_ray.core.config.online_dpo import RewardClientSection
from wildreward_ray.core.errors import RewardBrokenError, RewardRefusedError, RewardUnavailableError, UserError
from wildreward_ray.core.protocols import DIALECTS
from wildreward_ray.core.service import Input, ModelCard, Reward, Scored

T = TypeVar("T")
HISTORY = [{"role": "system", "content": "Be brief."}]
HEALTH = {"status": "ok", "model": "m", "version": "v", "engine": "vllm", "levels": 4}
CARD = ModelCard(
    id="rm", source="rm", version="1", engine="vllm", levels=4, max_length=9, dtype="x", calibrated=False, created=1
)
FOREIGN = sorted(set(SPEECHES) - {"native"})
NAN, INFINITE = float("nan"), float("inf")


class Answer(NamedTuple):
    """What the server does with a request. Without a body it gives the right scores."""

    status: int = 200
    body: Any = None


class Request(NamedTuple):
    path: str
    body: bytes
    headers: Mapping[str, str]


class Server(ThreadingHTTPServer):
    """Speaks every protocol with the service's own code. `answer` is asked for each request, with its number."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Request, int], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[Request] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self) -> list[Any]:
        return [json.loads(request.body) for request in self.asked if request.body]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self._reply()

    def do_POST(self) -> None:
        self._reply()

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = Request(self.path, body, {name.lower(): value for name, value in self.headers.items()})
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(request)
        answer = self.server.answer(request, number)
        found = answer.body
        if found is None:
            found = right(request) if answer.status == 200 else {"detail": "told to fail", "code": "test"}
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        with suppress(OSError):
            self.send_response(answer.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


@contextmanager
def serving(answer: Callable[[Request, int], Answer] = lambda request, number: Answer()) -> Iterator[Server]:
    """Run a `Server` in a thread."""
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def right(request: Request) -> Any:
    """The reply of the service's own code: reply number n has the probability n / 1000 of the highest level."""
    if request.path == "/healthz":
        return HEALTH
    dialect = next(one for one in DIALECTS if one.path == request.path)
    asked = dialect.read(request.body)
    return dialect.write(asked, Scored([reward(number(one)) for one in asked.inputs], CARD, 1))


def number(one: Input) -> int:
    text = one if isinstance(one, str) else one[2]
    digits = text.rsplit(" ", 1)[-1]
    return int(digits) if digits.isdigit() else 0


def reward(n: int) -> Reward:
    p = n / 1000
    return Reward(1 + 3 * p, [1 - p, 0.0, 0.0, p], [p, p, p])


def replies(count: int) -> list[str]:
    return [f"reply {n}" for n in range(count)]


def render(history: Sequence[Mapping[str, str]], prompt: str, response: str) -> str:
    return "|".join([*(message["content"] for message in history), prompt, response])


def source(url: str, protocol: str = "native", flag: str = "--reward-url", **settings: Any) -> RewardSource:
    section = RewardClientSection.model_validate({"protocol": protocol, "retries": 2, "timeout_s": 20} | settings)
    return RewardSource(url, section, render, flag=flag, backoff=Backoff(first_s=0.01))


def run(made: RewardSource, call: Callable[[RewardSource], Awaitable[T]]) -> T:
    async def main() -> T:
        async with made:
            return await call(made)

    return asyncio.run(main())


def scores(made: RewardSource, count: int = 2) -> list[ServiceReward]:
    return run(made, lambda it: it.score(HISTORY, "How?", replies(count)))


def always(status: int = 200, body: Any = None) -> Callable[[Request, int], Answer]:
    return lambda request, number: Answer(status, body)


# The bytes that clients of the same protocols send, without the spaces that JSON allows.
POSTED = {
    "native": (
        "/v1/score",
        b'{"items":[{"history":[{"role":"system","content":"Be brief."}],"prompt":"How?","response":"reply 0"},'
        b'{"history":[{"role":"system","content":"Be brief."}],"prompt":"How?","response":"reply 1"}]}',
    ),
    "get_reward": ("/get_reward", b'{"query":["Be brief.|How?|reply 0","Be brief.|How?|reply 1"]}'),
    "classify": (
        "/classify",
        b'{"input":["Be brief.|How?|reply 0","Be brief.|How?|reply 1"],"use_activation":false}',
    ),
    "score_evaluation": (
        "/v1/score/evaluation",
        b'{"model":"model","messages":["Be brief.|How?|reply 0","Be brief.|How?|reply 1"]}',
    ),
    "predict": (
        "/predict",
        b'{"inputs":[["Be brief.|How?|reply 0"],["Be brief.|How?|reply 1"]],"raw_scores":true,"truncate":false}',
    ),
}


def test_the_source_loads_neither_ray_nor_torch() -> None:
    names = ("ray", "torch", "vllm", "transformers", "pyarrow", "numpy")
    code = f"import sys, wildreward_ray.cluster.reward_source\nprint([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_every_protocol_of_the_settings_is_spoken_at_the_path_where_the_service_speaks_it() -> None:
    assert set(SPEECHES) == set(get_args(RewardClientSection.model_fields["protocol"].annotation))
    assert {speech.path for speech in SPEECHES.values()} == {dialect.path for dialect in DIALECTS}


@pytest.mark.parametrize("protocol", POSTED)
def test_a_group_is_posted_as_one_request_of_the_protocol_and_its_scores_come_in_order(protocol: str) -> None:
    with serving() as server:
        given = scores(source(server.url, protocol))
    assert [(request.path, request.body) for request in server.asked] == [POSTED[protocol]]
    assert [one.score for one in given] == [1.0, pytest.approx(1.003)]


def test_slime_s_protocol_is_one_request_a_sample_and_keeps_their_order() -> None:
    with serving() as server:
        given = scores(source(server.url, "rm"), 20)
    assert [round((one.score - 1) * 1000 / 3) for one in given] == list(range(20))
    prompt = '[{"role":"system","content":"Be brief."},{"role":"user","content":"How?"}]'
    expected = {f'{{"prompt":{prompt},"response":"reply {n}","label":null}}'.encode() for n in range(20)}
    assert {request.body for request in server.asked} == expected
    assert {request.path for request in server.asked} == {"/v1/rm"}


def test_slime_s_protocol_sends_a_prompt_without_history_as_text() -> None:
    with serving() as server:
        run(source(server.url, "rm"), lambda it: it.score([], "How?", ["x"]))
    assert server.asked[0].body == b'{"prompt":"How?","response":"x","label":null}'


def test_tei_is_sent_no_more_texts_than_it_takes_at_once() -> None:
    with serving() as server:
        given = scores(source(server.url, "predict"), 70)
    assert sorted(len(body["inputs"]) for body in server.bodies()) == [6, 32, 32]
    assert [round((one.score - 1) * 1000 / 3) for one in given] == list(range(70))


def test_level_probabilities_come_with_the_native_protocol_only() -> None:
    with serving() as server:
        given = {protocol: scores(source(server.url, protocol))[1] for protocol in SPEECHES}
    assert given["native"].level_probs == pytest.approx((0.999, 0.0, 0.0, 0.001))
    assert {given[protocol].level_probs for protocol in FOREIGN} == {None}


def classified(*entries: tuple[Any, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [{"index": index, "probs": probs, "num_classes": 1} for index, probs in entries]}


# What the protocols' other servers may send.
TAKEN = [
    ("get_reward", {"rewards": [-7.5, 2], "scores": [0, 1], "extra_logs": {}}, [-7.5, 2.0]),
    ("get_reward", {"rewards": [-7.5, 2], "error": None}, [-7.5, 2.0]),
    ("classify", classified((1, [0.9, 0.1]), (0, [-3.25])), [-3.25, 0.1]),
    ("score_evaluation", {"object": "score.evaluation", "scores": [0.5, -0.5]}, [0.5, -0.5]),
    ("predict", [[{"score": 1.5, "label": "LABEL_0"}], [{"score": -2, "label": "LABEL_0"}]], [1.5, -2.0]),
    ("rm", 3.5, [3.5, 3.5]),
    ("rm", {"score": 2, "reward": 9}, [2.0, 2.0]),
    ("rm", {"reward": 0.25}, [0.25, 0.25]),
]


@pytest.mark.parametrize(("protocol", "body", "expected"), TAKEN)
def test_a_whole_reply_of_another_server_is_taken(protocol: str, body: Any, expected: list[float]) -> None:
    with serving(always(200, body)) as server:
        assert scores(source(server.url, protocol)) == [ServiceReward(score) for score in expected]


ANY_PROTOCOL = [b"<html>busy</html>", b"\xff", b"", b"null", b'{"error":"out of memory"}', b'{"detail":"no"}', b"[1]"]
BROKEN = [
    *((protocol, body) for protocol in SPEECHES for body in ANY_PROTOCOL),
    *(pytest.param(protocol, b"[" * 100_000, id=f"{protocol}-nested") for protocol in FOREIGN),
    *(
        (protocol, {name: values, **extra})
        for protocol, name in (("get_reward", "rewards"), ("score_evaluation", "scores"))
        for values, extra in [
            ([1.0], {}),
            ([1.0, 2.0, 3.0], {}),
            ([1.0, NAN], {}),
            ([1.0, INFINITE], {}),
            ([1.0, None], {}),
            ([1.0, "2.0"], {}),
            ([1.0, True], {}),
            ([1.0, [2.0]], {}),
            ([1.0, 10**400], {}),
            ({"0": 1.0, "1": 2.0}, {}),
            ([1.0, 2.0], {"error": "half of the replicas failed"}),
        ]
    ),
    *(
        ("classify", body)
        for body in [
            classified((0, [1.0])),
            classified((0, [1.0]), (0, [2.0])),
            classified((1, [1.0]), (2, [2.0])),
            classified((0, [1.0]), (-1, [2.0])),
            classified((0, [1.0]), (None, [2.0])),
            classified((0, [1.0]), (True, [2.0])),
            classified((0, [1.0]), (1, [])),
            classified((0, [1.0]), (1, 2.0)),
            classified((0, [1.0]), (1, [NAN])),
            {"data": [1.0, 2.0]},
            {"error": {"message": "out of memory"}, "data": None},
        ]
    ),
    *(
        ("rm", body)
        for body in [NAN, True, "3.5", {"score": None}, {"score": "3"}, {"scores": [1.0]}, {"score": 1, "error": "x"}]
    ),
    *(
        ("predict", body)
        for body in [
            [[{"score": 1.0, "label": "a"}]],
            [{"score": 1.0, "label": "a"}, {"score": 1.0, "label": "a"}],
            [[{"score": 1.0, "label": "a"}, {"score": 2.0, "label": "b"}]] * 2,
            [[{"score": 1.0, "label": "a"}], []],
            [[{"score": 1.0, "label": "a"}], [{"score": NAN, "label": "a"}]],
            [[{"score": 1.0, "label": "a"}], [{"label": "a"}]],
            [[{"score": 1.0, "label": "a"}], [1.0]],
        ]
    ),
]


@pytest.mark.parametrize(("protocol", "body"), BROKEN)
def test_a_reply_that_lacks_one_usable_score_is_an_error_and_final(protocol: str, body: Any) -> None:
    with serving(always(200, body)) as server:
        with pytest.raises(RewardBrokenError, match=f"{server.url} sent a reply without usable scores") as e:
            scores(source(server.url, protocol, concurrency=1))
        assert e.value.last_status == 200
    assert len(server.asked) == 1


def test_a_broken_reply_crosses_process_borders_whole() -> None:
    error = RewardBrokenError("no scores", attempts=3, last_status=200)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (RewardBrokenError, "no scores", vars(error))


@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_busy_service_is_asked_again_in_every_protocol(protocol: str) -> None:
    with serving(lambda request, number: Answer(503 if number < 2 else 200)) as server:
        assert len(scores(source(server.url, protocol, concurrency=1))) == 2


@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_refusal_is_an_error_after_one_request_in_every_protocol(protocol: str) -> None:
    with serving(always(422)) as server, pytest.raises(RewardRefusedError, match="told to fail"):
        scores(source(server.url, protocol, concurrency=1))
    assert len(server.asked) == 1


@pytest.mark.parametrize(("protocol", "field"), [("get_reward", "query[3]"), ("predict", "inputs[3]")])
def test_a_refused_sample_is_named_by_its_place_in_the_group(protocol: str, field: str) -> None:
    body = {"detail": f"{field}: too long", "code": "too_long", "field": field}
    with serving(always(413, body)) as server, pytest.raises(RewardRefusedError) as e:
        scores(source(server.url, protocol), 4)
    assert (e.value.field, e.value.detail) == ("samples[3]", "samples[3]: too long")


def test_a_sample_that_is_refused_in_a_later_request_is_named_by_its_place_in_the_group() -> None:
    def refuse_35(request: Request, number: int) -> Answer:
        body = {"detail": "inputs[3]: too long", "code": "too_long", "field": "inputs[3]"}
        return Answer(413, body) if b"reply 35" in request.body else Answer()

    with serving(refuse_35) as server, pytest.raises(RewardRefusedError) as e:
        scores(source(server.url, "predict"), 40)
    assert e.value.field == "samples[35]"


def test_a_sample_that_json_can_not_hold_is_named() -> None:
    made = source("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^samples\[1\] can't be sent as JSON"):
        run(made, lambda it: it.score([], "How?", ["fine", "\ud800"]))


def test_path_and_token_of_the_settings_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    with serving(always(200, {"rewards": [1.0, 2.0]})) as server:
        scores(source(server.url + "/base/", "get_reward", path="score/me", token_env="REWARD_TOKEN"))
    assert server.asked[0].path == "/base/score/me"
    assert server.asked[0].headers["authorization"] == "Bearer secret"


def test_no_samples_are_no_request() -> None:
    assert scores(source("http://127.0.0.1:9"), 0) == []


def test_the_native_service_is_asked_for_its_health_before_anything_starts() -> None:
    with serving() as server:
        health = run(source(server.url), RewardSource.check)
    assert health is not None
    assert health.model_dump() == HEALTH
    assert [request.path for request in server.asked] == ["/healthz"]


@pytest.mark.parametrize("protocol", FOREIGN)
def test_another_service_is_asked_to_score_one_sample_before_anything_starts(protocol: str) -> None:
    with serving() as server:
        assert run(source(server.url, protocol), RewardSource.check) is None
    assert [request.path for request in server.asked] == [SPEECHES[protocol].path]


def test_a_check_in_an_event_loop_of_its_own_leaves_no_connection_behind_that_breaks_the_run() -> None:
    with serving() as server:
        for protocol in SPEECHES:
            made = source(server.url, protocol)
            asyncio.run(made.check())
            assert len(scores(made)) == 2


@pytest.mark.parametrize("protocol", SPEECHES)
@pytest.mark.parametrize(
    "answer", [Answer(404), Answer(500), Answer(503), Answer(200, b"<html></html>"), Answer(200, {"status": "ok"})]
)
def test_what_gives_no_scores_is_a_user_error_after_one_request(protocol: str, answer: Answer) -> None:
    with serving(lambda request, number: answer) as server, pytest.raises(UserError) as e:
        run(source(server.url, protocol), RewardSource.check)
    assert e.value.problem.startswith(f"no reward service answers at '{server.url}': ")
    assert e.value.flag == "--reward-url"
    assert protocol == "native" or f"asked for {protocol} (--reward.protocol)" in str(e.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_check_that_is_turned_away_names_the_token(protocol: str) -> None:
    with serving(always(401)) as server, pytest.raises(UserError, match="bearer token") as e:
        run(source(server.url, protocol), RewardSource.check)
    assert e.value.flag == "--reward.token-env"


def test_errors_about_a_second_source_name_its_own_flag() -> None:
    flag = "--eval.second-reward-url"
    with pytest.raises(UserError) as e:
        source("not a url", flag=flag)
    assert e.value.flag == flag
    with serving(always(404)) as server, pytest.raises(UserError) as e:
        run(source(server.url, "classify", flag=flag), RewardSource.check)
    assert e.value.flag == flag


def test_a_service_that_is_gone_is_an_error_that_tells_how_often_it_was_asked() -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(RewardUnavailableError, match=r"3 tries.*--reward\.retries") as e:
        scores(source(url, "get_reward"))
    assert (e.value.attempts, type(e.value)) == (3, RewardUnavailableError)
