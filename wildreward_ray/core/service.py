"""What the parts of the reward service say to each other: HTTP in front, protocols beside it, engines behind.

A request becomes an `Asked` whichever protocol it came by; a `RewardBackend` turns its inputs into `Scored`, or raises the
`ServiceError` that the client gets to read. There is nothing in between: never a 200 with a reward missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.core.template import Message

Conversation = tuple[Sequence[Message], str, str]
"""(history, prompt, response), which the model's own template renders."""

Input = Conversation | str
"""What one reward is asked for: a conversation, or a text that the client has rendered itself."""


class Reward(NamedTuple):
    """The reward of one input.

    Attributes:
        score: 1 + sum of p_gt, in [1, K].
        level_probs: K probabilities, index 0 is level 1; from p_gt made monotone.
        p_gt: K-1 probabilities, index k-1 is P(y > k).
    """

    score: float
    level_probs: list[float]
    p_gt: list[float]


class ModelCard(BaseModel):
    """What is served.

    Attributes:
        id: name that clients may ask for.
        source: the checkpoint's path or hub name, which they may ask for as well.
        version: changes when the checkpoint's files do.
        engine: `transformers` or `vllm`.
        levels: number of ordered levels K; scores lie in [1, K].
        max_length: longest input in tokens.
        dtype: type of weights and activations.
        calibrated: whether probabilities are corrected by the model's calibration.
        created: Unix time in seconds at which the model was loaded.
    """

    id: str
    source: str
    version: str
    engine: str
    levels: int
    max_length: int
    dtype: str
    calibrated: bool
    created: int


@dataclass(frozen=True)
class Asked:
    """A request, whichever protocol it came by.

    Attributes:
        inputs: what is to be scored, in the order in which the reply gives it.
        model: the model the client names, or None.
        form: what else the protocol's reply depends on.
    """

    inputs: tuple[Input, ...]
    model: str | None = None
    form: Any = None


@dataclass(frozen=True)
class Scored:
    """Rewards and what gave them.

    Attributes:
        rewards: one an input, in order.
        card: the model that computed them: while a new model takes over, two answer at a time.
        tokens: tokens of all inputs together, as the model read them.
    """

    rewards: list[Reward]
    card: ModelCard
    tokens: int


class ServiceError(WildRewardError):
    """A request that gets no rewards, and what its client is told.

    Args:
        status: HTTP status; 503 is worth another try, others are not.
        code: a stable word for programs.
        detail: the value that was met and the rule it breaks, for people; never a conversation's text.
        field: where in the body it was met, e.g. `items[3].response`.
        item: index of the input it was met in, where the raiser does not know the protocol's names.
        retry_after_s: seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        item: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.status, self.code, self.detail = status, code, detail
        self.field, self.item, self.retry_after_s = field, item, retry_after_s
        super().__init__(detail)

    def __reduce__(self) -> tuple[Any, ...]:
        # It crosses process borders in Ray; keyword-only arguments need a recipe for that.
        keywords: dict[str, Any] = {"field": self.field, "item": self.item, "retry_after_s": self.retry_after_s}
        return partial(type(self), **keywords), (self.status, self.code, self.detail)


class RewardBackend(Protocol):
    """Turns inputs into rewards."""

    @property
    def config(self) -> ServeConfig:
        """Settings in force, the limits on requests among them."""
        ...

    def card(self) -> ModelCard:
        """What is served now. Raises `ServiceError` (503) where nothing is yet."""
        ...

    async def score(self, inputs: Sequence[Input]) -> Scored:
        """A reward for every input. Raises `ServiceError` where one of them has none."""
        ...

    async def check(self) -> None:
        """Return if an engine answers now; raise `ServiceError` (503) if none does."""
        ...


@dataclass(slots=True)
class RequestRecord:
    """One request after its reply, without any of its text: what the access log and the metrics see.

    Attributes:
        request_id: the client's `X-Request-Id`, or one made here.
        protocol: name of the protocol, or "" for other paths.
        status: HTTP status of the reply.
        code: `ServiceError.code`, or "" for a success.
        seconds: from the request's arrival to its reply.
        items: inputs asked for.
        tokens: tokens of the inputs that were scored.
        version: the model version that scored them, or "".
        scores: their scores.
    """

    request_id: str
    method: str
    path: str
    protocol: str = ""
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    items: int = 0
    tokens: int = 0
    version: str = ""
    scores: list[float] = field(default_factory=list)


class RequestObserver(Protocol):
    """Is told of every request."""

    def began(self) -> None:
        """A request has arrived."""
        ...

    def ended(self, record: RequestRecord) -> None:
        """Its reply has been sent, or its client has gone."""
        ...
