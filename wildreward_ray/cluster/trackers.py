"""TensorBoard, MLflow and Weights & Biases, each as something that takes numbers at a step. They raise what their clients
raise; `cluster.tracking` decides what that means for the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Ids under which the servers know the run, so that a resumed run goes on in the same place.
_IDS = "trackers.json"
# MLflow takes values of 6,000 characters, but its older servers only 500 or 250; a batch holds 100 parameters.
_MLFLOW_NAME, _MLFLOW_VALUE, _MLFLOW_BATCH = 250, 250, 100


class Tracker(Protocol):
    """Where numbers of a run go. Values are finite."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at an optimizer step."""
        ...

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        """The numbers the run ended with, logged as `final/NAME`, and how it ended; nothing may be logged after it."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a tracker needs to know when it is opened. `settings` are flat, with dotted names."""

    experiment: str
    run: str
    folder: Path
    settings: Mapping[str, Any]
    first_step: int

    def earlier_id(self, kind: str) -> str | None:
        """The id under which a server knows the run that is resumed; None for a new run."""
        found = self._ids().get(kind) if self.first_step > 1 else None
        return None if found is None else str(found)

    def remember(self, kind: str, run_id: str) -> None:
        """Keep an id for when the run is resumed."""
        (self.folder / _IDS).write_text(json.dumps({**self._ids(), kind: run_id}, indent=2) + "\n", encoding="utf-8")

    def _ids(self) -> dict[str, Any]:
        file = self.folder / _IDS
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found


class TensorBoard:
    """Event files in `folder/tensorboard`, whole on disk after every step; the settings are a text beside the curves."""

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = opening.folder / "tensorboard"
        self._writer: Any = SummaryWriter(str(folder), purge_step=opening.first_step)
        self._step = opening.first_step
        if opening.first_step <= 1:
            lines = (f"    {name}: {value}" for name, value in opening.settings.items())
            self._writer.add_text("settings", "\n".join(lines), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # The caller copies the folder with each checkpoint.
        self._writer.flush()

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        self.log(self._step, _final(summary))
        self._writer.close()


class Mlflow:
    """A run of an MLflow experiment; the settings are its parameters, cut to what servers take."""

    def __init__(self, opening: Opening) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # By the client and an explicit run id: MLflow's own notion of an active run belongs to one thread.
        self._client: Any = MlflowClient()
        self._step = opening.first_step
        earlier = opening.earlier_id("mlflow")
        if earlier is not None:
            self._client.update_run(earlier, status="RUNNING")
            self._id = earlier
            return
        found = self._client.get_experiment_by_name(opening.experiment)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(opening.experiment)
        self._id = self._client.create_run(experiment, run_name=opening.run).info.run_id
        params = [Param(name[:_MLFLOW_NAME], str(value)[:_MLFLOW_VALUE]) for name, value in opening.settings.items()]
        for start in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(self._id, params=params[start : start + _MLFLOW_BATCH])
        opening.remember("mlflow", self._id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        self._step = step
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now_ms, step) for name, value in values.items()])

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        self.log(self._step, _final(summary))
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class WandB:
    """A run of a Weights & Biases project; the settings are its config."""

    def __init__(self, opening: Opening) -> None:
        import wandb

        earlier = opening.earlier_id("wandb")
        self._run: Any = wandb.init(
            project=opening.experiment,
            name=opening.run,
            config=dict(opening.settings),
            dir=str(opening.folder),
            id=earlier,
            resume=None if earlier is None else "allow",
            reinit="create_new",
            # What is printed may quote conversations: only numbers and settings are sent. And a link to the latest run
            # would point into nowhere once the folder has been moved.
            settings=wandb.Settings(console="off", symlink=False),
        )
        opening.remember("wandb", self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        self._run.summary.update(_final(summary))
        self._run.finish(exit_code=int(failed))


def _final(summary: Mapping[str, float]) -> dict[str, float]:
    return {f"final/{name}": value for name, value in summary.items()}
