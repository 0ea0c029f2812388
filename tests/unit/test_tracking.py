"""Trackers: what arrives in them is read back with their own readers, and what goes wrong in them doesn't stop a run."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wildreward_ray.cluster.tracking import Trackers, _Background, _Guarded, open_trackers
from wildreward_ray.core.errors import UserError

SETTINGS = {"base": "demo:minilm", "optim": {"learning_rate": 1e-5}, "dataset": "https://ann:hunter2@host/set"}


def opened(folder: Path, *kinds: str, settings: Mapping[str, Any] = SETTINGS, first_step: int = 1) -> Trackers:
    return open_trackers(
        kinds, experiment="rewards", run="a run", folder=folder, settings=settings, first_step=first_step
    )


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(e.step, round(e.value, 6)) for e in events(folder).Scalars(name)]


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a store in a directory: without a database that is all the small MLflow package can write itself."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow = pytest.importorskip("mlflow")
    return mlflow.MlflowClient()


def only_run(client: Any) -> Any:
    runs = client.search_runs([client.get_experiment_by_name("rewards").experiment_id])
    assert len(runs) == 1
    return runs[0]


def test_tensorboard_holds_every_number_at_its_step_and_nothing_else(tmp_path: Path) -> None:
    trackers = opened(tmp_path, "tensorboard", "tensorboard")
    trackers.log(1, {"loss": 0.5, "eval/auc": None})
    assert scalars(tmp_path, "loss") == [(1, 0.5)], "an event is on disk as soon as its step is logged"
    trackers.log(2, {"loss": math.nan, "eval/auc": 0.75, "rate": math.inf})
    trackers.log(3, {"loss": 0.25})
    trackers.close({"auc": 0.8, "spearman": None})
    assert set(events(tmp_path).Tags()["scalars"]) == {"loss", "eval/auc", "final/auc"}
    assert scalars(tmp_path, "loss") == [(1, 0.5), (3, 0.25)]
    assert scalars(tmp_path, "eval/auc") == [(2, 0.75)]
    assert scalars(tmp_path, "final/auc") == [(3, 0.8)]
    text = events(tmp_path).Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "optim.learning_rate: 1e-05" in text
    assert "hunter2" not in text


def test_tensorboard_forgets_steps_that_a_resumed_run_does_again(tmp_path: Path) -> None:
    before = opened(tmp_path, "tensorboard")
    for step in range(1, 6):
        before.log(step, {"loss": 1.0})
    # The run broke off here, after its checkpoint of step 3.
    after = opened(tmp_path, "tensorboard", first_step=4)
    for step in range(4, 7):
        after.log(step, {"loss": 2.0})
    after.close({})
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_mlflow_holds_settings_curves_and_the_end(tmp_path: Path, mlflow_client: Any) -> None:
    many = {f"setting_{i}": i for i in range(150)}
    trackers = opened(tmp_path, "mlflow", settings={**SETTINGS, "long": "x" * 10_000, "many": many})
    trackers.log(1, {"loss": 0.5, "eval/auc": None})
    trackers.log(2, {"loss": 0.25, "grad_norm": math.nan})
    trackers.close({"auc": 0.8})
    run = only_run(mlflow_client)
    assert run.info.run_name == "a run"
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.learning_rate"] == "1e-05"
    assert run.data.params["dataset"] == "https://***@host/set"
    assert run.data.params["long"] == "x" * 250
    assert len(run.data.params) == 4 + 150
    assert run.data.metrics == {"loss": 0.25, "final/auc": 0.8}
    history = mlflow_client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path, mlflow_client: Any) -> None:
    opened(tmp_path, "mlflow").close({}, failed=True)
    assert only_run(mlflow_client).info.status == "FAILED"
    resumed = opened(tmp_path, "mlflow", first_step=8, settings={**SETTINGS, "base": "another"})
    assert only_run(mlflow_client).info.status == "RUNNING"
    resumed.log(8, {"loss": 0.1})
    resumed.close({})
    run = only_run(mlflow_client)
    assert run.data.metrics == {"loss": 0.1}
    assert run.info.status == "FINISHED"


def test_a_new_run_in_a_used_folder_is_a_new_mlflow_run(tmp_path: Path, mlflow_client: Any) -> None:
    opened(tmp_path, "mlflow").close({})
    opened(tmp_path, "mlflow").close({})
    experiment = mlflow_client.get_experiment_by_name("rewards").experiment_id
    assert len(mlflow_client.search_runs([experiment])) == 2


def test_a_tracker_that_breaks_is_named_once_and_the_others_go_on(
    tmp_path: Path, mlflow_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trackers = opened(tmp_path, "mlflow", "tensorboard")
    shutil.rmtree(tmp_path / "mlruns")
    with caplog.at_level(logging.WARNING, logger="wildreward_ray"):
        for step in (1, 2, 3):
            trackers.log(step, {"loss": 0.5})
        trackers.close({"auc": 0.8})
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("wildreward_ray")]
    assert len(warnings) == 1
    assert warnings[0].startswith("tracker mlflow failed at step 1 and is switched off")
    assert scalars(tmp_path, "loss") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert scalars(tmp_path, "final/auc") == [(3, 0.8)]


def test_nobody_waits_for_a_slow_server_before_the_end() -> None:
    answered = threading.Event()
    seen: list[object] = []

    class Slow:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            answered.wait(20)
            seen.append((step, dict(values)))

        def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
            seen.append((dict(summary), failed))

    trackers = Trackers([_Background(_Guarded("slow", Slow()))])
    values: dict[str, float | None] = {"loss": 1.0}
    trackers.log(1, values)
    values["loss"] = 2.0
    trackers.log(2, values)
    assert seen == []
    answered.set()
    trackers.close({"auc": 0.8})
    assert seen == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), ({"auc": 0.8}, False)]


def test_a_server_that_is_not_there_is_an_error_at_the_start_that_tells_no_password(
    tmp_path: Path, mlflow_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="tracker mlflow can't be opened") as caught:
        opened(tmp_path, "mlflow")
    assert caught.value.flag == "--tracking.kinds"
    assert "127.0.0.1:9" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("found", [None, ModuleType("wandb")], ids=["nothing", "a folder of that name"])
def test_a_missing_package_is_named_with_its_extra_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: ModuleType | None
) -> None:
    if found is not None:
        found.__file__ = None
    monkeypatch.setitem(sys.modules, "wandb", found)
    with pytest.raises(UserError, match="tracker wandb needs a package") as caught:
        opened(tmp_path / "run", "tensorboard", "wandb")
    assert caught.value.flag == "--tracking.kinds"
    assert caught.value.hint == "pip install wildreward-ray[tracking]"
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        opened(tmp_path, "tensorbord")


def test_wandb_holds_curves_and_the_end_but_nothing_that_was_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = opened(tmp_path, "wandb")
    trackers.log(1, {"loss": 0.5, "eval/auc": None})
    print("what a user said")
    trackers.close({"auc": 0.8})
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"loss" in content
    assert b"final/auc" in content
    assert b"optim.learning_rate" in content
    assert b"eval/auc" not in content
    assert b"hunter2" not in content
    assert b"what a user said" not in content
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() and path.is_dir()]
