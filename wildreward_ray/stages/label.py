"""Chunks of conversations -> the judge's verdicts, by judge actors.

Only raw log-probabilities are written here. Turning them into levels needs the prior, which is a mean over the whole corpus,
and is cheap: it belongs to `refine`, so a change there never costs another pass of the judge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wildreward_ray.cluster.judge_backends import Judge, Verdict
from wildreward_ray.cluster.schema import JUDGED
from wildreward_ray.cluster.session import ActorRequest
from wildreward_ray.cluster.telemetry import Telemetry, telemetry_of
from wildreward_ray.core.config.extract import RefusalSection
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.feedback.refusal import is_refusal
from wildreward_ray.feedback.split import assign
from wildreward_ray.stages import requests
from wildreward_ray.stages.chunks import pack, unpack
from wildreward_ray.stages.judges import start_judge

if TYPE_CHECKING:
    import ray.data


class JudgeActor:
    """Judges all turns of chunks of conversations with one judge.

    Args:
        section: the judge's settings.
        refusal: settings of the second verdict on replies that look like refusals.
        counter: a progress counter, or None.
        telemetry: of the extraction.
    """

    def __init__(
        self, section: JudgeSection, refusal: RefusalSection, counter: Any | None, telemetry: Telemetry
    ) -> None:
        self._judge = start_judge(section)
        self._refusal = refusal
        self._counter, self._telemetry = counter, telemetry

    def __call__(self, chunks: pa.Table) -> Iterator[pa.Table]:
        """`CHUNKS` of `CONVERSATIONS` rows in, `CHUNKS` of `JUDGED` rows out, with one more row that counts."""
        for part, table in unpack(chunks):
            started = time.monotonic()
            rows = judge_rows(self._judge, table.to_pylist(), self._refusal)
            milliseconds = round(1000 * (time.monotonic() - started))
            counts = json.loads(rows[-1]["counts"])
            rows[-1]["counts"] = json.dumps({**counts, "milliseconds": milliseconds})
            self._telemetry.judged(counts)
            if self._counter is not None:
                self._counter.add.remote(sum(len(r["turns"]) for r in rows if r["kind"] == "conversation"))
            yield pack(part, pa.Table.from_pylist(rows, schema=JUDGED))


def judge_rows(judge: Judge, rows: list[dict[str, Any]], refusal: RefusalSection) -> list[dict[str, Any]]:
    """Judge `CONVERSATIONS` rows. Returns `JUDGED` rows, the last of which counts verdicts and tokens."""
    before = asdict(judge.usage)
    turns = [(row, i, fields) for row in rows for i, fields in enumerate(turn_fields(row))]
    for row in rows:
        if row["kind"] == "conversation":
            n = len(row["turns"])
            row |= {"logprobs": [None] * n, "failures": [None] * n, "refusal_logprobs": [None] * n}
            row |= {"refusal_suspect": [False] * n, "masked": [False] * n}
    verdicts = judge.verdicts("feedback", [fields for _, _, fields in turns])
    for (row, i, _), verdict in zip(turns, verdicts, strict=True):
        row["logprobs"][i], row["failures"][i] = verdict.logprobs, verdict.failure
        row["masked"][i] = verdict.masked > 0
    refusals = _validate_refusals(judge, turns, refusal) if refusal.enabled else {}
    used = {name: value - before[name] for name, value in asdict(judge.usage).items()}
    failed = count_failures(verdicts)
    counts = {"judged": len(turns) - sum(failed.values()), **failed, **refusals, **used}
    return [*rows, {"kind": "judge", "counts": json.dumps(counts)}]


def _validate_refusals(
    judge: Judge, turns: Sequence[tuple[dict[str, Any], int, Mapping[str, str]]], section: RefusalSection
) -> dict[str, int]:
    """The second verdicts, on replies that look like refusals. Returns how many there were and how many had no verdict.

    A share of the other turns is asked, too: their requests are ordinary, and their mean is the verdicts' prior.
    """
    asked = []
    for row, i, fields in turns:
        suspect = is_refusal(fields["reply"])
        row["refusal_suspect"][i] = suspect
        key = f"{row['conversation_id']}:{i}"
        if suspect or assign(key, test_share=section.prior_share, salt="refusal-prior") == "test":
            asked.append((row, i, fields))
    verdicts = judge.verdicts("refusal", [fields for _, _, fields in asked]) if asked else []
    suspects = failed = 0
    for (row, i, _), verdict in zip(asked, verdicts, strict=True):
        row["refusal_logprobs"][i] = verdict.logprobs
        suspects += row["refusal_suspect"][i]
        failed += row["refusal_suspect"][i] and verdict.logprobs is None
    return {"refusals_judged": suspects, "refusals_without_verdict": failed}


def count_failures(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How often each reason stands for a verdict that couldn't be had, as `failed:REASON`."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.logprobs is None:
            name = f"failed:{verdict.failure}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def resources(section: JudgeSection, flag: str = "--judge") -> ActorRequest:
    """What the judge actors hold on this cluster."""
    return requests.judge(section, gpus_of(section), flag)


def judge(
    chunks: ray.data.Dataset, section: JudgeSection, *, refusal: RefusalSection, counter: Any
) -> ray.data.Dataset:
    """A streaming dataset of `CHUNKS` of `JUDGED` rows."""
    return chunks.map_batches(
        JudgeActor,
        fn_constructor_args=(section, refusal, counter, telemetry_of("extract")),
        batch_size=1,
        batch_format="pyarrow",
        **actor_pool(section),
    )


def actor_pool(section: JudgeSection) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of judge actors."""
    import ray.data

    return {
        "compute": ray.data.ActorPoolStrategy(min_size=section.replicas[0], max_size=section.replicas[1]),
        "num_cpus": section.num_cpus,
        "num_gpus": gpus_of(section) or None,
    }


def gpus_of(section: JudgeSection) -> float:
    """Ray GPUs of one judge actor."""
    gpus, where_any = requests.judge_gpus(section)
    if not where_any:
        return gpus
    import ray

    return gpus if ray.cluster_resources().get("GPU") else 0.0


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
