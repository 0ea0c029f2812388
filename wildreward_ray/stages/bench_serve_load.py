"""The load that `bench serve` puts on a server: a fixed number of requests in flight, each sent as soon as one is answered.

The generator shares the machine with what it measures, so it must cost little: requests are encoded before the clock starts,
replies are parsed in C and read only afterwards, and it runs in a process of its own. It never sends a request again: here
an error is a finding.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import TracebackType
from typing import TypeVar, cast
from urllib.parse import urlsplit

import numpy as np

from wildreward_ray.core.errors import WildRewardError

T = TypeVar("T")

NO_REPLY = 0
"""The status of a request that got no reply: the connection failed, or `_PATIENCE_S` passed."""
_PATIENCE_S = 600.0
_SHOWN = 300


@dataclass
class Load:
    """What came of some requests.

    Attributes:
        seconds: from the first request to the last reply.
        latencies: seconds that each request with a reply of status 200 took, in order of reply.
        statuses: requests by HTTP status, or `NO_REPLY`.
        bodies: bodies of the replies of status 200 by number of the request, where they were asked for.
        problem: the first reply of another status, or what the first broken connection said.
    """

    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)
    bodies: dict[int, bytes] = field(default_factory=dict)
    problem: str = ""

    @property
    def per_s(self) -> float:
        """Requests that were answered with status 200, a second."""
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """The latency in milliseconds that `percent` of the answered requests stayed within."""
        return float(np.percentile(np.frombuffer(self.latencies), percent)) * 1000

    def check(self, server: str) -> Load:
        """This load, all of whose requests were answered with status 200.

        Raises:
            WildRewardError: they were not; a rate over failures is none.
        """
        asked = sum(self.statuses.values())
        bad = asked - self.statuses[200]
        if bad or not asked:
            raise WildRewardError(
                f"{bad} of {asked} requests to the {server} failed, by status {dict(self.statuses)}: {self.problem}"
            )
        return self

    def note(self, number: int, status: int, seconds: float, body: bytes, *, keep: bool) -> None:
        """Count the reply to a request."""
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(seconds)
            if keep:
                self.bodies[number] = body
        elif not self.problem:
            self.problem = f"request {number} got {status or 'no reply'}: {body[:_SHOWN].decode(errors='replace')}"


@dataclass(frozen=True)
class Order:
    """What is sent.

    Attributes:
        url: address of a server, with the path.
        bodies: JSON bodies, sent in order and over again.
        in_flight: requests that wait for their replies at a time.
        requests: how many are sent, or None for as many as `seconds` allow.
        seconds: after which none is sent any more, or None.
        keep: whether the bodies of replies are wanted.
    """

    url: str
    bodies: Sequence[bytes]
    in_flight: int
    requests: int | None = None
    seconds: float | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if self.requests is None and self.seconds is None:
            raise ValueError("a load without an end: give requests or seconds")


class Generator:
    """A process that sends loads."""

    def __enter__(self) -> Generator:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def send(self, order: Order) -> Load:
        """Send a load and wait for its end."""
        return self._pool.submit(drive, order).result()


def apart(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own, which is gone with all its memory and threads when this returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def drive(order: Order) -> Load:
    """Send a load from this process."""
    import uvloop

    return uvloop.run(_drive(order))


async def _drive(order: Order) -> Load:
    address = urlsplit(order.url)
    requests = [_request(address.netloc, address.path or "/", body) for body in order.bodies]
    host, port = address.hostname or "", address.port or 80
    begin = time.perf_counter()
    numbers = _Numbers(order.requests, None if order.seconds is None else begin + order.seconds)
    load = Load()
    workers = [_worker(host, port, requests, numbers, load, keep=order.keep) for _ in range(order.in_flight)]
    await asyncio.gather(*workers)
    load.seconds = time.perf_counter() - begin
    return load


def _request(host: str, path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


class _Numbers:
    """Numbers of the requests, handed out in order until there are enough or it is late."""

    def __init__(self, count: int | None, until: float | None) -> None:
        self._next, self._count, self._until = 0, count, until

    def take(self) -> int | None:
        if self._count is not None and self._next >= self._count:
            return None
        if self._until is not None and time.perf_counter() >= self._until:
            return None
        self._next += 1
        return self._next - 1


async def _worker(
    host: str, port: int, requests: Sequence[bytes], numbers: _Numbers, load: Load, *, keep: bool
) -> None:
    """One request in flight, as long as there are any."""
    loop = asyncio.get_running_loop()
    connection: _Connection | None = None
    while (number := numbers.take()) is not None:
        begin = time.perf_counter()
        try:
            if connection is None or not connection.usable:
                _, connection = await loop.create_connection(_Connection, host, port)
            async with asyncio.timeout(_PATIENCE_S):
                status, body = await connection.ask(requests[number % len(requests)])
        except (OSError, TimeoutError) as e:
            status, body, connection = NO_REPLY, f"{type(e).__name__}: {e}".encode(), None
        load.note(number, status, time.perf_counter() - begin, body, keep=keep)
    if connection is not None:
        connection.close()


class _Connection(asyncio.Protocol):
    """A kept-alive HTTP/1.1 connection with one request at a time."""

    def __init__(self) -> None:
        import httptools

        self.usable = True
        self._parser = httptools.HttpResponseParser(self)
        self._malformed = httptools.HttpParserError
        self._parts: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request. Returns status and body of its reply.

        Raises:
            ConnectionError: the server closed the connection before the end of the reply, or sent no HTTP.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._parts.clear()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except self._malformed as e:
            self._fail(ConnectionError(f"the reply is no HTTP: {e}"))

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        # Replies of the 100s come before the one that was asked for.
        if status < 200 or self._answer is None or self._answer.done():
            return
        self.usable = self.usable and self._parser.should_keep_alive()
        self._answer.set_result((status, b"".join(self._parts)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("closed before the end of the reply"))

    def _fail(self, error: Exception) -> None:
        self.usable = False
        self._transport.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
