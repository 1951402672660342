"""Token sequences that come one by one, as padded batches of few different shapes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from t5x_lite.data.packing import encoder_decoder, fill


def bucket(length: int, least: int = 16) -> int:
    """The padded length of a sequence: the next power of two, so that few programs are compiled."""
    return max(least, 1 << (length - 1).bit_length())


def grouped(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items in order, the last one shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def inputs_batch(sequences: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """int32 [rows, L] of input ids, padded with 0 to a bucketed length and with empty rows."""
    length = bucket(max(map(len, sequences)))
    batch = np.zeros((rows, length), np.int32)
    for row, sequence in enumerate(sequences):
        batch[row, : len(sequence)] = sequence
    return batch


def pairs_batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int) -> dict[str, np.ndarray]:
    """The model's features for (input ids, target ids), a pair a row, padded as `inputs_batch`."""
    lengths = {
        "inputs": bucket(max(len(inputs) for inputs, _ in pairs)),
        "targets": bucket(max(len(targets) for _, targets in pairs)),
    }
    examples = [[{"inputs": np.asarray(i, np.int32), "targets": np.asarray(t, np.int32)}] for i, t in pairs]
    return encoder_decoder(fill(examples + [[]] * (rows - len(examples)), lengths), packed=False)
