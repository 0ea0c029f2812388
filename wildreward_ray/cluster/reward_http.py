"""What both reward clients send to the service, and which of its replies they believe.

Nothing here waits or touches a socket, so that the sync and the async client can't come to differ in what they accept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from wildreward_ray.cluster.reward_format import Format, Reply, RewardT, first_broken_rule
from wildreward_ray.core.errors import RewardBrokenError, RewardRefusedError, UserError
from wildreward_ray.core.service import ModelCard
from wildreward_ray.core.wire import Health

_SHOWN = 300
_Kind = TypeVar("_Kind", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Part:
    """The items of one request.

    Attributes:
        items: what is to be scored, as the format takes it.
        name: what the caller calls the list they come from.
        start: index of the first item in that list.
    """

    items: Sequence[Mapping[str, Any]]
    name: str
    start: int = 0

    def field(self, said: str, sent_as: str) -> str:
        """A place in the request's body, whose list is called `sent_as`, as a place in what the caller gave."""
        item = rf"\b{sent_as}\[(\d+)\]"
        return re.sub(item, lambda found: f"{self.name}[{self.start + int(found[1])}]", said, count=1)


class Service(Generic[RewardT]):
    """The service's address, and what is sent there.

    Args:
        url: base URL of the service.
        form: what is spoken there.
        path: where scores are asked for, below the URL; None for the format's own path.
        token_env: environment variable that holds the bearer token.
        token: the bearer token itself.
        model: name of the model that must be served; None takes whatever is.

    Raises:
        UserError: the URL is not one of a service, or the token is missing or can't be sent.
    """

    def __init__(
        self,
        url: str,
        form: Format[RewardT],
        *,
        path: str | None = None,
        token_env: str | None,
        token: str | None,
        model: str | None,
    ) -> None:
        self.url = _base_url(url)
        self._form, self._model = form, model
        self._score_url = _score_url(self.url, form.path if path is None else path)
        # Scores are small: packing them would take longer than sending them.
        self._headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "wildreward-ray"}
        found = _token(token_env, token)
        if found is not None:
            self._headers["authorization"] = f"Bearer {found}"

    def get(self, path: str, timeout_s: float) -> httpx.Request:
        """A request for what the service says of itself."""
        return httpx.Request("GET", self.url + path, headers=self._headers, extensions=_timeouts(timeout_s))

    def post(self, content: bytes, timeout_s: float) -> httpx.Request:
        """A request for scores, which tells the service how long a reply is of use."""
        # Built without a client's defaults: merging those takes a quarter of the time a request costs here.
        headers = {
            **self._headers,
            "content-type": "application/json",
            "x-request-timeout-ms": str(max(1, int(1000 * timeout_s))),
        }
        return httpx.Request("POST", self._score_url, headers=headers, content=content, extensions=_timeouts(timeout_s))

    def body(self, part: Part) -> bytes:
        """The body of a request for scores.

        Raises:
            UserError: an item holds what JSON in UTF-8 can't: NaN, a lone surrogate, an object of another type.
        """
        body = self._form.write(part.items)
        if self._model is not None:
            body["model"] = self._model
        try:
            return _json(body)
        except (TypeError, ValueError) as e:
            bad = next((i for i, item in enumerate(part.items) if not _can_be_sent(item)), 0)
            raise UserError(f"{part.name}[{part.start + bad}] can't be sent as JSON: {line(str(e))}") from e

    def scores(self, reply: Reply, part: Part, attempts: int) -> list[RewardT]:
        """One score an item, in order, all of them checked.

        Args:
            attempts: how often the request was sent; errors tell.

        Raises:
            RewardRefusedError: the service refuses the request.
            RewardBrokenError: the reply has status 200 but not every score.
        """
        if reply.status != 200:
            raise self._refusal(reply, part, attempts)
        try:
            return self._form.read(reply, len(part.items))
        except ValueError as e:
            text = f"{self.url} sent a reply without usable scores: {e}: {_text(reply)}"
            raise RewardBrokenError(text, attempts=attempts, last_status=reply.status) from e

    def _refusal(self, reply: Reply, part: Part, attempts: int) -> RewardRefusedError:
        said = _Said.of(reply).as_asked_by(part, self._form.items)
        place = f" at {said.field}" if said.field else ""
        return RewardRefusedError(
            f"{self.url} refused a request{place}: {failure(reply, said)}",
            status=reply.status,
            code=said.code,
            detail=said.detail,
            field=said.field,
            attempts=attempts,
        )

    def health(self, reply: Reply) -> Health:
        """What `/healthz` says. Raises `UserError` where that isn't what a reward service says."""
        return self._said_of_itself(reply, Health)

    def models(self, reply: Reply) -> list[ModelCard]:
        """What `/v1/models` says. Raises as `health` does."""
        return self._said_of_itself(reply, _Models).data

    def first_scores(self, reply: Reply, part: Part) -> list[RewardT]:
        """The scores of a reply to a request that only asks whether there is a service. Raises as `health` does."""
        self._check_status(reply)
        try:
            return self._form.read(reply, len(part.items))
        except ValueError as e:
            raise self.unreachable(f"its reply has no usable scores: {e}: {_text(reply)}") from e

    def unreachable(self, why: str) -> UserError:
        """The error of a service that can't be asked what it serves."""
        return UserError(f"no reward service answers at {self.url!r}: {why}", flag="--reward-url")

    def _check_status(self, reply: Reply) -> None:
        if reply.status in (401, 403):
            hint = f"the service wants a valid bearer token (HTTP {reply.status})"
            raise UserError(f"{self.url!r} refuses this client", flag="--reward.token-env", hint=hint)
        if reply.status != 200:
            raise self.unreachable(failure(reply))

    def _said_of_itself(self, reply: Reply, kind: type[_Kind]) -> _Kind:
        self._check_status(reply)
        try:
            return kind.model_validate_json(reply.content)
        except ValidationError as e:
            raise self.unreachable(f"{first_broken_rule(e)}: {_text(reply)}") from e


class _Models(BaseModel):
    data: list[ModelCard]


class _Said(NamedTuple):
    """What a service says about a request that it gives no scores for."""

    code: str | None
    detail: str
    field: str | None

    @classmethod
    def of(cls, reply: Reply) -> _Said:
        try:
            body = json.loads(reply.content)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("detail"), str):
            return cls(None, _text(reply), None)
        code, field = (body[name] if isinstance(body.get(name), str) else None for name in ("code", "field"))
        return cls(code, body["detail"], field)

    def as_asked_by(self, part: Part, sent_as: str) -> _Said:
        """The same with the item's place in what the caller gave; the service knows its place in the request."""
        if self.field is None:
            return self
        field = part.field(self.field, sent_as)
        at_start = self.detail.startswith(self.field)
        return self._replace(field=field, detail=field + self.detail[len(self.field) :] if at_start else self.detail)


def failure(reply: Reply, said: _Said | None = None) -> str:
    """What a reply that gives no scores says, with what is needed to look into it."""
    said = said or _Said.of(reply)
    parts = [f"HTTP {reply.status}"]
    if said.code:
        parts.append(said.code)
    if 300 <= reply.status < 400 and "location" in reply.headers:
        parts.append(f"(moved to {line(reply.headers['location'])})")
    if "x-request-id" in reply.headers:
        parts.append(f"(request {line(reply.headers['x-request-id'])})")
    return f"{' '.join(parts)}: {line(said.detail)}"


def no_reply(error: Exception, timeout_s: float) -> str:
    """Why there is no reply."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no whole reply within {timeout_s:g} s ({type(error).__name__}, --reward.timeout-s)"
    return f"{type(error).__name__}: {line(str(error))}"


def line(text: str) -> str:
    """The beginning of a text, on one line."""
    return " ".join(text.split())[:_SHOWN]


def _base_url(url: str) -> str:
    """The URL without a slash at its end."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as e:
        raise UserError(f"{url!r} is not a URL: {e}", flag="--reward-url") from e
    if parsed.userinfo:
        # Errors and logs name the URL.
        raise UserError(
            "the URL of the reward service holds a user name", flag="--reward-url", hint="use a token instead"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise UserError(f"{url!r} is not the base URL of a service, such as http://127.0.0.1:8000", flag="--reward-url")
    return url.rstrip("/")


def _score_url(url: str, path: str) -> httpx.URL:
    try:
        return httpx.URL(f"{url}/{path.lstrip('/')}")
    except httpx.InvalidURL as e:
        raise UserError(f"{path!r} can't stand in a URL: {e}", flag="--reward.path") from e


def _token(token_env: str | None, token: str | None) -> str | None:
    if token_env is not None and token is not None:
        raise UserError("both token and token_env are given: one of them is enough", flag="--reward.token-env")
    where = "the token" if token_env is None else f"the environment variable {token_env!r}"
    found = token if token_env is None else os.environ.get(token_env, "")
    if found is None:
        return None
    found = found.strip()
    if not found:
        raise UserError(f"{where} is empty", flag="--reward.token-env")
    if not (found.isascii() and found.isprintable()):
        raise UserError(f"{where} holds characters that a header can't", flag="--reward.token-env")
    return found


def _timeouts(seconds: float) -> dict[str, Any]:
    # The client limits its requests itself, so none ever waits for a connection of the pool.
    return {"timeout": {"connect": seconds, "read": seconds, "write": seconds, "pool": None}}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _can_be_sent(item: Any) -> bool:
    try:
        _json(item)
    except (TypeError, ValueError):
        return False
    return True


def _text(reply: Reply) -> str:
    return line(reply.content[: 4 * _SHOWN].decode("utf-8", "replace"))
