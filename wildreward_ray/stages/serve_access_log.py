"""A JSON line a request for operators, without anything of what was asked, and the fan-out to several observers.

A line holds no text of a conversation, no header and no query string. What a client chose itself, the path and the request's
id, is cut to a length and written with JSON's escapes, so that it can neither begin a line of its own nor colour a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from wildreward_ray.core.service import RequestObserver, RequestRecord

ACCESS_LOGGER = "wildreward_ray.access"
_LONGEST = 128

logger = logging.getLogger(__name__)


class AccessLog:
    """Writes a line a request to the logger `wildreward_ray.access`, at level INFO.

    Where that logger has no handler, it is given one that writes to the process's own standard error: in a Serve replica the
    file `worker-*.err` of Ray's session, whether or not Serve takes `sys.stderr` for its own log.

    Args:
        enabled: asked at every request.
    """

    def __init__(self, enabled: Callable[[], bool] = lambda: True) -> None:
        self._enabled = enabled
        self._log = logging.getLogger(ACCESS_LOGGER)
        if not self._log.handlers:
            handler = logging.StreamHandler(sys.__stderr__)
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._log.addHandler(handler)
            self._log.propagate = False
        if self._log.level == logging.NOTSET:
            self._log.setLevel(logging.INFO)

    def began(self) -> None:
        """See `RequestObserver`."""

    def ended(self, record: RequestRecord) -> None:
        """See `RequestObserver`."""
        if self._enabled():
            self._log.info("%s", line(record, datetime.now(UTC)))


def line(record: RequestRecord, time: datetime) -> str:
    """The line of one request: one JSON object in ASCII.

    Args:
        record: without its scores, which are for the metrics.
        time: of its end, with a time zone.
    """
    return json.dumps(
        {
            "time": time.isoformat(timespec="milliseconds"),
            "request_id": _cut(record.request_id),
            "method": _cut(record.method),
            # A client may put a `?` of its own into the path, percent-encoded.
            "path": _cut(record.path.partition("?")[0]),
            "protocol": record.protocol,
            "status": record.status,
            "code": record.code,
            "ms": round(record.seconds * 1000, 2),
            "items": record.items,
            "tokens": record.tokens,
            "version": record.version,
        }
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


class Observers:
    """Tells several observers of every request, in order.

    What one of them raises is logged and keeps neither the others from their record nor the client from its rewards.
    """

    def __init__(self, *observers: RequestObserver) -> None:
        self._observers = observers

    def began(self) -> None:
        """See `RequestObserver`."""
        for observer in self._observers:
            try:
                observer.began()
            except Exception:
                logger.exception("%s failed", type(observer).__name__)

    def ended(self, record: RequestRecord) -> None:
        """See `RequestObserver`."""
        for observer in self._observers:
            try:
                observer.ended(record)
            except Exception:
                logger.exception("%s failed on request %s", type(observer).__name__, ascii(record.request_id))
