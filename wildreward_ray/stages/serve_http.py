"""The HTTP face of the reward service: an ASGI application that reads a request, asks the backend and writes the reply.

Every request is answered in full or refused with JSON that says why: `{"detail", "code", "field"}`. Nothing stands between
the server and this application, so a request costs little more than reading its body and scoring it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from wildreward_ray.core.errors import nearest
from wildreward_ray.core.protocols import DIALECTS, Dialect
from wildreward_ray.core.service import (
    ModelCard,
    RequestObserver,
    RequestRecord,
    RewardBackend,
    ServiceError,
)
from wildreward_ray.core.wire import Health
from wildreward_ray.stages.serve_openapi import openapi
from wildreward_ray.stages.serve_reply import Reply, check_rewards, json_reply, page_reply, quoted, refusal
from wildreward_ray.stages.serve_request import (
    ClientGoneError,
    Headers,
    Receive,
    Scope,
    Send,
    read_body,
    request_id,
    time_limit,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

MODELS = "/v1/models"
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# A few seconds are enough for an engine replica to be replaced or a burst to be worked off.
RETRY_AFTER_TIMEOUT_S = 5.0
CLIENT_CLOSED = 499


class RewardHttp:
    """The ASGI application.

    Args:
        backend: gives the rewards. Its `config` holds the limits on requests and is read anew for each: it changes with the
            model, and there is none while the first one loads.
        observer: is told of every request, twice.
        token: the bearer token that clients must send, or None where none is asked for.
        pages: GET path -> (content type, body) of static pages, which need no token.
        sends_request_id: put `X-Request-Id` on replies. False behind a proxy that does so itself, as Ray Serve's does: a
            second one would make the client read `id, id`.
    """

    def __init__(
        self,
        backend: RewardBackend,
        observer: RequestObserver,
        token: str | None,
        pages: Mapping[str, tuple[str, bytes]],
        *,
        sends_request_id: bool = True,
    ) -> None:
        self._backend, self._observer = backend, observer
        self._token = None if token is None else token.encode()
        self._sends_request_id = sends_request_id
        self._dialects = {dialect.path: dialect for dialect in DIALECTS}
        self._pages = {path: page_reply(*page) for path, page in pages.items()}
        self._gets: dict[str, Callable[[], Awaitable[Reply]]] = {
            "/healthz": self._health,
            "/readyz": self._health,
            MODELS: self._models,
            "/openapi.json": self._document,
        }
        self._openapi = json_reply(openapi(DIALECTS, secured=token is not None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. An ASGI server calls this; see https://asgi.readthedocs.io/en/latest/specs/www.html."""
        if scope["type"] != "http":
            await _serve_other(scope["type"], receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        record = RequestRecord(request_id(headers.get(b"x-request-id")), scope["method"], scope["path"])
        self._observer.began()
        try:
            reply = await self._answer(record, headers, receive)
            record.status = reply.status
            await self._send(send, reply, record)
        except asyncio.CancelledError:
            # Ray Serve cancels the request of a client that hangs up, and the scoring with it.
            record.status, record.code = CLIENT_CLOSED, "client_closed"
            raise
        except OSError:
            # Nobody is left to be told; the record is where this shows.
            record.status, record.code = CLIENT_CLOSED, "client_closed"
        finally:
            record.seconds = time.perf_counter() - started
            self._observer.ended(record)

    async def _send(self, send: Send, reply: Reply, record: RequestRecord) -> None:
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        if self._sends_request_id:
            headers.append((b"x-request-id", record.request_id.encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if record.method == "HEAD" else reply.body})

    async def _answer(self, record: RequestRecord, headers: Headers, receive: Receive) -> Reply:
        """The reply to a request, whatever happens short of the client's going away."""
        try:
            return await self._route(record, headers, receive)
        except ClientGoneError:
            raise
        except ServiceError as e:
            error = e
        except Exception:
            # The log may quote what was being worked on; the reply may not.
            logger.exception("request %s to %s failed", record.request_id, ascii(record.path))
            error = ServiceError(
                500, "internal", "the service failed on this request; its log says why under the X-Request-Id"
            )
        record.code = error.code
        allow = b"POST" if record.protocol else b"GET, HEAD"
        return refusal(error, allow)

    async def _route(self, record: RequestRecord, headers: Headers, receive: Receive) -> Reply:
        path = record.path
        dialect = self._dialects.get(path)
        if dialect is not None:
            record.protocol = dialect.name
            if record.method != "POST":
                raise ServiceError(405, "method_not_allowed", f"{path} takes POST, not {quoted(record.method)}")
            self._check_token(headers)
            return await self._score(dialect, record, headers, receive)
        page, get = self._pages.get(path), self._gets.get(path)
        if page is None and get is None and not path.startswith(f"{MODELS}/"):
            known = nearest(path[:100], [*self._dialects, *self._gets, *self._pages])
            raise ServiceError(404, "not_found", f"there is nothing at {quoted(path)}; {known}")
        if record.method not in ("GET", "HEAD"):
            raise ServiceError(405, "method_not_allowed", f"{quoted(path)} takes GET, not {quoted(record.method)}")
        if page is not None:
            return page
        if path not in OPEN_PATHS:
            self._check_token(headers)
        return await get() if get is not None else self._model(path[len(MODELS) + 1 :])

    def _check_token(self, headers: Headers) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # In constant time, so that a guess can't be mended byte by byte.
        right = hmac.compare_digest(given.strip(), self._token)
        if scheme.lower() != b"bearer" or not right:
            raise ServiceError(401, "unauthorized", "a valid token is needed: Authorization: Bearer <token>")

    async def _score(self, dialect: Dialect, record: RequestRecord, headers: Headers, receive: Receive) -> Reply:
        """Rewards for one request of any protocol."""
        config = self._backend.config
        limit_s = time_limit(headers.get(b"x-request-timeout-ms"), config.request_timeout_s)
        reading = read_body(headers, receive, int(config.max_body_mb * 2**20))
        asked = dialect.read(await _within(config.request_timeout_s, reading, _body_took_too_long))
        record.items = len(asked.inputs)
        if record.items > config.max_items:
            detail = f"{record.items} items in one request: at most {config.max_items} are taken (--max-items)"
            raise ServiceError(413, "too_many_items", detail)
        if asked.model is not None:
            _check_model(asked.model, self._backend.card(), "model")
        try:
            scored = await _within(limit_s, self._backend.score(asked.inputs), _scoring_took_too_long)
            check_rewards(scored, record.items)
        except ServiceError as e:
            if e.field is None and e.item is not None:
                e.field = dialect.item_field(e.item)
            raise
        content = dialect.write(asked, scored)
        try:
            reply = json_reply(content)
        except ValueError as e:
            raise ServiceError(500, "bad_reward", "the reply would hold a number that is not finite") from e
        record.tokens, record.version = scored.tokens, scored.card.version
        record.scores = [reward.score for reward in scored.rewards]
        return reply

    async def _health(self) -> Reply:
        await _within(self._backend.config.request_timeout_s, self._backend.check(), _scoring_took_too_long)
        card = self._backend.card()
        health = Health(
            status="ok", model=card.id, version=card.version, engine=card.engine, levels=card.levels
        ).model_dump()
        return json_reply(health)

    async def _models(self) -> Reply:
        models = {"object": "list", "data": [_listed(self._backend.card())]}
        return json_reply(models)

    def _model(self, name: str) -> Reply:
        card = self._backend.card()
        _check_model(name, card, None)
        return json_reply(_listed(card))

    async def _document(self) -> Reply:
        return self._openapi


def _check_model(name: str, card: ModelCard, field: str | None) -> None:
    if name not in (card.id, card.source):
        raise ServiceError(
            404, "model_not_found", f"no model {quoted(name)} is served here, only {card.id!r}", field=field
        )


def _listed(card: ModelCard) -> dict[str, Any]:
    """A model as OpenAI's list of models has it, and whatever else is known of it."""
    return {"id": card.id, "object": "model", "created": card.created, "owned_by": "wildreward", **card.model_dump()}


async def _within(seconds: float, work: Awaitable[T], error: Callable[[float], ServiceError]) -> T:
    """The result of `work`, which is cancelled after `seconds`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError as e:
        if not limit.expired():
            raise
        raise error(seconds) from e


def _scoring_took_too_long(seconds: float) -> ServiceError:
    return ServiceError(
        503,
        "timeout",
        f"no answer within {seconds:g} s (--request-timeout-s, X-Request-Timeout-Ms)",
        retry_after_s=RETRY_AFTER_TIMEOUT_S,
    )


def _body_took_too_long(seconds: float) -> ServiceError:
    return ServiceError(408, "body_timeout", f"the body did not arrive within {seconds:g} s (--request-timeout-s)")


async def _serve_other(kind: str, receive: Receive, send: Send) -> None:
    """A server's start and stop, which need nothing here, and web sockets, which are refused."""
    if kind == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})
