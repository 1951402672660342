"""Segments and their noise to inputs or targets, named as in `t5.data.preprocessors`
(google-research/text-to-text-transfer-transformer).

Each takes rows [rows, longest], their noise mask of the same shape, the ids of the vocabulary and a random generator,
and returns what is left of every row.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from t5x_lite.tasks.objectives.ragged import Ragged, Rows, kept

# Padding, end of sequence and unknown, which a random token is never drawn from.
_RESERVED = 3


class Ids(NamedTuple):
    """What an objective needs to know of a vocabulary.

    Args:
      size: number of ids. The sentinels are the last ones, counted down from size - 1.
      sentinels: how many there are.
      eos: the end of sequence.
      encode: text -> ids, without an end of sequence; of the empty text none.
    """

    size: int
    sentinels: int
    eos: int
    encode: Callable[[str], Sequence[int]]

    @property
    def first_sentinel(self) -> int:
        return self.size - 1


def noise_span_to_unique_sentinel(rows: Rows, noise: np.ndarray, ids: Ids, rng=None) -> Ragged:
    """The k-th run of noise, from 0, becomes the k-th sentinel."""
    first, later = _runs(noise & rows.inside)
    tokens = np.where(first, ids.first_sentinel + 1 - np.cumsum(first, axis=1, dtype=np.int32), rows.tokens)
    return kept(tokens, rows.inside & ~later)


def nonnoise_span_to_unique_sentinel(rows: Rows, noise: np.ndarray, ids: Ids, rng=None) -> Ragged:
    """The k-th run of what is no noise, from 0, becomes the k-th sentinel."""
    return noise_span_to_unique_sentinel(rows, ~noise, ids)


def noise_span_to_sentinel(rows: Rows, noise: np.ndarray, ids: Ids, rng=None) -> Ragged:
    """Each run of noise becomes the first sentinel."""
    first, later = _runs(noise & rows.inside)
    return kept(np.where(first, np.int32(ids.first_sentinel), rows.tokens), rows.inside & ~later)


def nonnoise_span_to_sentinel(rows: Rows, noise: np.ndarray, ids: Ids, rng=None) -> Ragged:
    """Each run of what is no noise becomes the first sentinel."""
    return noise_span_to_sentinel(rows, ~noise, ids)


def noise_token_to_sentinel(rows: Rows, noise: np.ndarray, ids: Ids, rng=None) -> Ragged:
    """Each noise token becomes the first sentinel."""
    return kept(np.where(noise, np.int32(ids.first_sentinel), rows.tokens), rows.inside)


def noise_token_to_gathered_token(rows: Rows, noise: np.ndarray, ids: Ids | None, rng: np.random.Generator) -> Ragged:
    """Each noise token becomes a token of its own row, whichever, itself included: all places are equally likely."""
    lengths = rows.inside.sum(axis=1, keepdims=True)
    places = rng.integers(np.maximum(lengths, 1), size=rows.tokens.shape)
    return kept(np.where(noise, np.take_along_axis(rows.tokens, places, axis=1), rows.tokens), rows.inside)


def noise_token_to_random_token(rows: Rows, noise: np.ndarray, ids: Ids, rng: np.random.Generator) -> Ragged:
    """Each noise token becomes a random id, of those from 3 on all equally likely, sentinels included."""
    return kept(np.where(noise, _random_ids(rows, ids, rng), rows.tokens), rows.inside)


def noise_token_to_random_token_or_sentinel(
    rows: Rows, noise: np.ndarray, ids: Ids, rng: np.random.Generator, random_probability: float = 0.1
) -> Ragged:
    """Each noise token becomes a random id with a probability, the first sentinel otherwise."""
    drawn = _random_ids(rows, ids, rng)
    random = rng.random(rows.tokens.shape, np.float32) < random_probability
    return kept(np.where(noise, np.where(random, drawn, ids.first_sentinel), rows.tokens), rows.inside)


def drop_noise_tokens(rows: Rows, noise: np.ndarray, ids: Ids | None = None, rng=None) -> Ragged:
    """What is no noise."""
    return kept(rows.tokens, rows.inside & ~noise)


def drop_nonnoise_tokens(rows: Rows, noise: np.ndarray, ids: Ids | None = None, rng=None) -> Ragged:
    """The noise alone."""
    return kept(rows.tokens, rows.inside & noise)


def permute_noise_tokens(rows: Rows, noise: np.ndarray, ids: Ids | None, rng: np.random.Generator) -> Ragged:
    """The noise tokens of each row in random order, the others where they are."""
    noise = noise & rows.inside
    keys = np.where(noise, rng.random(noise.shape), 2.0)
    count = noise.sum(axis=1)
    order = np.argsort(keys, axis=1)  # columns of the noise in random order, the other columns behind them
    tokens = rows.tokens.copy()
    tokens[noise] = np.take_along_axis(rows.tokens, order, axis=1)[np.arange(noise.shape[1]) < count[:, None]]
    return kept(tokens, rows.inside)


def all_tokens(rows: Rows, noise: np.ndarray, ids: Ids | None = None, rng=None) -> Ragged:
    """The segment as it was."""
    return kept(rows.tokens, rows.inside)


def _random_ids(rows: Rows, ids: Ids, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(_RESERVED, ids.size, rows.tokens.shape, np.int32)


def _runs(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first tokens of runs of noise, the other tokens of the runs)."""
    before = np.zeros_like(noise)
    before[:, 1:] = noise[:, :-1]
    return noise & ~before, noise & before
