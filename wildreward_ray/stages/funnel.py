"""Where every row went: the funnel, the mix of labels, and the dataset card that shows both."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.manifest import FunnelStep
from wildreward_ray.core.scale import JUDGE_LEVELS
from wildreward_ray.stages.dataset import SPLITS


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
        "judged_by",
        "masked",
    ]
    total: dict[str, Counter[Any]] = {name: Counter() for name in [*names, "rows"]}
    for file in feedback.names():
        table = feedback.child(file).read_table(names)
        total["rows"]["rows"] += table.num_rows
        for name in names:
            for item in pc.value_counts(table[name]).to_pylist():
                total[name][item["values"]] += item["counts"]
    return total


def drop_counts(drops: Location) -> Counter[str]:
    """How many rows each decision over the corpus drops."""
    reasons = drops.read_table(["reason"])["reason"]
    counts: Counter[str] = Counter({item["values"]: item["counts"] for item in pc.value_counts(reasons).to_pylist()})
    return counts


_REFINED_LATER = ("neutral", "unsure", "duplicate_prompt", "near_duplicate_prompt", "prompt_in_test", "over_user_cap")


def funnel(
    files: Counter[str],
    summary: Counter[str],
    judge: Counter[str],
    drops: Counter[str],
    feedback: dict[str, Counter[Any]],
) -> list[FunnelStep]:
    """The steps from files to rows of the dataset, counted from what was written.

    Args:
        files: `read`, and how many were unreadable by reason.
        summary, judge: see `JudgedCorpus`.
        drops: see `drop_counts`.
        feedback: see `feedback_counts`.
    """
    return [*_reading(files, summary), *_labelling(summary, judge, drops, feedback), *_choosing(feedback)]


def _reading(files: Counter[str], summary: Counter[str]) -> list[FunnelStep]:
    unreadable = {reason: n for reason, n in sorted(files.items()) if reason != "read"}
    broken = _with_prefix(summary, "quarantined:")
    over = {"over_limit": summary["records_over_limit"]} if summary["records_over_limit"] else {}
    usable = summary["records"] - sum(broken.values())
    talked = usable - summary["no_feedback_turn"] - sum(over.values())
    return [
        FunnelStep(
            name="files", unit="files", rows_in=sum(files.values()), rows_out=files["read"], dropped=unreadable
        ),
        FunnelStep(
            name="read", unit="records", rows_in=summary["records"], rows_out=usable, dropped=broken,
            notes=_with_prefix(summary, "oddity:"),
        ),
        FunnelStep(
            name="feedback_turns", unit="conversations", rows_in=usable, rows_out=talked,
            dropped={"no_feedback_turn": summary["no_feedback_turn"], **over},
        ),
    ]  # fmt: skip


def _labelling(
    summary: Counter[str], judge: Counter[str], drops: Counter[str], feedback: dict[str, Counter[Any]]
) -> list[FunnelStep]:
    found, over = summary["interactions"], summary["interactions_over_limit"]
    failed = _with_prefix(judge, "failed:")
    rows = feedback["rows"]["rows"]
    repeated = {"repeated_interaction": drops["repeated"]} if drops["repeated"] else {}
    refusals = {f"refusal_{v}": n for v, n in sorted(feedback["refusal_verdict"].items(), key=str) if v is not None}
    mined = {"relabelled": feedback["origin"]["hindsight"], "topic_switch": feedback["topic_switch"][True]}
    asked = {name: feedback[column][value] for name, column, value in _JUDGE_NOTES}
    return [
        FunnelStep(
            name="select", unit="interactions", rows_in=found, rows_out=found - over,
            dropped={"over_limit": over} if over else {},
        ),
        FunnelStep(
            name="judge", unit="interactions", rows_in=found - over, rows_out=judge["judged"], dropped=failed, notes=asked
        ),
        FunnelStep(name="repeats", unit="interactions", rows_in=judge["judged"], rows_out=rows, dropped=repeated),
        FunnelStep(name="hindsight", unit="interactions", rows_in=rows, rows_out=rows, notes=mined),
        FunnelStep(name="refusal", unit="interactions", rows_in=rows, rows_out=rows, notes=refusals),
    ]  # fmt: skip


def _choosing(feedback: dict[str, Counter[Any]]) -> list[FunnelStep]:
    reasons = {str(reason): n for reason, n in sorted(feedback["drop_reason"].items(), key=str) if reason is not None}
    steps: list[FunnelStep] = []
    left = feedback["rows"]["rows"]
    for name, chosen in _CHOICES.items():
        dropped = {r: n for r, n in reasons.items() if (r in chosen if chosen else r not in _REFINED_LATER)}
        rest = left - sum(dropped.values())
        steps.append(FunnelStep(name=name, unit="interactions", rows_in=left, rows_out=rest, dropped=dropped))
        left = rest
    sides = {split: feedback["split"][split] for split in SPLITS}
    kept = sum(n for split, n in feedback["split"].items() if split is not None)
    return [*steps, FunnelStep(name="split", unit="interactions", rows_in=left, rows_out=kept, notes=sides)]


# Steps that drop rows, with their reasons; the filters have all the others.
_CHOICES: dict[str, tuple[str, ...]] = {
    "quality": (),
    "neutral": ("neutral",),
    "confidence": ("unsure",),
    "duplicates": ("duplicate_prompt", "near_duplicate_prompt", "prompt_in_test"),
    "users": ("over_user_cap",),
}
_JUDGE_NOTES = (("masked", "masked", True), ("second_judge", "judged_by", "cascade"))


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
