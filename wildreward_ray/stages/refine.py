"""Judged conversations -> labelled interactions: levels, hindsight, refusals, filters, split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wildreward_ray.cluster.embedding import Embedder
from wildreward_ray.cluster.schema import FEEDBACK
from wildreward_ray.cluster.session import ActorRequest
from wildreward_ray.core.config.extract import ExtractConfig, HindsightSection
from wildreward_ray.core.scale import NEUTRAL, training_label
from wildreward_ray.feedback import hindsight
from wildreward_ray.feedback.conversation import interaction_id
from wildreward_ray.feedback.judge import REFUSAL_VERDICTS
from wildreward_ray.feedback.prior import entropy
from wildreward_ray.feedback.quality import Candidate, QualityLimits, drop_reason
from wildreward_ray.feedback.refusal import validated_level
from wildreward_ray.feedback.split import assign
from wildreward_ray.stages.label import Priors

if TYPE_CHECKING:
    import ray.data


@dataclass
class _Judged:
    """One conversation with what the judge's numbers mean."""

    row: dict[str, Any]
    probs: list[list[float]]
    levels: list[int]
    pairs: list[tuple[int, int]]

    def prompt(self, turn: int) -> str:
        return str(self.row["messages"][self.row["turns"][turn] - 1]["content"])


class RefineActor:
    """Refines a batch of conversations; the requests that hindsight compares are embedded together for the whole batch."""

    def __init__(self, config: ExtractConfig, priors: Priors, counter: Any | None) -> None:
        self._config = config
        self._priors = priors
        self._counter = counter
        section = config.hindsight
        self._embedder = Embedder(section.model, flag="--hindsight.model") if section.enabled else None

    def __call__(self, table: pa.Table) -> pa.Table:
        """`JUDGED` rows in, one `FEEDBACK` row an interaction out."""
        judged = [self._judged(row) for row in table.to_pylist() if row["kind"] == "conversation"]
        vectors = self._embed(judged)
        rows = [row for c, item in enumerate(judged) for row in self._rows(item, c, vectors)]
        if self._counter is not None:
            self._counter.add.remote(len(rows))
        return pa.Table.from_pylist(rows, schema=FEEDBACK)

    def _judged(self, row: dict[str, Any]) -> _Judged:
        shares = self._config.judge.expected_shares
        probs = [self._priors.feedback.probabilities(row["language_group"], lp, shares) for lp in row["logprobs"]]
        levels = [int(np.argmax(p)) + 1 for p in probs]
        section = self._config.hindsight
        pairs = hindsight.candidates(levels, section.window) if section.enabled else []
        return _Judged(row, probs, levels, pairs)

    def _embed(self, judged: list[_Judged]) -> dict[tuple[int, int], npt.NDArray[np.float32]]:
        """Unit vectors of the requests of all turns that some pair compares, by (conversation, turn)."""
        keys = sorted({(c, turn) for c, item in enumerate(judged) for pair in item.pairs for turn in pair})
        if not keys or self._embedder is None:
            return {}
        embedded = self._embedder.embed([judged[c].prompt(turn) for c, turn in keys])
        return dict(zip(keys, embedded, strict=True))

    def _rows(
        self, item: _Judged, c: int, vectors: dict[tuple[int, int], npt.NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        mined, _ = hindsight.mine(
            item.levels,
            item.pairs,
            lambda a, b: float(vectors[c, a] @ vectors[c, b]),
            self._config.hindsight.threshold,
        )
        by_turn = {m.turn: m for m in mined}
        contested = {turn for turn, _ in item.pairs}
        return [
            self._row(item, turn, by_turn.get(turn), switched=turn in contested and turn not in by_turn)
            for turn in range(len(item.levels))
        ]

    def _row(self, item: _Judged, turn: int, mined: hindsight.Hindsight | None, *, switched: bool) -> dict[str, Any]:
        row, config = item.row, self._config
        reply = row["turns"][turn]
        messages = row["messages"]
        history = messages[: reply - 1]
        # Rows with a longer history are dropped below; keeping it would square the size of long conversations.
        limit = config.quality.max_history if "history_too_long" in config.quality.rules else len(history)
        conversation = row["conversation_id"]
        level, origin, verdict = self._final_level(item, turn, mined)
        out = {
            **{name: row[name] for name in _CARRIED},
            "interaction_id": interaction_id(conversation, reply),
            "turn": turn,
            "history": history[max(0, len(history) - limit) :],
            "history_length": len(history),
            "prompt": messages[reply - 1]["content"],
            "response": messages[reply]["content"],
            "feedback": messages[reply + 1]["content"],
            "judge_level": item.levels[turn],
            "judge_logprobs": row["logprobs"][turn],
            "level": level,
            "level_probs": self._final_probs(item, turn, mined, origin),
            "entropy": entropy(item.probs[turn]),
            "origin": origin,
            "evidence_id": interaction_id(conversation, row["turns"][mined.evidence])
            if origin == "hindsight" and mined
            else None,
            "similarity": mined.similarity if mined else None,
            "refusal_verdict": verdict,
            "topic_switch": switched,
        }
        out["drop_reason"] = self._drop_reason(out)
        if out["drop_reason"] is None:
            out["label"] = training_label(level, config.levels)
            key = row["user_id"] or conversation
            out["split"] = assign(key, test_share=config.split.test_share, salt=config.split.salt)
        return out

    def _final_level(self, item: _Judged, turn: int, mined: hindsight.Hindsight | None) -> tuple[int, str, str | None]:
        """(level, origin, refusal verdict). A verdict on a refusal outweighs what a later turn suggests."""
        level = item.levels[turn]
        verdict = None
        if item.row["refusal_suspect"][turn]:
            probs = self._refusal_probs(item, turn)
            best = int(np.argmax(probs))
            verdict = REFUSAL_VERDICTS[best] if probs[best] >= self._config.refusal.min_confidence else "uncertain"
        if verdict in ("justified", "unjustified"):
            return validated_level(level, verdict), "refusal", verdict
        if mined is not None:
            return mined.level, "hindsight", verdict
        return level, "explicit", verdict

    def _final_probs(self, item: _Judged, turn: int, mined: hindsight.Hindsight | None, origin: str) -> list[float]:
        """Probabilities of levels 1..5 behind the final level: the judge's on this turn, on the evidence turn, or on the refusal."""
        if origin == "hindsight" and mined is not None:
            return item.probs[mined.evidence]
        if origin == "refusal":
            spread = [0.0] * len(item.probs[turn])
            for verdict, p in zip(REFUSAL_VERDICTS, self._refusal_probs(item, turn), strict=False):
                spread[validated_level(item.levels[turn], verdict) - 1] += p
            return spread
        return item.probs[turn]

    def _refusal_probs(self, item: _Judged, turn: int) -> list[float]:
        logprobs = item.row["refusal_logprobs"][turn]
        return self._priors.refusal.probabilities(item.row["language_group"], logprobs, None)

    def _drop_reason(self, row: dict[str, Any]) -> str | None:
        config = self._config
        limits = QualityLimits(config.quality.min_prompt, config.quality.min_response, config.quality.max_history)
        candidate = Candidate(row["history_length"], row["prompt"], row["response"], row["feedback"])
        reason = drop_reason(candidate, limits, config.quality.rules)
        if reason is None and training_label(row["level"], config.levels) is None:
            return "neutral"
        if reason is None and side_confidence(row["level"], row["level_probs"]) < config.quality.min_confidence:
            return "unsure"
        return reason


def side_confidence(level: int, probs: Sequence[float]) -> float:
    """How sure it is that a level lies on its side: P(that side) / P(either side). 1 for the neutral level.

    Args:
        probs: five probabilities, index 0 is level 1.
    """
    if level == NEUTRAL:
        return 1.0
    negative, positive = sum(probs[: NEUTRAL - 1]), sum(probs[NEUTRAL:])
    side = positive if level > NEUTRAL else negative
    return side / (negative + positive) if negative + positive > 0 else 0.0


_CARRIED = ("conversation_id", "user_id", "language", "model", "timestamp", "toxic", "redacted", "source")


def resources(section: HindsightSection) -> ActorRequest:
    """What the fewest embedding actors hold."""
    return ActorRequest("refine", section.replicas[0], section.num_cpus, section.num_gpus, "--hindsight.num-cpus")


def refine(judged: ray.data.Dataset, config: ExtractConfig, priors: Priors, counter: Any) -> ray.data.Dataset:
    """A streaming dataset of `FEEDBACK` rows."""
    import ray.data

    section = config.hindsight
    return judged.map_batches(
        RefineActor,
        fn_constructor_args=(config, priors, counter),
        batch_size=section.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=section.replicas[0], max_size=section.replicas[1]),
        num_cpus=section.num_cpus,
        num_gpus=section.num_gpus or None,
    )
