"""What a protocol of the reward service is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from wildreward_ray.core.service import Asked, Scored


@dataclass(frozen=True)
class Dialect:
    """One way of asking for rewards over HTTP. It knows nothing of HTTP itself, of tokens or of models.

    Attributes:
        name: what the protocol is called in metrics and logs.
        path: the path that its requests are posted to.
        summary: one line for the API's documentation.
        request: the body's schema.
        reply: the reply's schema.
        read: a body as what it asks for. Raises `ServiceError`: 400 for what is no JSON in UTF-8, 422 for JSON that is no
            request of this protocol, or that asks for what the service does not do.
        write: the reply, as values that JSON has.
        item_field: the name in the body of the input with an index, e.g. `items[3]`. Where a body may give one input
            without a list around it, that input goes by the name it has in a list.
    """

    name: str
    path: str
    summary: str
    request: type[BaseModel]
    reply: type[BaseModel] | TypeAdapter[Any]
    read: Callable[[bytes], Asked]
    write: Callable[[Asked, Scored], Any]
    item_field: Callable[[int], str]
