"""Ends a run in which nothing moves any more, and shows where each thread stands."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from t5x_lite.errors import RunError
from t5x_lite.parallel import hosts

# Seconds: for the other hosts to show their stacks too, and for a file system to say what is safe.
_OTHERS, _ANSWER = 5, 20


class Watchdog:
    """Ends the process where `seconds` pass between two calls of `moved`.

    Hosts that wait for each other hang together: each shows its own threads before the first one ends and takes the
    others with it.

    Args:
      seconds: see above; 0: watches nothing.
      safe: says what of the run can be relied on.
    """

    def __init__(self, seconds: float, safe: Callable[[], str]):
        self._seconds, self._safe = seconds, safe
        self._doing, self._quiet = "the first step is under way", 0.0
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def moved(self, doing: str) -> None:
        """Says that something is done, and what comes next."""
        self._doing, self._quiet = doing, 0.0

    def _watch(self) -> None:
        period = min(1.0, self._seconds / 4)
        before = time.monotonic()
        while not self._ended.wait(period):
            now = time.monotonic()
            # A process that was stopped from outside has missed nothing.
            self._quiet += min(now - before, 2 * period)
            before = now
            if self._quiet >= self._seconds:
                self._end()

    def _end(self) -> None:
        doing, sink = self._doing, sys.__stderr__
        print(f"t5x_lite: {hosts.host_words()}nothing has moved for {self._seconds} s; its threads:", file=sink)
        faulthandler.dump_traceback(sink, all_threads=True)
        faulthandler.dump_traceback_later(_OTHERS + _ANSWER, exit=True, file=sink)
        if hosts.count() > 1:
            time.sleep(_OTHERS)
        error = RunError(
            f"{hosts.host_words()}nothing has moved for {self._seconds} s: {doing}",
            self._safe(),
            "look at the threads above for what it waits for, and start the same command again, on all hosts; where "
            "that just takes long, raise --gin.HANG_TIMEOUT",
        )
        print(f"t5x_lite: error: {error}", file=sink, flush=True)
        os._exit(error.exit_code)
