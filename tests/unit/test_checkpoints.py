"""Checkpoints of training: whole or not there, the latest and the best kept, and what was saved is what stood there then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load

from wildreward_ray.cluster.checkpoints import CheckpointStore, CheckpointWriter, fetch, read_info
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.errors import StorageError


def store_with(folder: Path, *steps: int, best: int = 0, unfinished: tuple[int, ...] = ()) -> CheckpointStore:
    for step in (*steps, *unfinished):
        place = folder / f"step-{step:08d}"
        place.mkdir()
        (place / "__0_0.distcp").write_bytes(b"weights")
        if step in steps:
            (place / "checkpoint.json").write_text(json.dumps({"step": step, "best": step == best}))
    return CheckpointStore(locate(str(folder)))


def left(folder: Path) -> list[int]:
    return sorted(int(item.name.removeprefix("step-")) for item in folder.iterdir())


def test_only_whole_checkpoints_are_found_and_in_order(tmp_path: Path) -> None:
    store = store_with(tmp_path, 200, 50, 1000, unfinished=(1050,))
    assert store.steps() == [50, 200, 1000]
    assert store.info(200)["step"] == 200


def test_the_latest_and_the_best_are_kept_and_what_was_never_finished_goes(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10, 20, 30, 40, 50, best=20, unfinished=(25, 60))
    store.prune(keep=2)
    # Step 60 may be at work right now; step 25 can't be.
    assert left(tmp_path) == [20, 40, 50, 60]


def test_a_best_one_that_is_among_the_latest_takes_no_place_of_its_own(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10, 20, 30, best=30)
    store.prune(keep=1)
    assert left(tmp_path) == [30]


def test_what_is_saved_is_what_stood_there_when_it_was_asked_for(tmp_path: Path) -> None:
    """Training goes on while files are written, and changes the weights in place."""
    weights = torch.arange(200_000, dtype=torch.float32)
    curve = [1]
    writer = CheckpointWriter(CheckpointStore(locate(str(tmp_path))), rank=0, size=1, group=None, keep=2)
    writer.save(7, lambda: {"weights": weights}, {"step": 7, "curve": curve})
    weights.fill_(-1.0)
    curve.append(2)
    writer.wait()
    found = {"weights": torch.zeros(200_000)}
    folder = CheckpointStore(locate(str(tmp_path))).folder(7)
    load(found, checkpoint_id=str(fetch(folder, tmp_path / "copy")))
    assert torch.equal(found["weights"], torch.arange(200_000, dtype=torch.float32))
    assert read_info(folder)["curve"] == [1]


def test_a_checkpoint_that_can_not_be_written_is_an_error_that_names_the_output(tmp_path: Path) -> None:
    store = CheckpointStore(locate(str(tmp_path)))
    writer = CheckpointWriter(store, rank=0, size=1, group=None, keep=2)
    writer.save(1, lambda: {"weights": torch.zeros(3)}, {"step": 1})
    writer.wait()
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / ".metadata.tmp").mkdir()
    writer.save(2, lambda: {"weights": torch.zeros(3)}, {"step": 2})
    with pytest.raises(StorageError, match=r"can't write a checkpoint below") as caught:
        writer.wait()
    assert caught.value.flag == "--output"
    assert store.steps() == [1]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"epoch": 1}'])
def test_a_directory_that_is_no_checkpoint_is_refused_by_name(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(StorageError, match=r"checkpoint\.json") as caught:
        read_info(locate(str(tmp_path)))
    assert caught.value.flag == "--resume-from"
    assert str(tmp_path) in str(caught.value)
