"""`POST /classify` as vLLM speaks it, which verl's client of discriminative reward models posts to.

vLLM gives the probabilities of a model's labels, and verl takes the last of them for the reward. Here there is one number, the
reward in [1, K]. The options are those of vLLM 0.29.0, `vllm/entrypoints/pooling/{base,classify}/protocol.py`.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from wildreward_ray.core.protocols.body import conversation, only, read_model, refuse, texts
from wildreward_ray.core.protocols.dialect import Dialect
from wildreward_ray.core.service import Asked, Input, Scored
from wildreward_ray.core.wire import ChatMessage

_INPUT = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "null"}]
}
_MESSAGES = {"anyOf": [{"type": "array", "items": ChatMessage.model_json_schema(), "minItems": 2}, {"type": "null"}]}
_LENGTH = "the service cuts or refuses what is too long by its own setting (--too-long), never the end of a reply"
_TEMPLATE = "messages are rendered by the template that is stored with the reward model"


class ClassifyRequest(BaseModel):
    """Body of `POST /classify`: `input` or `messages`, and those of vLLM's options that change no reward.

    Attributes:
        model: the name or the path of the model that must answer.
        input: rendered reward-model inputs. Special tokens stand around each of them once, whether it has them or not.
        messages: one conversation that ends with the reply to score.
        use_activation: vLLM's switch between logits and probabilities. The reward is neither.
        request_id: comes back within the reply's `id`.
    """

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={
            "oneOf": [
                {"required": ["input"], "properties": {"input": {"not": {"type": "null"}}}},
                {"required": ["messages"], "properties": {"messages": {"not": {"type": "null"}}}},
            ]
        },
    )
    model: str | None = None
    input: Annotated[Any, WithJsonSchema(_INPUT)] = None
    messages: Annotated[Any, WithJsonSchema(_MESSAGES)] = None
    request_id: str | None = None
    use_activation: Annotated[
        Literal[False] | None,
        only(None, False, why="the reward is a score in 1..K; /v1/score gives the probabilities of levels"),
    ] = None
    normalize: Annotated[None, only(None, why="vLLM has replaced it by use_activation")] = None
    task: Annotated[Literal["classify"] | None, only(None, "classify", why="this path only classifies")] = None
    truncate_prompt_tokens: Annotated[None, only(None, why=_LENGTH)] = None
    truncation_side: Annotated[Literal["left"] | None, only(None, "left", why=_LENGTH)] = None
    priority: Annotated[Literal[0] | None, only(None, 0, why="requests are served in the order of their arrival")] = (
        None
    )
    cache_salt: Annotated[None, only(None, why="the prefix cache is shared by all clients")] = None
    mm_processor_kwargs: Annotated[None, only(None, why="only text is scored")] = None
    chat_template: Annotated[None, only(None, why=_TEMPLATE)] = None
    chat_template_kwargs: Annotated[None, only(None, why=_TEMPLATE)] = None
    add_generation_prompt: Annotated[Literal[False] | None, only(None, False, why=_TEMPLATE)] = None
    continue_final_message: Annotated[Literal[False] | None, only(None, False, why=_TEMPLATE)] = None


class ClassifyUsage(BaseModel):
    """Tokens of a request; a reward model writes none."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class Classified(BaseModel):
    """One input's reward.

    Attributes:
        index: place of the input in the request.
        label: vLLM's name of the most likely class. A reward is no class and has none.
        probs: the reward, in [1, K], and nothing else.
        num_classes: length of `probs`.
    """

    index: int
    label: None
    probs: list[float]
    num_classes: Literal[1]


class ClassifyReply(BaseModel):
    """Reply of `POST /classify`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: ClassifyUsage


def _read(body: bytes) -> Asked:
    request = read_model(ClassifyRequest, body)
    if (request.input is None) == (request.messages is None):
        refuse("input", "give either input or messages")
    inputs: tuple[Input, ...] = texts(request.input, "input") if request.input is not None else ()
    if request.messages is not None:
        inputs = (conversation(request.messages, "messages"),)
    return Asked(inputs, request.model, form=request.request_id)


def _write(asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "id": f"classify-{asked.form or uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": scored.card.id,
        "data": [
            {"index": index, "label": None, "probs": [reward.score], "num_classes": 1}
            for index, reward in enumerate(scored.rewards)
        ],
        "usage": {
            "prompt_tokens": scored.tokens,
            "total_tokens": scored.tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


CLASSIFY = Dialect(
    name="verl",
    path="/classify",
    summary="Score rendered texts or one conversation, in the protocol of vLLM's /classify, which verl speaks.",
    request=ClassifyRequest,
    reply=ClassifyReply,
    read=_read,
    write=_write,
    item_field=lambda index: f"input[{index}]",
)
