"""The reward clients against a real local server that fails in every way servers do. What holds for one holds for both."""

from __future__ import annotations

import asyncio
import email.utils
import json
import operator
import pickle
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import pytest

from wildreward_ray.cluster.reward_client import AsyncRewardClient, RewardClient
from wildreward_ray.cluster.reward_retry import Backoff
from wildreward_ray.core.errors import RewardBrokenError, RewardRefusedError, RewardUnavailableError, UserError
from wildreward_ray.core.wire import Score

KIND = ["sync", "async"]
QUICK = Backoff(first_s=0.01)
TOKEN = "a-very-secret-token"
NAN = float("nan")


@dataclass(frozen=True)
class Answer:
    """What the server does with a request. Without a body it gives the right scores."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    how: Literal["reply", "hang", "reset", "cut", "trickle"] = "reply"
    delay_s: float = 0.0


@dataclass
class Server:
    """Answers each request by its items and by how many requests came before it."""

    answer: Callable[[list[dict[str, Any]], int], Answer]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers.get("content-length", 0))) or b"{}")
        with self.lock:
            number = len(self.asked)
            self.asked.append(body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        items = body.get("items", [])
        answer = self.answer(items, number)
        self.stop.wait(answer.delay_s if answer.how != "hang" else 10)
        with self.lock:
            self.at_once -= 1
        # A client that gave up waiting has closed the connection.
        with suppress(OSError):
            self._send(request, answer, items)

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer, items: list[dict[str, Any]]) -> None:
        if answer.how in ("reset", "hang"):
            # Closing without lingering sends RST instead of FIN.
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body or reply(items)).encode()
        request.send_response(answer.status)
        for name, value in (
            {"content-type": "application/json", "content-length": str(len(body))} | answer.headers
        ).items():
            request.send_header(name, value)
        request.end_headers()
        request.close_connection = answer.how != "reply"
        if answer.how == "trickle":
            for i in range(len(body)):
                request.wfile.write(body[i : i + 1])
                if self.stop.wait(0.05):
                    return
        request.wfile.write(body[: len(body) // 2] if answer.how == "cut" else body)


@contextmanager
def serving(answer: Callable[[list[dict[str, Any]], int], Answer]) -> Iterator[Server]:
    """Run a `Server` in a thread."""
    state = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with state.lock:
                state.connections += 1

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            state.handle(self)

        def do_POST(self) -> None:
            state.handle(self)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def then_right(*first: Answer) -> Callable[[list[dict[str, Any]], int], Answer]:
    """These answers, and the right scores from then on."""
    return lambda items, number: first[number] if number < len(first) else Answer()


def always(answer: Answer) -> Callable[[list[dict[str, Any]], int], Answer]:
    return lambda items, number: answer


def items_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": "p", "response": str(i)} for i in range(start, start + count)]


def p_of(item: dict[str, Any]) -> float:
    return int(item["response"]) / 1000


def reply(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"model": "m", "version": "v", "scores": [score_of(p_of(item)) for item in items]}


def score_of(p: float) -> dict[str, Any]:
    return {"score": 1 + 3 * p, "level_probs": [1 - p, 0.0, 0.0, p], "p_gt": [p, p, p]}


def numbers(scores: Sequence[Score]) -> list[int]:
    """Which items the scores belong to."""
    return [round(1000 * s.p_gt[0]) for s in scores]


def ask(kind: str, url: str, call: Callable[[Any], Any], **settings: Any) -> Any:
    """The result of a call to a new client of either kind."""
    settings = {"backoff": QUICK, **settings}
    if kind == "sync":
        with RewardClient(url, **settings) as client:
            return call(client)

    async def main() -> Any:
        async with AsyncRewardClient(url, **settings) as client:
            return await call(client)

    return asyncio.run(main())


def score(kind: str, url: str, items: Sequence[dict[str, Any]], **settings: Any) -> list[Score]:
    scores: list[Score] = ask(kind, url, lambda client: client.score(items), **settings)
    return scores


def test_the_client_loads_neither_ray_nor_torch() -> None:
    names = ("ray", "torch", "vllm", "transformers", "pyarrow", "numpy")
    code = f"import sys, wildreward_ray.cluster.reward_client\nprint([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KIND)
def test_scores_come_in_the_order_of_their_items_whatever_the_order_of_the_replies(kind: str) -> None:
    delays = random.Random(0)
    with serving(lambda items, number: Answer(delay_s=delays.uniform(0, 0.05))) as server:
        scores = score(kind, server.url, items_of(50), items_per_request=7)
    assert numbers(scores) == list(range(50))
    assert sorted(len(body["items"]) for body in server.asked) == [1] + [7] * 7


@pytest.mark.parametrize("kind", KIND)
def test_a_group_is_one_request_and_an_empty_one_is_none(kind: str) -> None:
    groups = [items_of(3), [], items_of(70, start=10)]
    with serving(always(Answer())) as server:
        scores = ask(kind, server.url, lambda client: client.score_groups(groups))
        assert [numbers(group) for group in scores] == [[0, 1, 2], [], list(range(10, 80))]
        assert sorted(len(body["items"]) for body in server.asked) == [3, 70]
        assert score(kind, server.url, []) == []
    assert len(server.asked) == 2


def test_threads_that_share_a_client_share_its_limit() -> None:
    with serving(always(Answer(delay_s=0.02))) as server, RewardClient(server.url, concurrency=3) as client:
        callers = [threading.Thread(target=client.score_groups, args=([items_of(1)] * 6,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert (len(server.asked), server.most_at_once) == (24, 3)


def test_tasks_that_share_a_client_share_its_limit() -> None:
    async def main(url: str) -> None:
        async with AsyncRewardClient(url, concurrency=3) as client:
            await asyncio.gather(*(client.score_groups([items_of(1)] * 6) for _ in range(4)))

    with serving(always(Answer(delay_s=0.02))) as server:
        asyncio.run(main(server.url))
    assert (len(server.asked), server.most_at_once) == (24, 3)


@pytest.mark.parametrize("kind", KIND)
def test_a_connection_is_used_again_even_after_a_refusal(kind: str) -> None:
    def one_after_another(client: Any) -> Any:
        return client.score(items_of(30))

    with serving(then_right(Answer(503))) as server:
        ask(kind, server.url, one_after_another, concurrency=1, items_per_request=1)
    assert (len(server.asked), server.connections) == (31, 1)


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_a_status_of_load_is_tried_again(status: int, kind: str) -> None:
    with serving(then_right(Answer(status, b"busy"), Answer(status, b"busy"))) as server:
        assert numbers(score(kind, server.url, items_of(2), retries=2)) == [0, 1]
    assert len(server.asked) == 3
    assert server.asked[0] == server.asked[1] == server.asked[2]


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("how", ["hang", "reset", "cut", "trickle"])
def test_a_reply_that_does_not_come_whole_and_in_time_is_asked_for_again(
    how: Literal["hang", "reset", "cut", "trickle"], kind: str
) -> None:
    with serving(then_right(Answer(how=how))) as server:
        assert numbers(score(kind, server.url, items_of(2), timeout_s=0.4)) == [0, 1]
    assert len(server.asked) >= 2


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("status", [302, 400, 401, 404, 413, 422, 500, 501])
def test_a_refusal_is_not_tried_again(status: int, kind: str) -> None:
    body = {"detail": "no such model", "code": "bad_thing"}
    with (
        serving(always(Answer(status, body, {"x-request-id": "req-7"}))) as server,
        pytest.raises(
            RewardRefusedError, match=rf"{server.url} .*HTTP {status} bad_thing \(request req-7\): no such"
        ) as e,
    ):
        score(kind, server.url, items_of(1))
    assert len(server.asked) == 1
    error = e.value
    assert (error.status, error.code, error.detail, error.field) == (status, "bad_thing", "no such model", None)
    assert (error.attempts, error.last_status) == (1, status)


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b'{"detail":[{"msg":"x"}]}', b"[1]", b"\xff", b""])
def test_a_refusal_in_another_form_is_still_a_refusal(body: bytes) -> None:
    with serving(always(Answer(500, body or b" "))) as server, pytest.raises(RewardRefusedError) as e:
        score("sync", server.url, items_of(1))
    assert (e.value.status, e.value.code, e.value.field) == (500, None, None)


@pytest.mark.parametrize("kind", KIND)
def test_a_refused_item_is_named_by_its_place_in_what_the_caller_gave(kind: str) -> None:
    def refuse_9(items: list[dict[str, Any]], number: int) -> Answer:
        for i, item in enumerate(items):
            if item["response"] == "9":
                at = f"items[{i}].response"
                return Answer(422, {"detail": f"{at}: too long", "code": "too_long", "field": at})
        return Answer()

    with serving(refuse_9) as server:
        with pytest.raises(RewardRefusedError, match=r"at items\[9\]\.response: HTTP 422") as e:
            score(kind, server.url, items_of(12), items_per_request=4)
        assert (e.value.field, e.value.detail) == ("items[9].response", "items[9].response: too long")
        assert "items[1]" not in str(e.value)
        with pytest.raises(RewardRefusedError) as e:
            ask(kind, server.url, lambda client: client.score_groups([items_of(8), items_of(4, start=8)]))
        assert e.value.field == "groups[1][1].response"


@pytest.mark.parametrize("kind", KIND)
def test_retries_end_with_an_error_that_tells_how_often_and_why(kind: str) -> None:
    with serving(always(Answer(503, {"detail": "loading", "code": "loading"}))) as server:
        with pytest.raises(RewardUnavailableError, match=r"3 tries, at last HTTP 503 loading: loading") as e:
            score(kind, server.url, items_of(1), retries=2)
        assert len(server.asked) == 3
    assert (e.value.attempts, e.value.last_status) == (3, 503)
    assert not isinstance(e.value, RewardRefusedError)
    with pytest.raises(RewardUnavailableError, match="ConnectError") as e:
        score(kind, server.url, items_of(1), retries=1)
    assert (e.value.attempts, e.value.last_status) == (2, None)


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("asked", ["60", "a date"])
def test_retry_after_is_obeyed_up_to_the_longest_pause(asked: str, kind: str) -> None:
    value = email.utils.formatdate(time.time() + 60, usegmt=True) if asked == "a date" else asked
    backoff = Backoff(longest_s=0.25, draw=lambda: 0.0)
    with serving(then_right(Answer(429, headers={"retry-after": value}))) as server:
        began = time.monotonic()
        assert numbers(score(kind, server.url, items_of(1), backoff=backoff)) == [0]
        assert 0.25 <= time.monotonic() - began < 10


def test_pauses_are_drawn_below_a_bound_that_doubles_up_to_the_longest() -> None:
    top = Backoff(first_s=1.0, longest_s=30.0, draw=lambda: 1.0)
    assert [top.pause_s(n) for n in (1, 2, 3, 4, 5, 6, 2000)] == [1, 2, 4, 8, 16, 30, 30]
    half = Backoff(draw=lambda: 0.5)
    assert [half.pause_s(n) for n in (1, 2, 3)] == [0.5, 1, 2]
    # What the service asks for is the least, and jitter comes on top: it asks all its clients for the same.
    assert [half.pause_s(2, asked_s) for asked_s in (5.0, 30.0, 1e9, float("inf"))] == [6, 31, 31, 31]
    # The deadline shortens what is drawn, not what is asked for.
    assert half.pause_s(5, left_s=3.0) == 1.5
    assert half.pause_s(5, asked_s=4.0, left_s=3.0) == 4.0
    pauses = {Backoff().pause_s(3) for _ in range(50)}
    assert len(pauses) == 50
    assert 0 <= min(pauses) < 1 < 3 < max(pauses) < 4


@pytest.mark.parametrize("kind", KIND)
def test_a_deadline_ends_a_call_whose_replies_do_not_come(kind: str) -> None:
    with serving(always(Answer(how="hang"))) as server:
        began = time.monotonic()
        with pytest.raises(RewardUnavailableError, match="deadline_s") as e:
            score(kind, server.url, items_of(1), deadline_s=0.3)
        assert 0.25 < time.monotonic() - began < 5
    assert e.value.attempts >= 1


@pytest.mark.parametrize("kind", KIND)
def test_a_try_that_would_come_after_the_deadline_is_not_waited_for(kind: str) -> None:
    with serving(always(Answer(503, b"{}", {"retry-after": "20"}))) as server:
        began = time.monotonic()
        with pytest.raises(RewardUnavailableError, match="20 s would be too late") as e:
            score(kind, server.url, items_of(1), deadline_s=15.0, backoff=Backoff(draw=lambda: 0.0))
        assert time.monotonic() - began < 10
    assert (e.value.attempts, e.value.last_status) == (1, 503)


def test_a_deadline_counts_the_wait_for_other_requests_of_the_client() -> None:
    async def main(url: str) -> None:
        async with AsyncRewardClient(url, concurrency=1, deadline_s=0.2) as client:
            # Another request that keeps its turn for good; a real one would give up by the same deadline.
            await client._turns.acquire()
            async with asyncio.timeout(10):
                await client.score(items_of(1))

    with serving(always(Answer())) as server:
        with pytest.raises(RewardUnavailableError, match=r"0 tries, .*deadline_s") as e:
            asyncio.run(main(server.url))
        assert e.value.attempts == 0
        with RewardClient(server.url, concurrency=1, deadline_s=0.2) as client:
            client._turns.acquire()
            release = threading.Timer(20, client._turns.release)
            release.start()
            began = time.monotonic()
            with pytest.raises(RewardUnavailableError, match=r"0 tries, .*deadline_s"):
                client.score(items_of(1))
            assert time.monotonic() - began < 10
            release.cancel()
    assert server.asked == []


def changed(**values: Any) -> dict[str, Any]:
    """A reply to two items whose second score has other values."""
    return {"model": "m", "version": "v", "scores": [score_of(0.5), score_of(0.5) | values]}


THREE_LEVELS = {"score": 2.0, "level_probs": [0.5, 0.0, 0.5], "p_gt": [0.5, 0.5]}
BROKEN = {
    "one_too_few": {"model": "m", "version": "v", "scores": [score_of(0.5)]},
    "one_too_many": {"model": "m", "version": "v", "scores": [score_of(0.5)] * 3},
    "nan_score": changed(score=NAN),
    "null_score": changed(score=None),
    "infinite_score": changed(score=float("inf")),
    "score_as_text": changed(score="2.5"),
    "score_as_bool": {"model": "m", "version": "v", "scores": [score_of(0.0), score_of(0.0) | {"score": True}]},
    "score_below_1": changed(score=0.0),
    "score_above_k": changed(score=5.0, p_gt=[1.0, 1.0, 1.0, 1.0]),
    "score_is_not_the_sum": changed(score=2.50001),
    "nan_p_gt": changed(p_gt=[0.5, NAN, 0.5]),
    "p_gt_beyond_1": changed(p_gt=[1.5, 0.5, -0.5]),
    "nan_level_prob": changed(level_probs=[NAN, 0, 0, 0.5]),
    "level_probs_do_not_add_up": changed(level_probs=[0.5, 0, 0, 0.4]),
    "other_number_of_levels": changed(**THREE_LEVELS),
    "no_levels": changed(score=1.0, p_gt=[], level_probs=[1.0]),
    "no_p_gt": {"model": "m", "version": "v", "scores": [{"score": 2.5}] * 2},
    "error_object": {"detail": "out of memory"},
    "error_and_no_scores": {"error": "out of memory", "scores": None},
    "a_list": [2.5, 2.5],
    "half_a_json": json.dumps(changed()).encode()[:-20],
    "html": b"<html>try again</html>",
    "nothing": b" ",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_reply_of_status_200_without_every_score_is_an_error_and_final(broken: Any) -> None:
    with (
        serving(always(Answer(200, broken))) as server,
        pytest.raises(RewardUnavailableError, match=f"{server.url} sent a reply without usable scores") as e,
    ):
        score("sync", server.url, items_of(2))
    assert len(server.asked) == 1
    assert (type(e.value), e.value.last_status) == (RewardBrokenError, 200)


def test_the_unbroken_form_of_those_replies_is_taken() -> None:
    body = changed(score=2.5 + 1e-9)
    for content_type in ("application/json; charset=utf-8", "application/vnd.scores+json"):
        with serving(always(Answer(200, body, {"content-type": content_type}))) as server:
            assert [s.score for s in score("sync", server.url, items_of(2))] == [2.5, 2.5 + 1e-9]
    with (
        serving(always(Answer(200, body, {"content-type": "text/plain"}))) as server,
        pytest.raises(RewardUnavailableError, match="content type is 'text/plain'"),
    ):
        score("sync", server.url, items_of(2))


def fail_at_5(items: list[dict[str, Any]], number: int) -> Answer:
    """Refuses item 5, keeps item 4 waiting for another try for a minute, and is slow with the rest."""
    if items[0]["response"] == "5":
        return Answer(422, {"detail": "no"}, delay_s=0.1)
    if items[0]["response"] == "4":
        return Answer(503, b"{}", {"retry-after": "60"})
    return Answer(delay_s=0.02)


@pytest.mark.parametrize("kind", KIND)
def test_one_failed_request_ends_the_call_and_leaves_nothing_behind(kind: str) -> None:
    left: list[Any] = []

    def failing(client: Any) -> Any:
        if kind == "sync":
            with pytest.raises(RewardRefusedError):
                client.score(items_of(500))
            left.extend(t for t in threading.enumerate() if t.name.startswith("reward-client"))
            return None

        async def call() -> None:
            with pytest.raises(RewardRefusedError):
                await client.score(items_of(500))
            left.extend(asyncio.all_tasks() - {asyncio.current_task()})

        return call()

    with serving(fail_at_5) as server:
        began = time.monotonic()
        ask(kind, server.url, failing, items_per_request=1, backoff=Backoff(first_s=60, longest_s=60), concurrency=4)
        assert time.monotonic() - began < 20
        sent = len(server.asked)
        time.sleep(0.1)
        assert sent == len(server.asked) < 100
    assert left == []


def test_a_cancelled_call_gives_its_turn_back() -> None:
    async def main(url: str) -> list[Score]:
        async with AsyncRewardClient(url, concurrency=2) as client:
            task = asyncio.create_task(client.score(items_of(6)))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}
            async with asyncio.timeout(5):
                return await client.score(items_of(6))

    with serving(lambda items, number: Answer(how="hang" if number == 0 else "reply")) as server:
        assert numbers(asyncio.run(main(server.url))) == list(range(6))


def test_errors_cross_process_borders_whole() -> None:
    refused = RewardRefusedError("a refused b", status=422, code="too_long", detail="d", field="items[3]", attempts=2)
    unavailable = RewardUnavailableError("gone", attempts=7, last_status=503)
    for error in (refused, unavailable):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
    assert vars(refused) == {
        "status": 422,
        "code": "too_long",
        "detail": "d",
        "field": "items[3]",
        "attempts": 2,
        "last_status": 422,
    }


@pytest.mark.parametrize("kind", KIND)
def test_a_request_carries_token_model_and_the_time_a_reply_is_of_use(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN + "\n")
    with serving(always(Answer())) as server:
        score(kind, server.url + "/", items_of(1), token_env="REWARD_TOKEN", model="rm", timeout_s=7.5)
        score(kind, server.url, items_of(1), token=TOKEN)
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {TOKEN}"] * 2
    assert server.headers[0]["x-request-timeout-ms"] == "7500"
    assert server.asked == [{"items": items_of(1), "model": "rm"}, {"items": items_of(1)}]


def test_errors_and_representations_hold_no_token() -> None:
    with serving(always(Answer(401, {"detail": "no"}))) as server, RewardClient(server.url, token=TOKEN) as client:
        with pytest.raises(RewardRefusedError) as refused:
            client.score(items_of(1))
        with pytest.raises(UserError, match="token") as unknown:
            client.health()
        for thing in (refused.value, unknown.value, client):
            assert TOKEN not in repr(thing) + str(thing)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"token_env": "WILDREWARD_NOT_SET"}, "'WILDREWARD_NOT_SET' is empty"),
        ({"token": " \n"}, "token is empty"),
        ({"token": "a\nb"}, "a header can't"),
        ({"token": "é"}, "a header can't"),
        ({"token": "a", "token_env": "PATH"}, "both"),
    ],
)
def test_a_token_that_can_not_be_sent_is_known_at_once(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as e:
        RewardClient("http://127.0.0.1:1", **settings)
    assert e.value.flag == "--reward.token-env"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a/?b=c", "http://u:secret@a", "http://a:x", ""]
)
def test_a_wrong_url_is_known_at_once(url: str) -> None:
    with pytest.raises(UserError) as e:
        RewardClient(url)
    assert e.value.flag == "--reward-url"
    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    "settings", [{"concurrency": 0}, {"items_per_request": 0}, {"retries": -1}, {"timeout_s": 0}, {"timeout_s": NAN}]
)
def test_a_setting_out_of_range_is_known_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        RewardClient("http://127.0.0.1:1", **settings)


@pytest.mark.parametrize("bad", [{"response": NAN}, {"response": "\ud800"}, {"response": {1}}])
def test_an_item_that_json_can_not_hold_is_named(bad: dict[str, Any]) -> None:
    items = [*items_of(5), {"prompt": "p"} | bad, *items_of(3)]
    with serving(always(Answer())) as server, pytest.raises(UserError, match=r"^items\[5\] can't be sent as JSON"):
        score("sync", server.url, items, items_per_request=2)


HEALTH = {"status": "ok", "model": "m", "version": "v", "engine": "vllm", "levels": 4}
CARD = {
    "id": "rm",
    "source": "/models/rm",
    "version": "v",
    "engine": "vllm",
    "levels": 4,
    "max_length": 4096,
    "dtype": "bfloat16",
    "calibrated": False,
    "created": 1700000000,
}


@pytest.mark.parametrize("kind", KIND)
def test_the_client_tells_what_is_served(kind: str) -> None:
    models = {"object": "list", "data": [{"object": "model", "owned_by": "wildreward", **CARD}]}
    with serving(then_right(Answer(200, HEALTH), Answer(200, models))) as server:
        assert ask(kind, server.url, lambda client: client.health()).model_dump() == HEALTH
        assert [card.model_dump() for card in ask(kind, server.url, lambda client: client.models())] == [CARD]


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, {"detail": "no engine answers", "code": "loading"}),
        Answer(404, b"not here"),
        Answer(200, b"<html></html>"),
        Answer(200, {"status": "ok"}),
        Answer(how="reset"),
        Answer(how="hang"),
    ],
)
def test_what_is_no_reward_service_is_a_user_error_after_one_try(answer: Answer, kind: str) -> None:
    with serving(always(answer)) as server:
        for call in (operator.methodcaller("health"), operator.methodcaller("models")):
            with pytest.raises(UserError, match=f"no reward service answers at '{server.url}'") as e:
                ask(kind, server.url, call, timeout_s=0.2)
            assert e.value.flag == "--reward-url"
    assert len(server.asked) == 2
