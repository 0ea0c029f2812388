"""The reward of `bench online-dpo`: a small HTTP server without a model, so that what is measured is sampling and learning.

It speaks `/v1/score` and `/healthz` as the reward service does. Shorter replies get more, so two samples of one prompt seldom
tie and nearly every prompt gives a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from pydantic import ValidationError

from wildreward_ray.core.service import Reward
from wildreward_ray.core.wire import Health, Score, ScoreReply, ScoreRequest

_LEVELS = 4
_NAME, _VERSION = "length", "1"
# A reply of this many characters gets the reward in the middle.
_MIDDLE_CHARACTERS = 200


def reward_of(response: str) -> Reward:
    """The reward of a reply, in (1, 4]: all mass is on the lowest and on the highest level, and less on that the longer it is."""
    top = 1 / (1 + len(response) / _MIDDLE_CHARACTERS)
    between = _LEVELS - 2
    return Reward(1 + (_LEVELS - 1) * top, [1 - top] + [0.0] * between + [top], [top] * (_LEVELS - 1))


@contextmanager
def reward_server() -> Iterator[str]:
    """Serve in a thread of this process for the length of a context. Gives the base URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = Thread(target=server.serve_forever, name="bench-reward", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    # The default of 5 makes the sixth of several connections at a time wait a second to be tried again.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    """One connection, kept alive."""

    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes: the second would wait for the client to acknowledge the first.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/healthz":
            health = Health(status="ok", model=_NAME, version=_VERSION, engine="length", levels=_LEVELS)
            self._reply(200, health.model_dump())
        else:
            self._refuse(404, "not_found", f"nothing is served at {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/v1/score":
            self._refuse(404, "not_found", f"nothing is served at {self.path}")
            return
        try:
            request = ScoreRequest.model_validate_json(body)
        except ValidationError as e:
            self._refuse(422, "invalid_request", e.errors(include_url=False, include_input=False)[0]["msg"])
            return
        rewards = [reward_of(item.parts()[2]) for item in request.items]
        scores = [Score(**reward._asdict()) for reward in rewards]
        self._reply(200, ScoreReply(model=_NAME, version=_VERSION, scores=scores).model_dump())

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._reply(status, {"code": code, "detail": detail})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
