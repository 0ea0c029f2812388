"""Reading logs in chunks: the same chunks on every run, every record counted once, what is done is passed over."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from wildreward_ray.cluster.readers import UnreadableFileError, read_shard
from wildreward_ray.core.errors import StorageError
from wildreward_ray.stages import ingest
from wildreward_ray.stages.chunks import CHUNK_INTERACTIONS, done_parts


def talk(turns: int, text: str = "and then?") -> list[dict[str, str]]:
    """A conversation with so many turns that have feedback."""
    said = [{"role": "user", "content": "hello there"}]
    for i in range(turns):
        said += [{"role": "assistant", "content": f"reply {i}"}, {"role": "user", "content": f"{text} {i}"}]
    return said


def log(folder: Path, name: str, conversations: list[Any]) -> str:
    folder.mkdir(exist_ok=True)
    lines = [
        c if isinstance(c, str) else json.dumps({"id": f"{name}{i}", "messages": c})
        for i, c in enumerate(conversations)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / f"{name}.jsonl")


def chunks(
    inputs: list[str], *, size: int = 4, limit: int | None = None, done: list[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    plan = ingest.plan(inputs, "auto", strict=True)
    found = list(ingest.read_chunks(plan.shards, size=size, limit=limit, done=done_parts(done or [])))
    assert len({part for part, _ in found}) == len(found)
    return {part: table.to_pylist() for part, table in found}


def counts(rows: dict[str, list[dict[str, Any]]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for table in rows.values():
        for row in table:
            if row["kind"] == "summary":
                total.update(json.loads(row["counts"]))
    return total


def ids(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [
        f"{r['conversation_id']}:{t}"
        for table in rows.values()
        for r in table
        if r["kind"] == "conversation"
        for t in r["turns"]
    ]


def test_the_same_input_gives_the_same_chunks_and_their_number_does_not_change_what_is_in_them(tmp_path: Path) -> None:
    file = log(tmp_path, "a", [talk(i % 3) for i in range(23)])
    assert chunks([file]) == chunks([file])
    small, large = chunks([file], size=2), chunks([file], size=100)
    assert len(small) > len(large) == 1
    assert ids(small) == ids(large)
    assert counts(small) == counts(large)
    assert counts(small)["records"] == 23


@pytest.mark.parametrize("kept", [[], [0], [1, 3], [0, 1, 2, 3, 4, 5]])
def test_chunks_that_are_done_are_passed_over_and_the_others_are_what_they_were(
    tmp_path: Path, kept: list[int]
) -> None:
    file = log(tmp_path, "a", [talk(2) for _ in range(21)])
    whole = chunks([file])
    done = [part for i, part in enumerate(whole) if i in kept]
    assert chunks([file], done=done) == {part: rows for part, rows in whole.items() if part not in done}


def test_a_chunk_of_few_long_conversations_ends_early(tmp_path: Path) -> None:
    file = log(tmp_path, "a", [talk(CHUNK_INTERACTIONS - 1), talk(5), talk(1), talk(3000), talk(1)])
    sizes = [len(ids({part: rows})) for part, rows in chunks([file], size=128).items()]
    assert sizes == [CHUNK_INTERACTIONS + 4, 3001, 1]


def test_the_limit_takes_the_same_interactions_and_counts_what_it_leaves(tmp_path: Path) -> None:
    first, second = log(tmp_path, "a", [talk(3), talk(3), talk(3)]), log(tmp_path, "b", [talk(1)])
    found = chunks([first, second], limit=5)
    assert ids(found) == ids(chunks([first, second]))[:5]
    total = counts(found)
    assert (total["interactions"], total["interactions_over_limit"], total["records_over_limit"]) == (9, 4, 1)
    assert total["records"] == 3


def test_every_record_is_counted_once_whether_it_can_be_used_or_not(tmp_path: Path) -> None:
    bad = json.dumps({"id": "x", "messages": [{"role": "narrator", "content": "once"}]})
    file = log(tmp_path, "a", [talk(2), bad, "{cut", talk(0), talk(1)])
    found = chunks([file])
    total = counts(found)
    assert total["records"] == 5
    assert total["no_feedback_turn"] == 1
    assert (total["quarantined:unknown_role"], total["quarantined:invalid_json"]) == (1, 1)
    reasons = [r["reason"] for rows in found.values() for r in rows if r["kind"] == "quarantine"]
    assert sorted(reasons) == ["invalid_json", "unknown_role"]
    assert all(r["source"] == file for rows in found.values() for r in rows)


def test_a_file_that_cannot_be_read_is_put_aside_by_name_and_stops_a_strict_run(tmp_path: Path) -> None:
    good = log(tmp_path, "good", [talk(1)])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but nothing else")
    (tmp_path / "empty.jsonl").touch()
    plan = ingest.plan([str(tmp_path)], "auto", strict=False)
    assert [uri for uri, _ in plan.files] == [good]
    assert {(Path(r["source"]).name, r["reason"]) for r in plan.unreadable} == {
        ("broken.parquet", "file:not_parquet"),
        ("empty.jsonl", "file:empty_file"),
    }
    with pytest.raises(UnreadableFileError) as caught:
        ingest.plan([str(tmp_path)], "auto", strict=True)
    assert "broken.parquet" in str(caught.value)


def test_input_of_which_nothing_can_be_read_is_an_error_that_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UnreadableFileError, match=r"empty\.jsonl"):
        ingest.plan([str(tmp_path)], "auto", strict=False)
    (tmp_path / "void.jsonl").touch()
    with pytest.raises(StorageError, match=r"none of 2 input files can be read; the first: .*empty\.jsonl") as caught:
        ingest.plan([str(tmp_path)], "auto", strict=False)
    assert caught.value.flag == "--input"


def test_a_file_that_is_named_twice_is_read_once_and_a_changed_one_changes_the_digest(tmp_path: Path) -> None:
    file = log(tmp_path, "a", [talk(1)])
    plan = ingest.plan([file, str(tmp_path), file], "auto", strict=True)
    assert len(plan.shards) == 1
    before = plan.digest()
    log(tmp_path, "a", [talk(1), talk(1)])
    assert ingest.plan([file], "auto", strict=True).digest() != before


def test_a_store_that_cuts_a_file_off_costs_no_chunk_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = log(tmp_path, "a", [talk(2) for _ in range(21)])
    shards = ingest.plan([file], "auto", strict=True).shards
    whole = [(part, table.to_pylist()) for part, table in ingest.read_chunks(shards, size=4, limit=None, done={})]
    real, cuts = read_shard, iter([9, 14])

    def cut_off(shard: Any) -> Any:
        after = next(cuts, None)
        for i, item in enumerate(real(shard)):
            if i == after:
                raise OSError("AWS Error INTERNAL_FAILURE during GetObject operation: cut off")
            yield item

    pauses: list[float] = []
    monkeypatch.setattr(ingest, "read_shard", cut_off)
    monkeypatch.setattr("wildreward_ray.stages.ingest.time.sleep", pauses.append)
    found = [(part, t.to_pylist()) for part, t in ingest._persistent(shards, size=4, limit=None, done={})]
    assert found == whole
    assert len(pauses) == 2


def test_an_error_of_the_disk_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ingest.plan([log(tmp_path, "a", [talk(1)])], "auto", strict=True).shards

    def broken(shard: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ingest, "read_shard", broken)
    monkeypatch.setattr("wildreward_ray.stages.ingest.time.sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(OSError, match="Input/output error"):
        list(ingest._persistent(shards, size=4, limit=None, done={}))
