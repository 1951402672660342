"""Sequences of all lengths as batches of few shapes: sorted by length a window at a time, and put in order again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from t5x_lite.data.packing import Convert, fill

T = TypeVar("T")

# Batches whose items are read together and sorted by length. More waste less padding; what is computed of a window
# when a command is killed is computed again.
_BATCHES = 16


def bucket(length: int, least: int = 16) -> int:
    """The padded length of a sequence: 16, 32, 48, 64, 96, 128, 192, ... so that few programs are compiled.

    From 32 on at most a third of it is padding.
    """
    power = max(least, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 2 * least and length <= power * 3 // 4 else power


def batches(
    items: Iterable[T], size_of: Callable[[T], tuple[int, ...]], rows: int, done: int = 0
) -> Iterator[list[tuple[int, T]]]:
    """Batches of items that are alike in length, each item with its number.

    The items of a window go into batches by length, so that what is in a batch depends on the items and `rows` alone:
    a command that goes on computes the same batches.

    Args:
      items: all of them, from number 0.
      size_of: the lengths of an item, the most costly first.
      rows: of a batch; the last of a window may have fewer.
      done: items before this number need not be in a batch: where none of a batch does, it is left out.

    Yields:
      Lists of (number, item), those with the smallest number first, window after window.
    """
    size = rows * _BATCHES
    start = done // size * size
    items = islice(items, start, None)
    while window := list(islice(items, size)):
        # By padded length, then as they came: items of one length stay in order, and leave as soon as they are done.
        order = sorted(range(len(window)), key=lambda place: tuple(map(bucket, size_of(window[place]))))
        groups = (order[first : first + rows] for first in range(0, len(order), rows))
        for group in sorted(groups, key=min):
            if start + max(group) >= done:
                yield [(start + place, window[place]) for place in group]
        start += len(window)


def in_order(answers: Iterable[tuple[int, T]], first: int = 0) -> Iterator[T]:
    """Answers by their number, from `first` on, each as soon as all before it are there."""
    waiting: dict[int, T] = {}
    for number, answer in answers:
        waiting[number] = answer
        while first in waiting:
            yield waiting.pop(first)
            first += 1


def inputs_batch(sequences: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """int32 [rows, L] of input ids, padded with 0 to a bucketed length; rows without a sequence are empty."""
    length = bucket(max(map(len, sequences)))
    batch = np.zeros((rows, length), np.int32)
    for row, sequence in enumerate(sequences):
        batch[row, : len(sequence)] = sequence
    return batch


def pairs_batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int, convert: Convert
) -> dict[str, np.ndarray]:
    """The model's features (by `convert`) for (input ids, target ids), a pair a row, padded as `inputs_batch`."""
    lengths = {
        "inputs": bucket(max(len(inputs) for inputs, _ in pairs)),
        "targets": bucket(max(len(targets) for _, targets in pairs)),
    }
    examples = [[{"inputs": np.asarray(i, np.int32), "targets": np.asarray(t, np.int32)}] for i, t in pairs]
    return convert(fill(examples + [[]] * (rows - len(examples)), lengths), False)


def until_end(ids: np.ndarray, eos: int) -> list[int]:
    """Decoded ids up to the end token, without it."""
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0] if len(ends) else None].tolist()
