"""Training data from JSONL: every line is a row on one side or is counted with its reason, and users stay on one side."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster.schema import QUARANTINE
from wildreward_ray.cluster.storage import Location, locate
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages.token_rows import TokenRows, build
from wildreward_ray.stages.tokens import TOKENS, TokeniseBatch
from wildreward_ray.stages.train_data import jsonl_tables, quarantine, split_files

Row = dict[str, Any]
TEMPLATE = "user: {{ prompt }} assistant: {{ response }}"
SIDES = ("train", "test")


def record(number: int, **changes: Any) -> Row:
    messages = [{"role": "user", "content": f"w{number}"}, {"role": "assistant", "content": "w1 w2"}]
    return {"id": f"r{number}", "messages": messages, "label": 1 + number % 4, **changes}


def write(file: Path, lines: Sequence[Any]) -> Location:
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    file.write_bytes(text + b"\n")
    return locate(str(file))


def rows_of(file: Location, split: str, test_share: float | None = 0.3, k: int = 4) -> list[Row]:
    found: list[Row] = pa.concat_tables(jsonl_tables(file, split, test_share, k)).to_pylist()
    return found


def tokens_of(rows: list[Row], base: str, k: int = 4) -> list[Row]:
    # Columns as they come from a reader, with nulls for what a row lacks.
    found: list[Row] = TokeniseBatch(base, TEMPLATE, 12, k, False)(
        pa.Table.from_pylist([{**row, "split": "train"} for row in rows])
    ).to_pylist()
    return found


DAMAGED = [
    (b'{"id": "cut", "mess', "damaged_line"),
    (b'{"id": "\xff"}', "damaged_line"),
    (b"[1, 2]", "not_an_object"),
    ({"id": "empty"}, "no_messages"),
    (record(3, label=None), "no_label"),
    (record(4, history="user: hi"), "history_not_a_list"),
]


def test_every_line_is_on_one_side_and_damage_costs_only_its_line(tmp_path: Path) -> None:
    lines: list[Any] = [record(i) for i in range(600)]
    for place, (bad, _) in enumerate(DAMAGED):
        lines.insert(90 * place, bad)
    file = write(tmp_path / "rows.jsonl", lines)
    sides = {split: rows_of(file, split) for split in SIDES}
    everything = [*sides["train"], *sides["test"]]
    assert len({row["position"] for row in everything}) == len(everything) == len(lines)
    usable = [row["row_id"] for row in everything if row["reason"] is None]
    assert sorted(usable) == sorted(f"r{i}" for i in range(600))
    assert Counter(r["reason"] for r in everything if r["reason"]) == Counter(reason for _, reason in DAMAGED)
    assert 120 < len(sides["test"]) < 240
    assert {row["source"] for row in everything} == {file.uri}


def test_a_row_says_where_in_the_file_its_line_begins(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [record(0), *(bad for bad, _ in DAMAGED), record(1)])
    content = (tmp_path / "rows.jsonl").read_bytes()
    rows = rows_of(file, "train", None)
    assert [content[: row["position"]].count(b"\n") for row in rows] == list(range(len(rows)))
    assert all(row["position"] == 0 or content[row["position"] - 1 :][:1] == b"\n" for row in rows)


def test_blank_lines_are_no_rows_and_packed_damage_is_one(tmp_path: Path) -> None:
    assert len(rows_of(write(tmp_path / "a.jsonl", [record(0), b"", b"  ", record(1)]), "train", None)) == 2
    packed = gzip.compress(b"".join(json.dumps(record(i)).encode() + b"\n" for i in range(50)))
    (tmp_path / "b.jsonl").write_bytes(packed[:-8])
    rows = rows_of(locate(str(tmp_path / "b.jsonl")), "train", None)
    assert [r["reason"] for r in rows] == [None] * 50 + ["damaged_line"]
    assert "truncated" in rows[-1]["detail"]


def test_no_user_is_on_both_sides(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [record(i, hashed_ip=f"user{i % 20}") for i in range(200)])
    users = [{row["user_id"] for row in rows_of(file, split)} for split in SIDES]
    assert all(users)
    assert not users[0] & users[1]
    assert len(users[0] | users[1]) == 20


def test_a_marked_file_is_read_whole_by_its_side(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [record(i) for i in range(30)])
    assert len(rows_of(file, "test", None)) == len(rows_of(file, "train", None)) == 30


def test_test_files_are_told_by_their_own_names(tmp_path: Path) -> None:
    folder = tmp_path / "latest_test_run"
    folder.mkdir()
    files = [write(folder / name, [record(0)]) for name in ("part_0.jsonl", "part_1.jsonl")]
    assert split_files(files, "u") == {"train": files, "test": files}
    marked = write(folder / "test_0.jsonl", [record(0)])
    assert split_files([*files, marked], "u") == {"train": files, "test": [marked]}
    with pytest.raises(UserError, match="test files only") as caught:
        split_files([marked], "u")
    assert caught.value.flag == "--dataset"


@pytest.mark.parametrize(
    ("label", "flag", "says"),
    [
        (5, "--levels", r"'r7' has label 5.*1\.\.4"),
        (0, "--levels", r"'r7' has label 0.*1\.\.4"),
        (10**30, "--levels", r"'r7' has label 10+:"),
        (2.5, "--dataset", r"'r7' has label 2\.5"),
        ("good", "--dataset", "'r7' has label 'good'"),
        (True, "--dataset", "'r7' has label True"),
    ],
)
def test_a_misunderstood_label_stops_the_run_naming_file_row_and_label(
    label: Any, flag: str, says: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", [record(i, **({"label": label} if i == 7 else {})) for i in range(20)])
    for split in SIDES:
        with pytest.raises(UserError, match=rf"rows\.jsonl.*{says}") as caught:
            rows_of(file, split)
        assert caught.value.flag == flag


def test_tokens_are_those_of_usable_rows_in_order_with_reasons_between(tmp_path: Path, bert_base: str) -> None:
    lines = [record(10, user_id="u", language="English"), *(bad for bad, _ in DAMAGED), record(11)]
    rows = rows_of(write(tmp_path / "rows.jsonl", lines), "train", None)
    tokens = tokens_of(rows, bert_base)
    assert [t["reason"] for t in tokens] == [None, *(reason for _, reason in DAMAGED), None]
    assert [t["row_id"] for t in tokens] == [r["row_id"] for r in rows]
    alone = [tokens_of([rows[i]], bert_base)[0] for i in (0, -1)]
    assert [tokens[0], tokens[-1]] == alone
    assert alone[0]["input_ids"] != alone[1]["input_ids"]
    assert alone[0]["length"] == len(alone[0]["input_ids"]) > 2
    assert (alone[0]["user_id"], alone[0]["language"], alone[0]["label"]) == ("u", "English", 3)
    assert all((t["input_ids"], t["length"], t["label"]) == ([], 0, 0) for t in tokens[1:-1])


def test_extracted_rows_keep_their_columns_and_have_no_reason(bert_base: str) -> None:
    row = {"row_id": "c:1", "history": [], "prompt": "w1", "response": "w2", "label": 2, "label_probs": [0.25, 0.75]}
    (token,) = tokens_of([{**row, "user_id": "u", "language": "English", "origin": "hindsight"}], bert_base, k=2)
    assert (token["user_id"], token["language"], token["origin"]) == ("u", "English", "hindsight")
    assert (token["label_probs"], token["reason"], token["source"]) == ([0.25, 0.75], None, None)
    with pytest.raises(UserError, match=r"'c:1' has label 2: labels lie in 1\.\.1"):
        tokens_of([row], bert_base, k=1)


def test_quarantine_and_training_rows_are_all_rows(tmp_path: Path, bert_base: str) -> None:
    lines = [*(record(i) for i in range(40)), *(bad for bad, _ in DAMAGED)]
    rows = rows_of(write(tmp_path / "rows.jsonl", lines), "train", None)
    folder = tmp_path / "tokens"
    folder.mkdir()
    for number, part in enumerate((rows[:42], rows[42:])):
        pq.write_table(pa.Table.from_pylist(tokens_of(part, bert_base), schema=TOKENS), folder / f"{number}.parquet")
    target = tmp_path / "quarantine" / "train.parquet"
    counts = quarantine(locate(str(folder)), locate(str(target)))
    assert counts == dict(sorted(Counter(reason for _, reason in DAMAGED).items()))
    assert list(counts) == sorted(counts)
    written = pq.read_table(target)
    assert written.schema.equals(QUARANTINE)
    kept = ("source", "position", "reason", "detail")
    wanted = [{**{name: r[name] for name in kept}, "interaction_id": r["row_id"]} for r in rows if r["reason"]]
    assert sorted(written.to_pylist(), key=lambda r: r["position"]) == wanted
    build(locate(str(folder)), tmp_path / "rows.arrow")
    assert len(TokenRows(tmp_path / "rows.arrow").labels) + sum(counts.values()) == len(lines)


def test_without_unusable_rows_there_is_no_quarantine(tmp_path: Path, bert_base: str) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    rows = rows_of(write(tmp_path / "rows.jsonl", [record(0)]), "train", None)
    pq.write_table(pa.Table.from_pylist(tokens_of(rows, bert_base), schema=TOKENS), folder / "0.parquet")
    target = tmp_path / "q" / "train.parquet"
    assert quarantine(locate(str(folder)), locate(str(target))) == {}
    assert not target.parent.exists()
    target.parent.mkdir()
    target.write_bytes(b"of a run that was killed")
    assert quarantine(locate(str(folder)), locate(str(target))) == {}
    assert not target.exists()
