"""What the reward service is compared with: a plain model server, engines without a model, a server that does nothing.

The plain server is what one writes in an afternoon: FastAPI in front of transformers, one process, a request at a time, no
batching across requests. It renders, tokenises and decodes as the service does and runs in the same precision on the same
threads.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from wildreward_ray.core.config.serve import ScorerSection, ServeConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.core.service import ModelCard, Reward

if TYPE_CHECKING:
    from fastapi import FastAPI

SCORE = "/v1/score"
_START_S = 300.0
_STOP_S = 10.0


class Item(BaseModel):
    """One reply to score."""

    history: list[dict[str, str]] = []
    prompt: str
    response: str


class Request(BaseModel):
    """Body of a request."""

    items: list[Item]


class Entry(BaseModel):
    """The reward of one reply."""

    score: float
    level_probs: list[float]
    p_gt: list[float]


class Reply(BaseModel):
    """Body of a reply."""

    scores: list[Entry]


class NullEngine:
    """Takes the place of `serve_engine.RewardEngine`: a valid reward, always the same, without a model."""

    def __init__(self, config: ServeConfig) -> None:
        # The tokenizer and the configuration only, so that an unusable model is refused as by the real engine.
        from wildreward_ray.stages.scoring import check_checkpoint, model_card

        reward = check_checkpoint(config)
        self._card = model_card(config, reward, "null")
        self._reward = constant_reward(reward.levels)

    async def card(self) -> ModelCard:
        """What would be served."""
        return self._card

    async def score(self, inputs: list[list[int]]) -> list[Reward]:
        """The same reward for every input."""
        return [self._reward] * len(inputs)

    async def cache_counts(self) -> tuple[int, int]:
        """Nothing is cached."""
        return 0, 0

    async def check_health(self) -> None:
        """Nothing can fail."""


def constant_reward(levels: int) -> Reward:
    """The reward of logits of zero: P(y > j) is 1/2 for every j, so the lowest and the highest level share all mass."""
    return Reward(1 + (levels - 1) / 2, [0.5] + [0.0] * (levels - 2) + [0.5], [0.5] * (levels - 1))


def plain_app(section: ScorerSection, *, null: bool) -> FastAPI:
    """The plain server's application.

    Args:
        null: without a model; everything else stays.
    """
    from fastapi import FastAPI

    from wildreward_ray.stages.scoring import load_encoder, load_transformers, rewards_of

    encoder, config = load_encoder(section)
    scorer = None if null else load_transformers(section)
    nothing = constant_reward(config.levels)
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post(SCORE)
    async def score(body: Request) -> Reply:
        inputs = encoder.encode_batch([(i.history, i.prompt, i.response) for i in body.items])
        rewards = (
            rewards_of(config, scorer.logits(inputs), calibrated=section.calibrated)
            if scorer
            else [nothing] * len(inputs)
        )
        return Reply(scores=[Entry(**reward._asdict()) for reward in rewards])

    return app


def serve_plain(listener: socket.socket, section: ScorerSection, null: bool) -> None:
    """Run the plain server in this process, for ever."""
    import uvicorn

    config = uvicorn.Config(plain_app(section, null=null), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def serve_constant(listener: socket.socket, levels: int) -> None:
    """Answer every request with the same bytes: what is left is the load generator's own cost."""
    import uvloop

    body = json.dumps({"scores": [constant_reward(levels)._asdict()]}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    uvloop.run(_serve_bytes(listener, head.encode("ascii") + body))


async def _serve_bytes(listener: socket.socket, reply: bytes) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Constant(reply), sock=listener)
    async with server:
        await server.serve_forever()


class _Constant(asyncio.Protocol):
    """Reads requests and answers them all alike."""

    def __init__(self, reply: bytes) -> None:
        import httptools

        self._reply = reply
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self._reply)


@contextmanager
def server(target: Callable[..., None], *arguments: object) -> Iterator[str]:
    """Run `target(bound socket, *arguments)` in a process of its own for the length of a context. Gives its base URL.

    Raises:
        WildRewardError: it ended, or does not listen in time.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
        process = get_context("spawn").Process(target=target, args=(listener, *arguments), daemon=True)
        process.start()
        try:
            _wait_until_up(port, process, target.__name__)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.join(_STOP_S)
            if process.is_alive():
                process.kill()
                process.join()


def _wait_until_up(port: int, process: SpawnProcess, name: str) -> None:
    """Wait until the process listens: until then the system refuses connections to its socket."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.exitcode is not None:
            raise WildRewardError(f"{name} ended with code {process.exitcode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise WildRewardError(f"{name} does not listen on port {port} after {_START_S:.0f} s")


def scores_of(bodies: dict[int, bytes]) -> list[float]:
    """The scores in replies to single items, by number of the request."""
    return [float(json.loads(bodies[number])["scores"][0]["score"]) for number in sorted(bodies)]


def requests_of(items: Sequence[dict[str, Any]]) -> list[bytes]:
    """Bodies of `/v1/score`, one item each."""
    return [json.dumps({"items": [item]}).encode() for item in items]
