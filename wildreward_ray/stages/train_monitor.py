"""What the driver sees of training: workers report steps and evaluations, the driver prints a line and feeds the trackers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wildreward_ray.cluster.run_log import say
from wildreward_ray.cluster.telemetry import telemetry_of
from wildreward_ray.cluster.tracking import Trackers
from wildreward_ray.cluster.waiting import watching
from wildreward_ray.core.errors import RunStoppedError, UserError

_PRINT_S, _POLL_S = 10.0, 1.0


@ray.remote(num_cpus=0)
class _Mailbox:
    """Keeps what workers report until the driver fetches it."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, dict[str, Any]]] = []
        self._error: UserError | None = None
        self._stopping = False

    def post(self, kind: str, letter: dict[str, Any]) -> bool:
        """Keep a letter. Returns whether the run is to stop."""
        self._letters.append((kind, letter))
        return self._stopping

    def stop(self) -> None:
        self._stopping = True

    def fail(self, error: UserError) -> None:
        self._error = self._error or error

    def fetch(self) -> tuple[list[tuple[str, dict[str, Any]]], UserError | None]:
        letters, self._letters = self._letters, []
        return letters, self._error


class TrainMonitor:
    """A context in which `mailbox` may be handed to workers.

    When no worker reports anything for long, a line says what waits for what (see `waiting.watching`).
    A run that goes on from a checkpoint does some steps again, which come out as before: they are reported once.

    Args:
        trackers: where curves go.

    Attributes:
        mailbox: takes what workers report, by `post` and `fail`.
        starts: how often the workers began or went on.
    """

    def __init__(self, trackers: Trackers) -> None:
        self._trackers, self._telemetry = trackers, telemetry_of("train")
        self._end, self._stopping = threading.Event(), threading.Event()
        self._left: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True, name="train-monitor")
        # Beside the driver: a node that is lost must not take the reports, and with them the error, along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox: Any = _Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self._seen = {"step": 0, "eval": 0}
        self._latest: dict[str, Any] = {}
        self._first: tuple[int, float] | None = None
        self._error: UserError | None = None
        self._heard = 0
        self._silence = watching("train", lambda: self._heard)
        self.starts = 0

    def __enter__(self) -> TrainMonitor:
        self._begin = self._printed = time.monotonic()
        self._silence.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        try:
            self._fetch()
            if self._latest:
                self._print(", done" if error is None and self._error is None else ", stopped")
            ray.kill(self.mailbox)
        finally:
            self._silence.__exit__(kind, error, trace)

    def stop(self) -> None:
        """Ask the workers to make a checkpoint after the step at hand and to leave; for a signal's handler.

        Raises:
            RunStoppedError: none has ever begun, so there is nothing to wait for.
        """
        if not self.starts:
            raise RunStoppedError("stopped before training began; the same command begins it")
        # Not from here: the main thread may be in a call to Ray already.
        self._stopping.set()

    def raise_failure(self) -> None:
        """Raise what a worker found to be the user's to mend, or that the workers left when they were asked to.

        Raises:
            UserError: as the worker raised it.
            RunStoppedError: a checkpoint has been written.
        """
        self._fetch()
        if self._error is not None:
            raise self._error
        if self._left is not None:
            raise RunStoppedError(
                f"stopped after step {self._left['step']} of {self._left['total']}; the same command goes on from there"
            )

    def _watch(self) -> None:
        told = False
        while not self._end.wait(_POLL_S):
            if self._stopping.is_set() and not told:
                self.mailbox.stop.remote()
                told = True
            self._fetch()
            if self._latest and time.monotonic() - self._printed >= _PRINT_S:
                self._print()

    def _fetch(self) -> None:
        letters, self._error = ray.get(self.mailbox.fetch.remote())
        self._heard += len(letters)
        for kind, letter in letters:
            if kind == "start":
                self._started(letter)
            elif kind == "left":
                self._left = letter
            elif kind == "lost":
                self._telemetry.train_worker_failed()
                text = f"worker {letter['rank']} failed: {letter['reason']}"
                say("train", text, event="worker_failed", level="warning", **letter)
            elif letter["step"] > self._seen[kind]:
                self._seen[kind] = letter["step"]
                self._log(kind, letter)

    def _started(self, letter: Mapping[str, Any]) -> None:
        self.starts += 1
        self._seen = {kind: max(seen, letter["done"]) for kind, seen in self._seen.items()}
        self._first = None
        where = f", going on after step {letter['done']}" if letter["done"] else ""
        say("train", f"{_workers(letter)}, {letter['total']} steps{where}", event="workers_started", **letter)

    def _log(self, kind: str, letter: dict[str, Any]) -> None:
        if kind == "step":
            self._latest = letter
            self._telemetry.train_step(letter)
            self._first = self._first or (letter["step"], time.monotonic())
            values = {name: letter[name] for name in ("loss", "learning_rate", "grad_norm", "epoch", "workers")}
            values["tokens_per_s"] = letter["tokens"] / letter["seconds"]
            self._trackers.log(letter["step"], {f"train/{name}": value for name, value in values.items()})
        else:
            numbers = {name: value for name, value in letter.items() if name != "step" and value is not None}
            self._trackers.log(letter["step"], {f"held_out/{name}": value for name, value in numbers.items()})

    def _print(self, end: str = "") -> None:
        self._printed = time.monotonic()
        step, total = self._latest["step"], self._latest["total"]
        rate = self._latest["tokens"] / self._latest["seconds"]
        line = f"step {step:,}/{total:,}, loss {self._latest['loss']:.4f}, {rate:,.0f} tokens/s"
        line += f", {_workers(self._latest)}, {self._printed - self._begin:.0f} s"
        # Letters come in bundles: of one alone the pace can't be told.
        if not end and self._first is not None and self._printed - self._first[1] > _POLL_S:
            pace = (self._printed - self._first[1]) / (step - self._first[0])
            line += f", about {pace * (total - step):.0f} s left"
        say("train", line + end, event=end.removeprefix(", ") or "progress", **self._latest)


def _workers(letter: Mapping[str, Any]) -> str:
    return f"{letter['workers']} worker{'' if letter['workers'] == 1 else 's'}"
