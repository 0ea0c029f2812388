"""`wildreward bench train`: training by Ray Train over a bare PyTorch loop on the same micro-batches, in one run.

The bare loop has a process and all cores to itself and does nothing but forward, backward, clipping and AdamW. Both are
timed from the end of their first step. The second figure is what padding every input to the maximum length would cost, as the
paper's code does it. Labels are drawn at random: only speed is measured.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from wildreward_ray.cluster.session import start_ray
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages import ingest, train

if TYPE_CHECKING:
    import torch

    from wildreward_ray.reward.batching import IntArray

_LEVELS = 4
_TEST_ROWS = 4


def measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Measure. Rates are real tokens a second, without padding.

    Raises:
        UserError: too few interactions for two optimizer steps.
    """
    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        rows = _write_rows(config, inputs, Path(folder))
        one = _train(config, rows, f"{folder}/one", workers=1)
        bare = _bare(config, rows)
        two = _train(config, rows, f"{folder}/two", workers=2)
    stalls = one["checkpoint_stall_s"]
    return {
        "base": config.train.base,
        "rows": one["rows"]["train"],
        "parameters": one["parameters"],
        "bare_tokens_per_s": round(bare["tokens_per_s"], 1),
        "pipeline_tokens_per_s": one["tokens_per_s"],
        "ratio": round(one["tokens_per_s"] / bare["tokens_per_s"], 3),
        "padding_waste": one["padding_waste"],
        "padded_to_maximum_tokens_per_s": round(bare["padded_tokens_per_s"], 1),
        "gain_over_padding_to_maximum": round(bare["tokens_per_s"] / bare["padded_tokens_per_s"], 2),
        "two_workers_tokens_per_s": two["tokens_per_s"],
        "two_workers_over_one": round(two["tokens_per_s"] / one["tokens_per_s"], 3),
        "checkpoints": len(stalls),
        "checkpoint_stall_mean_s": round(sum(stalls) / len(stalls), 3),
        "checkpoint_stall_max_s": max(stalls),
        "mean_tokens": round(bare["mean_tokens"], 1),
    }


def _write_rows(config: BenchConfig, inputs: tuple[str, ...], folder: Path) -> Path:
    """Interactions of the logs as WildFB files, with labels drawn at random and a held-out part of a few rows."""
    data = folder / "rows"
    data.mkdir()
    labels = random.Random(0)
    plan = ingest.plan(inputs, config.format, strict=False)
    limit = None if config.limit is None else config.limit + _TEST_ROWS
    written = 0
    with (data / "train.jsonl").open("w") as rows, (data / "test.jsonl").open("w") as test:
        for record in _records(plan, limit):
            record["label"] = labels.randint(1, _LEVELS)
            (test if written < _TEST_ROWS else rows).write(json.dumps(record) + "\n")
            written += 1
    if written - _TEST_ROWS <= config.train.optim.global_batch:
        raise UserError(
            f"{written} interactions make no two steps of {config.train.optim.global_batch}",
            flag="--limit",
            hint="raise",
        )
    return data


def _records(plan: ingest.Plan, limit: int | None) -> Iterator[dict[str, Any]]:
    given = 0
    for _, table in ingest.read_chunks(plan.shards, size=256, limit=limit, done={}):
        for row in table.to_pylist():
            for turn in row["turns"] or []:
                if limit is not None and given >= limit:
                    return
                messages = row["messages"]
                given += 1
                yield {
                    "id": f"{given:08d}",
                    "history": messages[: turn - 1],
                    "messages": messages[turn - 1 : turn + 1],
                }


def _settings(config: BenchConfig, rows: Path, output: str, workers: int) -> TrainConfig:
    section = config.train
    settings: dict[str, Any] = {
        "dataset": str(rows),
        "base": section.base,
        "output": output,
        "levels": _LEVELS,
        "max_length": section.max_length,
        "workers": workers,
        "checkpoint": {"every": section.checkpoint_every},
        "eval": {"bootstrap": 0},
        "optim": section.optim.model_dump(),
    }
    return TrainConfig.model_validate(settings)


def _train(config: BenchConfig, rows: Path, output: str, *, workers: int) -> dict[str, Any]:
    metrics = train.run(_settings(config, rows, output, workers)).metrics
    if metrics["tokens_per_s"] is None:
        raise UserError("one optimizer step has no pace", flag="--limit", hint="raise")
    return metrics


def _bare(config: BenchConfig, rows: Path) -> dict[str, float]:
    """The loops without any of this, in a process of their own."""
    loops = ray.remote(num_cpus=1)(_BareLoops).remote(_settings(config, rows, "unused", 1), rows)
    found: dict[str, float] = ray.get(loops.run.remote(config.train.padded_batches))
    ray.kill(loops)
    return found


class _BareLoops:
    """A plain training loop over the micro-batches that `train` uses, and over ones padded to the maximum length."""

    def __init__(self, config: TrainConfig, rows: Path) -> None:
        import torch

        from wildreward_ray.cluster.models import resolve_model
        from wildreward_ray.cluster.readers import json_lines
        from wildreward_ray.cluster.storage import locate
        from wildreward_ray.core.template import RewardTemplate
        from wildreward_ray.feedback import wildfb
        from wildreward_ray.reward.inputs import InputEncoder
        from wildreward_ray.reward.model import load_base

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self._config = config
        base = resolve_model(config.base, flag="--train.base")
        self._model, tokenizer = load_base(base, _LEVELS)
        self._pad = int(tokenizer.pad_token_id)
        encoder = InputEncoder(tokenizer, RewardTemplate(), int(config.max_length or 512))
        parsed = [
            wildfb.parse(record, i)
            for i, record in enumerate(json_lines(locate(str(rows / "train.jsonl")), flag="--input"))
        ]
        usable = [row for row in parsed if row["reason"] is None]
        self._ids = encoder.encode_batch([(r["history"], r["prompt"], r["response"]) for r in usable])
        self._labels = torch.tensor([r["label"] for r in usable])

    def run(self, padded_batches: int) -> dict[str, float]:
        """Tokens a second of both loops."""
        import numpy as np

        from wildreward_ray.reward.batching import plan_epoch

        optim = self._config.optim
        lengths = np.array([len(ids) for ids in self._ids])
        plan = plan_epoch(
            lengths, global_batch=optim.global_batch, token_budget=optim.token_budget, seed=0, epoch=0, parts=1
        )
        longest = int(self._config.max_length or 512)
        width = max(1, optim.token_budget // longest)
        order = np.random.default_rng(0).permutation(len(lengths))
        padded = [[order[i : i + width]] for i in range(0, len(order) - width + 1, width)][:padded_batches]
        return {
            "tokens_per_s": self._pace(plan, None),
            "padded_tokens_per_s": self._pace(padded, longest),
            "mean_tokens": float(lengths.mean()),
        }

    def _pace(self, steps: list[list[IntArray]], width: int | None) -> float:
        """Real tokens a second over all steps after the first one."""
        import torch

        optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
        self._model.train()
        tokens, started = 0, 0.0
        for number, step in enumerate(steps):
            optimizer.zero_grad(set_to_none=True)
            total = sum(len(batch) for batch in step)
            for batch in step:
                torch.autograd.backward(self._loss(batch, width) / total)
                tokens += sum(len(self._ids[int(row)]) for row in batch)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
            if number == 0:
                tokens, started = 0, time.monotonic()
        return tokens / (time.monotonic() - started)

    def _loss(self, batch: IntArray, width: int | None) -> torch.Tensor:
        import torch

        from wildreward_ray.reward.engine import pad_right

        ids, mask = pad_right([self._ids[int(row)] for row in batch], self._pad)
        if width is not None:
            more = (0, width - ids.shape[1])
            ids = torch.nn.functional.pad(ids, more, value=self._pad)
            mask = torch.nn.functional.pad(mask, more)
        logits = self._model(input_ids=ids, attention_mask=mask).logits
        above = self._labels[torch.from_numpy(batch)].unsqueeze(-1) > torch.arange(1, _LEVELS)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, above.float(), reduction="sum") / (
            _LEVELS - 1
        )
