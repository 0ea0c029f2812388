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

from scripts.fuzz_requests import Request, hand_requests, token_requests

HARNESS_TIMEOUT_S = 120.0
TIME_LIMIT = "X-Request-Timeout-Ms"
JSON_TYPE = {"content-type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """A reply as it came; header names are in lower case. Status 0 is no reply at all, and `content` says why."""

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
        if answer.status == 0:
            return [f"no reply: {answer.content.decode(errors='replace')}"]
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
        from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

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


def try_hand_requests(
    requests: list[Request], send: Callable[[Request], Answer], checker: Checker, findings: Findings
) -> None:
    """Send every request; a status that is not among the right ones is a fault as well."""
    for request in requests:
        answer = send(request)
        faults = checker.faults(request.method, request.path, answer)
        if answer.status not in request.right:
            faults.append(f"should be {sorted(request.right)}: {answer.content[:200]!r}")
        by_path = request.right != frozenset({405})
        operation = f"{request.method} {request.path.split('%')[0]}" if by_path else "other methods"
        findings.add(operation, request.name, answer, faults)


def try_generated(
    schema: Any, requests: int, checker: Checker, findings: Findings, *, headers: dict[str, str], seed: int = 0
) -> None:
    """Send about as many requests as told that Schemathesis makes from the document, the same ones for the same seed.

    Args:
        schema: what `schemathesis.openapi.from_url` or `from_asgi` gives.
        headers: sent with every request.
    """
    # Operations without a body come first: they have few different requests and leave the rest of their share to others.
    operations = sorted((found.ok() for found in schema.get_all_operations()), key=lambda one: one.method == "post")
    budget = requests
    for left, operation in zip(range(len(operations), 0, -1), operations, strict=True):
        share, sent = max(2, budget // left), 0

        def ask(case: Any, what: str, operation: Any = operation) -> None:
            nonlocal sent
            sent += 1
            _allow_time(case)
            answer = _call(case, headers)
            faults = checker.faults(case.method, operation.path, answer)
            if faults:
                faults.append(case.as_curl_command()[:500])
            known = case.method.lower() == operation.method.lower()
            findings.add(operation.label if known else "other methods", f"{case.method}, {what}", answer, faults)

        for case in _covering(schema, operation, share // 2):
            ask(case, "coverage")
        for mode, count in _modes(share - sent):
            _explore(operation, mode, count, seed, ask)
        budget -= sent


def _call(case: Any, headers: dict[str, str]) -> Answer:
    try:
        reply = case.call(headers=headers, timeout=HARNESS_TIMEOUT_S)
    except OSError as e:  # what requests raises where no reply comes
        return Answer(0, {}, str(e).encode())
    return Answer(reply.status_code, {name: values[0] for name, values in reply.headers.items()}, reply.content or b"")


def _allow_time(case: Any) -> None:
    """Give a minute to a request that allows a few milliseconds: a 503 would be right for it, and no fault."""
    given = (case.headers or {}).get(TIME_LIMIT)
    if given is not None and str(given).isdigit() and int(given) > 0:
        case.headers[TIME_LIMIT] = "60000"


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
    try_hand_requests(token_requests(), send, checker, findings)


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

    try:
        from schemathesis import openapi
    except ImportError:
        parser.error("schemathesis is not installed; it is in the dev extra")

    url = options.url.rstrip("/")
    findings = Findings()
    with httpx.Client(base_url=url, timeout=HARNESS_TIMEOUT_S) as http:
        try:
            document = http.get("/openapi.json", headers=auth).raise_for_status().json()
            levels = http.get("/v1/models", headers=auth).raise_for_status().json()["data"][0]["levels"]
        except (httpx.HTTPError, ValueError, LookupError) as e:
            parser.error(f"no reward service answers at {url!r}: {e} (--url, --token-env)")
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
    try:
        reply = http.request(request.method, request.path, content=request.body, headers=headers)
    except httpx.TransportError as e:
        return Answer(0, {}, f"{type(e).__name__}: {e}".encode())
    return Answer(reply.status_code, dict(reply.headers), reply.content)


if __name__ == "__main__":
    sys.exit(main())
