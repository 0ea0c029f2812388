"""Which figures of the benches are ratios: what stands over what, and where a bench says it. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """A ratio that a bench gives among its figures.

    Attributes:
        name: its figure.
        above, below: the figures whose quotient it is. `{figure}` in a name stands for what that figure holds.
        what: what is over what, and the unit of both.
        aim: what the ratio is meant to reach, or to stay within where less is better; None where nothing says so.
        less_is_better: whether a higher ratio is a worse one.
    """

    name: str
    above: str
    below: str
    what: str
    aim: float | None = None
    less_is_better: bool = False

    def operands(self, figures: Mapping[str, Any]) -> tuple[float, float]:
        """Both figures of a bench that gave this ratio."""
        above, below = (name.format_map(figures) for name in (self.above, self.below))
        return float(figures[above]), float(figures[below])


RATIOS: dict[str, tuple[Ratio, ...]] = {
    "extract": (
        Ratio(
            "ratio",
            "pipeline_per_s",
            "ceiling_per_s",
            "judge in the pipeline over the bare engine, interactions/s",
            aim=0.9,
        ),
    ),
    "train": (
        Ratio(
            "ratio",
            "pipeline_tokens_per_s",
            "bare_tokens_per_s",
            "training in the pipeline over a bare loop, tokens/s",
            aim=0.9,
        ),
        Ratio(
            "gain_over_padding_to_maximum",
            "bare_tokens_per_s",
            "padded_to_maximum_tokens_per_s",
            "bare loop over one with every row padded to the maximum, tokens/s",
        ),
        Ratio(
            "two_workers_over_one",
            "two_workers_tokens_per_s",
            "pipeline_tokens_per_s",
            "two workers over one that has all cores as well, tokens/s",
        ),
    ),
    "serve": (
        Ratio(
            "service_over_offline", "service_per_s", "offline_per_s", "service over its bare engine, items/s", aim=0.85
        ),
        Ratio("service_over_plain", "service_per_s", "plain_per_s", "service over a plain server, items/s", aim=5.0),
        Ratio(
            "http_over_plain",
            "http_per_s",
            "http_plain_per_s",
            "service over a plain server, both without a model, requests/s",
        ),
        Ratio(
            "routing_prefix_over_balanced",
            "routing_prefix_per_s",
            "routing_balanced_per_s",
            "routing by prefix over balanced routing, two replicas, items/s",
        ),
    ),
    "online-dpo": (
        Ratio(
            "overlap_ratio",
            "step_s_staleness_1",
            "{slowest_part}_alone_s",
            "step with overlap over its slowest part alone, seconds (less is better)",
            aim=1.25,
            less_is_better=True,
        ),
        Ratio(
            "generation_ratio",
            "rollout_tokens_per_s",
            "raw_tokens_per_s",
            "sampling in the run over the bare engine, tokens/s",
            aim=0.9,
        ),
        Ratio(
            "prompts_over_trl", "prompts_per_s", "trl_prompts_per_s", "the run over TRL's trainer, prompts/s", aim=1.5
        ),
    ),
    "evaluate": (
        Ratio(
            "ratio",
            "pipeline_per_s",
            "bare_per_s",
            "scoring a benchmark in the pipeline over the bare engine, responses/s",
            aim=0.9,
        ),
    ),
}


def measured(stage: str, figures: Mapping[str, Any]) -> list[Ratio]:
    """The ratios of a stage that are among its figures: a part that was not asked for gives none."""
    return [ratio for ratio in RATIOS.get(stage, ()) if ratio.name in figures]


def aligned(rows: Sequence[Sequence[str]], *, numbers: frozenset[int]) -> str:
    """Rows of equally many cells as lines with two blanks between columns.

    Args:
        numbers: columns that are set to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
