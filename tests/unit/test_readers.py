"""Reading chat logs: every record is read once however a file is cut up, and damage costs no more than what it hit."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import fs as pafs

from wildreward_ray.cluster import byte_stream, parquet_reader, readers
from wildreward_ray.cluster.readers import (
    FORMATS,
    SUFFIXES,
    Broken,
    Record,
    Shard,
    UnreadableFileError,
    detect_format,
    json_lines,
    plan_shards,
    read_shard,
)
from wildreward_ray.cluster.storage import Location, locate
from wildreward_ray.core.errors import UserError
from wildreward_ray.feedback.conversation import interaction_id
from wildreward_ray.feedback.formats import PARSERS

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def write(folder: Path, content: bytes, name: str = "log.jsonl") -> Location:
    (folder / name).write_bytes(content)
    return locate(str(folder / name))


def talk(turns: int = 1) -> list[dict[str, str]]:
    said = [[{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": f"“a{i}”"}] for i in range(turns)]
    return [*(m for pair in said for m in pair), {"role": "user", "content": "end"}]


def openai(i: int, turns: int = 1) -> dict[str, Any]:
    return {"id": str(i), "messages": talk(turns)}


def sharegpt(i: int) -> dict[str, Any]:
    speakers = {"user": "human", "assistant": "gpt"}
    return {"id": str(i), "conversations": [{"from": speakers[m["role"]], "value": m["content"]} for m in talk()]}


def jsonl(records: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def array(records: Sequence[Any]) -> bytes:
    return json.dumps(records, ensure_ascii=False).encode()


def wildchat(folder: Path, rows: int, name: str = "log.parquet", **options: Any) -> Location:
    table = pa.table(
        {
            "conversation_hash": [f"h{i}" for i in range(rows)],
            "conversation": pa.array([talk()] * rows, type=MESSAGES),
            "toxic": [False] * rows,
        }
    )
    pq.write_table(table, folder / name, **options)
    return locate(str(folder / name))


def read(file: Location, format: str | None = None) -> list[Record | Broken]:
    shards = plan_shards(file, format or detect_format(file))
    return [item for shard in shards for item in read_shard(shard)]


def values(items: Sequence[Record | Broken]) -> list[Any]:
    return [item.value for item in items if isinstance(item, Record)]


def breaks(items: Sequence[Record | Broken]) -> list[tuple[int, str, int]]:
    assert all("\n" not in item.detail and item.detail for item in items if isinstance(item, Broken))
    return [(item.position, item.reason, item.count) for item in items if isinstance(item, Broken)]


def interactions(items: Sequence[Record | Broken], format: str) -> list[str]:
    found = [PARSERS[format](value) for value in values(items)]
    return [interaction_id(c.conversation_id, reply) for c in found for reply in c.turns()]


# --- formats and packing


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("format", "records", "form"),
    [
        ("sharegpt", [sharegpt(i) for i in range(5)], array),
        ("sharegpt", [sharegpt(i) for i in range(5)], jsonl),
        ("openai", [openai(i) for i in range(5)], array),
        ("openai", [openai(i) for i in range(5)], jsonl),
        ("openai-logs", [{"request": {"messages": talk(i + 1)}, "response": {}} for i in range(5)], jsonl),
        ("openai-logs", [{"request": {"body": {"messages": talk(i + 1)}}, "response": None} for i in range(5)], array),
    ],
)
def test_every_json_format_is_told_and_read_in_every_packing(
    format: str, records: list[Any], form: Callable[[Sequence[Any]], bytes], packing: str, tmp_path: Path
) -> None:
    file = write(tmp_path, PACKERS[packing](form(records)), "log")
    assert detect_format(file) == format
    items = read(file)
    assert values(items) == records
    assert breaks(items) == []
    assert len(interactions(items, format)) == 5


@pytest.mark.parametrize(
    ("format", "columns"),
    [
        ("wildchat", {"conversation_hash": ["c"], "conversation": [talk()]}),
        ("wildchat", {"conversation_id": ["c"], "conversation": [talk()], "toxic": [False]}),
        ("wildchat", {"conversation": [talk()]}),
        ("lmsys", {"conversation_id": ["c"], "conversation": [talk()], "openai_moderation": [[{"flagged": True}]]}),
        ("openai", {"id": ["c"], "messages": [talk()], "metadata": [{"user_id": "u", "other": 1}]}),
        ("openai", {"messages": [[{"role": "user", "content": [{"type": "text", "text": "u0"}]}, *[]]]}),
    ],
)
def test_parquet_formats_are_told_by_their_columns(format: str, columns: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "log")
    file = locate(str(tmp_path / "log"))
    assert detect_format(file) == format
    (value,) = values(read(file))
    found = PARSERS[format](value)
    assert found.messages[0].content == "u0"
    assert found.toxic == ("openai_moderation" in columns)
    assert found.user_id == ("u" if "metadata" in columns else None)


def test_every_format_has_been_read_above() -> None:
    assert {"wildchat", "lmsys", "sharegpt", "openai", "openai-logs"} == set(FORMATS)


def test_of_the_many_fields_of_wildchat_only_those_that_are_looked_at_are_read(tmp_path: Path) -> None:
    message = {**talk()[0], "hashed_ip": "ip", "turn_identifier": 7, "header": {"user-agent": "x"}, "usage": {"n": 1}}
    table = pa.table({"conversation_hash": ["h"], "conversation": [[message]], "turn": [1], "header": [{"a": "b"}]})
    pq.write_table(table, tmp_path / "log.parquet")
    (value,) = values(read(locate(str(tmp_path / "log.parquet"))))
    assert value == {
        "conversation_hash": "h",
        "conversation": [{"role": "user", "content": "u0", "hashed_ip": "ip"}],
    }


def test_format_is_told_from_content_and_not_from_the_name(tmp_path: Path) -> None:
    assert detect_format(write(tmp_path, b"\n\t " + array([sharegpt(0)]), "x.parquet")) == "sharegpt"
    assert detect_format(write(tmp_path, gzip.compress(jsonl([openai(0)])), "x.json")) == "openai"
    assert detect_format(wildchat(tmp_path, 1, "y.jsonl.gz")) == "wildchat"


def test_first_record_of_a_known_shape_decides(tmp_path: Path) -> None:
    content = b"not json\n" + jsonl([{"exported": "2024"}, 7, {"messages": None}, openai(0)])
    assert detect_format(write(tmp_path, content)) == "openai"


def test_packed_and_plain_endings_are_picked_up() -> None:
    for name in ("a.parquet", "a.json", "a.jsonl", "a.ndjson", "a.json.gz", "a.jsonl.zst", "a.ndjson.gz"):
        assert name.endswith(SUFFIXES)
    assert not "a.txt".endswith(SUFFIXES)


# --- files that can't be used


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        # Without its time a packed file, and so the name of the test, is the same in every process.
        (b"", "empty_file", "is empty"),
        (b" \n\n", "empty_file", "is empty"),
        (gzip.compress(b"", mtime=0), "empty_file", "is empty"),
        (gzip.compress(jsonl([openai(0)]), mtime=0)[:8], "unreadable", "unpacked"),
        (b"\x1f\x8bno gzip at all", "unreadable", "unpacked"),
        (b"PAR1 no parquet", "not_parquet", "Parquet"),
        (b"id,text\n1,a\n", "unknown_format", "not recognised.*invalid_json.*known are wildchat"),
        (b"\x89PNG\r\n\x1a\n\x00", "unknown_format", "not recognised.*invalid_utf8"),
        (jsonl([{"prompt": "x", "answer": "y"}]), "unknown_format", "keys 'prompt', 'answer'"),
        (jsonl([{"request": "GET /", "messages": "none"}]), "unknown_format", "keys 'request', 'messages'"),
        (array([sharegpt(0)])[:30], "unknown_format", "truncated_json"),
    ],
)
def test_file_that_cannot_be_used_says_which_and_why(content: bytes, reason: str, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, content)
    for attempt in (lambda: detect_format(file), lambda: plan_shards(file, "openai")):
        with pytest.raises(UnreadableFileError, match=rf"log\.jsonl.*{says}") as caught:
            attempt()
        assert caught.value.reason == reason
        assert caught.value.flag in ("--input", "--format")
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), again.reason, str(again)) == (UnreadableFileError, reason, str(caught.value))


def test_parquet_without_conversations_names_the_columns_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "log.parquet")
    with pytest.raises(UnreadableFileError, match=r"no column 'conversation' or 'messages' \(it has text\)") as caught:
        detect_format(locate(str(tmp_path / "log.parquet")))
    assert caught.value.reason == "missing_column"


def test_parquet_that_lost_its_end_is_not_parquet(tmp_path: Path) -> None:
    file = Path(wildchat(tmp_path, 50).path)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UnreadableFileError, match="not readable as Parquet") as caught:
        detect_format(locate(str(file)))
    assert caught.value.reason == "not_parquet"


def test_stated_format_that_the_file_does_not_have_is_an_error_and_not_an_empty_dataset(tmp_path: Path) -> None:
    cases = {"openai": write(tmp_path, array([sharegpt(0)]), "a"), "lmsys": wildchat(tmp_path, 1, "b")}
    cases["wildchat"] = write(tmp_path, jsonl([openai(0)]), "c")
    for format, file in cases.items():
        with pytest.raises(UnreadableFileError, match=f"not {format}") as caught:
            plan_shards(file, format)
        assert (caught.value.reason, caught.value.flag) == ("wrong_format", "--format")


def test_columns_that_fit_two_formats_are_read_as_the_stated_one(tmp_path: Path) -> None:
    table = pa.table({"conversation_id": ["c"], "conversation": pa.array([talk()], type=MESSAGES)})
    pq.write_table(table, tmp_path / "log.parquet")
    file = locate(str(tmp_path / "log.parquet"))
    assert detect_format(file) == "lmsys"
    for format in ("lmsys", "wildchat"):
        assert interactions(read(file, format), format) == ["c:1"]


# --- shards


def test_byte_ranges_of_any_size_give_every_line_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"\xef\xbb\xbf" + jsonl([openai(i, i % 7) for i in range(120)]).replace(b"\n", b"\r\n\n") + b"bad"
    file = write(tmp_path, content)
    whole = read(file)
    assert len(values(whole)) == 120
    assert breaks(whole) == [(len(content) - 3, "invalid_json", 1)]
    assert all(content[i.position :].startswith(b'{"id"') for i in whole[1:-1])
    ids = interactions(whole, "openai")
    # 229 is shorter than most lines, so many ranges hold no beginning of a line; and a range may begin at any byte of one.
    for size in (1024, 997, 229):
        monkeypatch.setattr(readers, "_SHARD_BYTES", size)
        shards = plan_shards(file, "openai")
        assert len(shards) == -(-len(content) // size)
        items = [item for shard in shards for item in read_shard(shard)]
        assert items == whole
        assert interactions(items, "openai") == ids
        assert [shard.first for shard in shards] == [size * i for i in range(len(shards))]


def test_lines_are_put_together_from_pieces_that_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [openai(i, i % 5) for i in range(20)]
    arrays, log = write(tmp_path, array(records), "a"), write(tmp_path, jsonl(records), "b")
    for size in (1, 2, 7):
        monkeypatch.setattr(byte_stream, "_FIRST_PIECE_BYTES", size)
        monkeypatch.setattr(byte_stream, "_PIECE_BYTES", size)
        for file in (arrays, log):
            assert values(read_shard_whole(file)) == records


def read_shard_whole(file: Location) -> list[Record | Broken]:
    with file.open_input() as stream:
        layout = "array" if stream.read(1) == b"[" else "lines"
    return list(read_shard(Shard(file, "openai", layout)))  # type: ignore[arg-type]


def test_shards_of_row_groups_give_every_row_once_and_know_their_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_reader, "_SHARD_ROWS", 100)
    file = wildchat(tmp_path, 333, row_group_size=30)
    shards = plan_shards(file, "wildchat")
    assert [s.first for s in shards] == [0, 120, 240]
    items = [item for shard in shards for item in read_shard(shard)]
    assert [i.position for i in items] == list(range(333))
    assert [v["conversation_hash"] for v in values(items)] == [f"h{i}" for i in range(333)]


def test_parquet_without_rows_has_no_shards(tmp_path: Path) -> None:
    assert plan_shards(wildchat(tmp_path, 0), "wildchat") == []


def test_keys_of_shards_are_told_by_file_and_part_alone_and_survive_pickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_SHARD_BYTES", 500)
    monkeypatch.setattr(parquet_reader, "_SHARD_ROWS", 10)
    files = [write(tmp_path, jsonl([openai(i) for i in range(50)]), name) for name in ("a", "b")]
    files += [wildchat(tmp_path, 50, "c", row_group_size=10), write(tmp_path, array([sharegpt(0)]), "d")]
    shards = [shard for file in files for shard in plan_shards(file, detect_format(file))]
    keys = [shard.key for shard in shards]
    assert len(set(keys)) == len(keys) > 20
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    again = pickle.loads(pickle.dumps(shards))
    assert [shard.key for shard in again] == keys
    assert list(read_shard(again[-1])) == list(read_shard(shards[-1]))
    assert Shard(Location("s3://b/log", pafs.LocalFileSystem(), "x"), "openai", "array").key == "8f9d8f67c4fbd173"


# --- damage in lines


def test_bad_line_costs_that_line_and_no_other(tmp_path: Path) -> None:
    bad = [b'{"id": nope}', b'{"id": "\xff\xfe"}', b"[1, 2]", b'"text"', b"{" * 5, b'{"a":' * 100_000, b'{"id": "cut']
    good = jsonl([openai(0)])
    file = write(tmp_path, good + b"".join(line + b"\n" + good for line in bad[:-1]) + bad[-1])
    items = read(file)
    assert values(items) == [openai(0)] * 7
    reasons = ["invalid_json", "invalid_utf8", "not_an_object", "not_an_object"] + ["invalid_json"] * 3
    assert [reason for _, reason, _ in breaks(items)] == reasons
    content = Path(file.path).read_bytes()
    assert all(content[at:].startswith(line) for (at, _, _), line in zip(breaks(items), bad, strict=True))


@pytest.mark.parametrize("form", [jsonl, array])
def test_record_that_is_too_long_is_passed_over_without_being_held(
    form: Callable[[Sequence[Any]], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_stream, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(byte_stream, "_PIECE_BYTES", 300)
    monkeypatch.setattr(byte_stream, "_FIRST_PIECE_BYTES", 300)
    long = {"messages": [{"role": "user", "content": 'x"[{\\' * 2000}]}
    items = read(write(tmp_path, form([openai(0), long, openai(1), long])))
    assert values(items) == [openai(0), openai(1)]
    assert [type(i) for i in items] == [Record, Broken, Record, Broken]
    assert [reason for _, reason, _ in breaks(items)] == ["record_too_large"] * 2


@pytest.mark.parametrize("form", [jsonl, array])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_packed_file_that_was_cut_gives_all_before_the_cut_and_one_broken(
    form: Callable[[Sequence[Any]], bytes], packing: str, tmp_path: Path
) -> None:
    records = [{**openai(i), "noise": f"{i * 7919 % 10007:x}" * 40} for i in range(2000)]
    packed = PACKERS[packing](form(records))
    for cut in (len(packed) // 2, len(packed) - 9, len(packed) - 1):
        items = read(write(tmp_path, packed[:cut]))
        found = values(items)
        assert found == records[: len(found)]
        assert [reason for _, reason, _ in breaks(items)] == ["truncated_file"]
        assert isinstance(items[-1], Broken)
        if cut == len(packed) - 1:
            # What is missing is the end mark, or the last few records packed with it.
            assert len(found) > 0.8 * len(records)


def test_damage_in_the_middle_of_a_packed_file_is_not_called_a_cut(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(jsonl([{**openai(i), "noise": str(i * 7919 % 10007)} for i in range(20_000)])))
    packed[len(packed) // 2 : len(packed) // 2 + 50] = b"\x00" * 50
    items = read(write(tmp_path, bytes(packed)))
    assert len(values(items)) > 1000
    # The bytes may unpack to nonsense for a while before they make no sense at all.
    assert breaks(items)[-1][1] == "damaged_file"


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_members_packed_one_after_the_other_are_one_file(packing: str, tmp_path: Path) -> None:
    pack = PACKERS[packing]
    parts = [jsonl([openai(i)]) for i in range(50)]
    joined = b"".join(parts)
    content = pack(joined[:1111]) + pack(b"") + pack(joined[1111:])
    items = read(write(tmp_path, content + (b"\x00" * 512 if packing == "gz" else b"")))
    assert values(items) == [openai(i) for i in range(50)]
    assert breaks(items) == []
    assert items[-1].position == len(joined) - len(parts[-1])


# --- damage in arrays


@pytest.mark.parametrize("cut", [b',{"id":"cut in a str', b',{"id":"cut in an escape\\', b',{"id"', b",", b""])
def test_truncated_array_gives_all_whole_records_and_one_broken_at_the_end(cut: bytes, tmp_path: Path) -> None:
    whole = [sharegpt(i) for i in range(300)]
    items = read(write(tmp_path, array(whole)[:-1] + cut))
    assert items[:-1] == [Record(i, value) for i, value in enumerate(whole)]
    assert breaks(items) == [(300, "truncated_json", 1)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"id": nope}', "invalid_json"),
        (b'{"id": "\xff\xfe"}', "invalid_utf8"),
        (b'{"id": "a\nb"}', "invalid_json"),
        (b"[" * 3000 + b"]" * 3000, "invalid_json"),
        (b"[1, [2, {}]]", "not_an_object"),
        (b'"a, ] } text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b"-1.5e3 ", "not_an_object"),
    ],
)
def test_bad_value_costs_that_value_and_no_other(value: bytes, reason: str, tmp_path: Path) -> None:
    first, last = array([sharegpt(0)])[:-1], array([sharegpt(2)])[1:]
    items = read(write(tmp_path, first + b" , " + value + b"," + last))
    assert values(items) == [sharegpt(0), sharegpt(2)]
    assert breaks(items) == [(1, reason, 1)]


@pytest.mark.parametrize("rest", [b" %s]", b",]", b",,%s]", b"] trailing", b"}", b": %s]", b',{"id": [}, %s]'])
def test_array_whose_own_syntax_is_broken_is_read_up_to_there(rest: bytes, tmp_path: Path) -> None:
    content = array([sharegpt(0)])[:-1] + rest.replace(b"%s", array([sharegpt(1)])[1:-1])
    items = read(write(tmp_path, content))
    assert values(items) == [sharegpt(0)]
    assert breaks(items) == [(1, "invalid_json", 1)]


def test_texts_that_look_like_structure_stay_texts(tmp_path: Path) -> None:
    texts = ['"', "\\", '\\"', "[{", "}],", '","messages":[', '\\\\"}', "“中文”\u2028", '{"id": "c"}', "\ud800", "\x00"]
    records = [{"id": text, "messages": [{"role": "user", "content": text * 3}]} for text in texts]
    assert values(read(write(tmp_path, json.dumps(records).encode()))) == records
    assert values(read(write(tmp_path, json.dumps(records, indent=2).encode()))) == records


def test_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    for form in (array, jsonl):
        items = read(write(tmp_path, b"\xef\xbb\xbf" + form([sharegpt(0)])))
        assert items == [Record(0, sharegpt(0))]


def test_array_that_is_whole_and_empty_is_no_damage(tmp_path: Path) -> None:
    for format in ("sharegpt", "openai", "openai-logs"):
        assert read(write(tmp_path, b" [ ] "), format) == []


def test_numbers_of_any_size_cost_no_record(tmp_path: Path) -> None:
    content = b'[{"messages":[],"n":123456789012345678901234567890,"x":1e400},{"messages":[]}]'
    assert len(values(read(write(tmp_path, content)))) == 2


def test_message_of_50_megabytes_is_read_whole(tmp_path: Path) -> None:
    text = "long words\n" * (50 * 2**20 // 11)
    record = {"id": "a", "messages": [{"role": "user", "content": text}]}
    for form in (jsonl, array):
        (value,) = values(read(write(tmp_path, form([record]))))
        assert value["messages"][0]["content"] == text
    pq.write_table(pa.table({"messages": [record["messages"]]}), tmp_path / "log.parquet")
    (value,) = values(read(locate(str(tmp_path / "log.parquet"))))
    assert value["messages"][0]["content"] == text


# --- damage in Parquet


def overwrite_page(file: Location, group: int) -> None:
    """Destroy the first data page of a row group's longest column."""
    content = bytearray(Path(file.path).read_bytes())
    metadata = pq.ParquetFile(file.path).metadata.row_group(group)
    column = max((metadata.column(i) for i in range(metadata.num_columns)), key=lambda c: c.total_compressed_size)
    at = column.data_page_offset
    content[at : at + 60] = b"\xff" * 60
    Path(file.path).write_bytes(bytes(content))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_row_group_is_one_broken_that_counts_its_rows_and_the_next_is_read(
    compression: str, tmp_path: Path
) -> None:
    file = wildchat(tmp_path, 1000, row_group_size=400, compression=compression, use_dictionary=False)
    overwrite_page(file, 1)
    items = read(file)
    assert breaks(items) == [(400, "unreadable_parquet", 400)]
    assert [v["conversation_hash"] for v in values(items)] == [f"h{i}" for i in (*range(400), *range(800, 1000))]
    assert [i.position for i in items] == [*range(401), *range(800, 1000)]


def test_rows_before_the_damage_of_a_row_group_count(tmp_path: Path) -> None:
    file = wildchat(tmp_path, 2000, compression="none", use_dictionary=False, data_page_size=512, write_batch_size=16)
    content = bytearray(Path(file.path).read_bytes())
    at = content.index(b"h1500") - 80
    content[at : at + 80] = b"\xff" * 80
    Path(file.path).write_bytes(bytes(content))
    items = read(file)
    found = [v["conversation_hash"] for v in values(items)]
    assert 1000 < len(found) < 1500
    assert found == [f"h{i}" for i in range(len(found))]
    assert breaks(items) == [(len(found), "unreadable_parquet", 2000 - len(found))]


def test_text_in_parquet_that_is_not_unicode_costs_its_row_and_no_other(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    pq.write_table(pa.table({"conversation": pa.array([talk()] * 3, type=MESSAGES), "model": bad}), tmp_path / "log")
    items = read(locate(str(tmp_path / "log")))
    assert [v["model"] for v in values(items)] == ["a", "b"]
    assert breaks(items) == [(1, "invalid_utf8", 1)]


def test_column_of_another_shape_is_read_and_reported_by_the_parser(tmp_path: Path) -> None:
    pq.write_table(pa.table({"conversation": ["a text"], "conversation_hash": ["h"]}), tmp_path / "log")
    assert values(read(locate(str(tmp_path / "log")))) == [{"conversation": "a text", "conversation_hash": "h"}]


class LostConnection:
    """A filesystem whose files can be read up to a byte, as over a network that fails."""

    def __init__(self, good: int) -> None:
        self.good = good

    def open_input_file(self, path: str) -> Any:
        return _LossyFile(path, self)


class _LossyFile:
    def __init__(self, path: str, connection: LostConnection) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by its reader
        self._connection = connection
        self.closed = False

    def __enter__(self) -> _LossyFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        if self._connection.good <= 0:
            raise OSError("connection reset")
        self._connection.good -= 1
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self.closed = True


@pytest.mark.parametrize("good", [0, 1, 4])
def test_lost_connection_is_an_error_and_never_counted_as_damage(good: int, tmp_path: Path) -> None:
    file = wildchat(tmp_path, 1000, row_group_size=100)
    (shard,) = plan_shards(file, "wildchat")
    lossy = Shard(Location(file.uri, LostConnection(good), file.path), "wildchat", "parquet", 0, shard.row_groups)
    with pytest.raises(OSError, match="connection reset"):
        list(read_shard(lossy))


# --- lines of other stages


def test_json_lines_gives_every_value_and_names_the_line_that_is_none(tmp_path: Path) -> None:
    file = write(tmp_path, b'1\n\n{"a": 2}\n[3]')
    assert list(json_lines(file, flag="--prompts")) == [1, {"a": 2}, [3]]
    with pytest.raises(UserError, match=r"line 3 of .*log\.jsonl.* is not JSON") as caught:
        list(json_lines(write(tmp_path, b"1\n\n{nope}\n2"), flag="--prompts"))
    assert caught.value.flag == "--prompts"
    with pytest.raises(UserError, match="can't be unpacked after line 2"):
        list(json_lines(write(tmp_path, gzip.compress(b"1\n2\n")[:-8]), flag="--prompts"))
