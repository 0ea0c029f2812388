"""From trained weights to what a run leaves: a plain checkpoint, its calibration, and the figures of the held-out rows."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.storage import Location, upload
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.reward.adapters import merge_adapters
from wildreward_ray.reward.batching import padding_waste
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.evaluation import evaluate
from wildreward_ray.reward.loop import Trainer
from wildreward_ray.reward.model import load_base, save_checkpoint
from wildreward_ray.reward.training_state import whole_weights
from wildreward_ray.stages.token_rows import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS, CURVE, HELD_OUT, PLOTS = "metrics.json", "curve.jsonl", "held_out.parquet", "plots"

_HELD_OUT = pa.schema(
    [
        ("row_id", pa.string()),
        ("label", pa.int8()),
        ("logits", pa.list_(pa.float32())),
        ("p_gt", pa.list_(pa.float32())),
        ("language", pa.string()),
        ("origin", pa.string()),
    ]
)


@dataclass(frozen=True)
class Finished:
    """A run at its end.

    Attributes:
        logits: [N, k-1] of the held-out rows under the weights that are written.
        curve: `StepRecord`s as dicts.
        evals: metrics of the held-out rows during training, before calibration.
        chosen_step: the step whose weights are written.
        stalls: seconds that each checkpoint held this worker's training up.
        pace: when each step since the last start ended, in seconds of a steady clock, and its tokens.
    """

    trainer: Trainer
    test: TokenRows
    logits: NDArray[np.float64]
    curve: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    chosen_step: int
    stalls: list[float]
    pace: list[tuple[float, int]]

    @property
    def tokens_per_s(self) -> float | None:
        """Real tokens a second of wall time after the first step, which warms up; with all that happens between steps."""
        if len(self.pace) < 2:
            return None
        return sum(tokens for _, tokens in self.pace[1:]) / (self.pace[-1][0] - self.pace[0][0])


def export(
    config: TrainConfig, reward: RewardConfig, target: Location, tokenizer: PreTrainedTokenizerBase, finished: Finished
) -> None:
    """Write the model and its figures to `target`; called on all workers at once, rank 0 writes."""
    from wildreward_ray.report.training import write_plots

    weights = whole_weights(finished.trainer.layout.module)
    if finished.trainer.layout.world.rank != 0:
        return
    test = finished.test
    held_out, calibration = evaluate(
        finished.logits,
        test.labels,
        k=reward.levels,
        decoder=reward.decoder,
        settings=config.eval,
        languages=test.languages,
        origins=test.origins,
        seed=config.seed,
    )
    if calibration is not None:
        # Measured on rows it wasn't fitted to: where it does not help, better leave it alone.
        held_out["calibration"]["helps"] = held_out["calibration"]["nll"] < held_out["nll"]
    found = _metrics(config, reward, held_out, finished)
    final = reward.model_copy(update={"calibration": calibration})
    # The model in use may be sharded or wrapped; a fresh one takes the weights in.
    model, _ = load_base(
        resolve_model(config.base, flag="--base"),
        reward.levels,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
    )
    if config.lora.rank:
        model = merge_adapters(model, config.lora, weights)
    else:
        model.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_checkpoint(model, tokenizer, final, folder)
        _write_held_out(folder / HELD_OUT, finished, final)
        (folder / PLOTS).mkdir()
        write_plots(found, finished.curve, folder / PLOTS)
        lines = "".join(json.dumps(record) + "\n" for record in finished.curve)
        (folder / CURVE).write_text(lines, encoding="utf-8")
        (folder / METRICS).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        upload(folder, target)


def _metrics(config: TrainConfig, reward: RewardConfig, held_out: dict[str, Any], finished: Finished) -> dict[str, Any]:
    """The content of `metrics.json`."""
    trainer, rows = finished.trainer, finished.trainer.rows
    pace = finished.tokens_per_s
    flat = {name: value for name, value in held_out.items() if value is None or isinstance(value, (int, float))}
    return {
        "base": config.base,
        "levels": reward.levels,
        "parameters": sum(p.numel() for p in trainer.layout.module.parameters()),
        "trained_parameters": sum(p.numel() for p in trainer.layout.module.parameters() if p.requires_grad),
        "rows": {"train": len(rows.labels), "test": len(finished.test.labels)},
        "over_limit": getattr(rows, "over_limit", 0),
        "epochs": config.epochs,
        "steps": trainer.total_steps,
        "chosen_step": finished.chosen_step,
        "tokens_per_s": None if pace is None else round(pace, 1),
        "padding_waste": round(padding_waste(trainer.plan(0), rows.lengths), 4),
        "checkpoint_stall_s": [round(stall, 3) for stall in finished.stalls],
        "metrics": flat if held_out["n"] else None,
        "held_out": held_out,
        "evals": finished.evals,
        "reliability": held_out["reliability"],
    }


def _write_held_out(file: Path, finished: Finished, reward: RewardConfig) -> None:
    """Logits and probabilities, before calibration, of every held-out row in order of its id."""
    test = finished.test
    n = len(test.labels)
    p_gt = reward.p_gt(finished.logits) if n else finished.logits
    empty = [None] * n
    table = pa.table(
        {
            "row_id": test.row_ids(np.arange(n)),
            "label": test.labels.tolist(),
            "logits": finished.logits.tolist(),
            "p_gt": p_gt.tolist(),
            "language": empty if test.languages is None else test.languages.tolist(),
            "origin": empty if test.origins is None else test.origins.tolist(),
        },
        schema=_HELD_OUT,
    )
    pq.write_table(table, file, compression="zstd")
