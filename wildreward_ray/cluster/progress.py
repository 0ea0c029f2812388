"""How far a distributed stage has come: actors report counts, the driver prints rate and time left."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wildreward_ray.cluster.run_log import say
from wildreward_ray.cluster.telemetry import telemetry_of
from wildreward_ray.cluster.waiting import watching

_INTERVAL_S = 10.0


@ray.remote(num_cpus=0)
class _Counter:
    """Counts what all actors of a stage have done."""

    def __init__(self) -> None:
        self._done = 0

    def add(self, amount: int) -> None:
        self._done += amount

    def done(self) -> int:
        return self._done


class Progress:
    """A context in which `counter` may be handed to actors and a line is printed every few seconds.

    When the count stands still for long, another line says what waits for what (see `waiting.watching`).

    Args:
        stage: name for the line.
        unit: what is counted.
        total: how many there are, where it is known; then the line has an ETA.
    """

    def __init__(self, stage: str, unit: str, total: int | None = None) -> None:
        self._stage, self._unit, self._total = stage, unit, total
        self._telemetry = telemetry_of(stage)
        self._done = 0
        self._watch = watching(stage, lambda: self._done)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True, name=f"progress-{stage}")
        # Beside the driver: a node that is lost must not take the count, and with it the stage, along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.counter: Any = _Counter.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._watch.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if error is None:
                self._print(ray.get(self.counter.done.remote()), final=True)
            ray.kill(self.counter)
        finally:
            self._watch.__exit__(kind, error, trace)  # last: it may raise an error that says more

    def _report(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._done = ray.get(self.counter.done.remote())
            self._print(self._done, final=False)

    def _print(self, done: int, *, final: bool) -> None:
        seconds = time.monotonic() - self._start
        rate = done / seconds if seconds > 0 else 0.0
        line = f"{done:,} {self._unit}, {rate:.1f}/s, {seconds:.0f} s"
        if self._total and not final and rate > 0:
            line += f", about {max(self._total - done, 0) / rate:.0f} s left of {self._total:,}"
        self._telemetry.progress(self._unit, None if final else done, self._total)
        fields: dict[str, Any] = {
            "done": done,
            "total": self._total,
            "unit": self._unit,
            "per_s": rate,
            "seconds": seconds,
        }
        say(self._stage, line + (", done" if final else ""), event="done" if final else "progress", **fields)
