"""`POST /v1/score/evaluation`: texts in, scores out, as LLaMA-Factory's PPO asks its reward server.

LLaMA-Factory 0.9.6, `src/llamafactory/api/protocol.py` and `src/llamafactory/train/ppo/ppo_utils.py`.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wildreward_ray.core.protocols.body import only, read_model
from wildreward_ray.core.protocols.dialect import Dialect
from wildreward_ray.core.service import Asked, Scored

_LENGTH = "the service cuts or refuses what is too long by its own setting (--too-long)"


class ScoreEvaluationRequest(BaseModel):
    """Body of `POST /v1/score/evaluation`.

    Attributes:
        model: not read: LLaMA-Factory always writes "model".
        messages: rendered reward-model inputs.
        max_length: LLaMA-Factory's server cuts texts to it.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    model: str = ""
    messages: list[str] = Field(min_length=1)
    max_length: Annotated[None, only(None, why=_LENGTH)] = None


class ScoreEvaluationReply(BaseModel):
    """Reply of `POST /v1/score/evaluation`: one score a text, in request order, in [1, K]."""

    id: str
    object: Literal["score.evaluation"]
    model: str
    scores: list[float]


def _read(body: bytes) -> Asked:
    return Asked(tuple(read_model(ScoreEvaluationRequest, body).messages))


def _write(asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "id": f"scoreval-{uuid.uuid4().hex}",
        "object": "score.evaluation",
        "model": scored.card.id,
        "scores": [reward.score for reward in scored.rewards],
    }


SCORE_EVALUATION = Dialect(
    name="llama_factory",
    path="/v1/score/evaluation",
    summary="Score rendered texts, in the protocol of LLaMA-Factory's reward server.",
    request=ScoreEvaluationRequest,
    reply=ScoreEvaluationReply,
    read=_read,
    write=_write,
    item_field=lambda index: f"messages[{index}]",
)
