"""Models in a store: copied once for each content, whole or not at all, without what is no part of a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wildreward_ray.cluster import model_copies
from wildreward_ray.cluster.model_copies import local_copy
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.core.errors import UserError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "reward_model"
    (folder / "plots").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "reward_config.json", "held_out.parquet", "curve.jsonl"):
        (folder / name).write_text(name)
    return folder


def test_a_model_at_a_uri_is_resolved_to_a_copy_of_its_own_files(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WILDREWARD_CACHE", str(tmp_path / "cache"))
    copy = Path(resolve_model(store.as_uri(), flag="--model"))
    assert {file.name for file in copy.iterdir()} == {"config.json", "model.safetensors", "reward_config.json"}
    assert (copy / "model.safetensors").read_text() == "model.safetensors"
    assert tmp_path / "cache" in copy.parents
    assert copy.name.startswith("reward_model-")


def test_the_same_content_is_copied_once_and_a_new_one_under_another_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local_copy(store.as_uri(), tmp_path, flag="--model")
    with monkeypatch.context() as patch:
        patch.setattr(model_copies, "_download", lambda *_: pytest.fail("it was copied again"))
        assert local_copy(store.as_uri(), tmp_path, flag="--model") == first
    (store / "model.safetensors").write_text("other weights")
    os.utime(store / "model.safetensors", (1, 1))
    second = local_copy(store.as_uri(), tmp_path, flag="--model")
    assert second != first
    assert (second / "model.safetensors").read_text() == "other weights"


def test_a_copy_that_breaks_off_leaves_nothing_that_looks_like_a_model(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = model_copies._download

    def breaks(source: object, target: Path) -> None:
        if target.name == "model.safetensors":
            raise OSError("connection reset")
        download(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(model_copies, "_download", breaks)
    with pytest.raises(UserError, match=r"can't copy the model .* connection reset .*--policy"):
        local_copy(store.as_uri(), tmp_path / "cache", flag="--policy")
    assert [item.name for item in (tmp_path / "cache" / "models").iterdir() if item.is_dir()] == []


@pytest.mark.parametrize("missing", [True, False])
def test_where_no_model_is_the_flag_is_named(store: Path, tmp_path: Path, missing: bool) -> None:
    uri = store.as_uri() + "/none" if missing else (store / "plots").as_uri()
    with pytest.raises(UserError, match=r"no config\.json") as caught:
        local_copy(uri, tmp_path, flag="--reward-model")
    assert caught.value.flag == "--reward-model"
