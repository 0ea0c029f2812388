"""A process's way to Ray's metrics: counters at once, gauges again and again until their run ends.

Ray drops a gauge that nobody sets for two of its report intervals (20 seconds), so a thread goes on while nothing happens.
Without Ray nothing happens, and without a metrics agent nobody listens. Numbers are a convenience: where Ray refuses one, they
are switched off with one warning, and the stage goes on.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from wildreward_ray.cluster.run_log import is_running

logger = logging.getLogger(__name__)

REFRESH_S = 5.0
COMMON_LABELS = ("stage", "run")


@dataclass(frozen=True)
class Metric:
    """A metric as Ray is told of it. `labels` come after `stage` and `run`, which all have."""

    kind: Literal["Counter", "Gauge"]
    name: str
    description: str
    labels: tuple[str, ...] = ()


class Channel:
    """A process's way to Ray's metrics. Any thread may use it.

    Args:
        make: gives the object that a metric is handed to, with `inc` or `set`.
        is_up: whether there is a Ray to hand anything to.
        every_s: pause before gauges are set again.
    """

    def __init__(self, make: Callable[[Metric], Any], is_up: Callable[[], bool], every_s: float = REFRESH_S) -> None:
        self._make, self._is_up, self._every_s = make, is_up, every_s
        self._made: dict[Metric, Any] = {}
        self._held: dict[tuple[Metric, frozenset[tuple[str, str]]], tuple[float, str]] = {}
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._broken = False

    def add(self, metric: Metric, amount: float, tags: dict[str, str]) -> None:
        """Add to a counter, at once."""
        self._hand(metric, "inc", amount, tags)

    def set(self, metric: Metric, value: float | None, tags: dict[str, str], run: str) -> None:
        """Set a gauge, at once and again and again until `run` ends in this process; None: no longer."""
        key = metric, frozenset(tags.items())
        with self._lock:
            self._held.pop(key, None)
            if value is None:
                return
            if is_running(run) and self._is_up():
                self._held[key] = value, run
                self._keep_on()
        self._hand(metric, "set", value, tags)

    def refresh(self) -> bool:
        """Set again what runs of this process have set. Returns whether there was any."""
        with self._lock:
            self._held = {key: kept for key, kept in self._held.items() if is_running(kept[1])}
            held = dict(self._held)
        for (metric, tags), (value, _) in held.items():
            self._hand(metric, "set", value, dict(tags))
        return bool(held)

    def _hand(self, metric: Metric, how: Literal["inc", "set"], value: float, tags: dict[str, str]) -> None:
        with self._lock:
            if self._broken or not self._is_up():
                return
            try:
                if metric not in self._made:
                    self._made[metric] = self._make(metric)
                getattr(self._made[metric], how)(float(value), tags=tags)
            except Exception as e:
                self._broken = True
                logger.warning("metrics are switched off, the run goes on: %s: %s", metric.name, e)

    def _keep_on(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._every_s)
            with self._lock:
                if not self.refresh():
                    self._thread = None
                    return


def ray_metric(metric: Metric) -> Any:
    """The metric in Ray's terms."""
    from ray.util import metrics

    return getattr(metrics, metric.kind)(
        metric.name, description=metric.description, tag_keys=(*COMMON_LABELS, *metric.labels)
    )


def ray_is_up() -> bool:
    """Whether this process has joined a Ray."""
    # A process that has not imported Ray runs none: importing it takes seconds.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
