"""The deployment in front of the engines: reads requests, tokenises them, and asks the replica that has their prompt.

Its replicas hold no weights: another model takes over by new replicas that ask another engine application, see
`serve_update`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.exceptions import BackPressureError, RayServeException

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.core.service import Input, ModelCard, Reward, Scored, ServiceError
from wildreward_ray.stages.scoring import load_encoder

if TYPE_CHECKING:
    from wildreward_ray.reward.inputs import InputEncoder
    from wildreward_ray.stages.serve_http import RewardHttp

logger = logging.getLogger(__name__)

# Prompts fall into so many groups a replica: enough that the groups spread evenly, few enough that a large request of many
# prompts is not cut into calls of one input each.
_GROUPS_A_REPLICA = 16
# Tokenising this many characters takes some ten milliseconds, for which a process can keep other requests waiting.
_BULK_CHARACTERS = 200_000
_RETRY_S = 0.2
_CHECK_S = 10.0


@dataclass(frozen=True)
class _Served:
    """One model with its way to the engines; a request works with the one it began with.

    Attributes:
        encoder: for small requests, on the event loop.
        bulk_encoder: a second one for the bulk thread: a tokenizer must not be used by two threads at a time.
        marker: what the template writes between prompt and response, or "" where that depends on them.
    """

    config: ServeConfig
    app: str
    encoder: InputEncoder
    bulk_encoder: InputEncoder
    marker: str
    engine: Any
    card: ModelCard


class RewardApi:
    """HTTP in front of the engine replicas, and the `RewardBackend` of its application.

    Args:
        config: settings until `reconfigure` brings those of a model.
        token: the bearer token clients must send, or None.
    """

    def __init__(self, config: ServeConfig, token: str | None) -> None:
        self._first, self._token = config, token
        self._served: _Served | None = None
        self._connecting: asyncio.Future[None] | None = None
        self._queued = 0
        self._bulk = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve the model that `user_config` names; called by Serve before the first request.

        Where its engine isn't there yet, requests get 503 until it is.
        """
        config, app = ServeConfig.model_validate(user_config["config"]), str(user_config["engine_app"])
        encoder, _ = await asyncio.to_thread(load_encoder, config)
        bulk, _ = await asyncio.to_thread(load_encoder, config)

        def served(engine: Any, card: ModelCard) -> _Served:
            return _Served(config, app, encoder, bulk, _marker(encoder), engine, card)

        try:
            engine = serve.get_app_handle(app)
        except RayServeException:
            self._connecting = asyncio.ensure_future(self._connect(app, served))
        else:
            self._served = served(engine, await engine.card.remote())

    async def _connect(self, app: str, served: Callable[[Any, ModelCard], _Served]) -> None:
        while True:
            try:
                engine = serve.get_app_handle(app)
                self._served = served(engine, await engine.card.remote())
                return
            except (RayServeException, ray.exceptions.RayError) as e:
                logger.info("engine %s is not up yet: %s", app, type(e).__name__)
                await asyncio.sleep(_RETRY_S)

    def __serve_build_asgi_app__(self) -> RewardHttp:
        from wildreward_ray.core.protocols import DIALECTS
        from wildreward_ray.report.service_pages import docs_page, playground_page
        from wildreward_ray.stages.serve_http import RewardHttp
        from wildreward_ray.stages.serve_metrics import observer
        from wildreward_ray.stages.serve_openapi import openapi

        document = openapi(DIALECTS, secured=self._token is not None)
        html = "text/html; charset=utf-8"
        pages = {"/": (html, playground_page()), "/docs": (html, docs_page(document))}
        watching = observer(lambda: self.config, self.card)
        return RewardHttp(self, watching, self._token, pages, sends_request_id=False)

    @property
    def config(self) -> ServeConfig:
        """Settings of what is served now."""
        return self._first if self._served is None else self._served.config

    def card(self) -> ModelCard:
        """See `RewardBackend`."""
        return self._now().card

    async def check(self) -> None:
        """See `RewardBackend`."""
        try:
            await asyncio.wait_for(self._now().engine.card.remote(), _CHECK_S)
        except TimeoutError as e:
            raise ServiceError(
                503, "no_engine", f"no engine answered within {_CHECK_S:.0f} s", retry_after_s=_CHECK_S
            ) from e
        except (ray.exceptions.RayError, RayServeException) as e:
            raise ServiceError(503, "no_engine", "no engine replica is up", retry_after_s=5) from e

    async def served(self) -> dict[str, Any]:
        """The `user_config` in force."""
        now = self._now()
        return {"config": now.config.model_dump(mode="json"), "engine_app": now.app}

    async def score(self, inputs: Sequence[Input]) -> Scored:
        """See `RewardBackend`. Scoring changes nothing, so what a lost replica held is asked of another one."""
        limit = self._now().config.max_queued
        if self._queued + len(inputs) > limit:
            raise ServiceError(
                503, "overloaded", f"{self._queued} items are waiting already, of at most {limit}", retry_after_s=1
            )
        self._queued += len(inputs)
        try:
            while True:
                scored = await self._try(self._now(), inputs)
                if scored is not None:
                    return scored
                await asyncio.sleep(_RETRY_S)
        finally:
            self._queued -= len(inputs)

    def _now(self) -> _Served:
        if self._served is None:
            raise ServiceError(503, "loading", "the model is being loaded", retry_after_s=5)
        return self._served

    async def _try(self, served: _Served, inputs: Sequence[Input]) -> Scored | None:
        """Rewards of all inputs, or None where a replica was lost on the way."""
        ids = await self._encode(served, inputs)
        parts = [
            (key, places, served.engine.options(session_id=key) if key else served.engine)
            for key, places in _parts(served, inputs)
        ]
        calls = [asyncio.ensure_future(_ask(engine, [ids[i] for i in places])) for _, places, engine in parts]
        try:
            answers = await asyncio.gather(*calls)
        except BaseException:
            # What was asked beside a failure, or for a client that has gone, is not computed to the end.
            for call in calls:
                call.cancel()
            raise
        rewards: dict[int, Reward] = {}
        for (_, places, _), answer in zip(parts, answers, strict=True):
            if answer is None:
                return None
            rewards.update(zip(places, answer, strict=True))
        return Scored([rewards[i] for i in range(len(inputs))], served.card, sum(len(one) for one in ids))

    async def _encode(self, served: _Served, inputs: Sequence[Input]) -> list[list[int]]:
        if sum(_characters(one) for one in inputs) <= _BULK_CHARACTERS:
            return encode(served.encoder, inputs, cut=served.config.too_long == "cut")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._bulk, lambda: encode(served.bulk_encoder, inputs, cut=served.config.too_long == "cut")
        )


async def _ask(engine: Any, ids: list[list[int]]) -> list[Reward] | None:
    """What an engine replica answers, or None where it was lost.

    Raises:
        ServiceError: it can't answer.
    """
    response = engine.score.remote(ids)
    try:
        return list(await response)
    except asyncio.CancelledError:
        response.cancel()
        raise
    except BackPressureError as e:
        raise ServiceError(
            503, "overloaded", "all engine replicas have as much as they may hold", retry_after_s=1
        ) from e
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, RewardUnavailableError):
            raise ServiceError(500, "not_finite", str(e.cause)) from e
        if type(e.cause).__name__ == "EngineDeadError":
            return None  # Serve's health check replaces the replica
        logger.error("scoring failed: %s", e)
        raise ServiceError(500, "internal", f"scoring failed: {type(e.cause).__name__}") from e
    except (ray.exceptions.RayError, RayServeException) as e:
        logger.warning("asking again: %s", type(e).__name__)
        return None


def encode(encoder: InputEncoder, inputs: Sequence[Input], *, cut: bool) -> list[list[int]]:
    """Token ids of every input.

    Args:
        cut: replies and rendered texts that are longer than the model reads lose their beginning; else they are refused.

    Raises:
        ServiceError: 422 with the number of the input that is too long, or empty.
    """
    conversations = iter(encoder.encode_batch([one for one in inputs if not isinstance(one, str)]))
    encoded = [encoder.encode_text(one) if isinstance(one, str) else next(conversations) for one in inputs]
    for i, ids in enumerate(encoded):
        if not ids:
            raise ServiceError(422, "no_tokens", "the text has no tokens, so there is nothing to score", item=i)
    if not cut:
        for i, (one, ids) in enumerate(zip(inputs, encoded, strict=True)):
            if encoder.may_be_cut(one, ids) and (tokens := encoder.essential_tokens(one)) > encoder.room:
                what = "the text" if isinstance(one, str) else "the response"
                raise ServiceError(
                    422, "too_long", f"{what} has {tokens} tokens and the model reads at most {encoder.room}", item=i
                )
    return encoded


def _parts(served: _Served, inputs: Sequence[Input]) -> list[tuple[str, list[int]]]:
    """(session, places) of the calls a request is made of; inputs of one prompt are in one call."""
    replicas = served.config.replicas[1]
    if replicas == 1:
        return [("", list(range(len(inputs))))]
    if served.config.routing == "balanced":
        size = -(-len(inputs) // replicas)
        return [("", list(range(i, min(i + size, len(inputs))))) for i in range(0, len(inputs), size)]
    groups = defaultdict(list)
    for i, one in enumerate(inputs):
        groups[prompt_hash(one, served.marker) % (_GROUPS_A_REPLICA * replicas)].append(i)
    return [(f"prompts-{group}", places) for group, places in groups.items()]


def prompt_hash(one: Input, marker: str) -> int:
    """A number that inputs with the same prompt share.

    Args:
        marker: what stands between prompt and response in a rendered text; its last occurrence counts.
    """
    if isinstance(one, str):
        end = one.rfind(marker) if marker else -1
        text = one if end < 0 else one[:end]
    else:
        history, prompt, _ = one
        text = json.dumps([[(m["role"], m["content"]) for m in history], prompt])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _marker(encoder: InputEncoder) -> str:
    prompt, response = "probe-prompt-8d1f", "probe-response-40c7"
    text = encoder.template.render([], prompt, response)
    start, end = text.rfind(prompt), text.rfind(response)
    return text[start + len(prompt) : end] if 0 <= start < end else ""


def _characters(one: Input) -> int:
    if isinstance(one, str):
        return len(one)
    history, prompt, response = one
    return sum(len(m["content"]) for m in history) + len(prompt) + len(response)
