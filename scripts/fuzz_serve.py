"""Throw broken, hostile and merely odd requests at a running reward service: `python -m scripts.fuzz_serve --url URL`.

Schemathesis makes requests from the service's own `/openapi.json`, some that fit it and some that don't; to these come cases
by hand that no schema leads to. A fault is any 5xx, any reply that is not JSON, any 200 that breaks its schema or holds a
reward that is not finite and in [1, K], and any hand case with another status than it should have. With a fault the exit
code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

HARNESS_TIMEOUT_S = 120.0
JSON_TYPE = {"content-type": "application/json"}


@dataclass(frozen=True)
class Request:
    """One request made by hand, and the statuses that are right for it."""

    name: str
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    right: frozenset[int] = frozenset({400, 422})


@dataclass(frozen=True)
class Answer:
    """A reply as it came; header names are in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes


@dataclass
class Findings:
    """What was sent and what came back.

    Attributes:
        counts: (operation, status) -> requests.
        faults: one line each.
    """

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, operation: str, what: str, answer: Answer, faults: list[str]) -> None:
        """Count a reply and keep its faults."""
        self.counts[operation, answer.status] += 1
        self.faults += [f"{operation} [{what}] {answer.status}: {fault}" for fault in faults]

    def table(self) -> str:
        """Requests by operation and status, as text."""
        statuses = sorted({status for _, status in self.counts})
        rows = [["operation", *map(str, statuses)]]
        for operation in sorted({operation for operation, _ in self.counts}):
            rows.append([operation, *(str(self.counts.get((operation, status), "")) for status in statuses)])
        totals = [sum(n for (_, status), n in self.counts.items() if status == one) for one in statuses]
        rows.append(["all", *map(str, totals)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


class Checker:
    """Finds what is wrong with a reply.

    Args:
        document: the service's OpenAPI document.
        levels: ordered levels K of the model that is served.
    """

    def __init__(self, document: dict[str, Any], levels: int) -> None:
        self._document, self._levels = document, levels

    def faults(self, method: str, template: str, answer: Answer) -> list[str]:
        """What is wrong with the reply to `method` at the document's path `template`; nothing for most replies."""
        found = []
        if answer.status >= 500:
            found.append(answer.content[:300].decode(errors="replace"))
        if method == "HEAD":
            return found
        if answer.headers.get("content-type", "").split(";")[0] != "application/json":
            return [*found, f"content-type {answer.headers.get('content-type')!r}"]
        try:
            body = json.loads(answer.content, parse_constant=_no_constant)
        except ValueError as e:
            return [*found, f"not JSON: {e}"]
        operation = self._document["paths"].get(template, {}).get(method.lower())
        if answer.status != 200:
            return found + self._breaks("#/components/schemas/Refused", body)
        if operation is None:
            return [*found, "200 for an operation that the document doesn't have"]
        pointer = template.replace("~", "~0").replace("/", "~1")
        schema = f"#/paths/{pointer}/{method.lower()}/responses/200/content/application~1json/schema"
        found += self._breaks(schema, body)
        if not found and method == "POST":
            found += self._bad_rewards(operation["operationId"].removeprefix("score_"), body)
        return found

    def _breaks(self, schema: str, body: Any) -> list[str]:
        from jsonschema import Draft202012Validator

        # The document's own keys mean nothing to a validator; they are there for references to lead to.
        errors = Draft202012Validator({**self._document, "$ref": schema}).iter_errors(body)
        return [f"breaks its schema at {e.json_path}: {e.message[:200]}" for e in errors]

    def _bad_rewards(self, protocol: str, body: Any) -> list[str]:
        scores = REWARDS[protocol](body)
        if not scores:
            return ["no rewards in the reply"]
        wrong = [s for s in scores if not math.isfinite(s) or not 1 <= s <= self._levels]
        return [f"rewards not in [1, {self._levels}]: {wrong[:3]}"] if wrong else []


REWARDS: dict[str, Callable[[Any], list[float]]] = {
    "native": lambda body: [score["score"] for score in body["scores"]],
    "wildreward": lambda body: body["rewards"],
    "verl": lambda body: [row["probs"][-1] for row in body["data"]],
    "slime": lambda body: [body["score"]],
    "llama_factory": lambda body: body["scores"],
    "tei": lambda body: [_tei_score(row) for row in body],
}


def _tei_score(row: Any) -> float:
    return float((row[0] if isinstance(row, list) else row)["score"])


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


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


def try_hand_requests(
    requests: list[Request], send: Callable[[Request], Answer], checker: Checker, findings: Findings
) -> None:
    """Send every request; a status that is not among the right ones is a fault as well."""
    for request in requests:
        answer = send(request)
        faults = checker.faults(request.method, request.path, answer)
        if answer.status not in request.right:
            faults.append(f"should be {sorted(request.right)}: {answer.content[:200]!r}")
        findings.add(f"{request.method} {request.path.split('%')[0]}", request.name, answer, faults)


def try_generated(
    schema: Any, requests: int, checker: Checker, findings: Findings, *, headers: dict[str, str], seed: int = 0
) -> None:
    """Send about as many requests as told that Schemathesis makes from the document, the same ones for the same seed.

    Args:
        schema: what `schemathesis.openapi.from_url` or `from_asgi` gives.
        headers: sent with every request.
    """
    operations = [found.ok() for found in schema.get_all_operations()]
    share = max(2, requests // len(operations))
    for operation in operations:
        sent = 0

        def ask(case: Any, what: str, operation: Any = operation) -> None:
            reply = case.call(headers=headers, timeout=HARNESS_TIMEOUT_S)
            answer = Answer(reply.status_code, {k: v[0] for k, v in reply.headers.items()}, reply.content or b"")
            faults = checker.faults(case.method, operation.path, answer)
            if faults:
                faults.append(case.as_curl_command()[:500])
            findings.add(operation.label, what, answer, faults)

        for case in _covering(schema, operation, share // 2):
            ask(case, "coverage")
            sent += 1
        for mode, count in _modes(share - sent):
            _explore(operation, mode, count, seed, ask)


def _covering(schema: Any, operation: Any, most: int) -> Iterator[Any]:
    """Cases that go through the keywords of the schema one by one, evenly chosen where there are more than `most`."""
    from schemathesis import GenerationMode

    config = schema.config.generation_for(operation=operation)
    cases = list(schema.iter_coverage_cases(operation, generation_modes=list(GenerationMode), generation_config=config))
    step = max(1, math.ceil(len(cases) / most)) if most else len(cases) + 1
    return iter(cases[::step])


def _modes(count: int) -> list[tuple[Any, int]]:
    from schemathesis import GenerationMode

    return [(GenerationMode.POSITIVE, count // 2), (GenerationMode.NEGATIVE, count - count // 2)]


def _explore(operation: Any, mode: Any, count: int, seed: int, ask: Callable[[Any, str], None]) -> None:
    """Random cases: `count` of them, or as many different ones as there are."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Unsatisfiable

    if count < 1:
        return

    # Faults are collected, not raised, so there is nothing to shrink and one fault does not hide the next.
    @seeded(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        ask(case, mode.value)

    try:
        run()
    except Unsatisfiable:
        # An operation without parameters has no request that breaks its schema.
        print(f"{operation.label}: no {mode.value} requests can be made", file=sys.stderr)


def try_tokens(send: Callable[[Request], Answer], checker: Checker, findings: Findings) -> None:
    """A service that asks for a token gives nothing without it; `send` must not add one."""
    body = _json({"items": [{"prompt": "p", "response": "r"}]})
    given = {"no token": None, "wrong token": "Bearer no", "empty token": "Bearer", "other scheme": "Basic eDp5"}
    requests = [
        Request(name, path, body, method, {"authorization": value} if value else {}, frozenset({401}))
        for name, value in given.items()
        for method, path in (("POST", "/v1/score"), ("POST", "/get_reward"), ("GET", "/v1/models"))
    ]
    try_hand_requests(requests, send, checker, findings)


def main() -> int:
    """Fuzz the service at `--url`, print the table and the faults, give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL of the service")
    parser.add_argument(
        "--requests", type=int, default=5000, help="requests made from the document, besides the hand cases"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other requests")
    parser.add_argument("--token-env", help="environment variable with the bearer token")
    parser.add_argument("--max-items", type=int, default=1024, help="--max-items of the service")
    parser.add_argument("--max-body-mb", type=float, default=8.0, help="--max-body-mb of the service")
    options = parser.parse_args()
    token = os.environ.get(options.token_env, "") if options.token_env else None
    if token == "":
        parser.error(f"the environment variable {options.token_env!r} is empty (--token-env)")
    auth = {} if token is None else {"authorization": f"Bearer {token}"}

    from schemathesis import openapi

    url = options.url.rstrip("/")
    findings = Findings()
    with httpx.Client(base_url=url, timeout=HARNESS_TIMEOUT_S) as http:
        document = http.get("/openapi.json", headers=auth).raise_for_status().json()
        levels = http.get("/v1/models", headers=auth).raise_for_status().json()["data"][0]["levels"]
        checker = Checker(document, levels)
        hand = hand_requests(options.max_items, options.max_body_mb)
        try_hand_requests(hand, lambda request: _send(http, request, auth), checker, findings)
        if token is not None:
            try_tokens(lambda request: _send(http, request, {}), checker, findings)
    schema = openapi.from_url(f"{url}/openapi.json", headers=auth)
    try_generated(schema, options.requests, checker, findings, headers=auth, seed=options.seed)

    print(findings.table())
    print(f"{sum(findings.counts.values())} requests, {len(findings.faults)} faults")
    for fault in findings.faults[:50]:
        print(f"FAULT {fault}")
    return 1 if findings.faults else 0


def _send(http: httpx.Client, request: Request, auth: dict[str, str]) -> Answer:
    headers = {**JSON_TYPE, **auth, **request.headers}
    reply = http.request(request.method, request.path, content=request.body, headers=headers)
    return Answer(reply.status_code, dict(reply.headers), reply.content)


if __name__ == "__main__":
    sys.exit(main())
