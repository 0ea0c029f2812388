"""Labelled interactions -> train and test tables, the quarantine, the funnel and the dataset card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wildreward_ray.cluster.schema import DATASET, FEEDBACK, JUDGED, QUARANTINE
from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.manifest import FunnelStep
from wildreward_ray.core.scale import JUDGE_LEVELS, fold_probs

if TYPE_CHECKING:
    import ray.data

SPLITS = ("train", "test")


def write_parquet(dataset: ray.data.Dataset, target: Location, schema: pa.Schema) -> None:
    """Write a dataset as Parquet; one without rows becomes one empty file, so that readers find the schema."""
    target.fs.create_dir(target.path, recursive=True)
    dataset.write_parquet(target.path, filesystem=target.fs, try_create_dir=False)
    if not any(i.is_file for i in target.fs.get_file_info(_selector(target))):
        pq.write_table(schema.empty_table(), f"{target.path}/empty.parquet", filesystem=target.fs)


def write_splits(feedback: Location, work: Location, levels: int) -> None:
    """Write `dataset/train` and `dataset/test` below `work` from the kept rows of `feedback`."""
    import ray.data

    columns = [*(name for name in DATASET.names if name != "label_probs"), "level_probs", "split"]

    def to_dataset(table: pa.Table) -> pa.Table:
        folded = [fold_probs(p, levels) for p in table["level_probs"].to_pylist()]
        table = table.append_column("label_probs", pa.array(folded, type=DATASET.field("label_probs").type))
        return table.select(DATASET.names).cast(DATASET)

    for split in SPLITS:
        rows = ray.data.read_parquet(feedback.path, filesystem=feedback.fs, columns=columns)
        kept = rows.map_batches(
            lambda table, split=split: table.filter(pc.equal(table["split"], split)), batch_format="pyarrow"
        )
        write_parquet(kept.map_batches(to_dataset, batch_format="pyarrow"), work.child("dataset").child(split), DATASET)


def write_quarantine(judged: Location, target: Location) -> None:
    """Write every record that could not be read, with the reason."""
    target.fs.create_dir(target.path, recursive=True)
    with pq.ParquetWriter(f"{target.path}/quarantine.parquet", QUARANTINE, filesystem=target.fs) as writer:
        for batch in _scan(judged, JUDGED, QUARANTINE.names, pads.field("kind") == "quarantine"):
            writer.write_batch(batch)


def counts(judged: Location, kind: str) -> Counter[str]:
    """The sums of all `summary` or `judge` rows."""
    total: Counter[str] = Counter()
    for batch in _scan(judged, JUDGED, ["counts"], pads.field("kind") == kind):
        for text in batch["counts"].to_pylist():
            total.update(json.loads(text))
    return total


def feedback_counts(feedback: Location) -> dict[str, Counter[Any]]:
    """How often each value of the small columns of `feedback` occurs."""
    names = [
        "judge_level",
        "level",
        "origin",
        "refusal_verdict",
        "topic_switch",
        "drop_reason",
        "split",
        "label",
        "language",
    ]
    total: dict[str, Counter[Any]] = {name: Counter() for name in [*names, "rows"]}
    for batch in _scan(feedback, FEEDBACK, names, None):
        total["rows"]["rows"] += batch.num_rows
        for name in names:
            for item in pc.value_counts(batch[name]).to_pylist():
                total[name][item["values"]] += item["counts"]
    return total


def funnel(summary: Counter[str], judge: Counter[str], feedback: dict[str, Counter[Any]]) -> list[FunnelStep]:
    """The steps from records read to rows of the dataset, counted from what was written."""
    broken = _with_prefix(summary, "quarantined:")
    over = {"over_limit": summary["records_over_limit"]} if summary["records_over_limit"] else {}
    usable = summary["records"] - sum(broken.values())
    talked = usable - summary["no_feedback_turn"] - sum(over.values())
    turns_over = {"over_limit": summary["interactions_over_limit"]} if summary["interactions_over_limit"] else {}
    found = summary["interactions"]
    rows = feedback["rows"]["rows"]
    dropped = {reason: n for reason, n in sorted(feedback["drop_reason"].items(), key=str) if reason is not None}
    neutral = {"neutral": dropped.pop("neutral")} if "neutral" in dropped else {}
    unsure = {"unsure": dropped.pop("unsure")} if "unsure" in dropped else {}
    fit = rows - sum(dropped.values())
    kept = sum(n for split, n in feedback["split"].items() if split is not None)
    clear = fit - sum(neutral.values())
    refusals = {f"refusal_{v}": n for v, n in feedback["refusal_verdict"].items() if v is not None}
    mined = {"relabelled": feedback["origin"]["hindsight"], "topic_switch": feedback["topic_switch"][True]}
    sides = {split: feedback["split"][split] for split in SPLITS}
    return [
        FunnelStep(
            name="read", unit="records", rows_in=summary["records"], rows_out=usable, dropped=broken,
            notes=_with_prefix(summary, "oddity:"),
        ),
        FunnelStep(
            name="feedback_turns", unit="conversations", rows_in=usable, rows_out=talked,
            dropped={"no_feedback_turn": summary["no_feedback_turn"], **over},
        ),
        FunnelStep(
            name="select", unit="interactions", rows_in=found, rows_out=found - sum(turns_over.values()), dropped=turns_over
        ),
        FunnelStep(name="judge", unit="interactions", rows_in=found - sum(turns_over.values()), rows_out=judge["judged"]),
        FunnelStep(name="hindsight", unit="interactions", rows_in=judge["judged"], rows_out=rows, notes=mined),
        FunnelStep(name="refusal", unit="interactions", rows_in=rows, rows_out=rows, notes=refusals),
        FunnelStep(name="quality", unit="interactions", rows_in=rows, rows_out=fit, dropped=dropped),
        FunnelStep(name="neutral", unit="interactions", rows_in=fit, rows_out=clear, dropped=neutral),
        FunnelStep(name="confidence", unit="interactions", rows_in=clear, rows_out=kept, dropped=unsure),
        FunnelStep(name="split", unit="interactions", rows_in=kept, rows_out=sum(sides.values()), notes=sides),
    ]  # fmt: skip


def label_table(feedback: dict[str, Counter[Any]]) -> dict[str, dict[str, int]]:
    """Counts by level before and after the refinements, and by origin, language and training label."""
    levels = {name: {str(level): feedback[name][level] for level in JUDGE_LEVELS} for name in ("judge_level", "level")}
    rest = {
        name: {str(value): n for value, n in sorted(feedback[name].items(), key=str) if value is not None}
        for name in ("origin", "label", "language")
    }
    return {**levels, **rest}


def card(steps: list[FunnelStep], labels: dict[str, dict[str, int]], inputs: list[str], levels: int, judge: str) -> str:
    """The dataset card (Markdown with the front matter that the hub reads)."""
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - {split: train, path: 'dataset/train/*.parquet'}",
        "  - {split: test, path: 'dataset/test/*.parquet'}",
        "- config_name: feedback",
        "  data_files: 'feedback/*.parquet'",
        "---",
        "",
        "# User feedback read from chat logs",
        "",
        f"Made by WildReward on Ray from {', '.join(inputs)} with the judge `{judge}`. Each row of `dataset/` is an assistant",
        f"reply with an ordinal label 1..{levels} that tells how well it served, read from the user's next message.",
        "Users are wholly on one side of the split. `feedback/` holds every interaction with its probabilities, and",
        "`drop_reason` where it is not in the dataset; `quarantine/` holds what could not be read.",
        "",
        "## Funnel",
        "",
        "| step | unit | in | out | dropped | notes |",
        "|---|---|--:|--:|---|---|",
    ]
    lines += [
        f"| {s.name} | {s.unit} | {s.rows_in:,} | {s.rows_out:,} | {_inline(s.dropped)} | {_inline(s.notes)} |"
        for s in steps
    ]
    lines += [
        "",
        "## Labels",
        "",
        "| | " + " | ".join(str(level) for level in JUDGE_LEVELS) + " |",
        "|---|" + "--:|" * 5,
    ]
    for name, title in (("judge_level", "judge"), ("level", "refined")):
        lines.append(f"| {title} | " + " | ".join(f"{n:,}" for n in labels[name].values()) + " |")
    lines += ["", f"Origin: {_inline(labels['origin'])}. Training labels: {_inline(labels['label'])}.", ""]
    return "\n".join(lines)


def _inline(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in values.items() if n)


def _with_prefix(values: Counter[str], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in sorted(values.items()) if name.startswith(prefix)}


def _scan(
    place: Location, schema: pa.Schema, columns: list[str], keep: pc.Expression | None
) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a directory of Parquet files."""
    dataset = pads.dataset(place.path, filesystem=place.fs, schema=schema)
    yield from dataset.to_batches(columns=columns, filter=keep)


def _selector(place: Location) -> Any:
    from pyarrow.fs import FileSelector

    return FileSelector(place.path)
