"""Keep a reward service under load for long and do bad things to it: `python -m scripts.soak_serve --model PATH --output DIR`.

The service runs as a process with one to two engine replicas. Load rises until a second one is added and falls until it is
taken away, over and over, and every couple of minutes one of these happens: a replica is killed, a new model takes over, four
times the load comes at once, bad requests are mixed in. The new model is the same under another version, so every score is
known. Leaves with 1 if a score was wrong, a request failed in a way that the client could not hide, or anything was left
behind.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx

from scripts.soak_record import Record
from scripts.soak_service import BAD_BODIES, COMMAND, new_version, service, started
from wildreward_ray.cluster.reward_client import AsyncRewardClient
from wildreward_ray.cluster.reward_retry import Backoff
from wildreward_ray.core.config.bench import ServeBench
from wildreward_ray.core.config.serve import ScorerSection
from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.stages import ingest
from wildreward_ray.stages.bench_serve_load import apart
from wildreward_ray.stages.bench_serve_memory import service_processes
from wildreward_ray.stages.bench_serve_texts import read_texts

INCIDENTS = ("kill", "update", "burst", "bad")
_UPDATE_S, _SAMPLE_S = 900.0, 5.0
_LEAST_SPREAD = 0.05
_BURST_S, _BAD_S, _BAD_PAUSE_S = 20.0, 30.0, 0.2


@dataclass(frozen=True)
class Question:
    """Items of one prompt, and their right scores."""

    items: list[dict[str, Any]]
    right: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Soak. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    questions = _questions(arguments)
    record = Record()
    try:
        asyncio.run(Soak(arguments, questions, record).run())
    finally:
        record.write(output)
    summary = {name: value for name, value in record.summary().items() if name != "minutes"}
    print(json.dumps(summary, indent=2))
    return 1 if record.problem_count else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Keep a reward service under load and do bad things to it.")
    parser.add_argument("--model", required=True, help="directory of a reward model")
    parser.add_argument("--output", required=True, type=Path, help="where soak.json, soak.png and the logs go")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long [30]")
    parser.add_argument("--engine", default="auto", help="auto, vllm or transformers [auto]")
    parser.add_argument("--input", nargs="+", default=None, help="chat logs to take texts from; default: the sample")
    parser.add_argument("--groups", type=int, default=16, help="prompts, with 8 replies each [16]")
    parser.add_argument("--context-tokens", type=int, default=256, help="longest prompt with its history [256]")
    parser.add_argument("--reply-tokens", type=int, default=128, help="longest reply [128]")
    parser.add_argument("--port", type=int, default=8123, help="port of the service [8123]")
    parser.add_argument("--target-in-flight", type=int, default=8, help="requests a replica is meant for [8]")
    parser.add_argument("--phase-s", type=float, default=90.0, help="seconds of much load, then of little [90]")
    parser.add_argument("--incident-s", type=float, default=120.0, help="seconds between incidents [120]")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked when, and of which replica is killed [0]")
    parser.add_argument("serve", nargs="*", help="further settings of `wildreward serve`, after --")
    return parser


def _questions(arguments: argparse.Namespace) -> list[Question]:
    """Groups of real replies, scored by transformers in a process of its own."""
    from wildreward_ray.stages.scoring import load_encoder

    inputs = arguments.input or [str(resources.files("wildreward_ray") / "sample" / "conversations.parquet")]
    encoder, _ = load_encoder(ScorerSection(model=arguments.model))
    section = ServeBench(context_tokens=arguments.context_tokens, reply_tokens=arguments.reply_tokens)
    size = section.group_size
    texts = read_texts(ingest.plan(inputs, "auto", strict=False), encoder, section, arguments.groups * size)
    right = apart(right_scores, arguments.model, texts.inputs)
    spread = max(right) - min(right)
    print(f"{len(right)} replies with right scores from {min(right):.3f} to {max(right):.3f}", flush=True)
    if spread < _LEAST_SPREAD:
        print(
            f"[soak] the scores lie within {spread:.4f}: a score given to the wrong item may go unnoticed", flush=True
        )
    return [Question(texts.items[i : i + size], right[i : i + size]) for i in range(0, len(right), size)]


def right_scores(model: str, inputs: Sequence[Sequence[int]]) -> list[float]:
    """Scores by the transformers engine."""
    from wildreward_ray.stages.scoring import load_scorer

    scores: list[float] = load_scorer(ScorerSection(model=model, engine="transformers")).score(inputs).score.tolist()
    return scores


class Soak:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, questions: list[Question], record: Record) -> None:
        self._arguments, self._questions, self._record = arguments, questions, record
        self._output: Path = arguments.output
        self._random = random.Random(arguments.seed)
        self._heavy = 3 * arguments.target_in_flight
        self._phase, self._factor = self._heavy, 1
        self._stopping = asyncio.Event()
        self._engines: dict[int, str] = {}
        self._copy: Path | None = None

    async def run(self) -> None:
        """Start the service, soak it, stop it."""
        given = self._arguments
        flags = {
            "model": given.model,
            "engine": given.engine,
            "port": given.port,
            "replicas": "1..2",
            "target-in-flight": given.target_in_flight,
            "scale-up-delay-s": 5,
            "scale-down-delay-s": 20,
        }
        settings = [*(f"--{name}={value}" for name, value in flags.items()), *given.serve]
        async with service(settings, self._output / "serve.log", self._record) as (url, address, pid):
            most = 4 * self._heavy
            backoff = Backoff(draw=self._draw)
            async with (
                AsyncRewardClient(url, concurrency=most, retries=10, backoff=backoff) as client,
                httpx.AsyncClient(base_url=url, timeout=60) as http,
                asyncio.TaskGroup() as tasks,
            ):
                for number in range(most):
                    tasks.create_task(self._ask(number, client))
                for task in (self._tides(), self._incidents(pid, address, http), self._samples(pid)):
                    tasks.create_task(task)
                await asyncio.sleep(60 * self._arguments.minutes)
                self._stopping.set()
        for process, began in self._engines.items():
            if began and started(process) == began:
                self._record.problem(f"process {process} of an engine was left behind")

    async def _ask(self, number: int, client: AsyncRewardClient) -> None:
        """One request in flight, while that many are wanted: half of them one reply, half of them all replies."""
        while not self._stopping.is_set():
            if number >= self._phase * self._factor:
                await asyncio.sleep(0.2)
                continue
            question = self._random.choice(self._questions)
            only = self._random.randrange(2 * len(question.items))
            places = slice(None) if only >= len(question.items) else slice(only, only + 1)
            begin = time.monotonic()
            try:
                scores = await client.score(question.items[places])
            except RewardUnavailableError as e:
                self._record.failed(e.last_status, str(e))
                await asyncio.sleep(1)
            else:
                self._record.answered(time.monotonic() - begin, [s.score for s in scores], question.right[places])

    def _draw(self) -> float:
        """The client draws a pause: it is about to send a request again."""
        self._record.retried()
        return self._random.random()

    async def _tides(self) -> None:
        """Much load, little load, and so on."""
        for wanted in itertools.cycle((self._heavy, max(1, self._arguments.target_in_flight // 4))):
            self._phase = wanted
            if await self._pause(self._arguments.phase_s):
                return

    async def _incidents(self, pid: int, address: str, http: httpx.AsyncClient) -> None:
        for kind in itertools.cycle(INCIDENTS):
            if await self._pause(self._arguments.incident_s):
                return
            if kind == "kill":
                await asyncio.to_thread(self._kill, pid)
            elif kind == "update":
                await self._update(address, http)
            elif kind == "burst":
                self._record.incident(f"{4 * self._phase} requests in flight")
                self._factor = 4
                await self._pause(_BURST_S)
                self._factor = 1
            else:
                await self._bad_requests(http)

    def _kill(self, pid: int) -> None:
        engines = [process.pid for process in service_processes(pid) if process.role == "engine"]
        if not engines:
            self._record.problem("no engine replica to kill")
            return
        victim = self._random.choice(engines)
        os.kill(victim, signal.SIGKILL)
        self._record.incident(f"killed 1 of {len(engines)} replicas")

    async def _update(self, address: str, http: httpx.AsyncClient) -> None:
        """The same model under another version takes over."""
        old, self._copy = self._copy, await asyncio.to_thread(new_version, self._arguments.model, self._output)
        before = await _version(http)
        self._record.incident("update-model")
        with (self._output / "update.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                "update-model",
                f"--model={self._copy}",
                stdout=log,
                stderr=log,
                env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": address},
            )
            try:
                code = await asyncio.wait_for(process.wait(), _UPDATE_S)
            except TimeoutError:
                process.kill()
                code = await process.wait()
        after = await _version(http)
        self._record.incident(f"version {before} -> {after}")
        if code or after == before:
            self._record.problem(f"update-model left with {code} and version {after}: see update.log")
            self._copy = old
        elif old is not None:
            shutil.rmtree(old)

    async def _bad_requests(self, http: httpx.AsyncClient) -> None:
        self._record.incident("bad requests")
        until = time.monotonic() + _BAD_S
        while time.monotonic() < until and not self._stopping.is_set():
            for name, body in BAD_BODIES.items():
                try:
                    reply = await http.post("/v1/score", content=body, headers={"content-type": "application/json"})
                except httpx.TransportError as e:
                    self._record.failed(None, f"the bad request {name!r} got no reply: {type(e).__name__} {e}")
                else:
                    self._record.refused(reply.status_code, name)
            await asyncio.sleep(_BAD_PAUSE_S)

    async def _samples(self, pid: int) -> None:
        while not await self._pause(_SAMPLE_S):
            found = await asyncio.to_thread(service_processes, pid)
            engines = {process.pid for process in found if process.role in ("engine", "engine_core")}
            self._engines |= {engine: started(engine) for engine in engines - self._engines.keys()}
            orphans = [p for p, began in self._engines.items() if p not in engines and began and started(p) == began]
            mib: dict[str, float] = {}
            for process in found:
                mib[process.role] = mib.get(process.role, 0.0) + process.mib
            self._record.sample(sum(process.role == "engine" for process in found), len(orphans), mib)

    async def _pause(self, seconds: float) -> bool:
        """Wait. Returns whether the run is over."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


async def _version(http: httpx.AsyncClient) -> str | None:
    """The version that the service says it serves, or None where it says nothing."""
    try:
        reply = await http.get("/healthz")
    except httpx.TransportError:
        return None
    version: str | None = reply.json()["version"] if reply.status_code == 200 else None
    return version


if __name__ == "__main__":
    sys.exit(main())
