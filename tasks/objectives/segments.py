"""Documents to segments of a given length, as in `t5.data.preprocessors`
(google-research/text-to-text-transfer-transformer): select_random_chunk, reduce_concat_tokens, split_tokens."""

import numpy as np

from t5x_lite.tasks.objectives.ragged import Ragged

# Tokens of a document that are used in one epoch: a chunk of this size, drawn at random, of longer ones.
LONGEST_DOCUMENT = 65_536


def chunks(documents: Ragged, rng: np.random.Generator, length: int = LONGEST_DOCUMENT) -> Ragged:
    """One chunk of each document: of ceil(n / length) consecutive chunks, drawn uniformly."""
    sizes = documents.lengths
    if not sizes.size or sizes.max() <= length:
        return documents
    start = length * rng.integers(np.maximum(-(-sizes // length), 1))
    position = np.arange(len(documents.values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    start_of_token = np.repeat(start, sizes)
    keep = (position >= start_of_token) & (position < start_of_token + length)
    return Ragged(documents.values[keep], np.minimum(sizes - start, length))


def run_together(documents: Ragged) -> Ragged:
    """All documents as one, without a separator."""
    return Ragged(documents.values, np.array([len(documents.values)]))


def chopped(documents: Ragged, length: int | np.ndarray) -> Ragged:
    """Each document cut into segments of a length, its last one shorter. An empty document gives none.

    Args:
      length: one for all documents, or [documents] int64.
    """
    count = -(-documents.lengths // length)
    lengths = np.repeat(np.broadcast_to(length, count.shape), count)
    last = np.cumsum(count)[count > 0] - 1
    lengths[last] -= (count * length - documents.lengths)[count > 0]
    return Ragged(documents.values, lengths)


def chopped_at_random(documents: Ragged, rng: np.random.Generator, longest: int, shortest: int = 8) -> Ragged:
    """Each document cut into segments of one length, drawn for it log-uniformly from `shortest` up to `longest`."""
    drawn = np.exp(rng.uniform(np.log(shortest), np.log(longest), len(documents.lengths)))
    return chopped(documents, np.maximum(drawn.astype(np.int64), 1))
