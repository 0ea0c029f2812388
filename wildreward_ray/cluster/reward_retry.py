"""When a request to the reward service is sent again, and when it is given up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from wildreward_ray.cluster.judge_endpoint import retry_after
from wildreward_ray.cluster.reward_format import Reply
from wildreward_ray.cluster.reward_http import failure, no_reply
from wildreward_ray.core.errors import RewardUnavailableError

# Statuses of load, restarts and proxies in between. 500 is not among them: the service gives it for rewards that are no
# numbers and for its own mistakes, and both would come again.
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 502, 503, 504})


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a request is sent again: a random time below a bound that doubles.

    Clients that failed together must not come back together, hence "full jitter". Source:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Attributes:
        first_s: bound of the first wait, in seconds.
        longest_s: largest bound, and the longest that a `Retry-After` is obeyed, in seconds.
        draw: draws from [0, 1).
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    draw: Callable[[], float] = random.random

    def pause_s(self, failures: int, asked_s: float = 0.0, left_s: float = float("inf")) -> float:
        """Seconds to wait after `failures` failures (from 1): what the service asked for, and then the random time.

        It comes on top of `asked_s`, because a service asks all its clients for the same. It ends within `left_s`; only what
        the service asks for may go beyond.
        """
        asked_s = min(asked_s, self.longest_s)
        bound = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 64))
        return asked_s + self.draw() * max(0.0, min(bound, left_s - asked_s))


class Tries:
    """How often one request was sent, and whether it is sent again. Scoring has no side effects, so it always may be.

    Attributes:
        attempts: how often it was sent.

    Args:
        url: what errors call the service.
        retries: how often it may be sent again.
        timeout_s: longest wait for one reply.
        until: time of `time.monotonic` at which it is given up.
    """

    def __init__(self, url: str, backoff: Backoff, *, retries: int, timeout_s: float, until: float) -> None:
        self._url, self._backoff, self._retries = url, backoff, retries
        self._timeout_s, self._until = timeout_s, until
        self.attempts = 0
        self._last_status: int | None = None
        self._seconds, self._failure = timeout_s, "not sent yet"

    def begin(self) -> float:
        """Begin the next try; seconds it may take. Raises `RewardUnavailableError` where no time is left."""
        self._seconds = min(self._timeout_s, self.left_s())
        self.attempts += 1
        return self._seconds

    def left_s(self) -> float:
        """Seconds until the deadline. Raises `RewardUnavailableError` where it has passed."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise self.too_late()
        return left

    def too_late(self) -> RewardUnavailableError:
        """The error of a request whose deadline has passed."""
        return self._given_up("the deadline has passed (deadline_s)")

    def pause_s(self, outcome: Reply | Exception) -> float:
        """Seconds to wait after a try that came to nothing.

        Raises:
            RewardUnavailableError: it was sent as often, or for as long, as it may be.
        """
        asked_s = 0.0
        if isinstance(outcome, Reply):
            self._last_status, self._failure = outcome.status, failure(outcome)
            asked_s = retry_after(outcome.headers) or 0.0
        else:
            self._failure = no_reply(outcome, self._seconds)
        if self.attempts > self._retries:
            raise self._given_up("that was the last try (--reward.retries)")
        left_s = self.left_s()
        pause_s = self._backoff.pause_s(self.attempts, asked_s, left_s)
        if pause_s >= left_s:
            raise self._given_up(f"another try in {pause_s:.3g} s would be too late (deadline_s)")
        return pause_s

    def _given_up(self, why: str) -> RewardUnavailableError:
        text = f"{self._url} gave no scores in {self.attempts} tries, at last {self._failure}; {why}"
        return RewardUnavailableError(text, attempts=self.attempts, last_status=self._last_status)
