"""From a judge's verdicts to rows: nothing without a verdict gets a label, and every promise about the rows holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster.judge_backends import Task, Usage, Verdict
from wildreward_ray.cluster.schema import CONVERSATIONS, JUDGED, SECOND
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.extract import CascadeSection, ExtractConfig, RefusalSection
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.feedback.near_duplicates import MinHasher
from wildreward_ray.feedback.prior import Prior
from wildreward_ray.stages import dataset, decide
from wildreward_ray.stages.cascade import asked_because
from wildreward_ray.stages.judged import Priors, survey
from wildreward_ray.stages.label import judge_rows
from wildreward_ray.stages.refine import RefineActor

Row = dict[str, Any]
NO_PRIORS = Priors(Prior({}, None), Prior({}, None))
FLAT = [-1.609] * 5


def logprobs(level: int) -> list[float]:
    return [-0.1 if i == level else -4.0 for i in range(1, 6)]


class ScriptedJudge:
    """Gives the level that a message names, and no verdict where it names none."""

    def __init__(self) -> None:
        self.usage = Usage()

    def verdicts(self, task: Task, fields: Sequence[Mapping[str, str]]) -> list[Verdict]:
        self.usage.requests += len(fields)
        if task == "refusal":
            return [Verdict([-0.05, -3.0] if "bomb" in f["prompt"] else None) for f in fields]
        named = [next((int(c) for c in f["feedback"] if c in "12345"), None) for f in fields]
        return [Verdict(logprobs(n)) if n else Verdict(None, "unparseable_verdict") for n in named]

    def prompt_text(self, task: Task) -> str:
        return task


def conversation(name: str, *messages: str, user: str | None = "u", **more: Any) -> Row:
    roles = ["user", "assistant"]
    return {
        "kind": "conversation",
        "conversation_id": name,
        "user_id": user,
        "language": "English",
        "language_group": "spaced",
        "source": "s",
        "position": 0,
        "messages": [{"role": roles[i % 2], "content": m} for i, m in enumerate(messages)],
        "turns": list(range(1, len(messages) - 1, 2)),
        **more,
    }


LONG = "a reply that is long enough to be kept by the filters of length, as replies mostly are"
ASK = "please tell me something about the history of"


def judged(*rows: Row, judge: ScriptedJudge | None = None) -> pa.Table:
    table = pa.Table.from_pylist(list(rows), schema=CONVERSATIONS)
    out = judge_rows(judge or ScriptedJudge(), table.to_pylist(), RefusalSection(prior_share=0.0))
    return pa.Table.from_pylist(out, schema=JUDGED)


def refined(table: pa.Table, second: pa.Table | None = None, **settings: Any) -> list[Row]:
    config = ExtractConfig.load(None, {"input": ["i"], "output": "o", "hindsight.enabled": False, **settings})
    actor = RefineActor(config, NO_PRIORS, Prior({}, None) if second is not None else None, locate("/nowhere"), None)
    rows: list[Row] = actor.refine("part", table, second).to_pylist()
    return rows


def test_turn_without_a_verdict_gets_no_row_no_label_and_a_place_in_quarantine(tmp_path: Path) -> None:
    table = judged(conversation("c", f"{ASK} Rome", LONG, "level 5", LONG, "no digit here", LONG, "level 2"))
    counts = json.loads(table["counts"][-1].as_py())
    assert (counts["judged"], counts["failed:unparseable_verdict"]) == (2, 1)
    assert [r["interaction_id"] for r in refined(table)] == ["c:1", "c:5"]
    (tmp_path / "judged").mkdir()
    pq.write_table(table, tmp_path / "judged" / "00-000000-end.parquet")
    corpus = survey(locate(str(tmp_path / "judged")), JudgeSection(), locate(str(tmp_path / "q.parquet")), [])
    assert corpus.judge["failed:unparseable_verdict"] == 1
    (row,) = pq.read_table(tmp_path / "q.parquet").to_pylist()
    assert (row["interaction_id"], row["reason"]) == ("c:3", "unparseable_verdict")


def test_usage_of_one_chunk_is_counted_apart_from_the_chunks_before_it() -> None:
    judge = ScriptedJudge()
    row = conversation("c", f"{ASK} Rome", LONG, "level 5")
    seen = [json.loads(judged(row, judge=judge)["counts"][-1].as_py())["requests"] for _ in range(3)]
    assert seen == [1, 1, 1]


def test_refusal_whose_second_verdict_cannot_be_had_keeps_its_level() -> None:
    refusal = "I'm sorry, but I can't help with that."
    table = judged(
        conversation("a", "how do I build a bomb at home, step by step", refusal, "that is level 1"),
        conversation("b", f"{ASK} Rome", refusal, "that is level 1"),
    )
    assert json.loads(table["counts"][-1].as_py())["refusals_without_verdict"] == 1
    a, b = refined(table)
    assert (a["level"], a["origin"], a["refusal_verdict"]) == (5, "refusal", "justified")
    assert (b["level"], b["origin"], b["refusal_verdict"]) == (1, "explicit", "unparseable")


def test_history_holds_what_came_before_the_prompt_and_nothing_of_other_conversations() -> None:
    first = conversation("a", "q0", "r0", "level 1", "r1", "level 2", "r2", "level 4")
    other = conversation("b", "other", "answer", "level 5", "more", "level 5")
    rows = {r["interaction_id"]: r for r in refined(judged(first, other))}
    assert [m["content"] for m in rows["a:5"]["history"]] == ["q0", "r0", "level 1", "r1"]
    assert (rows["a:5"]["prompt"], rows["a:5"]["response"], rows["a:5"]["feedback"]) == ("level 2", "r2", "level 4")
    assert rows["a:1"]["history"] == []
    assert [m["content"] for m in rows["b:3"]["history"]] == ["other", "answer"]


def test_history_of_a_long_conversation_is_cut_to_what_a_kept_row_may_have() -> None:
    said = [f"message {i} level 3" for i in range(101)]
    rows = refined(
        judged(conversation("a", *said)), **{"quality.max_history": 6, "quality.rules": ["history_too_long"]}
    )
    assert max(len(r["history"]) for r in rows) == 6
    assert rows[-1]["history_length"] == 98
    assert rows[-1]["drop_reason"] == "history_too_long"


def test_personal_data_is_in_no_text_of_any_row_and_drops_only_rows_that_hold_it() -> None:
    talk = conversation(
        "a", f"{ASK} Rome, mail me at jo.doe@example.com please", LONG, f"level 5, {ASK} Athens", LONG, f"level 4, {ASK} Sparta",
        LONG, "level 5",
    )  # fmt: skip
    for mode in ("drop", "redact"):
        rows = refined(judged(talk), **{"quality.pii": mode})
        assert "example.com" not in json.dumps(rows)
        assert "[EMAIL]" in rows[2]["history"][0]["content"]
        assert [r["drop_reason"] for r in rows] == ["pii" if mode == "drop" else None, None, None]
        assert [r["pii"] for r in rows] == [["EMAIL_ADDRESS"], [], []]
    kept = refined(judged(talk), **{"quality.pii": "keep"})
    assert "jo.doe@example.com" in kept[0]["prompt"]


def test_toxic_conversations_leave_unless_the_reply_rightly_refused() -> None:
    refusal = "I'm sorry, but I can't help with that request, because it could hurt people around you."
    rows = refined(
        judged(
            conversation("a", "how do I build a bomb at home, step by step", refusal, "level 1", toxic=True),
            conversation("b", f"{ASK} Rome", LONG, "level 1", toxic=True),
        )
    )
    assert [(r["conversation_id"], r["drop_reason"]) for r in rows] == [("a", None), ("b", "toxic")]


def test_second_judge_has_the_last_word_where_it_gave_one() -> None:
    table = judged(
        conversation("a", f"{ASK} Rome", LONG, f"level 1 {ASK} Paris", LONG, f"level 2 {ASK} Oslo", LONG, "level 4")
    )
    answers = [
        {"row": 0, "turn": 0, "audit": False, "logprobs": logprobs(5), "failure": None, "language_group": "spaced"},
        {
            "row": 0,
            "turn": 1,
            "audit": True,
            "logprobs": None,
            "failure": "unparseable_verdict",
            "language_group": "spaced",
        },
        {"counts": "{}"},
    ]
    rows = refined(table, pa.Table.from_pylist(answers, schema=SECOND))
    assert [(r["judge_level"], r["judged_by"]) for r in rows] == [(5, "cascade"), (2, "judge"), (4, "judge")]
    assert rows[0]["judge_logprobs"] == pytest.approx(logprobs(5))


def test_second_judge_is_asked_about_the_unsure_and_a_share_of_the_rest() -> None:
    section = CascadeSection(enabled=True, entropy=1.0, audit_share=0.1)
    assert asked_because(section, [0.2] * 5, "k") == "unsure"
    sure = [0.96, 0.01, 0.01, 0.01, 0.01]
    reasons = [asked_because(section, sure, f"c{i}:1") for i in range(3000)]
    assert set(reasons) == {None, "audit"}
    assert 0.07 < reasons.count("audit") / 3000 < 0.13
    assert asked_because(CascadeSection(enabled=True, audit_share=0.0), sure, "k") is None


def test_no_user_and_no_near_duplicate_prompt_is_on_both_sides(tmp_path: Path) -> None:
    places = ["Rome", "Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Delhi", "Minsk"]
    talks = []
    for user in range(60):
        for i in range(4):
            prompt = (
                f"{ASK} the old harbour of {places[(user + i) % 8]} and of the people who lived there in those days"
            )
            prompt += "!" * (user % 3)
            if i == 3:
                letters = hashlib.sha256(str(user).encode()).hexdigest()
                prompt = f"{ASK} {letters[:16]} {letters[16:32]} {letters[32:48]} {letters[48:]}"
            talks.append(
                conversation(f"c{user}-{i}", prompt, f"{LONG} {user} {i}", f"level {[1, 2, 4, 5][i]}", user=f"u{user}")
            )
    work = locate(str(tmp_path))
    (tmp_path / "refined").mkdir()
    config = {"input": ["i"], "output": "o", "hindsight.enabled": False}
    actor = RefineActor(ExtractConfig.load(None, config), NO_PRIORS, None, work, None)
    part = "00000000000000aa-000000-end"
    table = actor.refine(part, judged(*talks), None)
    pq.write_table(table, tmp_path / "refined" / f"{part}.parquet")
    drops = work.child("drops.parquet")
    decide.decide(work.child("refined"), drops, ExtractConfig.load(None, config).quality)
    rows = dataset.apply_drops(table, drops.read_table()).to_pylist()
    sides: dict[str, list[Row]] = {s: [r for r in rows if r["split"] == s] for s in ("train", "test")}
    assert all(sides.values())
    users = [{r["user_id"] for r in side} for side in sides.values()]
    assert not users[0] & users[1]
    hasher = MinHasher()
    bands = [{band for r in side for band in hasher.bands(r["prompt"]).tolist()} for side in sides.values()]
    assert not bands[0] & bands[1]
    assert sum(r["drop_reason"] in ("duplicate_prompt", "near_duplicate_prompt") for r in rows) > 100
