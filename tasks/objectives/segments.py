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


def chopped(documents: Ragged, length: int) -> Ragged:
    """Each document cut into segments of a length, its last one shorter. An empty document gives none."""
    count = -(-documents.lengths // length)
    lengths = np.full(count.sum(), length)
    last = np.cumsum(count)[count > 0] - 1
    lengths[last] -= (count * length - documents.lengths)[count > 0]
    return Ragged(documents.values, lengths)
