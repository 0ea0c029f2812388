"""What the reward service sends back: JSON, static pages and refusals, and the check that a reward is a reward."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from wildreward_ray.core.service import Scored, ServiceError

# Pages carry their style and script within; whatever else a hostile text might get a browser to load is refused.
PAGE_POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)

# json writes NaN and Infinity unless told not to, and a client would read them as rewards.
_write = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_JSON = (b"content-type", b"application/json")


class Reply(NamedTuple):
    """A reply before it is sent; `headers` are those beside its length and its request's id."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


def json_reply(content: Any) -> Reply:
    """A 200 with JSON.

    Raises:
        ValueError: `content` holds a number that is not finite.
    """
    return Reply(200, _write(content).encode())


def page_reply(content_type: str, body: bytes) -> Reply:
    """A 200 with a static page, and the policy that keeps a browser from loading anything else for it."""
    headers = (
        (b"content-type", content_type.encode()),
        (b"content-security-policy", PAGE_POLICY),
        (b"x-content-type-options", b"nosniff"),
    )
    return Reply(200, body, headers)


def refusal(error: ServiceError, allow: bytes) -> Reply:
    """What a client gets to read instead of rewards.

    Args:
        allow: the methods that the path takes, for a 405.
    """
    content = {"detail": error.detail, "code": error.code}
    if error.field is not None:
        content["field"] = error.field
    headers = [_JSON]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    elif error.status == 405:
        headers.append((b"allow", allow))
    elif error.status == 503:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s or 0))))
    return Reply(error.status, _write(content).encode(), tuple(headers))


def check_rewards(scored: Scored, items: int) -> None:
    """Refuse rewards that are not what was asked for.

    Args:
        scored: what a backend gave.
        items: inputs that were asked for.

    Raises:
        ServiceError: 500 `bad_reward`: another number of rewards than of inputs, a score that is not finite or outside
            [1, K], other than K level or K-1 threshold probabilities, or one of them outside [0, 1].
    """
    levels = scored.card.levels
    if len(scored.rewards) != items:
        raise ServiceError(500, "bad_reward", f"{len(scored.rewards)} rewards came back for {items} inputs")
    for i, (score, level_probs, p_gt) in enumerate(scored.rewards):
        # No comparison holds for a NaN.
        if not 1 <= score <= levels:
            raise ServiceError(500, "bad_reward", f"the score {score} is not in [1, {levels}]", item=i)
        if len(level_probs) != levels or len(p_gt) != levels - 1:
            detail = f"{len(level_probs)} level and {len(p_gt)} threshold probabilities for {levels} levels"
            raise ServiceError(500, "bad_reward", detail, item=i)
        if not (_all_probabilities(level_probs) and _all_probabilities(p_gt)):
            raise ServiceError(500, "bad_reward", "a probability is not in [0, 1]", item=i)


def _all_probabilities(values: Sequence[float]) -> bool:
    for value in values:  # noqa: SIM110 - a generator would cost twice as much, for every item of every request
        if not 0 <= value <= 1:
            return False
    return True


def quoted(text: str | bytes) -> str:
    """`text` in quotes and plain ASCII, cut to a length that a log line can hold."""
    known = text.decode("latin-1") if isinstance(text, bytes) else text
    return ascii(known if len(known) <= 100 else known[:100] + "...")
