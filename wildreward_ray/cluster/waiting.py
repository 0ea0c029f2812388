"""A watch on a stage: when nothing has moved for a while, it says what waits for what, and lets the run go on.

Ray itself waits in silence for resources that never come. Ray Data ends a run after
`DataContext.execution_no_progress_timeout_s`; the error then carries what the watch said last.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wildreward_ray.cluster.diagnosis import Diagnosis
from wildreward_ray.cluster.run_log import say
from wildreward_ray.core.errors import UserError, WildRewardError

QUIET_S = "WILDREWARD_QUIET_S"
_DEFAULT_S, _POLL_S = 300.0, 10.0


class Silence:
    """How long a count has stood still, and when that is worth a line: after `quiet_s`, twice, four times as long, and so on.

    Args:
        quiet_s: in seconds.
        now: time of the beginning, in seconds of any clock.
    """

    def __init__(self, quiet_s: float, now: float) -> None:
        self._quiet_s, self._since, self._next = quiet_s, now, quiet_s
        self._count: int | None = None

    def heard(self, count: int, now: float) -> float | None:
        """Seconds of silence where a line is due; else None."""
        if count != self._count:
            if self._count is not None:
                self._since, self._next = now, self._quiet_s
            self._count = count
        quiet = now - self._since
        if quiet < self._next:
            return None
        while self._next <= quiet:  # a look that took long must not bring two lines in a row
            self._next *= 2
        return quiet


@contextmanager
def watching(
    stage: str,
    progress: Callable[[], int],
    *,
    quiet_s: float | None = None,
    diagnose: Callable[[], str] | None = None,
) -> Iterator[None]:
    """Watch a count for the length of a context, and print to stderr what waits for what whenever it stands still for long.

    Args:
        stage: name for the lines.
        progress: a count that moves with the work; asked every few seconds in a thread of its own. It must not raise.
        quiet_s: silence before the first line, in seconds; None: what `WILDREWARD_QUIET_S` says, or else 300.
        diagnose: says what waits for what; None: asks the Ray cluster.

    Raises:
        UserError: `WILDREWARD_QUIET_S` is no length of time.
        WildRewardError: Ray Data ended the run because nothing moved; says what waited for what.
    """
    watch = _Watch(stage, progress, _quiet_s() if quiet_s is None else quiet_s, diagnose or Diagnosis())
    watch.start()
    try:
        yield
    except Exception as e:
        if _ended_for_silence(e):
            watch.stop()
            what, _, _ = str(e).partition(". ")
            raise WildRewardError(f"{stage}: {what}; {watch.last or watch.diagnose()}") from e
        raise
    finally:
        watch.stop()


class _Watch:
    def __init__(self, stage: str, progress: Callable[[], int], quiet_s: float, diagnose: Callable[[], str]) -> None:
        self._stage, self._progress, self.diagnose = stage, progress, diagnose
        self._silence = Silence(quiet_s, time.monotonic())
        self._poll_s = min(_POLL_S, quiet_s / 4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"watch-{stage}")
        self.last: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            quiet = self._silence.heard(self._progress(), time.monotonic())
            if quiet is None:
                continue
            self.last = self.diagnose()
            if not self._stop.is_set():
                text = f"nothing has moved for {quiet:.0f} s: {self.last}"
                say(self._stage, text, event="quiet", level="warning", seconds=quiet, diagnosis=self.last)


def _quiet_s() -> float:
    text = os.environ.get(QUIET_S)
    if not text:
        return _DEFAULT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(
            f"the environment variable {QUIET_S} is {text!r}: it is how many seconds of silence a diagnosis waits for",
            hint="set it to a number above 0",
        )
    return seconds


def _ended_for_silence(error: Exception) -> bool:
    from ray.data.exceptions import ExecutionTimeoutError

    return isinstance(error, ExecutionTimeoutError)
