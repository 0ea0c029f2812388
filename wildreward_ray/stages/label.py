"""Conversation rows -> the judge's verdict log-probabilities, by vLLM actors.

Only raw log-probabilities are written here. Turning them into levels needs the prior, which is a mean over the whole corpus,
and is cheap: it belongs to `refine`, so a change there never costs another pass of the judge.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads

from wildreward_ray.cluster.schema import JUDGED
from wildreward_ray.cluster.session import ActorRequest
from wildreward_ray.cluster.storage import Location
from wildreward_ray.cluster.vllm_engine import PrefixCacheCount, start_llm, verdict_logprobs
from wildreward_ray.core.config.extract import JudgeSection, RefusalSection
from wildreward_ray.feedback.judge import SPECS, JudgePrompt
from wildreward_ray.feedback.prior import Prior, PriorSum
from wildreward_ray.feedback.refusal import is_refusal
from wildreward_ray.feedback.split import assign

if TYPE_CHECKING:
    import ray.data


class JudgeActor:
    """Judges all turns of a batch of conversations with one engine.

    Args:
        section: the judge's settings.
        refusal: settings of the second verdict on replies that look like refusals.
        counter: a progress counter, or None.
    """

    def __init__(self, section: JudgeSection, refusal: RefusalSection, counter: Any | None) -> None:
        self._llm = start_llm(section.model, section.engine, flag="--judge.model")
        tokenizer = self._llm.get_tokenizer()
        style = section.prompt_style
        self._feedback = JudgePrompt(SPECS["feedback", style], style, tokenizer)
        self._refusal = JudgePrompt(SPECS["refusal", style], style, tokenizer) if refusal.enabled else None
        self._prior_share = refusal.prior_share
        self._counter = counter

    def __call__(self, table: pa.Table) -> pa.Table:
        """`CONVERSATIONS` rows in, `JUDGED` rows out, with one more row that counts prompts and cached tokens."""
        started = time.monotonic()
        rows = table.to_pylist()
        interactions = [(r, i, fields) for r, row in enumerate(rows) for i, fields in enumerate(turn_fields(row))]
        cache = PrefixCacheCount()
        prompts = [self._feedback.token_ids(fields) for _, _, fields in interactions]
        logprobs = verdict_logprobs(self._llm, prompts, self._feedback.verdict_ids, cache)
        for row in rows:
            if row["kind"] == "conversation":
                row["logprobs"] = [None] * len(row["turns"])
                row["refusal_logprobs"] = [None] * len(row["turns"])
                row["refusal_suspect"] = [False] * len(row["turns"])
        for (r, i, _), values in zip(interactions, logprobs, strict=True):
            rows[r]["logprobs"][i] = values.tolist()
        second = self._validate_refusals(rows, interactions, cache)
        rows.append(_counts(len(interactions), second, cache, time.monotonic() - started))
        if self._counter is not None:
            self._counter.add.remote(len(interactions))
        return pa.Table.from_pylist(rows, schema=JUDGED)

    def _validate_refusals(
        self, rows: list[dict[str, Any]], interactions: list[tuple[int, int, dict[str, str]]], cache: PrefixCacheCount
    ) -> int:
        """The second judge pass, over replies that look like refusals. Returns how many there were.

        A share of the other turns is asked, too: their requests are ordinary, and their mean is the verdicts' prior.
        """
        if self._refusal is None:
            return 0
        asked: list[tuple[int, int, dict[str, str]]] = []
        for r, i, fields in interactions:
            suspect = is_refusal(fields["reply"])
            rows[r]["refusal_suspect"][i] = suspect
            key = f"{rows[r]['conversation_id']}:{i}"
            if suspect or assign(key, test_share=self._prior_share, salt="refusal-prior") == "test":
                asked.append((r, i, fields))
        prompts = [self._refusal.token_ids(fields) for _, _, fields in asked]
        if prompts:
            verdicts = verdict_logprobs(self._llm, prompts, self._refusal.verdict_ids, cache)
            for (r, i, _), values in zip(asked, verdicts, strict=True):
                rows[r]["refusal_logprobs"][i] = values.tolist()
        return sum(rows[r]["refusal_suspect"][i] for r, i, _ in asked)


def resources(section: JudgeSection) -> ActorRequest:
    """What the fewest judge actors hold."""
    return ActorRequest("judge", section.replicas[0], section.num_cpus, _gpus(section), "--judge.num-cpus")


def judge(
    conversations: ray.data.Dataset, section: JudgeSection, *, refusal: RefusalSection, counter: Any
) -> ray.data.Dataset:
    """A streaming dataset of `JUDGED` rows."""
    import ray.data

    return conversations.map_batches(
        JudgeActor,
        fn_constructor_args=(section, refusal, counter),
        batch_size=section.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=section.replicas[0], max_size=section.replicas[1]),
        num_cpus=section.num_cpus,
        num_gpus=_gpus(section) or None,
    )


@dataclass(frozen=True)
class Priors:
    """The judge's preferences for verdicts, of the feedback prompt and of the refusal prompt."""

    feedback: Prior
    refusal: Prior


def corpus_priors(judged: Location, section: JudgeSection) -> Priors:
    """The mean verdict log-probabilities over the corpus; one pass over a few small columns."""
    if section.prior == "none":
        return Priors(Prior({}, None), Prior({}, None))
    feedback, refusal = PriorSum(), PriorSum()
    dataset = pads.dataset(judged.path, filesystem=judged.fs, schema=JUDGED)
    columns = ["language_group", "logprobs", "refusal_logprobs", "refusal_suspect"]
    for batch in dataset.to_batches(columns=columns, filter=pads.field("kind") == "conversation"):
        for row in batch.to_pylist():
            for logprobs, second, suspect in zip(
                row["logprobs"], row["refusal_logprobs"], row["refusal_suspect"], strict=True
            ):
                feedback.add(row["language_group"], logprobs)
                if second is not None and not suspect:
                    refusal.add(row["language_group"], second)
    return Priors(feedback.finish(), refusal.finish())


def prompt_texts(section: JudgeSection) -> dict[str, Any]:
    """The judge's prompts as data, for the manifest."""
    return {
        name: {
            "instructions": spec.instructions,
            "examples": [list(e) for e in spec.examples],
            "verdicts": spec.verdicts,
        }
        for (name, style), spec in SPECS.items()
        if style == section.prompt_style
    }


def _gpus(section: JudgeSection) -> float:
    if section.num_gpus is not None:
        return section.num_gpus
    import ray

    return float(section.engine.tensor_parallel) if ray.cluster_resources().get("GPU") else 0.0


def turn_fields(row: dict[str, Any]) -> list[dict[str, str]]:
    """What the judge may see of every turn: the request, the reply, and the message after it."""
    if row["kind"] != "conversation":
        return []
    messages = row["messages"]
    return [
        {
            "prompt": messages[reply - 1]["content"],
            "reply": messages[reply]["content"],
            "feedback": messages[reply + 1]["content"],
        }
        for reply in row["turns"]
    ]


def _counts(judged: int, second: int, cache: PrefixCacheCount, seconds: float) -> dict[str, Any]:
    counts = {
        "judged": judged,
        "refusals_judged": second,
        "prompt_tokens": cache.prompt_tokens,
        "cached_tokens": cache.cached_tokens,
        "milliseconds": round(seconds * 1000),
    }
    return {"kind": "judge", "counts": json.dumps(counts)}
