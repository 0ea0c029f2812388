"""Asking a reward service for scores: every score, in order, or an error. A failure is never a number.

Importing this needs neither Ray nor torch, so that a trainer of another project can use it as it is:

    with RewardClient("http://127.0.0.1:8000") as client:
        scores = client.score([{"prompt": "2 + 2?", "response": "4"}])
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, Generic, Self

import httpx

from wildreward_ray.cluster.reward_format import NATIVE_FORMAT, Format, Reply, RewardT
from wildreward_ray.cluster.reward_http import Part, Service, no_reply
from wildreward_ray.cluster.reward_retry import WORTH_ANOTHER_TRY, Backoff, Tries
from wildreward_ray.core.service import ModelCard
from wildreward_ray.core.wire import Health, Score

Item = Mapping[str, Any]
"""What `/v1/score` takes: `messages` that end in the reply to score, or `history`, `prompt` and `response`."""

# Below the 5 s after which common servers hang up, so that a request is seldom sent into a connection that is being closed.
_IDLE_S = 4.0
# How often a thread that waits for its turn looks whether its call has failed meanwhile.
_LOOK_S = 0.05


class ClientSettings(ABC, Generic[RewardT]):
    """What all clients are told. A subclass says in `_form` what it speaks.

    Args:
        url: base URL of the service.
        path: where scores are asked for, below the URL; None for the format's own path.
        timeout_s: longest wait for one reply, in seconds.
        retries: how often a request that may succeed later is sent again: after a failed connection or a reply that did not
            come in time, and after HTTP 408, 425, 429, 502, 503 and 504. With the default `backoff`, 6 retries wait for half
            a minute in the mean and for one at most, more where the service asks for it.
        concurrency: most requests in flight, over all threads and tasks that share the client. A request that waits to be
            sent again counts: the ones behind it would meet the same overloaded service.
        token_env: environment variable that holds the bearer token.
        token: the bearer token itself.
        items_per_request: most items that `score` puts into one request.
        model: name of the model that must be served; another one is refused. None takes whatever is served.
        deadline_s: longest a call of `score` or `score_groups` may take, in seconds; None for as long as the retries last.
        backoff: how long to wait before a request is sent again.

    Raises:
        UserError: the URL is not one of a service, or the token is missing or can't be sent.
        ValueError: a number is out of its range.
    """

    _form: Format[RewardT]

    def __init__(
        self,
        url: str,
        *,
        path: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 6,
        concurrency: int = 8,
        token_env: str | None = None,
        token: str | None = None,
        items_per_request: int = 64,
        model: str | None = None,
        deadline_s: float | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        if min(concurrency, items_per_request) < 1 or retries < 0 or not 0 < timeout_s < float("inf"):
            raise ValueError("concurrency and items_per_request are at least 1, retries at least 0, timeout_s above 0")
        self._service = Service(url, self._form, path=path, token_env=token_env, token=token, model=model)
        self.url = self._service.url
        self._timeout_s, self._retries, self._concurrency = timeout_s, retries, concurrency
        self._items_per_request, self._deadline_s, self._backoff = items_per_request, deadline_s, backoff or Backoff()
        # More connections than `concurrency` are only ever those that ask what is served.
        self._limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=concurrency, keepalive_expiry=_IDLE_S
        )
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make the pool of connections and what counts requests in flight."""

    def _parts(self, items: Sequence[Item]) -> list[Part]:
        size = self._items_per_request
        return [Part(items[start : start + size], "items", start) for start in range(0, len(items), size)]

    def _groups(self, groups: Sequence[Sequence[Item]]) -> list[Part]:
        return [Part(group, f"groups[{g}]") for g, group in enumerate(groups)]

    def _until(self) -> float:
        return float("inf") if self._deadline_s is None else time.monotonic() + self._deadline_s

    def _tries(self, until: float) -> Tries:
        return Tries(self.url, self._backoff, retries=self._retries, timeout_s=self._timeout_s, until=until)


class RewardClient(ClientSettings[Score]):
    """A reward service, for any number of threads that share it. For its arguments see `ClientSettings`."""

    _form = NATIVE_FORMAT

    def _open(self) -> None:
        self._http = httpx.Client(limits=self._limits, verify=_certificates())
        self._turns = threading.Semaphore(self._concurrency)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score an item, in order. The items go out in requests of `items_per_request`, in parallel.

        Raises:
            RewardRefusedError: the service refused a request for good; names the item where the service does.
            RewardUnavailableError: a request failed too often or for too long, or a reply lacked a usable score. No scores are
                given then, requests that were not sent yet are not sent any more, and none is in flight.
            UserError: an item can't be sent as JSON.
        """
        return [score for scores in self._all(self._parts(items)) for score in scores]

    def score_groups(self, groups: Sequence[Sequence[Item]]) -> list[list[Score]]:
        """One score an item for every group, each group in a request of its own.

        For replies to one prompt: together in one request, they come to one engine while it has the prompt in its cache,
        and are scored by one version of the model. Raises as `score` does.
        """
        return self._all(self._groups(groups))

    def health(self) -> Health:
        """What is served. Asked once, so that a wrong URL is known at once.

        Raises:
            UserError: there is no reward service at the URL, or it can't give scores now.
        """
        return self._service.health(self._get("/healthz"))

    def models(self) -> list[ModelCard]:
        """What `/v1/models` lists. Asked once; raises as `health` does."""
        return self._service.models(self._get("/v1/models"))

    def _all(self, parts: Sequence[Part]) -> list[list[Score]]:
        until, failed = self._until(), threading.Event()
        if len(parts) < 2:
            return [self._one(part, until, failed) for part in parts]
        with ThreadPoolExecutor(min(self._concurrency, len(parts)), thread_name_prefix="reward-client") as pool:
            futures = [pool.submit(self._one, part, until, failed) for part in parts]
            try:
                for done in as_completed(futures):
                    done.result()
            except BaseException:
                failed.set()
                for future in futures:
                    future.cancel()
                raise
        return [future.result() for future in futures]

    def _one(self, part: Part, until: float, failed: threading.Event) -> list[Score]:
        """The scores of one request, which ends early once its call has `failed`."""
        if not part.items:
            return []
        tries = self._tries(until)
        with self._turn(tries, failed):
            content = self._service.body(part)
            while not failed.is_set():
                seconds = tries.begin()
                outcome: Reply | Exception
                try:
                    outcome = self._send(self._service.post(content, seconds), seconds)
                except httpx.RequestError as e:
                    outcome = e
                if isinstance(outcome, Reply) and outcome.status not in WORTH_ANOTHER_TRY:
                    return self._service.scores(outcome, part, tries.attempts)
                failed.wait(tries.pause_s(outcome))
        raise _AbandonedError

    @contextmanager
    def _turn(self, tries: Tries, failed: threading.Event) -> Iterator[None]:
        while not self._turns.acquire(timeout=_LOOK_S):
            tries.left_s()
            if failed.is_set():
                raise _AbandonedError
        try:
            yield
        finally:
            self._turns.release()

    def _send(self, request: httpx.Request, seconds: float) -> Reply:
        until = time.monotonic() + seconds
        chunks = []
        with closing(self._http.send(request, stream=True)) as response:
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                # The package's own limit is for each read; a reply that trickles in would never end.
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the reply trickles in", request=request)
        return Reply(response.status_code, response.headers, b"".join(chunks))

    def _get(self, path: str) -> Reply:
        try:
            return self._send(self._service.get(path, self._timeout_s), self._timeout_s)
        except httpx.RequestError as e:
            raise self._service.unreachable(no_reply(e, self._timeout_s)) from e


class AsyncRequests(ClientSettings[RewardT]):
    """Requests of any number of tasks of one event loop, in any format. For its arguments see `ClientSettings`.

    A call that is cancelled leaves nothing in flight.
    """

    def _open(self) -> None:
        self._http = httpx.AsyncClient(limits=self._limits, verify=_certificates())
        self._turns = asyncio.Semaphore(self._concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def health(self) -> Health:
        """See `RewardClient.health`."""
        return self._service.health(await self._get("/healthz"))

    async def first_scores(self, part: Part) -> list[RewardT]:
        """The scores of one request, sent once and beside all others. Raises as `health` does."""
        content = self._service.body(part)
        return self._service.first_scores(await self._once(self._service.post(content, self._timeout_s)), part)

    async def ask(self, parts: Sequence[Part]) -> list[list[RewardT]]:
        """The scores of every part, each of them one request. Raises as `RewardClient.score` does."""
        until = self._until()
        if len(parts) < 2:
            return [await self._one(part, until) for part in parts]
        scores: list[list[RewardT]] = [[] for _ in parts]
        waiting = iter(enumerate(parts))

        async def work() -> None:
            for i, part in waiting:
                scores[i] = await self._one(part, until)

        tasks = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(parts)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return scores

    async def _one(self, part: Part, until: float) -> list[RewardT]:
        if not part.items:
            return []
        tries = self._tries(until)
        async with self._turn(tries):
            content = self._service.body(part)
            while True:
                seconds = tries.begin()
                outcome: Reply | Exception
                try:
                    outcome = await self._send(self._service.post(content, seconds), seconds)
                except (TimeoutError, httpx.RequestError) as e:
                    outcome = e
                if isinstance(outcome, Reply) and outcome.status not in WORTH_ANOTHER_TRY:
                    return self._service.scores(outcome, part, tries.attempts)
                await asyncio.sleep(tries.pause_s(outcome))

    @asynccontextmanager
    async def _turn(self, tries: Tries) -> AsyncIterator[None]:
        left_s = tries.left_s()
        try:
            async with asyncio.timeout(left_s if left_s < float("inf") else None):
                await self._turns.acquire()
        except TimeoutError as e:
            raise tries.too_late() from e
        try:
            yield
        finally:
            self._turns.release()

    async def _send(self, request: httpx.Request, seconds: float) -> Reply:
        # The package's own limit is for each read; a reply that trickles in would never end.
        async with asyncio.timeout(seconds):
            response = await self._http.send(request)
        return Reply(response.status_code, response.headers, response.content)

    async def _get(self, path: str) -> Reply:
        return await self._once(self._service.get(path, self._timeout_s))

    async def _once(self, request: httpx.Request) -> Reply:
        try:
            return await self._send(request, self._timeout_s)
        except (TimeoutError, httpx.RequestError) as e:
            raise self._service.unreachable(no_reply(e, self._timeout_s)) from e


class AsyncRewardClient(AsyncRequests[Score]):
    """A reward service, for any number of tasks of one event loop. For its arguments see `ClientSettings`.

    The methods are those of `RewardClient`. One that is cancelled leaves nothing in flight.
    """

    _form = NATIVE_FORMAT

    async def score(self, items: Sequence[Item]) -> list[Score]:
        """See `RewardClient.score`."""
        return [score for scores in await self.ask(self._parts(items)) for score in scores]

    async def score_groups(self, groups: Sequence[Sequence[Item]]) -> list[list[Score]]:
        """See `RewardClient.score_groups`."""
        return await self.ask(self._groups(groups))

    async def models(self) -> list[ModelCard]:
        """See `RewardClient.models`."""
        return self._service.models(await self._get("/v1/models"))


@functools.cache
def _certificates() -> ssl.SSLContext:
    # Reading them takes tens of milliseconds, far more than all else that a new client does.
    return httpx.create_ssl_context()


class _AbandonedError(Exception):
    """Ends a request whose call has failed by another one; nobody reads its outcome."""
