"""`wildreward bench serve`: the reward service over its bare engine and over a plain model server, in one run.

The same texts go to all of them in the same order: groups of replies to one prompt, one reply a request. The ceiling is the
engine's own scorer, given all inputs at once as token ids in a process of its own; the service has HTTP, JSON, rendering,
tokenising and Ray on top of it. Both have warmed up on other texts, so the prefix cache has nothing of what is measured.
The bare engine runs before and after the service, and its rate is the mean of both. Requests that fail end the run: there is
no rate over failures.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from wildreward_ray.core.config.bench import BenchConfig, ServeBench
from wildreward_ray.core.config.judge import EngineSection
from wildreward_ray.core.config.serve import ScorerSection, ServeConfig
from wildreward_ray.core.errors import RewardUnavailableError, UserError, WildRewardError
from wildreward_ray.stages import ingest
from wildreward_ray.stages.bench_serve_load import Generator, Load, Order, apart
from wildreward_ray.stages.bench_serve_memory import growth, memory
from wildreward_ray.stages.bench_serve_plain import (
    SCORE,
    NullEngine,
    requests_of,
    scores_of,
    serve_constant,
    serve_plain,
    server,
)
from wildreward_ray.stages.bench_serve_texts import Texts, make_model, read_texts

_WARM_UP_S = 3.0
_PATIENCE_S = 600.0
_MEMORY_SAMPLES = 20
_PERCENTILES = (50, 90, 99)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every part needs.

    Attributes:
        model: path of the reward model.
        levels: its ordered levels.
        warm_up, bodies: requests of one item each; the first are of other texts.
    """

    section: ServeBench
    model: str
    levels: int
    texts: Texts
    warm_up: list[bytes]
    bodies: list[bytes]


def measure(config: BenchConfig, inputs: tuple[str, ...]) -> Figures:
    """Measure the parts that are asked for. Rates are items a second, which are requests a second.

    Raises:
        UserError: an unusable model, or logs that hold too few texts.
        WildRewardError: a request failed.
    """
    section = config.serve
    with tempfile.TemporaryDirectory() as folder:
        model = section.model
        if model is None:
            model = f"{folder}/model"
            apart(make_model, model, section)
        bench = _prepare(config, model, inputs)
        found: Figures = {
            "model": section.model or "SmolLM2-135M with a random head",
            "engine": section.engine,
            "items": len(bench.bodies),
            "group_size": section.group_size,
            "in_flight": section.in_flight,
            "context_tokens_mean": round(bench.texts.context_tokens, 1),
            "reply_tokens_mean": round(bench.texts.reply_tokens, 1),
            "input_tokens_max": max(map(len, bench.texts.inputs)),
            "body_bytes_mean": round(sum(map(len, bench.bodies)) / len(bench.bodies)),
        }
        known: dict[str, list[float]] = {}
        for part, run in _PARTS.items():
            if part in section.parts:
                found |= run(bench, known)
            if part == "service" and {"offline", "service"} <= set(section.parts):
                found |= _offline_again(bench, found["offline_before_per_s"])
    return found | ratios(found, known)


def _prepare(config: BenchConfig, model: str, inputs: tuple[str, ...]) -> Bench:
    from wildreward_ray.stages.scoring import load_encoder

    plan = ingest.plan(inputs, config.format, strict=False)
    encoder, reward = load_encoder(ScorerSection(model=model))
    texts = read_texts(plan, encoder, config.serve, config.limit)
    return Bench(config.serve, model, reward.levels, texts, requests_of(texts.warm_up), requests_of(texts.items))


def ratios(found: Figures, known: dict[str, list[float]]) -> Figures:
    """What the parts say about each other, as far as they were measured.

    Args:
        known: scores by part, in the order of the items.
    """
    pairs = {
        "service_over_offline": ("service_per_s", "offline_per_s"),
        "service_over_plain": ("service_per_s", "plain_per_s"),
        "http_over_plain": ("http_per_s", "http_plain_per_s"),
        "routing_prefix_over_balanced": ("routing_prefix_per_s", "routing_balanced_per_s"),
    }
    result: Figures = {
        name: round(found[above] / found[below], 3)
        for name, (above, below) in pairs.items()
        if above in found and below in found
    }
    if "offline" in known:
        reference = np.array(known["offline"])
        # A difference says nothing where all rewards are the same.
        result["score_spread"] = round(float(reference.std()), 4)
        for part in known.keys() - {"offline"}:
            mine = np.array(known[part])
            result[f"{part}_score_difference_max"] = float(np.abs(mine - reference[: len(mine)]).max())
    return result


def _offline(bench: Bench, known: dict[str, list[float]]) -> Figures:
    texts = bench.texts
    seconds, known["offline"] = apart(bare_engine, _settings(bench), texts.warm_up_inputs, texts.inputs)
    rate = round(len(texts.inputs) / seconds, 2)
    return {"offline_per_s": rate, "offline_before_per_s": rate}


def _offline_again(bench: Bench, before: float) -> Figures:
    """The ceiling once more: a machine that got slower or faster meanwhile shows in the difference, not in the ratio."""
    texts = bench.texts
    seconds, _ = apart(bare_engine, _settings(bench), texts.warm_up_inputs, texts.inputs)
    after = len(texts.inputs) / seconds
    return {"offline_per_s": round(2 / (1 / before + 1 / after), 2), "offline_after_per_s": round(after, 2)}


def bare_engine(
    settings: ScorerSection, warm_up: Sequence[Sequence[int]], inputs: Sequence[Sequence[int]]
) -> tuple[float, list[float]]:
    """Seconds that the engine takes for all inputs at once, and their scores. Call it in a fresh process."""
    from wildreward_ray.stages.scoring import load_scorer

    scorer = load_scorer(settings)
    scorer.score_each(warm_up)
    begin = time.perf_counter()
    scored = scorer.score_each(inputs)
    seconds = time.perf_counter() - begin
    scores = []
    for one in scored:
        if isinstance(one, RewardUnavailableError):
            raise one
        scores.append(float(one.score[0]))
    return seconds, scores


def _service(bench: Bench, known: dict[str, list[float]]) -> Figures:
    with _serving(bench) as url, Generator() as load:
        load.send(_order(bench, url, bench.warm_up)).check("service")
        result = load.send(_order(bench, url, bench.bodies, keep=True)).check("service")
        sizes = memory(os.getpid())
    known["service"] = scores_of(result.bodies)
    return {**_speed("service", result), **{f"service_{role}_mib": round(mib) for role, mib in sorted(sizes.items())}}


def _plain(bench: Bench, known: dict[str, list[float]]) -> Figures:
    """Its rate over as many items as it answers in the time given, from all over the texts: it has no cache to be cold."""
    order = np.random.default_rng(0).permutation(len(bench.bodies)).tolist()
    bodies = [bench.bodies[i] for i in order]
    settings = ScorerSection(model=bench.model, engine="transformers", cpu_threads=bench.section.cpu_threads)
    with server(serve_plain, settings, False) as url, Generator() as load:
        load.send(_order(bench, url, bench.warm_up[: bench.section.group_size])).check("plain server")
        limit = bench.section.plain_seconds
        result = load.send(_order(bench, url, bodies, seconds=limit, requests=None)).check("plain server")
    sent = [order[i % len(order)] for i in range(len(result.latencies))]
    tokens = sum(len(bench.texts.inputs[i]) for i in sent) / len(sent)
    return {**_speed("plain", result), "plain_items": len(sent), "plain_input_tokens_mean": round(tokens, 1)}


def _http(bench: Bench, known: dict[str, list[float]]) -> Figures:
    """The service and the plain server without a model, and a server that only answers: the generator's own ceiling."""
    settings = ScorerSection(model=bench.model, engine="transformers")
    servers: dict[str, Callable[[], Any]] = {
        "http": lambda: _serving(bench, null=True),
        "http_plain": lambda: server(serve_plain, settings, True),
        "http_generator": lambda: server(serve_constant, bench.levels),
    }
    found: Figures = {}
    for name, start in servers.items():
        with start() as url, Generator() as load:
            load.send(_order(bench, url, bench.warm_up, seconds=_WARM_UP_S, requests=None)).check(name)
            seconds = bench.section.http_seconds
            result = load.send(_order(bench, url, bench.bodies, seconds=seconds, requests=None)).check(name)
        found |= _speed(name, result)
    return found


def _memory(bench: Bench, known: dict[str, list[float]]) -> Figures:
    total = bench.section.memory_requests
    if not total:
        return {}
    share = -(-total // _MEMORY_SAMPLES)
    samples = []
    with _serving(bench, null=True) as url, Generator() as load:
        if not memory(os.getpid()):
            raise WildRewardError("the service's processes are not below this one: unset RAY_ADDRESS")
        for number in range(_MEMORY_SAMPLES):
            load.send(_order(bench, url, bench.bodies, requests=share)).check("service")
            samples.append(((number + 1) * share, memory(os.getpid())))
    return {
        "memory_requests": share * _MEMORY_SAMPLES,
        **{
            f"memory_{role}_{name}_mib": round(mib, 2)
            for role, figures in sorted(growth(samples).items())
            for name, mib in figures.items()
        },
    }


def _routing(bench: Bench, known: dict[str, list[float]]) -> Figures:
    """Two replicas under each routing. Their caches are asked before and after, since warming up counts there too."""
    if bench.section.engine != "vllm":
        raise UserError("only vLLM has a prefix cache to route for", flag="--serve.engine", hint="leave `routing` out")
    found: Figures = {}
    bodies = bench.bodies[: bench.section.routing_items]
    for routing in ("prefix", "balanced"):
        with _serving(bench, replicas=(2, 2), routing=routing) as url, Generator() as load:
            load.send(_order(bench, url, bench.warm_up)).check("service")
            before = _cache_counts()
            result = load.send(_order(bench, url, bodies)).check("service")
            tokens, cached = (_cache_counts() - before).tolist()
        found |= _speed(f"routing_{routing}", result)
        found[f"routing_{routing}_cached_share"] = round(cached / tokens, 3)
    return {"routing_items": len(bodies), **found}


def _cache_counts() -> Any:
    """(prompt tokens, cached tokens) of all engine replicas together: int64 [2]."""
    from ray import serve

    engines = [
        (app, name)
        for app, status in serve.status().applications.items()
        for name in status.deployments
        if name.endswith("Engine")
    ]
    if len(engines) != 1:
        raise WildRewardError(f"engines to ask for their caches are one deployment, not {engines}")
    app, name = engines[0]
    return np.sum(serve.get_deployment_handle(name, app).broadcast("cache_counts").results(), axis=0)


_PARTS: dict[str, Callable[[Bench, dict[str, list[float]]], Figures]] = {
    "offline": _offline,
    "service": _service,
    "plain": _plain,
    "http": _http,
    "memory": _memory,
    "routing": _routing,
}


def _settings(bench: Bench, **more: Any) -> ServeConfig:
    section = bench.section
    vllm = EngineSection(cpu_kv_cache_gib=section.kv_cache_gib, cpu_threads=section.cpu_threads)
    return ServeConfig(
        model=bench.model,
        engine=section.engine,
        cpu_threads=section.cpu_threads,
        vllm=vllm,
        # However many are in flight and however slow the model, none may be refused or given up.
        max_queued=max(4096, 2 * section.in_flight),
        request_timeout_s=_PATIENCE_S,
        **more,
    )


@contextmanager
def _serving(bench: Bench, *, null: bool = False, **settings: Any) -> Iterator[str]:
    from wildreward_ray.stages.serve import free_port, service
    from wildreward_ray.stages.serve_engine import RewardEngine

    config = _settings(bench, port=free_port(), **settings)
    with service(config, engine=NullEngine if null else RewardEngine) as url:
        yield url


def _order(bench: Bench, url: str, bodies: Sequence[bytes], **more: Any) -> Order:
    return Order(
        **{"url": url + SCORE, "bodies": bodies, "in_flight": bench.section.in_flight, "requests": len(bodies), **more}
    )


def _speed(name: str, load: Load) -> Figures:
    """Rate and latencies of a load."""
    return {
        f"{name}_per_s": round(load.per_s, 2),
        **{f"{name}_p{percent}_ms": round(load.percentile_ms(percent), 2) for percent in _PERCENTILES},
    }
