"""`wildreward update-model`: another model takes over in a running service, without a request noticing.

The new model is loaded beside the old one, as an engine application of its own. Only when it has passed a check does an API
that asks it take the place of the one that asks the old one; what the old one has is answered before it goes. Whatever fails
on the way takes the new application away again and leaves the old one as it was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from wildreward_ray.cluster.readers import json_lines
from wildreward_ray.cluster.session import ray_errors, start_ray
from wildreward_ray.cluster.storage import list_files
from wildreward_ray.core.config.serve import ServeConfig, UpdateModelConfig
from wildreward_ray.core.errors import ResourceError, RewardUnavailableError, UserError, WildRewardError
from wildreward_ray.core.service import Conversation, ModelCard, Reward, ServiceError
from wildreward_ray.core.wire import ScoreItem
from wildreward_ray.stages.requests import API_CPUS
from wildreward_ray.stages.scoring import check_checkpoint, checkpoint_version, load_encoder
from wildreward_ray.stages.serve import APP, ENGINE_APP, deploy_api, deploy_engine, token_of, why_not_up
from wildreward_ray.stages.serve_api import encode

logger = logging.getLogger(__name__)

# The same reply alone and among others: engines add floats in another order then.
SAME = 1e-3
_BUILT_IN: tuple[Conversation, ...] = (
    ([], "What is the capital of France?", "Paris."),
    ([], "What is the capital of France?", "I don't know."),
    (
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello! How can I help?"}],
        "Write a haiku about rain.",
        "Soft rain on the roof,\nthe garden drinks and listens;\nmorning smells of earth.",
    ),
)


def run(config: UpdateModelConfig) -> ModelCard:
    """Replace the model of the service that runs on this cluster. Returns the card of the new one.

    Raises:
        UserError: no service runs here, its token's variable is empty here, or the checkpoint or the conversations to check it
            with can't be used.
        ResourceError: the cluster has no room for both models.
        WildRewardError: the new model did not come up or did not pass its check; the old one serves on.
    """
    with ray_errors(config.model):
        start_ray(join=True)
        served = _served()
        old = ServeConfig.model_validate(served["config"])
        given = {"model": config.model, "template": config.template, "levels": config.levels}
        new = old.model_copy(update={**given, "model_name": config.model_name or old.name})
        check_checkpoint(new)
        token_of(new)
        conversations = _conversations(config)
        _check_room(new)
        app = f"{ENGINE_APP}-{checkpoint_version(new.model)}-{int(time.time())}"
        try:
            _start(new, app, config.timeout_s)
            card = _prove(new, app, conversations)
        except BaseException:
            serve.delete(app)
            raise
        try:
            deploy_api(new, app)
        except BaseException:
            try:
                deploy_api(old, served["engine_app"])
            finally:
                serve.delete(app)
            raise
        serve.delete(served["engine_app"])
    return card


def _served() -> dict[str, Any]:
    try:
        served: dict[str, Any] = serve.get_app_handle(APP).served.remote().result(timeout_s=30)
    except (RayServeException, TimeoutError) as e:
        raise UserError(
            "no reward service runs on this cluster", hint="start one with `wildreward serve`, or set RAY_ADDRESS"
        ) from e
    return served


def _conversations(config: UpdateModelConfig) -> Sequence[Conversation]:
    if config.smoke is None:
        return _BUILT_IN
    found: list[Conversation] = []
    for file in list_files(config.smoke, flag="--smoke", suffixes=(".jsonl",)):
        for number, record in enumerate(json_lines(file, flag="--smoke"), 1):
            try:
                found.append(ScoreItem.model_validate(record).parts())
            except ValueError as e:
                raise UserError(f"line {number} of {file.uri!r} is no conversation: {e}", flag="--smoke") from e
    if not found:
        raise UserError(f"{config.smoke!r} holds no conversation", flag="--smoke")
    return found


def _check_room(config: ServeConfig) -> None:
    free = ray.available_resources()
    api = API_CPUS * config.api_replicas
    for kind, each, beside in (("CPU", config.num_cpus, api), ("GPU", config.num_gpus, 0.0)):
        needed = each * config.replicas[0] + beside
        if needed > free.get(kind, 0.0) + 1e-9:
            raise ResourceError(
                f"the new model needs {needed:g} {kind}s beside the old one and {free.get(kind, 0.0):g} are free",
                hint="add nodes, or stop the service and start it with the new model",
            )


def _start(config: ServeConfig, app: str, timeout_s: float) -> None:
    """Start the new engine; Serve itself would wait for it for ever."""
    failures: list[Exception] = []

    def deploy() -> None:
        try:
            deploy_engine(config, app)
        except Exception as e:
            failures.append(e)

    thread = threading.Thread(target=deploy, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise WildRewardError(
            f"{config.model!r} was not up after {timeout_s:g} s (--timeout-s); the old model serves on: {why_not_up(app)}"
        )
    if failures:
        raise WildRewardError(f"the old model serves on: {failures[0]}") from failures[0]


def _prove(config: ServeConfig, app: str, conversations: Sequence[Conversation]) -> ModelCard:
    """Score conversations alone and together: every reward must be a number, on the scale, and the same both times."""
    encoder, _ = load_encoder(config)
    handle = serve.get_app_handle(app)
    card: ModelCard = handle.card.remote().result(timeout_s=60)
    try:
        ids = encode(encoder, conversations, cut=config.too_long == "cut")
        together = handle.score.remote(ids).result(timeout_s=config.request_timeout_s)
        alone = [handle.score.remote([one]).result(timeout_s=config.request_timeout_s)[0] for one in ids]
    except (ServiceError, RewardUnavailableError, ray.exceptions.RayError, RayServeException, TimeoutError) as e:
        reason = getattr(e, "cause", None) or e
        raise WildRewardError(f"{config.model!r} did not pass its check; the old model serves on: {reason}") from e
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        _compare(config, card, number, one, other)
    return card


def _compare(config: ServeConfig, card: ModelCard, number: int, one: Reward, other: Reward) -> None:
    if not 1 <= one.score <= card.levels or abs(one.score - other.score) > SAME:
        raise WildRewardError(
            f"{config.model!r} did not pass its check; the old model serves on: conversation {number} scored "
            f"{one.score} among others and {other.score} alone, on a scale of 1 to {card.levels}"
        )
