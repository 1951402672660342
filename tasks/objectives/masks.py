"""Noise masks for whole groups of segments, with the probabilities of `t5.data.preprocessors`
(google-research/text-to-text-transfer-transformer).

Each takes the lengths of the segments, [rows] int64, and returns [rows, longest] bool: True for noise. What lies past
the end of a segment is arbitrary.
"""

import numpy as np

_BITS = 20  # for a position among random keys


def iid(lengths: np.ndarray, noise_density: float, rng: np.random.Generator) -> np.ndarray:
    """Every token by itself, with the same probability."""
    return rng.random((len(lengths), lengths.max(initial=0)), np.float32) < noise_density


def everything(lengths: np.ndarray) -> np.ndarray:
    """All tokens."""
    return np.ones((len(lengths), lengths.max(initial=0)), bool)


def prefix(lengths: np.ndarray, noise_density: float, rng: np.random.Generator) -> np.ndarray:
    """The first tokens, as many as are drawn uniformly between a least number and all but one.

    The least number is round((1 - 2 density) (n - 1)), and at least 1: of density 0.5 every prefix is equally likely,
    and of a density d what follows the prefix makes up the fraction d on average. A segment of one token is not cut:
    nothing of it is noise.

    Args:
      noise_density: at most 0.5.
    """
    drawn = rng.integers(least_prefix(lengths, noise_density), lengths)
    return np.arange(lengths.max(initial=0)) < drawn[:, None]


def least_prefix(lengths: np.ndarray, noise_density: float) -> np.ndarray:
    """The shortest prefix that `prefix` draws."""
    longest = np.asarray(lengths) - 1
    return np.minimum(longest, np.maximum(1, _rounded(np.float32(1 - 2 * noise_density) * longest.astype(np.float32))))


def regular(
    lengths: np.ndarray, noise_density: float, rng: np.random.Generator, min_span: int = 1, max_span: int = 5
) -> np.ndarray:
    """Spans of one length, all equally far apart: every round(span / density) tokens one begins.

    Each segment draws the length of its spans and the place of the first, both uniformly. Its first and last span may
    be cut.

    Args:
      noise_density: approximate; exact where span / density is a whole number.
      min_span: least length of a span, in tokens.
      max_span: greatest length.
    """
    span = rng.integers(min_span, max_span + 1, size=(len(lengths), 1))
    period = _rounded(span.astype(np.float32) / np.float32(noise_density))
    return (np.arange(lengths.max(initial=0)) + rng.integers(period)) % period < span


def spans(
    lengths: np.ndarray, noise_density: float, mean_span: float, rng: np.random.Generator, random_roll: bool = False
) -> np.ndarray:
    """Alternating kept and noise spans, a kept one first and noise last.

    Every segment has as many noise tokens and spans as `noise_counts` says; of density 0 none. All ways to divide its
    noise and the rest into spans are equally likely. A segment of one token is kept whole.

    Args:
      random_roll: whether to turn each mask by a random number of places, so that every token is as likely noise as
        any other. Otherwise the only span of a short segment is its end.
    """
    if noise_density == 0:
        return ~everything(lengths)
    # A segment of one token is the first of two.
    total = np.maximum(lengths, 2)
    noise, number = noise_counts(total, noise_density, mean_span)
    # Where there are fewer kept tokens than spans to separate, t5 fails.
    number = np.minimum(number, total - noise)
    kept_lengths = _random_partition(total - noise, number, rng)
    noise_lengths = _random_partition(noise, number, rng)
    both = np.stack([kept_lengths, noise_lengths], axis=2).reshape(len(lengths), 2 * kept_lengths.shape[1])
    ends = np.cumsum(both, axis=1)
    # A span begins where another ends: at those places the state turns over.
    turns = np.zeros((len(lengths), total.max(initial=0) + 1), np.int8)
    row = np.broadcast_to(np.arange(len(lengths))[:, None], ends.shape)
    used = both > 0
    turns[row[used], ends[used]] = 1
    noise = (np.cumsum(turns[:, : lengths.max(initial=0)], axis=1, dtype=np.int32) & 1).astype(bool)
    return _rolled(noise, lengths, rng) if random_roll else noise


def _rolled(noise: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row turned within its length. [rows, longest] bool, [rows]"""
    own = np.maximum(lengths, 1)[:, None]
    return np.take_along_axis(noise, (np.arange(noise.shape[1]) - rng.integers(own)) % own, axis=1)


def noise_counts(lengths: np.ndarray, noise_density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """round(n * noise_density) noise tokens, at least one and not all, in round(noise / mean_span) spans, at least one.

    As in t5, halves are rounded to even in single precision, other than where `lengths.span_corruption` reckons: of 190
    tokens 15% are 28 there and 29 here. Full segments of such a length make targets that are one or two tokens longer
    than reckoned, and are trimmed.

    Args:
      lengths: [rows] int64, at least 2.

    Returns:
      (noise tokens, spans): [rows] int64 each.
    """
    noise = np.clip(_rounded(lengths.astype(np.float32) * np.float32(noise_density)), 1, lengths - 1)
    return noise, np.maximum(_rounded(noise.astype(np.float32) / np.float32(mean_span)), 1)


def _rounded(x: np.ndarray) -> np.ndarray:
    return np.round(x.astype(np.float32)).astype(np.int64)


def _random_partition(items: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `parts` non-empty parts that make up `items`, uniformly drawn. [rows] -> [rows, most parts] int64.

    Rows with fewer parts end in zeros.
    """
    rows, places = len(items), items.max(initial=1) - 1  # a boundary can be before item 1, 2, ...
    place = np.arange(1, places + 1)
    # The place itself in the low bits keeps keys apart, so that exactly the wanted number is below a threshold.
    keys = rng.integers(1 << 30, size=(rows, places), dtype=np.int64) << _BITS | place
    keys = np.where(place < items[:, None], keys, np.iinfo(np.int64).max)
    ordered = np.sort(keys, axis=1)
    last = np.maximum(parts - 2, 0)[:, None]
    threshold = np.where(parts > 1, np.take_along_axis(ordered, last, axis=1)[:, 0], -1) if places else -1
    row, boundary = np.nonzero(keys <= np.reshape(threshold, (-1, 1)))
    # The boundaries of a row come in order; its k-th one ends part k.
    edges = np.repeat(items[:, None], parts.max(initial=1) + 1, axis=1)
    edges[:, 0] = 0
    first = np.cumsum(parts - 1) - (parts - 1)
    edges[row, 1 + np.arange(len(row)) - first[row]] = boundary + 1
    return np.diff(edges, axis=1)
