"""The second judge: asked only about what the first is unsure of, and about a few others to see how far the first can be trusted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wildreward_ray.cluster.schema import SECOND
from wildreward_ray.cluster.storage import Location
from wildreward_ray.cluster.telemetry import Telemetry, telemetry_of
from wildreward_ray.core.config.extract import CascadeSection, ExtractConfig
from wildreward_ray.feedback.prior import Prior, PriorSum, entropy
from wildreward_ray.feedback.split import assign
from wildreward_ray.stages.chunks import each_part, groups_of, list_parts, part_file
from wildreward_ray.stages.judged import Priors, scan
from wildreward_ray.stages.judges import start_judge
from wildreward_ray.stages.label import actor_pool, count_failures, turn_fields

if TYPE_CHECKING:
    import ray.data

_FIELDS = ["kind", "conversation_id", "language_group", "messages", "turns", "logprobs"]


class SecondJudgeActor:
    """Asks the second judge about chosen turns of judged parts.

    Args:
        config: the extraction's settings.
        prior: the first judge's, which its entropy is computed with.
        judged, target: where judged parts stand, and where the second verdicts go.
        counter: a progress counter, or None.
        telemetry: of the extraction.
    """

    def __init__(
        self,
        config: ExtractConfig,
        prior: Prior,
        judged: Location,
        target: Location,
        counter: Any | None,
        telemetry: Telemetry,
    ) -> None:
        self._config, self._prior, self._counter, self._telemetry = config, prior, counter, telemetry
        self._from, self._to = judged, target
        self._judge = start_judge(config.cascade.judge, flag="--cascade.judge")

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Names of parts in; for every part a file of `SECOND` rows, and its name out."""
        for part in each_part(batch):
            rows = part_file(self._from, part).read_table(_FIELDS).to_pylist()
            part_file(self._to, part).write_table(pa.Table.from_pylist(self._second(rows), schema=SECOND))
            yield {"part": np.array([part])}

    def _second(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        before = asdict(self._judge.usage)
        conversations = [row for row in rows if row["kind"] == "conversation"]
        shares = self._config.judge.expected_shares
        chosen: list[dict[str, Any]] = []
        fields: list[Mapping[str, str]] = []
        for r, row in enumerate(conversations):
            texts = turn_fields(row)
            for turn, logprobs in enumerate(row["logprobs"]):
                if logprobs is None:
                    continue
                probs = self._prior.probabilities(row["language_group"], logprobs, shares)
                reason = asked_because(self._config.cascade, probs, f"{row['conversation_id']}:{turn}")
                if reason is not None:
                    group = row["language_group"]
                    chosen.append({"row": r, "turn": turn, "audit": reason == "audit", "language_group": group})
                    fields.append(texts[turn])
        verdicts = self._judge.verdicts("feedback", fields) if fields else []
        for out, verdict in zip(chosen, verdicts, strict=True):
            out |= {"logprobs": verdict.logprobs, "failure": verdict.failure}
        used = {name: value - before[name] for name, value in asdict(self._judge.usage).items()}
        failed = count_failures(verdicts)
        self._telemetry.judged({"judged": len(verdicts) - sum(failed.values()), **failed, **used}, judge="second")
        if self._counter is not None:
            self._counter.add.remote(len(chosen))
        return [*chosen, {"counts": json.dumps(used)}]


def asked_because(section: CascadeSection, probs: list[float], key: str) -> str | None:
    """Why the second judge is asked about a turn (`unsure`, `audit`), or None where it isn't."""
    if entropy(probs) > section.entropy:
        return "unsure"
    audited = assign(key, test_share=section.audit_share, salt="cascade-audit") == "test"
    return "audit" if audited else None


def second_pass(config: ExtractConfig, prior: Prior, judged: Location, target: Location, counter: Any) -> None:
    """Ask the second judge about every judged part that it hasn't seen."""
    import ray.data

    missing = sorted(set(list_parts(judged)) - set(list_parts(target)))
    if not missing:
        return
    groups = groups_of(missing)
    parts: ray.data.Dataset = ray.data.from_items(groups, override_num_blocks=len(groups))
    asked = parts.map_batches(
        SecondJudgeActor,
        fn_constructor_args=(config, prior, judged, target, counter, telemetry_of("extract")),
        batch_size=1,
        **actor_pool(config.cascade.judge),
    )
    for _ in asked.iter_batches(batch_size=None):
        pass


@dataclass(frozen=True)
class SecondCorpus:
    """What all second verdicts say.

    Attributes:
        prior: of the second judge, over all it was asked.
        counts: `asked`, `audited`, `audit_agrees` (same level), `audit_agrees_side` (same of negative, neutral, positive),
            `unsure_agrees`, `without_verdict`, and the second judge's token counts.
    """

    prior: Prior
    counts: Counter[str]


def survey_second(config: ExtractConfig, first: Priors, judged: Location, target: Location) -> SecondCorpus:
    """Go once over all second verdicts: their prior, and how often they agree with the first judge's."""
    prior = PriorSum()
    counts: Counter[str] = Counter()
    for batch in scan(target, ["language_group", "logprobs", "audit", "failure", "counts"]):
        for row in batch.to_pylist():
            if row["counts"] is not None:
                counts.update(json.loads(row["counts"]))
                continue
            counts["asked"] += 1
            counts["audited"] += row["audit"]
            if row["logprobs"] is None:
                counts["without_verdict"] += 1
            else:
                prior.add(row["language_group"], row["logprobs"])
    found = prior.finish() if config.cascade.judge.corrects_prior else Prior({}, None)
    for part in list_parts(target):
        counts.update(_agreement(config, first.feedback, found, part_file(judged, part), part_file(target, part)))
    return SecondCorpus(found, counts)


def _agreement(config: ExtractConfig, first: Prior, second: Prior, judged: Location, target: Location) -> Counter[str]:
    """How often both judges give the same level, over one part."""
    table = judged.read_table(["kind", "language_group", "logprobs"])
    conversations = [row for row in table.to_pylist() if row["kind"] == "conversation"]
    counts: Counter[str] = Counter()
    for row in target.read_table().to_pylist():
        if row["logprobs"] is None:
            continue
        group = row["language_group"]
        logprobs = conversations[row["row"]]["logprobs"][row["turn"]]
        a = int(np.argmax(first.probabilities(group, logprobs, config.judge.expected_shares)))
        b = int(np.argmax(second.probabilities(group, row["logprobs"], config.cascade.judge.expected_shares)))
        kind = "audit" if row["audit"] else "unsure"
        counts[f"{kind}_agrees"] += a == b
        counts[f"{kind}_agrees_side"] += bool(np.sign(a - 2) == np.sign(b - 2))
    return counts
