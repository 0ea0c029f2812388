"""`POST /v1/score`, the service's own protocol, and `POST /get_reward`, which is WildReward's and OpenRLHF's."""

from __future__ import annotations

from typing import Any

from wildreward_ray.core.protocols.body import read_model
from wildreward_ray.core.protocols.dialect import Dialect
from wildreward_ray.core.service import Asked, Scored
from wildreward_ray.core.wire import GetRewardReply, GetRewardRequest, ScoreReply, ScoreRequest


def _read_score(body: bytes) -> Asked:
    request = read_model(ScoreRequest, body)
    return Asked(tuple(item.parts() for item in request.items), request.model)


def _write_score(asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "model": scored.card.id,
        "version": scored.card.version,
        "scores": [reward._asdict() for reward in scored.rewards],
    }


def _read_get_reward(body: bytes) -> Asked:
    return Asked(tuple(read_model(GetRewardRequest, body).query))


def _write_get_reward(asked: Asked, scored: Scored) -> dict[str, Any]:
    steps = scored.card.levels - 1
    return {
        "rewards": [reward.score for reward in scored.rewards],
        "scores": [(reward.score - 1) / steps for reward in scored.rewards],
        "extra_logs": {
            "p_lowest_level": [reward.level_probs[0] for reward in scored.rewards],
            "p_highest_level": [reward.level_probs[-1] for reward in scored.rewards],
        },
    }


NATIVE = Dialect(
    name="native",
    path="/v1/score",
    summary="Score replies given as chat messages, or as history, prompt and response.",
    request=ScoreRequest,
    reply=ScoreReply,
    read=_read_score,
    write=_write_score,
    item_field=lambda index: f"items[{index}]",
)

GET_REWARD = Dialect(
    name="wildreward",
    path="/get_reward",
    summary="Score rendered texts, in the protocol of WildReward's and OpenRLHF's reward servers.",
    request=GetRewardRequest,
    reply=GetRewardReply,
    read=_read_get_reward,
    write=_write_get_reward,
    item_field=lambda index: f"query[{index}]",
)
