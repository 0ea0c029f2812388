"""`POST /v1/rm`: one prompt and one response, as slime's `--rm-type remote_rm` posts them.

slime 0.3.1, `slime/rollout/rm_hub/__init__.py`. slime keeps the whole reply and reads the key that `--reward-key` names.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from wildreward_ray.core.protocols.body import conversation, read_model
from wildreward_ray.core.protocols.dialect import Dialect
from wildreward_ray.core.service import Asked, Scored
from wildreward_ray.core.wire import ChatMessage, Score

_PROMPT = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": ChatMessage.model_json_schema(), "minItems": 1}],
}


class RemoteRmRequest(BaseModel):
    """Body of `POST /v1/rm`. slime's `label` is not read.

    Attributes:
        prompt: a user message, or messages that end with one.
        response: the reply to score.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    response: str


def _read(body: bytes) -> Asked:
    request = read_model(RemoteRmRequest, body)
    if isinstance(request.prompt, str):
        return Asked((([], request.prompt, request.response),))
    return Asked((conversation(request.prompt, "prompt", request.response),))


def _write(asked: Asked, scored: Scored) -> dict[str, Any]:
    return scored.rewards[0]._asdict()


REMOTE_RM = Dialect(
    name="slime",
    path="/v1/rm",
    summary="Score one response to one prompt, in the protocol of slime's remote_rm.",
    request=RemoteRmRequest,
    reply=Score,
    read=_read,
    write=_write,
    item_field=lambda index: "response",
)
