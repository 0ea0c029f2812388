"""What travels over HTTP between reward clients and the reward service, in its own formats and in WildReward's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import Message, split_messages


def _not_nullable(schema: dict[str, Any]) -> None:
    """A field may be left out, but null is refused: the schema must not promise it."""
    for name, field in schema["properties"].items():
        options = [one for one in field.pop("anyOf", []) if one != {"type": "null"}]
        if options:
            schema["properties"][name] = {**{k: v for k, v in field.items() if k != "default"}, **options[0]}


def _item_schema(schema: dict[str, Any]) -> None:
    _not_nullable(schema)
    schema["properties"]["messages"]["minItems"] = 2
    second_form = {"anyOf": [{"required": ["prompt"]}, {"required": ["response"]}]}
    schema["oneOf"] = [
        {"required": ["messages"], "properties": {"history": {"maxItems": 0}}, "not": second_form},
        {"required": ["prompt", "response"]},
    ]


class FieldError(ValueError):
    """A value that breaks a rule of a model.

    Args:
        problem: the rule.
        code: a stable word for programs.
    """

    def __init__(self, problem: str, code: str = "invalid_field") -> None:
        self.problem, self.code = problem, code
        super().__init__(problem)


class ChatMessage(BaseModel):
    """One message of a conversation. Other keys than these two are not read."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "user", "assistant", "tool"]
    content: str


def _no_null(value: Any) -> Any:
    if value is None:
        raise FieldError("null is no value; leave the key out")
    return value


class ScoreItem(BaseModel):
    """One reply to score: either `messages` ending in the reply, or `history`, `prompt` and `response`."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_item_schema)
    messages: Annotated[list[ChatMessage] | None, BeforeValidator(_no_null)] = None
    history: list[ChatMessage] = Field(default_factory=list)
    prompt: Annotated[str | None, BeforeValidator(_no_null)] = None
    response: Annotated[str | None, BeforeValidator(_no_null)] = None

    @model_validator(mode="after")
    def _one_form(self) -> ScoreItem:
        if self.messages is not None:
            if self.prompt is not None or self.response is not None or self.history:
                raise FieldError("give either messages, or history, prompt and response, not both")
            split_conversation(self.messages)
        elif self.prompt is None or self.response is None:
            raise FieldError("give messages, or both prompt and response", "missing_field")
        return self

    def parts(self) -> tuple[list[Message], str, str]:
        """(history, prompt, response) of this item."""
        if self.messages is not None:
            return split_conversation(self.messages)
        return [vars(m) for m in self.history], str(self.prompt), str(self.response)


def split_conversation(messages: Sequence[ChatMessage]) -> tuple[list[Message], str, str]:
    """(history, prompt, response) of messages that end with the reply.

    Raises:
        FieldError: the last two are not a user message and an assistant reply.
    """
    try:
        return split_messages([vars(m) for m in messages])
    except UserError as e:
        raise FieldError(e.problem) from e


class ScoreRequest(BaseModel):
    """Body of `POST /v1/score`.

    Attributes:
        items: what to score.
        model: the name or the path of the model that must answer; any model if left out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_not_nullable)
    items: list[ScoreItem] = Field(min_length=1)
    model: Annotated[str | None, BeforeValidator(_no_null)] = None


class Score(BaseModel):
    """The reward of one reply.

    Attributes:
        score: 1 + sum of p_gt, in [1, K].
        level_probs: K probabilities, index 0 is level 1; from p_gt made monotone.
        p_gt: K-1 probabilities, index k-1 is P(y > k).
    """

    model_config = ConfigDict(allow_inf_nan=False)
    score: float
    level_probs: list[float]
    p_gt: list[float]


class ScoreReply(BaseModel):
    """Reply of `POST /v1/score`: one score an item, in request order."""

    model: str
    version: str
    scores: list[Score]


class GetRewardRequest(BaseModel):
    """Body of `POST /get_reward` (the WildReward and OpenRLHF clients). OpenRLHF's `prompts` and `labels` are not read.

    Attributes:
        query: rendered reward-model inputs.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    query: list[str] = Field(min_length=1)


class GetRewardReply(BaseModel):
    """Reply of `POST /get_reward`.

    Attributes:
        rewards: the score of every query, in request order, in [1, K].
        scores: the same mapped to 0..1 as (score - 1) / (K - 1), for OpenRLHF's dynamic filtering.
        extra_logs: numbers that OpenRLHF logs, one an item: the probabilities of the lowest and of the highest level.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class Health(BaseModel):
    """Reply of `GET /healthz`."""

    status: Literal["ok"]
    model: str
    version: str
    engine: str
    levels: int
