"""Asking a reward service for scores: every score, in order, or an error. A failure is never a number."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.core.wire import Health, Score

# Worth another try: the service is busy, restarting, or on the other side of a hiccup.
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 30.0


class RewardClient:
    """A client of `POST /v1/score`.

    Args:
        url: base URL of the service.
        timeout_s: longest wait for one reply.
        retries: how often a failed request that may succeed later is sent again.
        concurrency: requests in flight.
        token_env: environment variable that holds the bearer token.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 60.0, retries: int = 6, concurrency: int = 8, token_env: str | None = None
    ) -> None:
        headers = {}
        if token_env is not None:
            token = os.environ.get(token_env)
            if not token:
                raise UserError(f"the environment variable {token_env!r} is empty", flag="--reward.token-env")
            headers["authorization"] = f"Bearer {token}"
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self.url = url.rstrip("/")
        self._retries, self._concurrency = retries, concurrency
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, limits=limits)
        self._random = random.Random()

    def health(self) -> Health:
        """What the service serves; one try, so that a wrong URL is known at once.

        Raises:
            UserError: it can't be reached or isn't a reward service.
        """
        try:
            reply = self._http.get("/healthz")
            reply.raise_for_status()
            return Health.model_validate(reply.json())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as e:
            text = " ".join(str(e).split())[:200]
            raise UserError(f"no reward service answers at {self.url!r}: {text}", flag="--reward-url") from e

    def score(self, requests: Sequence[Sequence[dict[str, Any]]]) -> list[list[Score]]:
        """Scores of several requests, each a list of `/v1/score` items, sent in parallel.

        Raises:
            RewardUnavailableError: some request failed for good; no scores are given then.
        """
        if not requests:
            return []
        with ThreadPoolExecutor(min(self._concurrency, len(requests))) as pool:
            return list(pool.map(self._score_one, requests))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _score_one(self, items: Sequence[dict[str, Any]]) -> list[Score]:
        failure = "not tried"
        for attempt in range(self._retries + 1):
            if attempt:
                # Full jitter: clients that failed together don't come back together.
                time.sleep(self._random.uniform(0, min(_LONGEST_WAIT_S, 0.5 * 2**attempt)))
            try:
                reply = self._http.post("/v1/score", json={"items": list(items)})
            except httpx.TransportError as e:
                failure = f"{type(e).__name__}: {e}"
                continue
            if reply.status_code == 200:
                return self._checked(reply, len(items))
            failure = f"HTTP {reply.status_code}: {reply.text[:300]}"
            if reply.status_code not in _RETRYABLE:
                raise RewardUnavailableError(f"{self.url} refused a request: {failure}")
        raise RewardUnavailableError(f"{self.url} failed {self._retries + 1} times, at last with {failure}")

    def _checked(self, reply: httpx.Response, expected: int) -> list[Score]:
        try:
            scores = [Score.model_validate(s) for s in reply.json()["scores"]]
        except (ValueError, KeyError, TypeError) as e:
            raise RewardUnavailableError(f"{self.url} sent a reply without usable scores: {reply.text[:200]}") from e
        if len(scores) != expected or not all(math.isfinite(s.score) for s in scores):
            raise RewardUnavailableError(f"{self.url} sent {len(scores)} scores for {expected} items")
        return scores
