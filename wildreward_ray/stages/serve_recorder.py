"""Numbers on their way to Ray's metrics: added up in plain Python, handed over once a second by a thread.

A call into Ray's metrics costs more than all that a small request needs here; and Ray drops a gauge that nobody sets for 20
seconds, so the thread goes on while nothing happens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Metric:
    """What Ray is told of a metric once. Equal only to itself: it is looked up several times a request."""

    kind: Literal["Counter", "Gauge", "Histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


Labels = tuple[str, ...]
Make = Callable[[Metric], Any]


def ray_metric(metric: Metric) -> Any:
    """The metric in Ray's terms; in a Serve replica it carries the replica's labels."""
    from ray.serve import metrics

    kind = getattr(metrics, metric.kind)
    more = {"boundaries": list(metric.boundaries)} if metric.boundaries else {}
    return kind(metric.name, description=metric.description, tag_keys=metric.labels, **more)


class Recorder:
    """Adds up in plain Python and hands the sums to Ray when told to. Any thread may call it.

    Args:
        make: gives the object that a metric is handed to, with `inc`, `set` or `observe`.
    """

    def __init__(self, make: Make = ray_metric) -> None:
        self._make = make
        self._made: dict[Metric, Any] = {}
        self._lock = threading.Lock()
        self._counts: dict[tuple[Metric, Labels], float] = {}
        self._values: dict[tuple[Metric, Labels], list[float]] = {}

    def add(self, metric: Metric, amount: float = 1, labels: Labels = ()) -> None:
        """Add to a counter. Zero leaves it alone, as Ray takes no zero."""
        if amount:
            key = metric, labels
            with self._lock:
                self._counts[key] = self._counts.get(key, 0) + amount

    def observe(self, metric: Metric, values: Iterable[float], labels: Labels = ()) -> None:
        """Add values to a histogram."""
        with self._lock:
            self._values.setdefault((metric, labels), []).extend(values)

    def set(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        """Set a gauge, at once."""
        self._of(metric).set(float(value), tags=dict(zip(metric.labels, labels, strict=True)))

    def flush(self) -> None:
        """Hand what has come together to Ray."""
        with self._lock:
            counts, self._counts = self._counts, {}
            values, self._values = self._values, {}
        for (metric, labels), amount in counts.items():
            self._of(metric).inc(float(amount), tags=dict(zip(metric.labels, labels, strict=True)))
        for (metric, labels), observed in values.items():
            histogram, tags = self._of(metric), dict(zip(metric.labels, labels, strict=True))
            for value in observed:
                histogram.observe(value, tags=tags)

    def _of(self, metric: Metric) -> Any:
        if metric not in self._made:
            self._made[metric] = self._make(metric)
        return self._made[metric]


class Ticker:
    """Calls a function every so many seconds in a thread of its own, and once more at the end.

    What the function raises is logged, and the next call is made all the same.
    """

    def __init__(self, call: Callable[[], None], every_s: float) -> None:
        self._call, self._every_s = call, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Make the last call and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._every_s)
            try:
                self._call()
            except Exception:
                logger.exception("metrics could not be handed to Ray")
