"""When each part of a run worked, to tell how much of a step it was idle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Busy:
    """The time in which a part had at least one thing to do."""

    def __init__(self) -> None:
        self._done: list[tuple[float, float]] = []
        self._since = 0.0
        self._at_work = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The part works while the context is open; contexts may overlap."""
        if not self._at_work:
            self._since = time.monotonic()
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._done.append((self._since, time.monotonic()))

    def seconds(self, begin: float, end: float) -> float:
        """Seconds at work between two readings of `time.monotonic`. What lies before `begin` is forgotten."""
        self._done = [(start, stop) for start, stop in self._done if stop > begin]
        spans = [*self._done, (self._since, end)] if self._at_work else self._done
        return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in spans)

    def idle(self, begin: float, end: float) -> float:
        """Share of the time between `begin` and `end` in which the part had nothing to do, in 0..1."""
        return 1 - self.seconds(begin, end) / (end - begin) if end > begin else 0.0
