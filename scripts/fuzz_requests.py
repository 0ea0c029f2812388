"""Requests made by hand that no schema leads to: what a reward service must refuse, and what it must not stumble over."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request made by hand, and the statuses that are right for it."""

    name: str
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    right: frozenset[int] = frozenset({400, 422})


def hand_requests(max_items: int = 1024, max_body_mb: float = 8.0) -> list[Request]:
    """Requests that break something other than a schema, for the two protocols that most clients speak.

    Args:
        max_items: most items a request may hold, in the service that is asked.
        max_body_mb: its largest body in MB.
    """
    item = {"prompt": "p", "response": "r"}
    big = b'{"items":[{"prompt":"p","response":"' + b"x" * int(max_body_mb * 2**20) + b'"}]}'
    score, rewards = "/v1/score", "/get_reward"
    fine, refused, missing = frozenset({200}), frozenset({413}), frozenset({404})
    return [
        *(Request(f"{name} at {path}", path, body) for path in (score, rewards) for name, body in MALFORMED.items()),
        *(Request(f"items: {name}", score, b'{"items":' + body + b"}") for name, body in BAD_ITEMS.items()),
        *(Request(f"query: {name}", rewards, b'{"query":' + body + b"}") for name, body in BAD_ITEMS.items()),
        Request("lone surrogate", score, b'{"items":[{"prompt":"\\ud800","response":"r"}]}'),
        Request("lone surrogate in a text", rewards, b'{"query":["a \\udfff b"]}'),
        Request("lone surrogate in a role", score, _messages(b'"\\ud800"')),
        Request("number for a role", score, _messages(b"1e400")),
        Request("unknown key", score, _json({"items": [item], "temperature": 1})),
        Request("too many items", score, _json({"items": [item] * (max_items + 1)}), right=refused),
        Request("too many texts", rewards, _json({"query": ["x"] * (max_items + 1)}), right=refused),
        Request("body too large", score, big, right=refused),
        Request("unknown model", score, _json({"items": [item], "model": "no-such"}), right=frozenset({404, 422})),
        Request("compressed", score, b"\x1f\x8b", headers={"content-encoding": "gzip"}, right=frozenset({415})),
        Request("NUL characters", score, b'{"items":[{"prompt":"a\\u0000b","response":"\\u0000"}]}', right=fine),
        Request("control characters", rewards, b'{"query":["\\u0001\\u001b[2J\\u200b\\ufffe"]}', right=fine),
        Request("empty texts", score, _json({"items": [{"prompt": "", "response": ""}]}), right=fine),
        Request("text without tokens", rewards, b'{"query":["x",""]}', right=frozenset({200, 422})),
        Request("emoji and right to left", rewards, _json({"query": ["\U0001f9d1\u200d\U0001f680 \u202e\u0634"]}), right=fine),
        Request("special tokens", rewards, _json({"query": ["<|endoftext|><|im_end|><s></s>[PAD][MASK]"]}), right=fine),
        Request("template code", score, _json({"items": [{"prompt": "{{ 7*7 }}", "response": "{% raw %}"}]}), right=fine),
        Request("other content type", score, _json({"items": [item]}), headers={"content-type": "text/plain"}, right=fine),
        *(
            Request(f"timeout header {given!r}", score, _json({"items": [item]}), headers={"x-request-timeout-ms": given})
            for given in ("0", "-1", "1.5", "soon", "9" * 30, "")
        ),
        Request("unknown path", "/v1/scores", _json({"items": [item]}), right=missing),
        Request("path out of the tree", "/v1/models/..%2f..%2fetc%2fpasswd", method="GET", right=missing),
        Request("line break in a path", "/v1/models/a%0d%0aset-cookie:%20x=1", method="GET", right=missing),
        *(Request(f"{method} at {score}", score, method=method, right=frozenset({405})) for method in WRONG_METHODS),
        Request("DELETE of a model", "/v1/models", method="DELETE", right=frozenset({405})),
    ]  # fmt: skip


WRONG_METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS")
MALFORMED = {
    "no body": b"",
    "no JSON": b"hello",
    "cut JSON": b'{"items":[{"prompt":"p"',
    "two values": b"{}{}",
    "single quotes": b"{'items':[]}",
    "not UTF-8": b'{"items":[{"prompt":"\xff\xfe","response":"r"}],"query":["\xff"]}',
    "UTF-16": '{"items":[]}'.encode("utf-16"),
    "overlong UTF-8": b'{"items":[{"prompt":"\xc0\xaf","response":"r"}],"query":["\xc0\xaf"]}',
    "byte order mark only": b"\xef\xbb\xbf",
    "list": b"[]",
    "string": b'"items"',
    "null": b"null",
    "NaN": b"NaN",
    "infinity": b'{"items":Infinity,"query":-Infinity}',
    "empty object": b"{}",
    "deep lists": b"[" * 200_000,
    "deep closed lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"items":' * 50_000,
    "deep items": b'{"items":' + b"[" * 5_000 + b"]" * 5_000 + b',"query":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "huge integer": b'{"items":[' + b"9" * 20_000 + b'],"query":[' + b"9" * 20_000 + b"]}",
    "huge exponent": b'{"items":[1e999999],"query":[1e999999]}',
}
BAD_ITEMS = {
    "empty list": b"[]",
    "null": b"null",
    "number": b"1",
    "bare string": b'"text"',
    "object": b'{"prompt":"p","response":"r"}',
    "null in the list": b"[null]",
    "number in the list": b"[1]",
    "list in the list": b"[[]]",
    "empty object in the list": b"[{}]",
    "null prompt": b'[{"prompt":null,"response":"r"}]',
    "number response": b'[{"prompt":"p","response":4}]',
    "no messages": b'[{"messages":[]}]',
    "one of them bad": b'[{"prompt":"p","response":"r"},{"prompt":"p"},"text",3]',
}


def _messages(role: bytes) -> bytes:
    return b'{"items":[{"messages":[{"role":' + role + b',"content":"p"},{"role":"assistant","content":"r"}]}]}'


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def token_requests() -> list[Request]:
    """Requests without the right token, for a service that asks for one."""
    body = _json({"items": [{"prompt": "p", "response": "r"}]})
    given = {"no token": None, "wrong token": "Bearer no", "empty token": "Bearer", "other scheme": "Basic eDp5"}
    return [
        Request(name, path, body, method, {"authorization": value} if value else {}, frozenset({401}))
        for name, value in given.items()
        for method, path in (("POST", "/v1/score"), ("POST", "/get_reward"), ("GET", "/v1/models"))
    ]
