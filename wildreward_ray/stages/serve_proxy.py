"""What Ray Serve's HTTP proxy does before it hands a request on.

The proxy reads a few headers as UTF-8 and answers a request with other bytes in them by a bare 500. A client's mistake is told
to the client: Serve loads `middlewares` into the proxy where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class RefuseUnreadableHeaders:
    """ASGI middleware: 400 where the name or value of a header is not UTF-8."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        unreadable = next((n for n, v in scope.get("headers", ()) if not _is_utf8(n) or not _is_utf8(v)), None)
        if unreadable is None:
            await self._app(scope, receive, send)
            return
        name = unreadable.decode("ascii", "backslashreplace")
        detail = {"detail": f"the header {name!r} is not UTF-8", "code": "unreadable_header", "field": name}
        body = json.dumps(detail).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def middlewares() -> list[Middleware]:
    """What Serve's proxy puts in front of its own work."""
    return [Middleware(RefuseUnreadableHeaders)]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
