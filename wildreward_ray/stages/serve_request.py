"""Reading a request from its ASGI server: header values with a rule to them, and a body of limited size."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from wildreward_ray.core.service import ServiceError
from wildreward_ray.stages.serve_reply import quoted

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

REQUEST_ID = re.compile(rb"[\x20-\x7e]{1,128}")


class ClientGoneError(OSError):
    """The client hung up before its request was there."""


def request_id(given: bytes | None) -> str:
    """The client's own id if it is 1 to 128 printable ASCII characters, else a new one."""
    if given is not None and REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return secrets.token_hex(16)


def time_limit(given: bytes | None, longest_s: float) -> float:
    """Seconds that scoring may take: what the client allows, at most what the service does.

    Raises:
        ServiceError: 400 `bad_timeout`: not a whole number of milliseconds, at least 1.
    """
    if given is None:
        return longest_s
    if not given.isdigit() or len(given) > 18 or int(given) == 0:
        raise ServiceError(
            400,
            "bad_timeout",
            f"X-Request-Timeout-Ms {quoted(given)} is not a whole number of milliseconds, at least 1",
            field="X-Request-Timeout-Ms",
        )
    return min(int(given) / 1000, longest_s)


async def read_body(headers: Headers, receive: Receive, largest: int) -> bytes:
    """The whole body, which a client may send in chunks of unknown total length.

    Args:
        largest: most bytes.

    Raises:
        ServiceError: 413 `body_too_large`, before the body is read where its length is told; 415 `unsupported_encoding` for
            a compressed one; 400 `bad_content_length`.
        ClientGoneError: the client hung up first.
    """
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit():
            raise ServiceError(400, "bad_content_length", f"Content-Length {quoted(length)} is not a number")
        # Python refuses to read a number of thousands of digits, so their count is looked at first.
        if len(length) > 18 or int(length) > largest:
            raise _too_large(largest)
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity"):
        raise ServiceError(415, "unsupported_encoding", f"Content-Encoding {quoted(encoding)}: only identity is taken")
    whole = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        if len(whole) + len(chunk) > largest:
            raise _too_large(largest)
        if not message.get("more_body", False):
            return bytes(whole) + chunk if whole else chunk
        whole += chunk


def _too_large(largest: int) -> ServiceError:
    return ServiceError(413, "body_too_large", f"the body is larger than {largest} bytes (--max-body-mb)")
