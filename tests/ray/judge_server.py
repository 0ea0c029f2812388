"""A judge over real HTTP whose verdicts depend on nothing but the text: for tests of what is around the judge.

Speaks the part of OpenAI's API that `--judge.backend endpoint` uses. It remembers how often each prompt was asked, so that a
test can tell whether a resumed run asked again what had been answered.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class JudgeServer:
    """What the server was asked.

    Attributes:
        pause_s: how long each answer takes.
        asked: how often each prompt came, by its hash.
        answers: how many requests are answered; from then on the connection is closed.
        status: what is answered.
    """

    pause_s: float = 0.0
    answers: int = 1_000_000
    status: int = 200
    asked: Counter[str] = field(default_factory=Counter)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion for a chat request: one token, with the log-probabilities of the digits."""
        text = json.dumps(body["messages"], sort_keys=True)
        digest = hashlib.sha256(text.encode()).digest()
        with self._lock:
            self.asked[digest.hex()] += 1
        time.sleep(self.pause_s)
        weights = [1.0 + 4.0 * byte / 255 for byte in digest[:5]]
        # Mostly neutral, as in real logs.
        weights[2] += 6.0
        tokens = [
            {"token": str(level), "logprob": math.log(weight / sum(weights)), "bytes": None}
            for level, weight in enumerate(weights, start=1)
        ]
        best = max(tokens, key=lambda t: float(str(t["logprob"])))
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": best["token"]},
            "logprobs": {"content": [{**best, "top_logprobs": tokens}]},
        }
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 1, "total_tokens": len(text) // 4 + 1}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }


@contextmanager
def judge_server(pause_s: float = 0.0) -> Iterator[JudgeServer]:
    """Run a `JudgeServer` in threads of this process."""
    state = JudgeServer(pause_s)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(state.answer(asked)).encode()
            if sum(state.asked.values()) > state.answers:
                self.close_connection = True
                return
            self.send_response(state.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def judge_flags(server: JudgeServer) -> list[str]:
    """Flags of `wildreward extract` that let this server judge."""
    return [
        *("--judge.backend", "endpoint", "--judge.endpoint.base-url", server.url),
        *("--judge.prompt-style", "chat", "--judge.model", "test", "--judge.endpoint.concurrency", "4"),
    ]
