"""How rewards are asked for in the protocols that reward servers speak: what is posted, and what a reply must hold.

The service's side of the same protocols is `wildreward_ray.core.protocols`. A reply is believed only where it holds one finite
number for every item: a service that sends an error with status 200, or one score too few, would otherwise train a policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wildreward_ray.cluster.reward_format import NATIVE_FORMAT, Format, Reply, native_scores
from wildreward_ray.core.protocols.classify import CLASSIFY
from wildreward_ray.core.protocols.native import GET_REWARD
from wildreward_ray.core.protocols.predict import PREDICT
from wildreward_ray.core.protocols.remote_rm import REMOTE_RM
from wildreward_ray.core.protocols.score_evaluation import SCORE_EVALUATION

# TEI refuses more by default (`--max-client-batch-size`): https://huggingface.co/docs/text-embeddings-inference/cli_arguments
_TEI_BATCH = 32
_SHOWN = 60


class ServiceReward(NamedTuple):
    """The reward of one sample as a service gave it.

    Attributes:
        score: the reward, on the service's own scale; finite.
        level_probs: K probabilities, index 0 is level 1; None where the protocol gives one number only.
    """

    score: float
    level_probs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Speech(Format[ServiceReward]):
    """A format that a trainer can ask in.

    Attributes:
        rendered: an item is `{"text": ...}`, one text of conversation and response. Otherwise it is `{"history": [...],
            "prompt": ..., "response": ...}`.
        most: most items in one request; None for any number.
    """

    rendered: bool = False
    most: int | None = None


def _texts(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return [item["text"] for item in items]


def _one_sample(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    (item,) = items
    prompt: Any = item["prompt"]
    if item["history"]:
        # slime posts its sample's prompt, which is a text or chat messages. A text alone would lose what was said before.
        prompt = [*item["history"], {"role": "user", "content": prompt}]
    return {"prompt": prompt, "response": item["response"], "label": None}


def _native(reply: Reply, count: int) -> list[ServiceReward]:
    return [ServiceReward(score.score, tuple(score.level_probs)) for score in native_scores(reply, count)]


def _get_reward(reply: Reply, count: int) -> list[ServiceReward]:
    return _numbers(_object(_value(reply)), "rewards", count)


def _score_evaluation(reply: Reply, count: int) -> list[ServiceReward]:
    return _numbers(_object(_value(reply)), "scores", count)


def _classify(reply: Reply, count: int) -> list[ServiceReward]:
    """The last of an input's `probs`, as verl takes it, in the order of `index`."""
    data = _list(_object(_value(reply)).get("data"), "data", count)
    found: dict[int, ServiceReward] = {}
    for place, one in enumerate(data):
        index = one.get("index") if isinstance(one, dict) else None
        if type(index) is not int or not 0 <= index < count or index in found:
            raise ValueError(
                f"data[{place}] has the index {_shown(index)}: every one of 0 to {count - 1} is needed once"
            )
        probs = one.get("probs")
        if not isinstance(probs, list) or not probs:
            raise ValueError(f"data[{place}].probs is {_shown(probs)} instead of a list of numbers")
        found[index] = _number(probs[-1], f"data[{place}].probs[{len(probs) - 1}]")
    return [found[index] for index in range(count)]


def _remote_rm(reply: Reply, count: int) -> list[ServiceReward]:
    value = _value(reply)
    if isinstance(value, dict):
        value = _object(value)
        name = next((name for name in ("score", "reward") if name in value), None)
        if name is None:
            raise ValueError("it has neither `score` nor `reward`")
        return [_number(value[name], name)]
    return [_number(value, "it")]


def _predict(reply: Reply, count: int) -> list[ServiceReward]:
    value = _value(reply)
    if isinstance(value, dict):
        _object(value)
    rewards = []
    for place, labels in enumerate(_list(value, "it", count)):
        if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], dict):
            # With several labels each has a probability or a logit of its own, and none of them is the reward.
            raise ValueError(f"[{place}] is {_shown(labels)} instead of a list of one label with its score")
        rewards.append(_number(labels[0].get("score"), f"[{place}][0].score"))
    return rewards


def _value(reply: Reply) -> Any:
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError) as e:
        raise ValueError("it is not JSON") from e


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it is {_shown(value)} instead of an object")
    if value.get("error") is not None:
        raise ValueError("it holds an `error`")
    return value


def _numbers(value: dict[str, Any], name: str, count: int) -> list[ServiceReward]:
    return [_number(one, f"{name}[{i}]") for i, one in enumerate(_list(value.get(name), name, count))]


def _list(value: Any, name: str, count: int) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_shown(value)} instead of a list")
    if len(value) != count:
        raise ValueError(f"{name} holds {len(value)} entries for {count} items")
    return value


def _number(value: Any, name: str) -> ServiceReward:
    # A number sent as text or as `true` is a mistake at the other end. An integer may be too large for a float.
    if type(value) is int and abs(value) < 2**53:
        value = float(value)
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{name} is {_shown(value)} instead of a finite number")
    return ServiceReward(value)


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:_SHOWN]


SPEECHES: dict[str, Speech] = {
    "native": Speech(NATIVE_FORMAT.path, NATIVE_FORMAT.items, NATIVE_FORMAT.write, _native),
    "get_reward": Speech(GET_REWARD.path, "query", lambda items: {"query": _texts(items)}, _get_reward, rendered=True),
    # Without `model`, vLLM's server answers with the model it serves.
    "classify": Speech(
        CLASSIFY.path,
        "input",
        lambda items: {"input": _texts(items), "use_activation": False},
        _classify,
        rendered=True,
    ),
    "rm": Speech(REMOTE_RM.path, "items", _one_sample, _remote_rm, most=1),
    # LLaMA-Factory's own client always writes "model".
    "score_evaluation": Speech(
        SCORE_EVALUATION.path,
        "messages",
        lambda items: {"model": "model", "messages": _texts(items)},
        _score_evaluation,
        rendered=True,
    ),
    # Each text in a list of its own: TEI reads a list of two texts as one pair.
    "predict": Speech(
        PREDICT.path,
        "inputs",
        lambda items: {"inputs": [[text] for text in _texts(items)], "raw_scores": True, "truncate": False},
        _predict,
        rendered=True,
        most=_TEI_BATCH,
    ),
}
"""By the name that `reward.protocol` has."""
