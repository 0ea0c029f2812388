"""Variants of a dataset: what is taken back, what is drawn from whom, and that every row is accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.experiment_artefact import Rows, dataset_rows, refined_rows, write_extraction
from tests.unit.inspect_artefact import write
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.core.manifest import MANIFEST
from wildreward_ray.core.scale import fold_probs, training_label
from wildreward_ray.stages import variants
from wildreward_ray.stages.ablation import ABLATIONS, choose, write_ablations
from wildreward_ray.stages.diversity import Draw, Survey, draw, quotas, set_name, survey, write_sets
from wildreward_ray.stages.variants import count_origins, open_extraction

ROWS = refined_rows()


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ablate(tmp_path_factory.mktemp("ablation"), ROWS)


def ablate(folder: Path, rows: Rows, k: int = 4, **quality: Any) -> dict[str, str]:
    uri = write_extraction(folder / "extraction", rows, k=k, **quality)
    uris = {name: str(folder / name) for name in ABLATIONS}
    write_ablations(open_extraction(uri), uris)
    return {"extraction": uri, **uris}


def manifest(uri: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(uri) / MANIFEST).read_text(encoding="utf-8"))
    return found


def train_rows(rows: Rows = ROWS) -> dict[str, dict[str, Any]]:
    return {row["interaction_id"]: row for row in rows if row["split"] == "train"}


# Ablation


def test_full_variant_is_the_training_part_itself(ablated: dict[str, str]) -> None:
    assert dataset_rows(ablated["full"]) == dataset_rows(ablated["extraction"])
    assert manifest(ablated["full"])["funnel"][0]["dropped"] == {}


def test_every_variant_holds_the_same_held_out_rows_untouched(ablated: dict[str, str]) -> None:
    held_out = dataset_rows(ablated["extraction"], "test")
    assert {row["origin"] for row in held_out.values()} == {"explicit", "hindsight", "refusal"}
    for name in ABLATIONS:
        assert dataset_rows(ablated[name], "test") == held_out


def test_without_mining_lacks_the_mined_rows_and_nothing_else(ablated: dict[str, str]) -> None:
    full, less = dataset_rows(ablated["full"]), dataset_rows(ablated["without_mining"])
    assert {i for i in full if i not in less} == {i for i, row in full.items() if row["origin"] == "hindsight"}
    assert less.items() <= full.items()
    assert len(less) < len(full)


def test_without_validation_refusals_have_the_judges_own_label_and_probabilities(ablated: dict[str, str]) -> None:
    full, other = dataset_rows(ablated["full"]), dataset_rows(ablated["without_refusal_validation"])
    source = train_rows()
    changed = {i for i, row in other.items() if row != full[i]}
    refusals = {i for i, row in source.items() if row["origin"] == "refusal"}
    kept = {i for i in refusals if source[i]["judge_level"] != 3 and not source[i]["toxic"]}
    assert changed == kept
    assert set(full) - set(other) == refusals - kept
    assert len(kept) >= 5
    for i in kept:
        row, judged = other[i], source[i]
        assert (row["level"], row["origin"]) == (judged["judge_level"], "explicit")
        assert row["label"] == training_label(judged["judge_level"], 4)
        assert row["label_probs"] == pytest.approx(fold_probs(judged["judge_probs"], 4), abs=1e-6)
        assert np.argmax(row["label_probs"]) + 1 == row["label"]
        texts = ("history", "prompt", "response", "language", "user_id", "conversation_id", "model")
        assert [row[name] for name in texts] == [full[i][name] for name in texts]


def test_raw_takes_back_both(ablated: dict[str, str]) -> None:
    raw, unvalidated = dataset_rows(ablated["raw"]), dataset_rows(ablated["without_refusal_validation"])
    assert raw == {i: row for i, row in unvalidated.items() if row["origin"] != "hindsight"}
    assert {row["origin"] for row in raw.values()} == {"explicit"}


def test_funnel_of_an_ablation_tells_why_rows_left_and_how_many_changed(ablated: dict[str, str]) -> None:
    source = train_rows()
    refusals = [row for row in source.values() if row["origin"] == "refusal"]
    neutral = [row for row in refusals if row["judge_level"] == 3 and not row["toxic"]]
    step = manifest(ablated["without_refusal_validation"])["funnel"][0]
    toxic = sum(row["toxic"] for row in refusals)
    assert toxic
    assert neutral
    assert step["dropped"] == {"toxic": toxic, "neutral": len(neutral)}
    assert (step["rows_in"], step["rows_out"]) == (len(source), len(source) - toxic - len(neutral))
    stay = [row for row in refusals if row["judge_level"] != 3 and not row["toxic"]]
    assert step["notes"] == {
        "relabelled": sum(row["judge_level"] != row["level"] for row in stay),
        "same_label": sum(row["judge_level"] == row["level"] for row in stay),
        "neutral_but_minable": sum(row["similarity"] is not None for row in neutral),
    }
    assert all(step["notes"].values())
    found = manifest(ablated["raw"])
    users = {row["user_id"] for row in dataset_rows(ablated["raw"]).values()}
    assert found["variant"]["users"] == len(users)
    assert (found["kind"], found["levels"]) == ("feedback", 4)


def test_toxic_refusals_stay_where_extract_kept_toxic_rows(tmp_path: Path) -> None:
    uris = ablate(tmp_path, ROWS, rules=["language"])
    assert "toxic" not in manifest(uris["without_refusal_validation"])["funnel"][0]["dropped"]


def test_rows_leave_whose_own_label_extract_would_have_found_unsure(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    doubtful = [r for r in rows if r["origin"] == "refusal" and r["split"] == "train" and r["judge_level"] == 2][:2]
    for row in doubtful:
        row["toxic"], row["judge_probs"] = False, [0.1, 0.4, 0.1, 0.2, 0.2]
    uris = ablate(tmp_path, rows, min_confidence=0.6)
    lost = set(dataset_rows(uris["full"])) - set(dataset_rows(uris["without_refusal_validation"]))
    assert {row["interaction_id"] for row in doubtful} <= lost
    assert manifest(uris["without_refusal_validation"])["funnel"][0]["dropped"]["unsure"] == 2


def test_mined_rows_become_neutral_again_where_training_has_a_neutral_label(tmp_path: Path) -> None:
    rows = refined_rows(k=5)
    uris = ablate(tmp_path, rows, k=5)
    mined = {i for i, row in train_rows(rows).items() if row["origin"] == "hindsight"}
    assert mined
    found = dataset_rows(uris["without_mining"])
    assert {found[i]["label"] for i in mined} == {3}
    assert manifest(uris["without_mining"])["funnel"][0]["notes"] == {"relabelled": len(mined)}


def test_variants_that_would_be_alike_are_left_out_by_name() -> None:
    assert choose({"explicit": 9, "hindsight": 1, "refusal": 1}) == (ABLATIONS, {})
    made, left_out = choose({"explicit": 9, "hindsight": 2})
    assert list(made) == ["full", "without_mining"]
    assert left_out == {"without_refusal_validation": "no_refusal_rows", "raw": "no_refusal_rows"}
    with pytest.raises(UserError, match="all variants would be the same"):
        choose({"explicit": 9})


def test_origins_are_counted_over_all_files(ablated: dict[str, str]) -> None:
    extraction = open_extraction(ablated["extraction"])
    assert count_origins(extraction, "train") == Counter(row["origin"] for row in train_rows().values())


def test_extraction_without_the_judges_probabilities_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "old", ROWS, without=("judge_probs",), levels=4)
    with pytest.raises(UserError, match=r"no column 'judge_probs'.*--dataset"):
        write_ablations(open_extraction(uri), {"raw": str(tmp_path / "raw")})
    assert not (tmp_path / "raw" / MANIFEST).exists()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    uri = write_extraction(tmp_path / "extraction", ROWS[:200])
    damaged = tmp_path / "extraction" / "dataset" / "train" / "part-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(StorageError, match=r"can't read .*part-00001\.parquet.*--dataset"):
        count_origins(open_extraction(uri), "train")


def test_rows_survive_being_dealt_to_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_FILE_BYTES", 20_000)
    monkeypatch.setattr(variants, "_BATCH_ROWS", 50)
    uris = ablate(tmp_path, ROWS)
    assert len(list((tmp_path / "full" / "dataset" / "train").iterdir())) > 3
    assert dataset_rows(uris["full"]) == dataset_rows(uris["extraction"])


# Diversity


def heavy_tailed(users: int = 400, seed: int = 0) -> Survey:
    """Users of 1 to some hundred rows, in mixed order, and some rows without a user."""
    rng = np.random.default_rng(seed)
    counts = np.ceil(rng.pareto(1.1, users) * 3 + 0.01).clip(max=300).astype(int)
    user = rng.permutation(np.concatenate([np.repeat(np.arange(users), counts), np.full(50, -1)]))
    keys = {s: np.random.default_rng(100 + s).integers(0, 2**63, len(user)).astype(np.uint64) for s in range(3)}
    return Survey("logs", [f"user{i}" for i in range(users)], user, keys)


def users_of(rows: Survey, found: Draw) -> set[int]:
    return set(rows.user[found.chosen].tolist())


def test_sets_are_of_equal_size_from_exactly_so_many_users() -> None:
    rows = heavy_tailed()
    sets = draw(rows, (1, 3, 10), 0)
    assert len({int(found.chosen.sum()) for found in sets.values()}) == 1
    fewest = sets[1].users
    assert fewest >= 2
    for multiple, found in sets.items():
        assert len(users_of(rows, found)) == found.users == multiple * fewest
    eligible = int((np.bincount(rows.user[rows.user >= 0]) >= 10).sum())
    assert fewest == eligible // 10


def test_smallest_set_is_all_rows_of_its_users_and_users_are_nested() -> None:
    rows = heavy_tailed()
    sets = draw(rows, (1, 3, 10), 0)
    few = users_of(rows, sets[1])
    assert sets[1].chosen.sum() == np.isin(rows.user, list(few)).sum()
    assert few < users_of(rows, sets[3]) < users_of(rows, sets[10])


def test_rows_are_drawn_evenly_over_users() -> None:
    rows = heavy_tailed()
    counts = np.bincount(rows.user[rows.user >= 0])
    for found in draw(rows, (1, 3, 10), 1).values():
        given = np.bincount(rows.user[found.chosen], minlength=len(counts))
        drawn = given > 0
        limited = given[drawn & (given < counts)]
        if limited.size:
            assert np.ptp(limited) <= 1
            assert given.max() <= limited.max()


def test_every_row_that_is_not_drawn_has_one_reason() -> None:
    rows = heavy_tailed()
    for found in draw(rows, (1, 3, 10), 0).values():
        assert found.dropped.total() + found.chosen.sum() == len(rows.user)
        assert found.dropped["no_user"] == 50


def test_draws_depend_on_the_seed_alone() -> None:
    rows = heavy_tailed()
    again = draw(heavy_tailed(), (1, 3, 10), 0)
    for multiple, found in draw(rows, (1, 3, 10), 0).items():
        assert (found.chosen == again[multiple].chosen).all()
    assert users_of(rows, draw(rows, (1, 3, 10), 0)[1]) != users_of(rows, draw(rows, (1, 3, 10), 1)[1])


def test_draw_is_the_same_in_whatever_order_rows_are_read() -> None:
    rows = heavy_tailed()
    order = np.random.default_rng(5).permutation(len(rows.user))
    mixed = Survey(rows.uri, rows.users, rows.user[order], {s: keys[order] for s, keys in rows.keys.items()})
    for multiple, found in draw(rows, (1, 3, 10), 2).items():
        assert (draw(mixed, (1, 3, 10), 2)[multiple].chosen == found.chosen[order]).all()


@pytest.mark.parametrize(
    ("counts", "size", "given"),
    [
        ([5, 5, 5], 6, [2, 2, 2]),
        ([5, 1, 5], 8, [4, 1, 3]),
        ([1, 1, 9], 11, [1, 1, 9]),
        ([3, 3, 3], 5, [2, 2, 1]),
        ([4, 2], 6, [4, 2]),
    ],
)
def test_quotas_are_even_as_far_as_rows_allow(counts: list[int], size: int, given: list[int]) -> None:
    assert quotas(np.array(counts), size).tolist() == given


def test_too_few_users_are_an_error_that_counts_them() -> None:
    user = np.array([0] * 12 + [1] * 10 + [2] * 3)
    rows = Survey("logs", ["a", "b", "c"], user, {0: np.arange(25, dtype=np.uint64)})
    with pytest.raises(UserError, match=r"2 users with 10 training rows or more \(3 users in all\): 10 are needed"):
        draw(rows, (1, 10), 0)
    assert draw(rows, (1, 2), 0)[2].users == 2


def test_dataset_without_users_is_an_error(tmp_path: Path) -> None:
    uri = write_extraction(tmp_path / "extraction", [{**row, "user_id": None} for row in ROWS[:300]])
    with pytest.raises(UserError, match=r"no training row of .* names its user"):
        draw(survey(open_extraction(uri), [0]), (1, 2), 0)


def test_written_sets_hold_the_drawn_rows_as_they_are(tmp_path: Path) -> None:
    source = [{**row, "user_id": row["user_id"] if i % 9 else None} for i, row in enumerate(ROWS)]
    extraction = open_extraction(write_extraction(tmp_path / "extraction", source))
    rows = survey(extraction, [3, 4])
    uris = {m: str(tmp_path / set_name(m)) for m in (1, 4)}
    write_sets(extraction, rows, (1, 4), 4, uris)
    whole = dataset_rows(extraction.uri)
    sizes = set()
    for multiple, uri in uris.items():
        found, step = dataset_rows(uri), manifest(uri)["funnel"][0]
        assert found.items() <= whole.items()
        users = {row["user_id"] for row in found.values()}
        drawn = draw(rows, (1, 4), 4)[multiple]
        assert len(users) == manifest(uri)["variant"]["users"] == drawn.users
        assert None not in users
        assert step["rows_in"] == len(whole)
        assert step["dropped"] == dict(drawn.dropped)
        assert dataset_rows(uri, "test") == dataset_rows(extraction.uri, "test")
        sizes.add(len(found))
    assert sizes == {int(drawn.chosen.sum())}


def test_one_missing_set_is_written_as_if_all_were(tmp_path: Path) -> None:
    extraction = open_extraction(write_extraction(tmp_path / "extraction", ROWS))
    rows = survey(extraction, [0])
    write_sets(extraction, rows, (1, 2), 0, {1: str(tmp_path / "a1"), 2: str(tmp_path / "a2")})
    write_sets(extraction, rows, (1, 2), 0, {2: str(tmp_path / "b2")})
    assert dataset_rows(str(tmp_path / "a2")) == dataset_rows(str(tmp_path / "b2"))


def test_sample_rows_are_what_the_tests_take_them_for() -> None:
    """The tests above hold little if no row is of the kind they are about."""
    refusals = [row for row in train_rows().values() if row["origin"] == "refusal"]
    assert {(row["judge_level"] == 3, row["similarity"] is not None) for row in refusals} == {
        (True, True),
        (True, False),
        (False, False),
    }
