"""Running Ray Train until the model stands, a worker finds a fault, or the run is told to stop."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wildreward_ray.cluster.checkpoints import CheckpointStore
from wildreward_ray.cluster.stopping import on_first_signal
from wildreward_ray.cluster.storage import Location, remove, upload
from wildreward_ray.cluster.tracking import Trackers, open_trackers
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.stages.tokens import split_folder
from wildreward_ray.stages.train_export import METRICS
from wildreward_ray.stages.train_job import Job, fingerprint_of, resume_folder
from wildreward_ray.stages.train_monitor import TrainMonitor
from wildreward_ray.stages.train_worker import work

CHECKPOINTS, TOKEN_ROWS, TRACKING = "checkpoints", "tokens", "tracking"
_TRACKERS = "trackers.json"


def fit(config: TrainConfig, reward: RewardConfig, work_place: Location, data: dict[str, Any]) -> dict[str, Any]:
    """Train until the model stands in `model/` of the work directory. Returns `metrics.json`.

    Args:
        data: with `quarantined`, rows by split and reason, which is passed on.

    Raises:
        UserError: what a worker found to be the user's to mend.
        RunStoppedError: SIGTERM or SIGINT; a checkpoint has been written, if training had begun.
        WildRewardError: training failed on a worker.
    """
    fingerprint = fingerprint_of(config, reward)
    checkpoints, model = work_place.child(CHECKPOINTS), work_place.child("model")
    if config.resume_from is not None:
        resume_folder(config.resume_from, fingerprint)
    remove(model)  # of a run that was killed while it wrote it
    whole = CheckpointStore(checkpoints).steps()
    with _trackers(config, work_place, first_step=whole[-1] + 1 if whole else 1) as trackers:
        with TrainMonitor(trackers) as monitor:
            tokens = work_place.child(TOKEN_ROWS)
            job = Job(
                config=config,
                reward=reward,
                run_id=uuid.uuid4().hex[:12],
                train=split_folder(tokens, "train"),
                test=split_folder(tokens, "test"),
                checkpoints=checkpoints,
                model=model,
                fingerprint=fingerprint,
                mailbox=monitor.mailbox,
            )
            try:
                with on_first_signal(monitor.stop, after="this step"):
                    _beside(lambda: _ray_train(job, work_place.child("ray_train")))
            finally:
                # What a worker found tells more than how the others ended when it left them.
                monitor.raise_failure()
        if METRICS not in model.names():
            raise WildRewardError("training ended without a model")
        found: dict[str, Any] = json.loads(model.child(METRICS).read_bytes())
        found["worker_starts"] = monitor.starts
        trackers.close(found["metrics"] or {})
    return {**found, "quarantined": data["quarantined"]}


def _ray_train(job: Job, place: Location) -> None:
    """Run Ray Train to its end.

    Args:
        place: for its own files. Nothing of it is needed to go on: checkpoints are ours.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config = job.config
    least, most = config.workers
    if least < most:
        # Workers asked for on a node that has just died never start; the next try knows that it is gone.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            elastic_resize_monitor_interval_s=config.resize_interval_s,
            use_gpu=config.num_gpus > 0,
            resources_per_worker={"CPU": config.num_cpus, **({"GPU": config.num_gpus} if config.num_gpus else {})},
        ),
        run_config=RunConfig(
            name=job.run_id,
            storage_path=place.path,
            storage_filesystem=place.fs,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    trainer.fit()


def _beside(call: Callable[[], None]) -> None:
    """Call in another thread and wait. In the main one Ray Train takes SIGINT for itself, and ends the process with code 0."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            call()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=guarded, daemon=True, name="ray-train")
    thread.start()
    # A join without a limit would let no signal through.
    while thread.is_alive():
        thread.join(1.0)
    if errors:
        raise errors[0]


@contextmanager
def _trackers(config: TrainConfig, work_place: Location, *, first_step: int) -> Iterator[Trackers]:
    """Open trackers, whose files are kept locally and copied where the output is elsewhere."""
    target = work_place.child(TRACKING)
    with tempfile.TemporaryDirectory(prefix="wildreward-tracking-") as scratch:
        folder = Path(target.path) if target.is_local else Path(scratch)
        if not target.is_local and _TRACKERS in target.names():
            (folder / _TRACKERS).write_bytes(target.child(_TRACKERS).read_bytes())
        trackers = open_trackers(
            config.tracking.kinds,
            experiment=config.tracking.experiment,
            run=config.output.rstrip("/").rsplit("/", 1)[-1],
            folder=folder,
            settings=config.model_dump(mode="json"),
            first_step=first_step,
        )
        try:
            yield trackers
        except BaseException:
            trackers.close({}, failed=True)
            raise
        finally:
            if not target.is_local:
                upload(folder, target)
