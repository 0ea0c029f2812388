"""Judged parts -> labelled interactions: levels, hindsight, refusals, personal data, filters, split.

Everything here looks at one conversation at a time. What needs the whole corpus (duplicates, a user's share) is decided
afterwards, from the small columns that are written for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wildreward_ray.cluster.embedding import Embedder
from wildreward_ray.cluster.schema import JUDGED, REFINED
from wildreward_ray.cluster.session import ActorRequest
from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.config.extract import ExtractConfig, HindsightSection
from wildreward_ray.core.scale import NEUTRAL, training_label
from wildreward_ray.feedback import hindsight
from wildreward_ray.feedback.conversation import interaction_id
from wildreward_ray.feedback.judge import REFUSAL_VERDICTS
from wildreward_ray.feedback.language import LanguageIdentifier
from wildreward_ray.feedback.near_duplicates import MinHasher, exact_key
from wildreward_ray.feedback.pii import PiiFinder
from wildreward_ray.feedback.prior import Prior, entropy
from wildreward_ray.feedback.quality import Candidate, QualityLimits, drop_reason
from wildreward_ray.feedback.refusal import validated_level
from wildreward_ray.feedback.split import assign
from wildreward_ray.stages import requests
from wildreward_ray.stages.chunks import each_part, groups_of, list_parts, part_file
from wildreward_ray.stages.histories import Histories
from wildreward_ray.stages.judged import Priors

if TYPE_CHECKING:
    import ray.data

_CARRIED = ("conversation_id", "user_id", "model", "timestamp", "toxic", "redacted", "source")
_LANGUAGE_CHARACTERS = 2000
# No level: a turn whose verdict could not be had. It is neither neutral nor positive for its neighbours.
_NO_LEVEL = 0


@dataclass
class _Conversation:
    """One judged conversation with what the judges' numbers mean. Lists are by turn."""

    row: dict[str, Any]
    language: str | None
    logprobs: list[list[float] | None]
    probs: list[list[float]]
    levels: list[int]
    judged_by: list[str]
    pairs: list[tuple[int, int]]
    pii: list[list[str]] = field(default_factory=list)

    def prompt(self, turn: int) -> str:
        return str(self.row["messages"][self.row["turns"][turn] - 1]["content"])


class RefineActor:
    """Refines judged parts; the requests that hindsight compares are embedded together for a whole part.

    Args:
        config: the extraction's settings.
        priors: the judge's, of both prompts.
        second_prior: the second judge's, or None where there was none.
        work: the run's work directory: reads `judged/` and `second/`, writes `refined/`.
        counter: a progress counter, or None.
    """

    def __init__(
        self, config: ExtractConfig, priors: Priors, second_prior: Prior | None, work: Location, counter: Any | None
    ) -> None:
        self._config = config
        self._priors = priors
        self._second_prior = second_prior
        self._work = work
        self._counter = counter
        section = config.hindsight
        self._embedder = Embedder(section.model, flag="--hindsight.model") if section.enabled else None
        quality = config.quality
        self._finder = PiiFinder(quality.pii_entities) if quality.pii != "keep" else None
        self._hasher = MinHasher()
        self._identifier = LanguageIdentifier()
        self._limits = QualityLimits(
            min_prompt=quality.min_prompt,
            min_response=quality.min_response,
            max_history=quality.max_history,
            languages=() if quality.languages == ("all",) else quality.languages,
        )

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Names of parts in; for every part a file of `REFINED` rows, and its name out."""
        for part in each_part(batch):
            table = part_file(self._work.child("judged"), part).read_table()
            second = None
            if self._second_prior is not None:
                second = part_file(self._work.child("second"), part).read_table()
            refined = self.refine(part, table, second)
            part_file(self._work.child("refined"), part).write_table(refined)
            if self._counter is not None:
                self._counter.add.remote(refined.num_rows)
            yield {"part": np.array([part])}

    def refine(self, part: str, table: pa.Table, second: pa.Table | None) -> pa.Table:
        """`JUDGED` rows (and `SECOND` rows) in, one `REFINED` row an interaction with a verdict out."""
        rows = [row for row in table.cast(JUDGED).to_pylist() if row["kind"] == "conversation"]
        asked = _by_turn(second)
        judged = [self._conversation(row, asked.get(r, {})) for r, row in enumerate(rows)]
        vectors = self._embed(judged)
        for item in judged:
            item.pii = self._redact(item.row["messages"])
        out: list[dict[str, Any]] = []
        history = Histories()
        for c, item in enumerate(judged):
            history.add(item.row["messages"])
            for row, first, last in self._rows(item, c, vectors):
                out.append({**row, "part": part, "row": len(out)})
                history.take(first, last)
        refined = pa.Table.from_pylist(out, schema=REFINED)
        at = REFINED.get_field_index("history")
        return refined.set_column(at, REFINED.field(at), history.array())

    def _conversation(self, row: dict[str, Any], second: dict[int, dict[str, Any]]) -> _Conversation:
        shares, group = self._config.judge.expected_shares, row["language_group"]
        logprobs, probs, levels, judged_by = list(row["logprobs"]), [], [], []
        for turn, values in enumerate(row["logprobs"]):
            prior, expected, judge = self._priors.feedback, shares, "judge"
            answer = second.get(turn)
            if answer is not None and answer["logprobs"] is not None and self._second_prior is not None:
                values, judge = answer["logprobs"], "cascade"
                prior, expected = self._second_prior, self._config.cascade.judge.expected_shares
                logprobs[turn] = values
            found = prior.probabilities(group, values, expected) if values is not None else []
            probs.append(found)
            levels.append(int(np.argmax(found)) + 1 if found else _NO_LEVEL)
            judged_by.append(judge)
        section = self._config.hindsight
        pairs = hindsight.candidates(levels, section.window) if section.enabled else []
        language = row["language"] or self._identifier.identify(_user_text(row["messages"]))
        return _Conversation(row, language, logprobs, probs, levels, judged_by, pairs)

    def _embed(self, judged: list[_Conversation]) -> dict[tuple[int, int], npt.NDArray[np.float32]]:
        """Unit vectors of the requests of all turns that some pair compares, by (conversation, turn)."""
        keys = sorted({(c, turn) for c, item in enumerate(judged) for pair in item.pairs for turn in pair})
        if not keys or self._embedder is None:
            return {}
        embedded = self._embedder.embed([judged[c].prompt(turn) for c, turn in keys])
        return dict(zip(keys, embedded, strict=True))

    def _redact(self, messages: list[dict[str, Any]]) -> list[list[str]]:
        """Replace personal data in all messages, in place. Returns the kinds found in each."""
        if self._finder is None:
            return [[] for _ in messages]
        found = []
        for message in messages:
            message["content"], entities = self._finder.redact(message["content"])
            found.append(entities)
        return found

    def _rows(
        self, item: _Conversation, c: int, vectors: dict[tuple[int, int], npt.NDArray[np.float32]]
    ) -> Iterator[tuple[dict[str, Any], int, int]]:
        """(row without its history, first and last message of its history) of every turn with a verdict."""
        mined, _ = hindsight.mine(
            item.levels,
            item.pairs,
            lambda a, b: float(vectors[c, a] @ vectors[c, b]),
            self._config.hindsight.threshold,
        )
        by_turn = {m.turn: m for m in mined}
        contested = {turn for turn, _ in item.pairs}
        for turn, level in enumerate(item.levels):
            if level == _NO_LEVEL:
                continue
            row = self._row(item, turn, by_turn.get(turn), switched=turn in contested and turn not in by_turn)
            last = item.row["turns"][turn] - 1
            # Rows with a longer history are dropped; keeping it would square the size of long conversations.
            cut = "history_too_long" in self._config.quality.rules
            yield row, max(0, last - self._config.quality.max_history) if cut else 0, last

    def _row(
        self, item: _Conversation, turn: int, mined: hindsight.Hindsight | None, *, switched: bool
    ) -> dict[str, Any]:
        row, config = item.row, self._config
        reply = row["turns"][turn]
        messages = row["messages"]
        conversation = row["conversation_id"]
        level, origin, verdict = self._final_level(item, turn, mined)
        prompt = messages[reply - 1]["content"]
        out = {
            **{name: row[name] for name in _CARRIED},
            "interaction_id": interaction_id(conversation, reply),
            "turn": turn,
            "language": item.language,
            "history_length": reply - 1,
            "prompt": prompt,
            "response": messages[reply]["content"],
            "feedback": messages[reply + 1]["content"],
            "judge_level": item.levels[turn],
            "judge_logprobs": item.logprobs[turn],
            "judge_probs": item.probs[turn],
            "judged_by": item.judged_by[turn],
            "masked": row["masked"][turn],
            "pii": sorted({kind for i in (reply - 1, reply, reply + 1) for kind in item.pii[i]}),
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
            out["bands"] = self._hasher.bands(prompt).tolist() if config.quality.duplicates != "keep" else []
            out["prompt_key"] = exact_key(prompt)
        return out

    def _final_level(
        self, item: _Conversation, turn: int, mined: hindsight.Hindsight | None
    ) -> tuple[int, str, str | None]:
        """(level, origin, refusal verdict). A verdict on a refusal outweighs what a later turn suggests."""
        level = item.levels[turn]
        verdict = None
        if item.row["refusal_suspect"][turn]:
            probs = self._refusal_probs(item, turn)
            best = int(np.argmax(probs)) if probs else 0
            if not probs:
                verdict = "unparseable"
            else:
                verdict = REFUSAL_VERDICTS[best] if probs[best] >= self._config.refusal.min_confidence else "uncertain"
        if verdict in ("justified", "unjustified"):
            return validated_level(level, verdict), "refusal", verdict
        if mined is not None:
            return mined.level, "hindsight", verdict
        return level, "explicit", verdict

    def _final_probs(
        self, item: _Conversation, turn: int, mined: hindsight.Hindsight | None, origin: str
    ) -> list[float]:
        """Probabilities of levels 1..5 behind the final level: the judge's on this turn, on the evidence turn, or on the refusal."""
        if origin == "hindsight" and mined is not None:
            return item.probs[mined.evidence]
        if origin == "refusal":
            spread = [0.0] * len(item.probs[turn])
            for verdict, p in zip(REFUSAL_VERDICTS, self._refusal_probs(item, turn), strict=False):
                spread[validated_level(item.levels[turn], verdict) - 1] += p
            return spread
        return item.probs[turn]

    def _refusal_probs(self, item: _Conversation, turn: int) -> list[float]:
        """Probabilities of the refusal verdicts; empty where none could be had."""
        logprobs = item.row["refusal_logprobs"][turn]
        if logprobs is None:
            return []
        return self._priors.refusal.probabilities(item.row["language_group"], logprobs, None)

    def _drop_reason(self, row: dict[str, Any]) -> str | None:
        config = self._config
        if config.quality.pii == "drop" and row["pii"]:
            return "pii"
        candidate = Candidate(
            history=row["history_length"],
            prompt=row["prompt"],
            response=row["response"],
            feedback=row["feedback"],
            language=row["language"],
            toxic=bool(row["toxic"]),
            refused=row["refusal_verdict"] == "justified",
        )
        reason = drop_reason(candidate, self._limits, config.quality.rules)
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


def resources(section: HindsightSection) -> ActorRequest:
    """What the refining actors hold."""
    return requests.refine(section)


def refine(config: ExtractConfig, priors: Priors, second_prior: Prior | None, work: Location, counter: Any) -> None:
    """Refine every judged part that an earlier run hasn't refined."""
    import ray.data

    work.fs.create_dir(work.child("refined").path, recursive=True)
    missing = sorted(set(list_parts(work.child("judged"))) - set(list_parts(work.child("refined"))))
    if not missing:
        return
    section = config.hindsight
    groups = groups_of(missing)
    parts: ray.data.Dataset = ray.data.from_items(groups, override_num_blocks=len(groups))
    refined = parts.map_batches(
        RefineActor,
        fn_constructor_args=(config, priors, second_prior, work, counter),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=section.replicas[0], max_size=section.replicas[1]),
        num_cpus=section.num_cpus,
        num_gpus=section.num_gpus or None,
    )
    for _ in refined.iter_batches(batch_size=None):
        pass


def _by_turn(second: pa.Table | None) -> dict[int, dict[int, dict[str, Any]]]:
    """`SECOND` rows by conversation and turn."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for row in second.to_pylist() if second is not None else []:
        if row["counts"] is None:
            found.setdefault(row["row"], {})[row["turn"]] = row
    return found


def _user_text(messages: list[dict[str, Any]]) -> str:
    """Enough of what the user wrote to tell the language."""
    text = " ".join(m["content"][:_LANGUAGE_CHARACTERS] for m in messages if m["role"] == "user")
    return text[:_LANGUAGE_CHARACTERS]
