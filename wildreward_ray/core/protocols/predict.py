"""`POST /predict` as Text Embeddings Inference (TEI) speaks it.

TEI 1.9.3, `docs/openapi.json` and `router/src/http/types.rs`. A string is a rendered text; a pair is a prompt and its response,
which the reward model's own template renders.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, WithJsonSchema

from wildreward_ray.core.protocols.body import only, read_model, refuse
from wildreward_ray.core.protocols.dialect import Dialect
from wildreward_ray.core.service import Asked, Input, Scored

LABEL = "reward"

_ONE_OR_PAIR = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
_INPUTS = {"anyOf": [{"type": "string"}, _ONE_OR_PAIR, {"type": "array", "items": _ONE_OR_PAIR, "minItems": 1}]}


class PredictRequest(BaseModel):
    """Body of `POST /predict`.

    Attributes:
        inputs: a text, `[text]`, a pair `[prompt, response]`, or a list of `[text]` and pairs.
        raw_scores: changes nothing: a reward is neither a logit nor a probability.
        truncate: changes nothing: the service cuts or refuses what is too long by its own setting.
        truncation_direction: TEI's other direction would cut the end of the reply that is judged.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    inputs: Annotated[Any, WithJsonSchema(_INPUTS)]
    raw_scores: bool | None = None
    truncate: bool | None = None
    truncation_direction: Annotated[
        Literal["left", "Left"] | None,
        only(None, "left", "Left", why="only the left, the oldest text, is ever cut: the end of the reply is judged"),
    ] = None


class Prediction(BaseModel):
    """One input's reward.

    Attributes:
        score: the reward, in [1, K].
        label: always "reward".
    """

    score: float
    label: str


PredictReply: TypeAdapter[list[Prediction] | list[list[Prediction]]] = TypeAdapter(
    list[Prediction] | list[list[Prediction]]
)


def _read(body: bytes) -> Asked:
    inputs = read_model(PredictRequest, body).inputs
    if isinstance(inputs, str):
        return Asked((inputs,), form="single")
    if not isinstance(inputs, list) or not inputs:
        refuse("inputs", "a string, a pair, or a list of them that is not empty is needed")
    if not isinstance(inputs[0], list):
        return Asked((_one(inputs, "inputs"),), form="single")
    return Asked(tuple(_one(part, f"inputs[{index}]") for index, part in enumerate(inputs)), form="batch")


def _one(part: Any, field: str) -> Input:
    if not isinstance(part, list) or not 1 <= len(part) <= 2 or not all(isinstance(text, str) for text in part):
        refuse(field, "[text] or [prompt, response] is needed")
    return part[0] if len(part) == 1 else ([], part[0], part[1])


def _write(asked: Asked, scored: Scored) -> list[Any]:
    predictions = [[{"score": reward.score, "label": LABEL}] for reward in scored.rewards]
    return predictions[0] if asked.form == "single" else predictions


PREDICT = Dialect(
    name="tei",
    path="/predict",
    summary="Score texts or pairs of prompt and response, in the protocol of Text Embeddings Inference.",
    request=PredictRequest,
    reply=PredictReply,
    read=_read,
    write=_write,
    item_field=lambda index: f"inputs[{index}]",
)
