"""Reading chat logs: damage is reported once and with its place, every row is read once, every number adds up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster import readers
from wildreward_ray.cluster.readers import Broken, Record, Shard, detect_format, plan_shards, read_shard
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages import ingest

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def json_file(folder: Path, content: bytes, name: str = "log.json") -> str:
    file = folder / name
    file.write_bytes(content)
    return str(file)


def parquet_file(folder: Path, turns: list[int], name: str = "log.parquet", row_group_size: int = 1000) -> str:
    """A WildChat file whose row i has `turns[i]` interactions."""
    rows = [
        {"conversation_hash": f"{name}-{i}", "conversation": talk(n), "language": "English", "toxic": False}
        for i, n in enumerate(turns)
    ]
    schema = pa.schema(
        [
            ("conversation_hash", pa.string()),
            ("conversation", MESSAGES),
            ("language", pa.string()),
            ("toxic", pa.bool_()),
        ]
    )
    file = folder / name
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=row_group_size)
    return str(file)


def talk(turns: int) -> list[dict[str, str]]:
    said = [[{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(turns)]
    return [*(m for pair in said for m in pair), {"role": "user", "content": "end"}]


def read_json(folder: Path, content: bytes) -> list[Record | Broken]:
    return list(read_shard(Shard(locate(json_file(folder, content)), "sharegpt", None, 0), ()))


def rows_of(shards: list[Shard], limit: int | None = None) -> list[dict[str, Any]]:
    return [row for table in ingest.read_tables(shards, limit) for row in table.to_pylist()]


def summary(rows: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in rows:
        if row["kind"] == "summary":
            total.update(json.loads(row["counts"]))
    return total


# --- JSON arrays


@pytest.mark.parametrize("cut", [b',{"id":"cut in a str', b',{"id"', b",", b""])
def test_truncated_array_gives_all_whole_records_and_one_broken_at_the_end(cut: bytes, tmp_path: Path) -> None:
    whole = [{"id": str(i), "text": "“中文”" * 50} for i in range(300)]
    items = read_json(tmp_path, json.dumps(whole, ensure_ascii=False).encode()[:-1] + cut)
    assert items[:-1] == [Record(i, value) for i, value in enumerate(whole)]
    last = items[-1]
    assert isinstance(last, Broken)
    assert (last.position, last.reason) == (300, "truncated_json")


@pytest.mark.parametrize(
    "content",
    [b'[{"id":1},{"id":nope}]', b'[{"id":1} {"id":2}]', b'[{"id":1}] trailing', b'[{"id":1},{"id":"\xff\xfe"}]'],
)
def test_invalid_json_is_not_called_truncated_and_what_stands_before_it_is_kept(content: bytes, tmp_path: Path) -> None:
    record, broken = read_json(tmp_path, content)
    assert record == Record(0, {"id": 1})
    assert isinstance(broken, Broken)
    assert (broken.position, broken.reason) == (1, "invalid_json")
    assert broken.detail
    assert "\n" not in broken.detail


def test_numbers_of_any_size_do_not_end_the_file(tmp_path: Path) -> None:
    items = read_json(tmp_path, b'[{"id":"a","n":123456789012345678901234567890,"x":1e400},{"id":"b"}]')
    assert [i.value["id"] for i in items if isinstance(i, Record)] == ["a", "b"]


def test_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    file = locate(json_file(tmp_path, b'\xef\xbb\xbf[{"id":"a"}]'))
    assert detect_format(file) == "sharegpt"
    assert list(read_shard(plan_shards(file, "sharegpt", ())[0], ())) == [Record(0, {"id": "a"})]


def test_empty_array_is_whole_and_empty_file_is_not(tmp_path: Path) -> None:
    assert read_json(tmp_path, b"[]") == []
    items = read_json(tmp_path, b"")
    assert [type(i) for i in items] == [Broken]


# --- telling formats apart


def test_format_is_told_from_content_and_not_from_the_name(tmp_path: Path) -> None:
    assert detect_format(locate(json_file(tmp_path, b'  [{"id": 1}]', "x.parquet"))) == "sharegpt"
    assert detect_format(locate(parquet_file(tmp_path, [1], "y.json"))) == "wildchat"


@pytest.mark.parametrize("content", [b"", b'{"id": 1}\n{"id": 2}\n', b"id,text\n1,a\n"])
def test_unknown_format_is_an_error_naming_file_and_flag(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.json.*not recognised") as caught:
        ingest.plan((json_file(tmp_path, content),), "auto")
    assert caught.value.flag == "--format"


@pytest.mark.parametrize("content", [b"PAR1 no array", b'{"conversations": []}'])
def test_stated_format_that_the_file_does_not_have_is_an_error_and_not_an_empty_dataset(
    content: bytes, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"log\.json"):
        ingest.plan((json_file(tmp_path, content),), "sharegpt")
    with pytest.raises(UserError, match=r"log\.json"):
        ingest.plan((json_file(tmp_path, content),), "wildchat")


# --- Parquet


def test_corrupt_parquet_is_an_error_naming_file_and_flag(tmp_path: Path) -> None:
    file = Path(parquet_file(tmp_path, [1] * 50))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"log\.parquet.*not readable as Parquet") as caught:
        ingest.plan((str(file),), "auto")
    assert caught.value.flag == "--input"


def test_parquet_without_conversations_is_an_error_naming_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"no column 'conversation' \(it has text\)"):
        ingest.plan((str(tmp_path / "log.parquet"),), "auto")


def test_shards_of_row_groups_cover_every_row_once_and_know_their_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_SHARD_ROWS", 100)
    file = locate(parquet_file(tmp_path, [1] * 333, row_group_size=30))
    shards = plan_shards(file, "wildchat", ("conversation",))
    assert [s.first for s in shards] == [0, 120, 240]
    items = [item for shard in shards for item in read_shard(shard, ("conversation_hash", "conversation"))]
    assert [i.position for i in items] == list(range(333))
    ids = [i.value["conversation_hash"] for i in items if isinstance(i, Record)]
    assert ids == [f"log.parquet-{i}" for i in range(333)]


def test_columns_that_a_file_lacks_are_absent_and_no_error(tmp_path: Path) -> None:
    shard = plan_shards(locate(parquet_file(tmp_path, [1])), "wildchat", ("conversation",))[0]
    (item,) = read_shard(shard, ("conversation", "hashed_ip", "language"))
    assert isinstance(item, Record)
    assert item.value.keys() == {"conversation", "language"}


def test_damaged_page_breaks_the_shard_once_and_with_its_position(tmp_path: Path) -> None:
    file = tmp_path / "log.parquet"
    table = pa.table({"conversation": pa.array([talk(1)] * 600, type=MESSAGES), "model": ["m" * 100] * 600})
    pq.write_table(table, file, row_group_size=200, compression="gzip", use_dictionary=False)
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    damaged = bytearray(file.read_bytes())
    damaged[start + 20 : start + 60] = b"\x00" * 40
    file.write_bytes(bytes(damaged))
    items = list(read_shard(plan_shards(locate(str(file)), "wildchat", ())[0], ("conversation", "model")))
    assert [type(i) for i in items].count(Broken) == 1
    last = items[-1]
    assert isinstance(last, Broken)
    assert last.reason == "unreadable_parquet"
    assert last.position == len(items) - 1
    assert all(isinstance(i, Record) and i.value["model"] == "m" * 100 for i in items[:-1])


def test_text_in_parquet_that_is_not_unicode_is_reported_and_does_not_end_the_run(tmp_path: Path) -> None:
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    bad = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    table = pa.table({"conversation": pa.array([talk(1)], type=MESSAGES), "model": bad})
    pq.write_table(table, tmp_path / "log.parquet")
    rows = rows_of(ingest.plan((str(tmp_path / "log.parquet"),), "auto"))
    assert [(r["kind"], r["reason"]) for r in rows] == [("quarantine", "unreadable_parquet"), ("summary", None)]


# --- conversation rows


def test_a_row_holds_its_turns_and_nothing_after_the_last_feedback(tmp_path: Path) -> None:
    file = json_file(
        tmp_path,
        json.dumps(
            [{"id": "c", "conversations": [{"from": f, "value": v} for f, v in zip("hghgg", "abcde", strict=True)]}]
        )
        .replace('"h"', '"human"')
        .replace('"g"', '"gpt"')
        .encode(),
    )
    row, _ = rows_of(ingest.plan((file,), "auto"))
    assert (row["conversation_id"], row["source"], row["position"], row["turns"]) == ("c", file, 0, [1])
    assert [m["content"] for m in row["messages"]] == ["a", "b", "c"]


def test_records_are_counted_once_under_what_became_of_them(tmp_path: Path) -> None:
    good = {"id": "g", "conversations": [{"from": f, "value": "x"} for f in ("human", "gpt", "human", "gpt", "human")]}
    short = {"id": "s", "conversations": [{"from": "human", "value": "x"}]}
    odd = {"id": "o", "conversations": [{"from": "alien", "value": "x"}]}
    file = json_file(tmp_path, json.dumps([good, short, odd, 7, good]).encode()[:-1] + b',{"id":"cut')
    rows = rows_of(ingest.plan((file,), "auto"))
    assert [r["kind"] for r in rows] == ["conversation", *["quarantine"] * 2, "conversation", "quarantine", "summary"]
    assert [(r["position"], r["reason"]) for r in rows if r["kind"] == "quarantine"] == [
        (2, "unknown_role"),
        (3, "not_an_object"),
        (5, "truncated_json"),
    ]
    counts = summary(rows)
    assert counts["records"] == 6
    assert counts["interactions"] == 4
    assert counts["no_feedback_turn"] == 1
    quarantined = {name: n for name, n in counts.items() if name.startswith("quarantined:")}
    assert quarantined == {
        "quarantined:unknown_role": 1,
        "quarantined:not_an_object": 1,
        "quarantined:truncated_json": 1,
    }


def test_limit_takes_exactly_so_many_interactions_counts_the_open_file_and_opens_no_other(tmp_path: Path) -> None:
    first = parquet_file(tmp_path, [2, 0, 3, 4, 0, 1], "a.parquet")
    second = parquet_file(tmp_path, [5] * 4, "b.parquet")
    shards = ingest.plan((first, second), "auto")
    rows = rows_of(shards, 6)
    talked = [r for r in rows if r["kind"] == "conversation"]
    assert [(r["conversation_id"], len(r["turns"])) for r in talked] == [
        ("a.parquet-0", 2),
        ("a.parquet-2", 3),
        ("a.parquet-3", 1),
    ]
    # The conversation that the limit cuts through shows nothing behind its last turn's feedback.
    assert [m["content"] for m in talked[-1]["messages"]] == ["u0", "a0", "u1"]
    assert [r["source"] for r in rows if r["kind"] == "summary"] == [first]
    assert summary(rows) == {
        "records": 6,
        "interactions": 10,
        "interactions_over_limit": 4,
        "records_over_limit": 1,
        "no_feedback_turn": 2,
    }


@pytest.mark.parametrize("limit", [1, 7, 40, 41, 10_000, None])
def test_counts_add_up_at_every_limit_and_reading_again_gives_the_same(limit: int | None, tmp_path: Path) -> None:
    shards = ingest.plan((parquet_file(tmp_path, [i % 5 for i in range(21)]),), "auto")
    rows = rows_of(shards, limit)
    counts = summary(rows)
    talked = [r for r in rows if r["kind"] == "conversation"]
    taken = sum(len(r["turns"]) for r in talked)
    assert counts["interactions"] == 40
    assert taken == min(40, limit or 40)
    assert counts["interactions"] == taken + counts["interactions_over_limit"]
    assert counts["records"] == len(talked) + counts["no_feedback_turn"] + counts["records_over_limit"] == 21
    assert rows_of(shards, limit) == rows


def test_reading_in_chunks_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ingest.plan((parquet_file(tmp_path, [1] * 25),), "auto")
    whole = rows_of(shards)
    monkeypatch.setattr(ingest, "_CHUNK_ROWS", 4)
    assert rows_of(shards) == whole
    assert len(whole) == 26


def test_directory_is_read_in_order_of_names_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "_c.parquet", ".d.parquet"):
        parquet_file(tmp_path, [1], name)
    (tmp_path / "README.md").write_text("no log")
    shards = ingest.plan((str(tmp_path),), "auto")
    assert [Path(s.file.path).name for s in shards] == ["a.parquet", "b.parquet"]
