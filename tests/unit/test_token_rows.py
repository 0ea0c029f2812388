"""Token rows: numbers belong to rows and not to files, and what is read by number is what was written under that id."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster.storage import Location, locate
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages import token_rows
from wildreward_ray.stages.token_rows import TokenRows, build
from wildreward_ray.stages.tokens import TOKENS

Row = dict[str, Any]


def row(number: int, **changes: Any) -> Row:
    ids = [number, *range(number % 7)]
    return {"row_id": f"r{number:04d}", "input_ids": ids, "length": len(ids), "label": 1 + number % 4, **changes}


def parquet(folder: Path, *files: list[Row]) -> Location:
    folder.mkdir(parents=True)
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS), folder / f"{number}.parquet", row_group_size=5)
    return locate(str(folder))


def read(folder: Path, *files: list[Row], limit: int | None = None) -> TokenRows:
    source = parquet(folder / "tokens", *files)
    build(source, folder / "rows.arrow")
    return TokenRows(folder / "rows.arrow", limit)


def content(rows: TokenRows) -> list[tuple[list[int], int, int]]:
    numbers = range(len(rows.labels))
    return [(list(rows.ids(i)), int(rows.lengths[i]), int(rows.labels[i])) for i in numbers]


def test_numbering_is_by_id_and_not_by_the_order_or_the_files_rows_came_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_rows, "_BATCH_ROWS", 4)
    rows = [row(i) for i in range(40)]
    shuffled = random.Random(0).sample(rows, len(rows))
    found = read(tmp_path / "one", shuffled)
    again = read(tmp_path / "many", rows[25:], [], rows[:25])
    assert content(found) == content(again) == [(r["input_ids"], r["length"], r["label"]) for r in rows]
    everything = np.arange(40)
    assert found.row_ids(everything) == again.row_ids(everything) == [r["row_id"] for r in rows]
    assert found.row_ids(np.array([7, 3])) == ["r0007", "r0003"]
    assert found.over_limit == 0


def test_rows_of_one_id_are_all_kept_and_always_numbered_alike(tmp_path: Path) -> None:
    same = [row(i, row_id="same") for i in range(12)] + [row(3, row_id="same", label=2), row(50), row(0)]
    found = read(tmp_path / "a", same)
    again = read(tmp_path / "b", same[8:], same[:8][::-1])
    assert len(found.labels) == 15
    assert content(found) == content(again)
    assert sorted(content(found)) == sorted((r["input_ids"], r["length"], r["label"]) for r in same)


def test_rows_with_a_reason_are_not_trained_on(tmp_path: Path) -> None:
    bad = row(1, input_ids=[], length=0, label=0, reason="no_label")
    found = read(tmp_path, [row(0), bad], [bad], [row(2)])
    assert found.row_ids(np.arange(2)) == ["r0000", "r0002"]
    assert len(found.labels) == 2
    assert found.labels.min() > 0


def test_a_limit_keeps_a_sample_that_is_spread_over_all_ids_and_does_not_change(tmp_path: Path) -> None:
    rows = [row(i) for i in range(200)]
    found = read(tmp_path / "a", rows, limit=40)
    again = read(tmp_path / "b", rows[100:], rows[:100], limit=40)
    names = found.row_ids(np.arange(40))
    assert names == sorted(names) == again.row_ids(np.arange(40))
    assert (len(found.labels), found.over_limit) == (40, 160)
    assert 10 < sum(name < "r0100" for name in names) < 30
    smaller = TokenRows(tmp_path / "a" / "rows.arrow", 10)
    assert set(smaller.row_ids(np.arange(10))) < set(names)
    by_name = {r["row_id"]: r["input_ids"] for r in rows}
    assert [list(found.ids(i)) for i in range(40)] == [by_name[name] for name in names]
    assert TokenRows(tmp_path / "a" / "rows.arrow", 500).over_limit == 0


def test_label_probs_belong_to_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows, "_BATCH_ROWS", 4)
    rows = [row(i, label_probs=[i / 100, 1 - i / 100]) for i in range(30)]
    bad = row(99, input_ids=[], length=0, label=0, reason="no_label")
    found = read(tmp_path, [*rows[17:], bad], rows[:17])
    assert found.label_probs is not None
    assert found.label_probs.dtype == np.float32
    np.testing.assert_allclose(found.label_probs, [[i / 100, 1 - i / 100] for i in range(30)], rtol=1e-6)


def test_probabilities_that_only_some_rows_have_are_none(tmp_path: Path) -> None:
    found = read(tmp_path, [row(0, label_probs=[0.5, 0.5]), row(1)])
    assert found.label_probs is None


def test_probabilities_of_different_numbers_of_levels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 to 3 probabilities"):
        read(tmp_path, [row(0, label_probs=[0.5, 0.5]), row(1, label_probs=[0.2, 0.3, 0.5])])


def test_users_languages_and_origins_belong_to_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows, "_BATCH_ROWS", 3)
    users = [None if i % 5 == 0 else f"user{i % 3}" for i in range(20)]
    rows = [row(i, user_id=users[i], language="English" if i > 17 else None) for i in range(20)]
    found = read(tmp_path, rows[11:], rows[:11])
    assert found.users is not None
    assert found.languages is not None
    assert found.users.tolist() == users
    assert found.languages.tolist() == [None] * 18 + ["English"] * 2
    assert found.origins is None


def test_a_dataset_without_rows_is_empty_and_no_error(tmp_path: Path) -> None:
    found = read(tmp_path, [], limit=3)
    assert len(found.labels) == len(found.lengths) == found.over_limit == 0
    assert found.row_ids(np.zeros(0, dtype=np.int64)) == []
    assert (found.label_probs, found.users) == (None, None)


def test_a_build_that_fails_leaves_the_file_that_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(tmp_path, [row(0)])

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(token_rows, "_with_hashes", fail)
    with pytest.raises(OSError, match="disk full"):
        build(locate(str(tmp_path / "tokens")), tmp_path / "rows.arrow")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.arrow", "tokens"]
    assert list(found.ids(0)) == list(TokenRows(tmp_path / "rows.arrow").ids(0)) == [0]


def test_a_build_over_an_open_file_leaves_its_readers_alone(tmp_path: Path) -> None:
    found = read(tmp_path, [row(i) for i in range(50)])
    before = content(found)
    build(parquet(tmp_path / "other", [row(7)]), tmp_path / "rows.arrow")
    assert content(found) == before
    assert len(TokenRows(tmp_path / "rows.arrow").labels) == 1
