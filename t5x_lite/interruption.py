"""SIGTERM as an exception, for verbs that can be run again: they keep what they have written, or take it away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from t5x_lite.errors import Preempted
from t5x_lite.train.metrics import say


@contextlib.contextmanager
def preemptible(state: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Within the context SIGTERM raises Preempted where it arrives, as Ctrl-C raises KeyboardInterrupt.

    Args:
      state: says what is safe and how to go on.

    Yields:
      A function that raises Preempted where the first one was swallowed, as by a callback out of C; to be called now
      and then.
    """
    seen = []

    def end(number, frame):
        seen.append(number)
        raise Preempted(f"stopped by SIGTERM: {state()}")

    def check() -> None:
        if seen:
            raise Preempted(f"stopped by SIGTERM: {state()}")

    if threading.current_thread() is not threading.main_thread():
        yield check  # a thread is sent no signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield check
    except KeyboardInterrupt:
        say(f"t5x_lite: {state()}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within the context SIGTERM and Ctrl-C do nothing: for what is soon done and must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
