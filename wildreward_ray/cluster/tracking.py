"""Experiment trackers: the curves of a run in TensorBoard, MLflow or Weights & Biases, beside the files of the run itself.

A tracker is a convenience. One that can't be opened is an error, as the user asked for it; one that fails later is named in
a warning and switched off, and training goes on. MLflow and W&B are fed from a thread of their own: a server that doesn't
answer keeps its client waiting for many minutes, and a worker that waits holds up all the others in their next collective.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from wildreward_ray.cluster.trackers import Mlflow, Opening, TensorBoard, Tracker, WandB
from wildreward_ray.core.errors import UserError, nearest

logger = logging.getLogger(__name__)

_FLAG = "--tracking.kinds"
_CLOSE_S = 120.0
_MESSAGE = 400


class Trackers:
    """Several trackers as one. A tracker that fails raises in neither `log` nor `close`; None, NaN and infinity are left out."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers at an optimizer step, e.g. `{"loss": 0.41, "eval/mae": 0.7}`."""
        known = _finite(values)
        if known:
            for tracker in self._trackers:
                tracker.log(step, known)

    def close(self, summary: Mapping[str, float | None], *, failed: bool = False) -> None:
        """Log the numbers the run ended with as `final/NAME` and wait, up to two minutes a tracker, until all is sent.

        Args:
            summary: numbers by name.
            failed: list the run as failed, in the trackers that tell.
        """
        for tracker in self._trackers:
            tracker.close(_finite(summary), failed=failed)


def open_trackers(
    kinds: Sequence[str],
    *,
    experiment: str,
    run: str,
    folder: Path,
    settings: Mapping[str, Any],
    first_step: int = 1,
) -> Trackers:
    """Open trackers for a run.

    TensorBoard writes its event files to `folder/tensorboard`. MLflow and W&B take server, key and mode from their own
    environment variables (`MLFLOW_TRACKING_URI`, `WANDB_API_KEY`, `WANDB_MODE`, ...); W&B keeps its files in `folder/wandb`.
    An MLflow server that can't be reached is an error only after MLflow's own retries, about four minutes unless
    `MLFLOW_HTTP_REQUEST_MAX_RETRIES` says otherwise.

    Args:
        kinds: any of tensorboard, mlflow and wandb; empty for none.
        experiment: MLflow experiment or W&B project.
        run: name of the run.
        folder: local directory; it is made where it is missing.
        settings: configuration of the run, nested as it likes. Credentials inside URLs are blotted out.
        first_step: first step that will be logged. Above 1 the run is a resumed one: TensorBoard hides what was logged from
            that step on, and the run that `folder/trackers.json` names is continued; without that file a new one begins.

    Raises:
        UserError: an unknown kind, a package that isn't installed, or a tracker that can't be opened.
    """
    wanted = list(dict.fromkeys(kinds))
    for kind in wanted:
        _check_installed(kind)
    folder.mkdir(parents=True, exist_ok=True)
    opening = Opening(experiment, run, folder, _flat(settings), first_step)
    trackers: list[_Guarded] = []
    for kind in wanted:
        try:
            trackers.append(_Guarded(kind, _OPENERS[kind](opening)))
        except Exception as error:
            Trackers(trackers).close({}, failed=True)
            raise UserError(
                f"tracker {kind} can't be opened: {_message(error)}", flag=_FLAG, hint=_HINTS.get(kind)
            ) from error
    # TensorBoard writes to the local disk by a thread it has itself.
    return Trackers([t if t.name == "tensorboard" else _Background(t) for t in trackers])


_OPENERS: dict[str, Callable[[Opening], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": WandB,
}
_HINTS = {
    "mlflow": "MLFLOW_TRACKING_URI names the server",
    "wandb": "log in with WANDB_API_KEY, or set WANDB_MODE=offline",
}


class _Guarded:
    """A tracker that is switched off, with one warning, when it fails."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self._tracker, self._on = name, tracker, True

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(f"at step {step}", partial(self._tracker.log, step, values))

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        self._attempt("at the end of the run", partial(self._tracker.close, summary, failed=failed))
        self._on = False

    def _attempt(self, when: str, action: Callable[[], None]) -> None:
        if not self._on:
            return
        try:
            action()
        except Exception as error:
            self._on = False
            logger.warning(
                "tracker %s failed %s and is switched off, the run goes on: %s", self.name, when, _message(error)
            )


class _Background:
    """A tracker that is fed by a thread, in order, so that nobody waits for it before the end."""

    def __init__(self, tracker: _Guarded) -> None:
        self._tracker = tracker
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker-{tracker.name}")
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._todo.put(partial(self._tracker.log, step, dict(values)))

    def close(self, summary: Mapping[str, float], *, failed: bool = False) -> None:
        self._todo.put(partial(self._tracker.close, dict(summary), failed=failed))
        self._todo.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            logger.warning("tracker %s has not taken all in %g s: its curves may be cut", self._tracker.name, _CLOSE_S)

    def _work(self) -> None:
        while (action := self._todo.get()) is not None:
            action()


def _check_installed(kind: str) -> None:
    if kind not in _OPENERS:
        raise UserError(f"unknown tracker {kind!r}", flag=_FLAG, hint=nearest(kind, _OPENERS))
    extra = "tensorboard" if kind == "tensorboard" else "wildreward-ray[tracking]"
    try:
        module = import_module(kind)
    except ImportError as error:
        problem = f"tracker {kind} needs a package that can't be imported: {_message(error)}"
        raise UserError(problem, flag=_FLAG, hint=f"pip install {extra}") from error
    # A folder of that name in the working directory, as W&B leaves behind, passes for a package without code.
    if module.__file__ is None:
        raise UserError(
            f"tracker {kind} needs a package that is not installed", flag=_FLAG, hint=f"pip install {extra}"
        )


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that are finite numbers: the others would be drawn as zero or refused, depending on the tracker."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; what isn't a number, text or None becomes text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, int | float)
            flat[f"{prefix}{name}"] = value if plain else _without_credentials(str(value))
    return flat


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {_without_credentials(' '.join(str(error).split()))[:_MESSAGE]}"


def _without_credentials(text: str) -> str:
    """`text` with the user part of URLs, which may hold a key, blotted out."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)
