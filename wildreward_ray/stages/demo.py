"""`wildreward demo`: the whole loop on the shipped sample, with small real models, and a report of what happened."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.dataset as pads
import ray

from wildreward_ray.cluster.reward_client import RewardClient
from wildreward_ray.cluster.session import start_ray
from wildreward_ray.cluster.storage import locate, remove
from wildreward_ray.core.config.demo import DemoConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.core.manifest import versions
from wildreward_ray.report.loop import write
from wildreward_ray.stages import extract, online_dpo, score, train
from wildreward_ray.stages.agreement import judge_agreement, read_expected
from wildreward_ray.stages.scoring import load_scorer
from wildreward_ray.stages.serve import free_port, service

_CONCURRENCY = 8
_EXAMPLES = 16
_MAX_DPO_PROMPT_CHARACTERS = 300
# The same conversation must get the same reward on every way to it.
_PARITY = 1e-3


def run(config: DemoConfig) -> dict[str, Any]:
    """Run every stage, compare them, write `summary.json` and `report.html`. Returns the summary.

    Raises:
        WildRewardError: a stage failed, or two ways to the same reward disagree.
    """
    started = time.monotonic()
    out = Path(config.output)
    memory = _PeakMemory()
    seconds: dict[str, float] = {}
    start_ray()
    summary: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}

    def timed(name: str, part: Callable[[], dict[str, Any]]) -> None:
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        summary.update(part())
        seconds[name] = round(time.monotonic() - begin, 1)

    with memory:
        timed("extract", lambda: _extract(out))
        timed("train", lambda: _train(out))
        timed("serve_and_online_dpo", lambda: _serve_and_learn(out, config, seconds))
    del seconds["serve_and_online_dpo"]
    seconds["total"] = round(time.monotonic() - started, 1)
    summary["seconds"] = seconds
    summary["machine"] = {
        "cpus": os.cpu_count(),
        "memory_gb": round(_memory_kib("MemTotal") / 2**20, 1),
        "gpus": int(ray.cluster_resources().get("GPU", 0)),
        "peak_memory_gb": round(memory.peak_gib, 2),
    }
    (out / "summary.json").write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    write(summary, out / "report.html")
    return summary


def _extract(out: Path) -> dict[str, Any]:
    # A demo shows the loop turning, so what an earlier one made is made again.
    remove(locate(str(out / "dataset")))
    with resources.as_file(resources.files("wildreward_ray") / "sample") as sample:
        settings = {
            "input": [str(sample / "conversations.parquet")],
            "output": str(out / "dataset"),
            "overwrite": True,
            "quality.min_confidence": 0.6,
            "split.test_share": 0.25,
            "judge.engine.max_model_len": 1024,
        }
        manifest = extract.run(ExtractConfig.load(None, settings)).manifest
        expected = read_expected(sample / "expected.jsonl")
    feedback = locate(str(out / "dataset" / "feedback"))
    return {
        "funnel": manifest["funnel"],
        "labels": manifest["labels"],
        "judge": {k: v for k, v in manifest["judge"].items() if k != "prompts"},
        "judge_agreement": judge_agreement(feedback, expected),
        "examples": _examples(_rows(out / "dataset" / "feedback"), expected),
    }


def _train(out: Path) -> dict[str, Any]:
    settings = {
        "dataset": str(out / "dataset"),
        "base": "demo:minilm",
        "output": str(out / "reward_model"),
        "overwrite": True,
        "epochs": 5,
        "max_length": 192,
        "precision": "bfloat16",
        "optim.learning_rate": 1e-4,
        "optim.head_learning_rate": 1e-3,
        "optim.global_batch": 16,
        "optim.token_budget": 4096,
    }
    found = train.run(TrainConfig.load(None, settings)).metrics
    curve = [json.loads(line) for line in (out / "reward_model" / train.CURVE).read_text().splitlines()]
    rows = found.pop("rows")
    return {"train": {**found, "train_rows": rows["train"], "test_rows": rows["test"], "curve": curve}}


def _serve_and_learn(out: Path, config: DemoConfig, seconds: dict[str, float]) -> dict[str, Any]:
    model = str(out / "reward_model")
    # Workers and controllers that are done keep their memory; a laptop needs it for what follows.
    ray.shutdown()
    begin = time.monotonic()
    test = _rows(out / "dataset" / "dataset" / "test")
    settings = {"model": model, "input": [str(out / "dataset/dataset/test")], "output": str(out / "scores")}
    score.run(ScoreConfig.load(None, {**settings, "overwrite": True}))
    batch = {r["id"]: r["score"] for r in _rows(out / "scores" / "scores")}
    scorer = load_scorer(ServeConfig(model=model))
    items = [{"history": r["history"], "prompt": r["prompt"], "response": r["response"]} for r in test]
    inputs = scorer.encoder.encode_batch([(i["history"], i["prompt"], i["response"]) for i in items])
    direct = scorer.score(inputs).score
    with service(ServeConfig.load(None, {"model": model, "port": free_port(), "too_long": "cut"})) as url:
        served, latencies, elapsed = _measure(url, items, config.service_requests)
        parity = {
            "direct_vs_service": float(np.abs(direct - served).max()),
            "direct_vs_batch": float(np.abs(direct - np.array([batch[r["interaction_id"]] for r in test])).max()),
        }
        if max(parity.values()) > _PARITY:
            raise WildRewardError(f"the same conversations got different rewards: {parity}, allowed are {_PARITY}")
        low, mid, high = np.percentile(latencies, [50, 95, 99])
        serve = {
            "engine": scorer.engine_name,
            "requests": len(latencies),
            "items": len(latencies),
            "concurrency": _CONCURRENCY,
            "items_per_s": round(len(latencies) / elapsed, 1),
            "latency_ms": {"p50": round(low, 2), "p95": round(mid, 2), "p99": round(high, 2)},
            "latencies_ms": [round(v, 2) for v in latencies],
            "parity": parity,
            "score_range": list(scorer.config.score_range),
            "score_mean": statistics.fmean(served.tolist()),
        }
        seconds["serve"] = round(time.monotonic() - begin, 1)
        begin = time.monotonic()
        print("== online-dpo", flush=True)
        learned = online_dpo.run(_dpo_config(out, url, config.dpo_steps))
        seconds["online_dpo"] = round(time.monotonic() - begin, 1)
    return {"serve": serve, "online_dpo": {**learned.summary, "steps": learned.steps}}


def _dpo_config(out: Path, url: str, steps: int) -> OnlineDpoConfig:
    prompts = out / "prompts.jsonl"
    rows = [r for r in _rows(out / "dataset" / "feedback") if r["language"] == "English" and not r["history_length"]]
    texts = [r["prompt"] for r in rows if len(r["prompt"]) <= _MAX_DPO_PROMPT_CHARACTERS]
    prompts.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts), encoding="utf-8")
    settings = {
        "policy": "demo:smollm2",
        "reward_url": url,
        "prompts": str(prompts),
        "output": str(out / "online_dpo"),
        "overwrite": True,
        "steps": steps,
        "prompts_per_step": 8,
        # Few cores: sampling and learning in turns have all of them.
        "staleness": 0,
        "max_prompt_tokens": 160,
        "eval.prompts": 8,
        "rollout.samples": 4,
        "rollout.max_tokens": 48,
        "rollout.engine.max_model_len": 512,
        "learner.learning_rate": 2e-5,
        "learner.micro_pairs": 1,
        "learner.precision": "bfloat16",
    }
    return OnlineDpoConfig.load(None, settings)


def _measure(url: str, items: list[dict[str, Any]], requests: int) -> tuple[np.ndarray[Any, Any], list[float], float]:
    """Scores of all items, and the latency of single-item requests: milliseconds each, and seconds for all."""
    with RewardClient(url, concurrency=_CONCURRENCY, items_per_request=1) as client:
        served = np.array([s.score for s in client.score(items)])
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(_CONCURRENCY) as pool:

        def one(number: int) -> float:
            begin = time.perf_counter()
            http.post("/v1/score", json={"items": [items[number % len(items)]]}).raise_for_status()
            return 1000 * (time.perf_counter() - begin)

        begin = time.perf_counter()
        latencies = list(pool.map(one, range(requests)))
        return served, latencies, time.perf_counter() - begin


def _examples(rows: list[dict[str, Any]], expected: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Some interactions to read: for each level and origin the surest and the least sure ones, in turn."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["entropy"], r["interaction_id"])):
        groups.setdefault((row["origin"], row["level"]), []).append(row)
    chosen: list[dict[str, Any]] = []
    while groups and len(chosen) < _EXAMPLES:
        for key in sorted(groups):
            group = groups[key]
            chosen.append(group.pop(0 if len(chosen) % 2 else -1))
            if not group:
                del groups[key]
    names = ("prompt", "response", "feedback", "level", "level_probs", "origin", "language", "drop_reason")
    return [
        {**{name: row[name] for name in names}, "expected_level": expected[row["interaction_id"]]["final_level"]}
        for row in chosen[:_EXAMPLES]
    ]


def _rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a small Parquet directory, in the order of their ids."""
    rows: list[dict[str, Any]] = pads.dataset(folder).to_table().to_pylist()
    return sorted(rows, key=lambda r: str(r.get("interaction_id", r.get("id"))))


class _PeakMemory:
    """The most memory the machine used inside the context, beyond what it used before: all processes, shared pages once."""

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._before = _used_kib()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_gib = max(self.peak_gib, (_used_kib() - self._before) / 2**20)


def _used_kib() -> int:
    return _memory_kib("MemTotal") - _memory_kib("MemAvailable")


def _memory_kib(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise WildRewardError(f"/proc/meminfo has no {name}")
