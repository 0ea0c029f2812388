"""What a run does when it is told to stop: the first signal lets it come to a point it can go on from, the second one ends it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
logger = logging.getLogger(__name__)


def sigterm_as_interrupt() -> None:
    """Let SIGTERM, with which `ray job stop` begins, do what Ctrl-C does: raise KeyboardInterrupt in the main thread.

    To be called after `ray.init`, which leaves a handler that prints a stack trace before it raises SystemExit.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def on_first_signal(stop: Callable[[], object], *, after: str) -> Iterator[None]:
    """A context in which the first SIGTERM or SIGINT calls `stop`; the second one does what it does elsewhere.

    Signals reach the main thread only: in any other one the context changes nothing.

    Args:
        stop: called in the main thread, between two of its bytecodes. What it raises is raised there.
        after: what the run still does, for the line that is logged.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {name: signal.getsignal(name) for name in _SIGNALS}

    def restore() -> None:
        for name, handler in earlier.items():
            signal.signal(name, handler)

    def first(number: int, frame: FrameType | None) -> None:
        restore()
        logger.warning("stopping after %s; once more to stop at once", after)
        stop()

    for name in _SIGNALS:
        signal.signal(name, first)
    try:
        yield
    finally:
        restore()
