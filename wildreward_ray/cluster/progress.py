"""How far a distributed stage has come: actors report counts, the driver prints rate and time left."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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

    Args:
        stage: name for the line.
        unit: what is counted.
        total: how many there are, where it is known; then the line has an ETA.
    """

    def __init__(self, stage: str, unit: str, total: int | None = None) -> None:
        self._stage, self._unit, self._total = stage, unit, total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True, name=f"progress-{stage}")
        # Beside the driver: a node that is lost must not take the count, and with it the stage, along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.counter: Any = _Counter.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._print(ray.get(self.counter.done.remote()), final=True)
        ray.kill(self.counter)

    def _report(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._print(ray.get(self.counter.done.remote()), final=False)

    def _print(self, done: int, *, final: bool) -> None:
        seconds = time.monotonic() - self._start
        rate = done / seconds if seconds > 0 else 0.0
        line = f"[{self._stage}] {done:,} {self._unit}, {rate:.1f}/s, {seconds:.0f} s"
        if self._total and not final and rate > 0:
            line += f", about {max(self._total - done, 0) / rate:.0f} s left of {self._total:,}"
        print(line + (", done" if final else ""), file=sys.stderr, flush=True)
