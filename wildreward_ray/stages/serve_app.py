"""The two deployments of the reward service: `RewardApi` speaks HTTP and checks requests, `RewardEngine` holds the model.

A request gets every score it asked for or a non-2xx reply that says why; an input whose reward can't be computed fails its
own request only. Serve pickles a deployment when its decorator runs, so what it uses is defined above it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.exceptions import BackPressureError

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.core.wire import GetRewardReply, GetRewardRequest, Health, Score, ScoreReply, ScoreRequest

if TYPE_CHECKING:
    from wildreward_ray.stages.scoring import Scored

logger = logging.getLogger(__name__)

API_CPUS = 0.1


@dataclass(frozen=True)
class Job:
    """The items of one request on their way to the engine: chat items, or texts that are rendered already."""

    items: tuple[tuple[list[dict[str, str]], str, str], ...] = ()
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items) + len(self.texts)

    def parts(self, size: int) -> list[Job]:
        """This job as jobs of at most `size` items, in order: no batch takes more."""
        chat = [Job(items=self.items[i : i + size]) for i in range(0, len(self.items), size)]
        return chat + [Job(texts=self.texts[i : i + size]) for i in range(0, len(self.texts), size)]


def _count_items(jobs: list[Job]) -> int:
    return sum(len(job) for job in jobs)


class RewardEngine:
    """One copy of the model; scores the items of all waiting requests together."""

    def __init__(self, config: ServeConfig) -> None:
        # Only the engine's process needs torch; the API's stays small.
        from wildreward_ray.stages.scoring import load_scorer

        self._scorer = load_scorer(config)
        self._config = config
        self.score_jobs.set_max_batch_size(config.max_batch_items)
        self.score_jobs.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)

    def describe(self) -> Health:
        """What is served."""
        scorer = self._scorer
        return Health(
            status="ok",
            model=self._config.model,
            version=scorer.version,
            engine=scorer.engine_name,
            levels=scorer.config.levels,
        )

    async def score(self, job: Job) -> list[Score]:
        """The scores of one request, in order.

        Raises:
            RewardUnavailableError: some item's reward could not be computed.
        """
        parts = await asyncio.gather(*(self.score_jobs(part) for part in job.parts(self._config.max_batch_items)))
        scores: list[Score] = []
        for part in parts:
            if isinstance(part, RewardUnavailableError):
                raise part
            scores += part
        return scores

    @serve.batch(batch_size_fn=_count_items)  # type: ignore[untyped-decorator]
    async def score_jobs(self, jobs: list[Job]) -> list[list[Score] | RewardUnavailableError]:
        # The model runs in a thread, so that the replica goes on accepting requests for the next batch.
        return await asyncio.get_running_loop().run_in_executor(None, self._score, jobs)

    def _score(self, jobs: list[Job]) -> list[list[Score] | RewardUnavailableError]:
        encoder = self._scorer.encoder
        chat = encoder.encode_batch([item for job in jobs for item in job.items])
        inputs: list[list[int]] = []
        taken = 0
        for job in jobs:
            inputs += chat[taken : taken + len(job.items)]
            taken += len(job.items)
            inputs += [encoder.encode_text(text) for text in job.texts]
        scored = iter(self._scorer.score_each(inputs))
        return [_together([next(scored) for _ in range(len(job))]) for job in jobs]


def _together(scored: Sequence[Scored | RewardUnavailableError]) -> list[Score] | RewardUnavailableError:
    scores = []
    for one in scored:
        if isinstance(one, RewardUnavailableError):
            return one
        scores.append(
            Score(score=float(one.score[0]), level_probs=one.level_probs[0].tolist(), p_gt=one.p_gt[0].tolist())
        )
    return scores


app = FastAPI(title="WildReward", description="Rewards for assistant replies, as ordinal satisfaction levels.")


@app.middleware("http")
async def _guard(request: Request, call_next: Any) -> Response:
    """Refuse unauthorised and oversized requests before their body is read."""
    limits: ServeConfig = request.app.state.config
    if limits.auth_token_env and request.url.path != "/healthz":
        expected = f"Bearer {request.app.state.token}"
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), expected.encode()):
            return JSONResponse({"detail": "a valid bearer token is needed"}, status_code=401)
    length = request.headers.get("content-length", "")
    largest = int(limits.max_body_mb * 2**20)
    if request.method == "POST" and not length.isdigit():
        return JSONResponse({"detail": "a Content-Length header is needed"}, status_code=411)
    if length.isdigit() and int(length) > largest:
        return JSONResponse({"detail": f"the body is larger than {largest} bytes (--max-body-mb)"}, status_code=413)
    reply: Response = await call_next(request)
    return reply


@serve.deployment(name="RewardApi", ray_actor_options={"num_cpus": API_CPUS}, max_ongoing_requests=10_000)
@serve.ingress(app)
class RewardApi:
    """HTTP in front of the engine replicas."""

    def __init__(self, config: ServeConfig, token: str | None, engine: Any) -> None:
        self._config, self._engine = config, engine
        self._health: Health | None = None
        app.state.config, app.state.token = config, token

    @app.get("/healthz")
    async def healthz(self) -> Health:
        """Whether an engine replica answers, and what it serves."""
        self._health = await self._call(self._engine.describe.remote())
        return self._health

    @app.post("/v1/score")
    async def score(self, body: ScoreRequest) -> ScoreReply:
        """Score replies given as chat messages or as history, prompt and response."""
        self._check_count(len(body.items))
        scores = await self._call(self._engine.score.remote(Job(items=tuple(i.parts() for i in body.items))))
        health = await self._served()
        return ScoreReply(model=health.model, version=health.version, scores=scores)

    @app.post("/get_reward")
    async def get_reward(self, body: GetRewardRequest) -> GetRewardReply:
        """Score rendered reward-model inputs, in the format of the WildReward and OpenRLHF clients."""
        self._check_count(len(body.query))
        scores = await self._call(self._engine.score.remote(Job(texts=tuple(body.query))))
        health = await self._served()
        rewards = [s.score for s in scores]
        scaled = [(r - 1) / (health.levels - 1) for r in rewards]
        return GetRewardReply(rewards=rewards, scores=scaled, extra_logs={"reward": rewards})

    async def _served(self) -> Health:
        """What is served, asked once: engine and API are deployed together."""
        return self._health or await self.healthz()

    async def _call(self, response: Any) -> Any:
        """Wait for the engine; what goes wrong becomes the status code that tells a client whether to try again."""
        try:
            return await asyncio.wait_for(response, self._config.request_timeout_s)
        except TimeoutError as e:
            raise HTTPException(503, "the engine took too long (--request-timeout-s)", {"Retry-After": "5"}) from e
        except BackPressureError as e:
            raise HTTPException(503, "too many requests are waiting (--max-queued)", {"Retry-After": "1"}) from e
        except ray.exceptions.RayTaskError as e:
            cause = e.cause
            if isinstance(cause, RewardUnavailableError):
                raise HTTPException(500, str(cause)) from e
            logger.exception("scoring failed")
            raise HTTPException(500, f"scoring failed: {type(cause).__name__}") from e
        except ray.exceptions.RayError as e:
            raise HTTPException(503, "an engine replica was lost", {"Retry-After": "5"}) from e

    def _check_count(self, items: int) -> None:
        if items > self._config.max_items:
            raise HTTPException(413, f"{items} items in one request: at most {self._config.max_items} (--max-items)")
