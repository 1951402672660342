"""How far a verb is with many items: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from t5x_lite.train.metrics import duration, progress_bar, say

T = TypeVar("T")

# Seconds between two lines.
PERIOD = 10.0


def watched(
    items: Iterable[T], done: int, total: int | None, noun: str, check: Callable[[], None], bar: bool = True
) -> Iterator[T]:
    """The items, while stderr shows how many there were, how many a second and how long the rest takes.

    Args:
      items: those still to come.
      done: how many there were before.
      total: with those before; None: unknown.
      noun: what they are, in the plural.
      check: is called after each.
      bar: False shows lines on a terminal too, as where it shows the items themselves.
    """
    bar = bar and sys.stderr.isatty()
    began = said = time.monotonic()
    with progress_bar(done, total, noun, shown=bar) as advance:
        for count, item in enumerate(items, start=1):
            yield item
            advance()
            check()
            now = time.monotonic()
            if not bar and now - said >= PERIOD and done + count != total:
                said = now
                say(line(done, count, total, noun, now - began))


def line(done: int, count: int, total: int | None, noun: str, seconds: float) -> str:
    """For example `1,024 of 9,824 inputs  35.2 inputs/s  ETA 4 min 10 s`.

    Args:
      done: how many there were before.
      count: how many have come since.
      total: of all; None: unknown.
      noun: what they are.
      seconds: since the first was waited for.
    """
    now = done + count
    parts = [f"{now:,} {noun}" if total is None else f"{now:,} of {total:,} {noun}", f"{count / seconds:,.1f} {noun}/s"]
    # The first ones waited for a compiler: they say nothing of the others.
    if total is not None and 20 * count >= total - done:
        parts.append(f"ETA {duration((total - now) * seconds / count)}")
    return "  ".join(parts)


def counted(count: int, noun: str) -> str:
    """`1 input` or `1,024 inputs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
