"""What travels over HTTP between reward clients and the reward service."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import split_messages


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ScoreItem(BaseModel):
    """One reply to score: either `messages` ending in the reply, or `history`, `prompt` and `response`."""

    model_config = ConfigDict(extra="forbid")
    messages: list[ChatMessage] | None = None
    history: list[ChatMessage] = Field(default_factory=list)
    prompt: str | None = None
    response: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ScoreItem:
        if self.messages is not None:
            if self.prompt is not None or self.response is not None or self.history:
                raise ValueError("give either messages, or history/prompt/response, not both")
            self.parts()
        elif self.prompt is None or self.response is None:
            raise ValueError("give messages, or both prompt and response")
        return self

    def parts(self) -> tuple[list[dict[str, str]], str, str]:
        """(history, prompt, response) of this item."""
        if self.messages is not None:
            try:
                history, prompt, response = split_messages([m.model_dump() for m in self.messages])
            except UserError as e:
                raise ValueError(str(e)) from e
            return [dict(m) for m in history], prompt, response
        return [m.model_dump() for m in self.history], str(self.prompt), str(self.response)


class ScoreRequest(BaseModel):
    """Body of `POST /v1/score`."""

    model_config = ConfigDict(extra="forbid")
    items: list[ScoreItem] = Field(min_length=1)


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
    """Body of `POST /get_reward` (the WildReward and OpenRLHF clients). `query` holds rendered reward-model inputs."""

    model_config = ConfigDict(extra="ignore")
    query: list[str] = Field(min_length=1)
    prompts: list[str] | None = None
    labels: list[str] | None = None


class GetRewardReply(BaseModel):
    """Reply of `POST /get_reward`.

    Attributes:
        rewards: the score of every query, in request order, in [1, K].
        scores: the same mapped to 0..1, for OpenRLHF's dynamic filtering.
        extra_logs: numbers that OpenRLHF logs, one an item.
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
