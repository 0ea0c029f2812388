"""A synthetic extraction: feedback rows without a flaw, and the files they are read from."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wildreward_ray.cluster.schema import FEEDBACK
from wildreward_ray.core.manifest import MANIFEST, FunnelStep, Manifest

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\x00\x1b[31m\u202e&lt;\u2028]]>'\"\\"
RTL = "مرحبا، هذا سؤال"
LABELS = {1: 1, 2: 2, 4: 3, 5: 4}


def probabilities(level: int, sure: float) -> list[float]:
    """Five probabilities that add up to 1 and are largest at `level`."""
    return [sure if i == level else (1 - sure) / 4 for i in range(1, 6)]


def entropy(probs: Sequence[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in probs if p > 0)


def clean_rows(n: int = 2_500, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that no check finds fault with: 200 users, three languages, every level, lengths that tell nothing."""
    rng = random.Random(seed)
    return [_row(rng, i) for i in range(n)]


def _row(rng: random.Random, i: int) -> dict[str, Any]:
    level = rng.choices([1, 2, 3, 4, 5], [20, 20, 25, 20, 15])[0]
    origin = rng.choices(["explicit", "hindsight", "refusal"], [96, 2, 2])[0]
    if origin == "hindsight":
        level = rng.choice([4, 5])
    elif origin == "refusal":
        level = rng.choice([1, 5])
    judge_level = {"hindsight": 3, "refusal": 2}.get(origin, level)
    judge_probs = probabilities(judge_level, rng.uniform(0.3, 0.99))
    reason = "neutral" if level == 3 else rng.choices([None, "email"], [95, 5])[0]
    user = rng.randrange(200)
    return {
        "interaction_id": f"{i:06d}:1",
        "conversation_id": f"{i:06d}",
        "turn": rng.choice([0, 0, 0, 1, 1, 2, 3, 4, 7]),
        "user_id": f"user{user}",
        "language": rng.choices(["English", "Chinese", "German"], [60, 25, 15])[0],
        "model": rng.choice(["model-a", "model-b"]),
        "timestamp": "2026-01-02 03:04:05",
        "toxic": rng.random() < 0.02,
        "redacted": False,
        "source": "logs.parquet",
        "history": [{"role": "user", "content": "before"}, {"role": "assistant", "content": RTL}],
        "history_length": 2,
        "prompt": "word " * rng.randrange(5, 400),
        "response": "x" * int(math.exp(rng.uniform(2, 9))),
        "feedback": "thanks" if level > 3 else "no, that is wrong",
        "judge_level": judge_level,
        "judge_logprobs": [math.log(p) for p in judge_probs],
        "judge_probs": judge_probs,
        "judged_by": "cascade" if rng.random() < 0.1 else "judge",
        "masked": rng.random() < 0.01,
        "pii": ["email"] if reason == "email" else [],
        "level": level,
        "level_probs": probabilities(level, rng.uniform(0.3, 0.99)),
        "entropy": entropy(judge_probs),
        "origin": origin,
        "evidence_id": f"{(i * 7) % 2500:06d}:1" if origin == "hindsight" else None,
        "similarity": 0.8 if origin == "hindsight" else None,
        "refusal_verdict": "justified" if origin == "refusal" else None,
        "topic_switch": False,
        "label": LABELS[level] if reason is None else None,
        "drop_reason": reason,
        "split": ("test" if user % 5 == 0 else "train") if reason is None else None,
    }


def manifest(rows: Sequence[dict[str, Any]], **changes: Any) -> Manifest:
    """The manifest of an extraction that gave these rows."""
    dropped = Counter(r["drop_reason"] for r in rows if r["drop_reason"] is not None)
    kept = len(rows) - sum(dropped.values())
    content: dict[str, Any] = {
        "kind": "feedback",
        "inputs": ["s3://logs/january"],
        "config": {"judge": {"model": "judge-model", "prior": "batch"}},
        "seconds": 1.0,
        "funnel": [
            FunnelStep(name="read", unit="records", rows_in=1000, rows_out=990, dropped={"no_messages": 10}),
            FunnelStep(name="judge", unit="interactions", rows_in=len(rows), rows_out=len(rows)),
            FunnelStep(name="quality", unit="interactions", rows_in=len(rows), rows_out=kept, dropped=dict(dropped)),
        ],
        "labels": {"level": {str(i): sum(r["level"] == i for r in rows) for i in range(1, 6)}},
        "judge": {"model": "judge-model", "prompt_version": "v7", "prior_logprobs": {"overall": [-1.6] * 5}},
    }
    return Manifest.model_validate(content | changes)


def table(rows: Sequence[dict[str, Any]], *, without: Sequence[str] = ()) -> pa.Table:
    """Rows with the columns of FEEDBACK, some of them left out."""
    return pa.Table.from_pylist(list(rows), schema=FEEDBACK).drop_columns(list(without))


def write(
    folder: Path, rows: Sequence[dict[str, Any]], *, files: int = 3, without: Sequence[str] = (), **changes: Any
) -> str:
    """Write an artefact whose rows are dealt to `files` files, and return its path."""
    (folder / "feedback").mkdir(parents=True)
    for i in range(files):
        pq.write_table(table(rows[i::files], without=without), folder / "feedback" / f"{i}.parquet")
    (folder / MANIFEST).write_text(manifest(rows, **changes).checked_json(), encoding="utf-8")
    return str(folder)
