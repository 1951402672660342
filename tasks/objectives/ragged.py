"""Rows of different lengths, one after the other in one array."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ragged(NamedTuple):
    """Args:
    values: [n] int32, the tokens of all rows.
    lengths: [rows] int64, the tokens of each row.
    """

    values: np.ndarray
    lengths: np.ndarray


class Rows(NamedTuple):
    """Rows filled up to a rectangle.

    Args:
      tokens: [rows, longest] int32.
      inside: [rows, longest] bool, False past the end of a row.
    """

    tokens: np.ndarray
    inside: np.ndarray


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Lists of tokens as a Ragged."""
    lengths = np.array([len(row) for row in rows], np.int64)
    return Ragged(np.concatenate([np.asarray(row, np.int32) for row in rows] or [np.zeros(0, np.int32)]), lengths)


def split(rows: Ragged) -> list[np.ndarray]:
    """The rows, as views."""
    return np.split(rows.values, np.cumsum(rows.lengths)[:-1]) if len(rows.lengths) else []


def filled(rows: Ragged) -> Rows:
    """A Ragged as a rectangle."""
    inside = np.arange(rows.lengths.max(initial=0)) < rows.lengths[:, None]
    tokens = np.zeros(inside.shape, np.int32)
    tokens[inside] = rows.values
    return Rows(tokens, inside)


def kept(tokens: np.ndarray, keep: np.ndarray) -> Ragged:
    """The tokens of a rectangle that are to be kept, row by row. [rows, n], [rows, n] bool"""
    return Ragged(tokens[keep], keep.sum(axis=1))


def trimmed(rows: Ragged, length: int) -> Ragged:
    """Rows without what goes beyond a length."""
    if not rows.lengths.size or rows.lengths.max() <= length:
        return rows
    return kept(*_cut(rows, length))


def _cut(rows: Ragged, length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, inside = filled(rows)
    return tokens[:, :length], inside[:, :length]


def padded(rows: Ragged, length: int) -> np.ndarray:
    """Rows as [rows, length] int32: cut to a length, or filled up to it with zeros."""
    tokens = filled(trimmed(rows, length)).tokens
    return np.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))


def closed(rows: Ragged, eos: int) -> Ragged:
    """Rows with an end of sequence behind each."""
    return Ragged(np.insert(rows.values, np.cumsum(rows.lengths), np.int32(eos)), rows.lengths + 1)


def opened(rows: Ragged, start: np.ndarray) -> Ragged:
    """Rows with the same tokens in front of each."""
    starts = np.repeat(np.cumsum(rows.lengths) - rows.lengths, len(start))
    values = np.insert(rows.values, starts, np.tile(start.astype(np.int32), len(rows.lengths)))
    return Ragged(values, rows.lengths + len(start))


def concatenated(many: Sequence[Ragged]) -> Ragged:
    """The rows of several, in order."""
    return Ragged(np.concatenate([r.values for r in many]), np.concatenate([r.lengths for r in many]))
