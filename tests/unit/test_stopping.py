"""The first signal asks a run to stop, the second one ends it, and nobody's handlers are lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from wildreward_ray.cluster.stopping import on_first_signal, sigterm_as_interrupt


@pytest.fixture
def outer() -> Iterator[list[int]]:
    """Signals that reach the handlers from before."""
    reached: list[int] = []
    names = (signal.SIGTERM, signal.SIGINT)
    earlier = {name: signal.signal(name, lambda number, _: reached.append(number)) for name in names}
    yield reached
    for name, handler in earlier.items():
        signal.signal(name, handler)


def _tell_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(30)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_does_what_it_does_elsewhere(name: signal.Signals, outer: list[int]) -> None:
    asked: list[str] = []
    with on_first_signal(lambda: asked.append("stop"), after="this step"):
        os.kill(os.getpid(), name)
        assert (asked, outer) == (["stop"], [])
        os.kill(os.getpid(), name)
    assert (asked, outer) == (["stop"], [name])


def test_outside_of_it_signals_go_where_they_went_before(outer: list[int]) -> None:
    with on_first_signal(lambda: pytest.fail("nobody asked"), after="this step"):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert outer == [signal.SIGTERM]


def test_what_the_asking_raises_ends_the_wait(outer: list[int]) -> None:
    def refuse() -> None:
        raise ValueError("nothing to wait for")

    with pytest.raises(ValueError, match="nothing"), on_first_signal(refuse, after="this step"):
        _tell_and_wait()


def test_an_event_loop_that_sleeps_is_woken(outer: list[int]) -> None:
    async def main() -> bool:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        with on_first_signal(lambda: loop.call_soon_threadsafe(stop.set), after="this step"):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return await asyncio.wait_for(stop.wait(), 30)

    assert asyncio.run(main())


def test_in_another_thread_nothing_changes(outer: list[int]) -> None:
    def body() -> None:
        with on_first_signal(lambda: pytest.fail("asked in another thread"), after="this step"):
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert outer == [signal.SIGTERM]


def test_sigterm_interrupts_as_ctrl_c_does(outer: list[int]) -> None:
    sigterm_as_interrupt()
    with pytest.raises(KeyboardInterrupt):
        _tell_and_wait()
