"""seqio preprocessors that cut tokens to lengths, named as in `t5.data.preprocessors`
(google-research/text-to-text-transfer-transformer), for tasks of one's own.

The objectives cut documents themselves, faster, with objectives/segments.py.
"""

import math
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from t5x_lite.errors import UserError

_SHORTEST = 8

Lengths = Mapping[str, int]
Features = Mapping[str, seqio.Feature]


def trim_tokens_at_front(
    dataset: tf.data.Dataset, sequence_length: Lengths, keys_to_trim: Sequence[str] | None = None
) -> tf.data.Dataset:
    """Leaves the last tokens of features, one fewer than the length: an end of sequence comes behind them later.

    Args:
      dataset, sequence_length: as seqio gives them.
      keys_to_trim: features; None: all that have a length and are there.

    Raises:
      UserError: a length is below 2, which leaves no token.
    """
    keys = [key for key in keys_to_trim or sequence_length if key in dataset.element_spec]
    room = {key: _room(sequence_length, key, closed=True) for key in keys}
    return dataset.map(lambda example: example | {key: example[key][-room[key] :] for key in keys})


def split_tokens_to_random_length(
    dataset: tf.data.Dataset, sequence_length: Lengths, output_features: Features, feature_key: str = "targets"
) -> tf.data.Dataset:
    """Cuts each example's tokens into segments of one length, drawn for it log-uniformly: from 8 to the inputs' length.

    The last segment of an example may be shorter; an example without tokens gives none. Other features are left out.

    Args:
      dataset, sequence_length, output_features: as seqio gives them. Where inputs get an end of sequence, there is room
        for it.
      feature_key: what is cut.

    Raises:
      UserError: the inputs have no room for 8 tokens.
    """
    longest = _room(sequence_length, "inputs", output_features["inputs"].add_eos, least=_SHORTEST)

    @seqio.map_over_dataset(num_seeds=1)
    def segments(example, seed):
        drawn = tf.random.stateless_uniform([], minval=math.log(_SHORTEST), maxval=math.log(longest), seed=seed)
        return {feature_key: _segments(example[feature_key], tf.cast(tf.exp(drawn), tf.int32))}

    return segments(dataset).unbatch()


def concatenate_and_split_to_fixed_length(
    dataset: tf.data.Dataset, sequence_length: Lengths, output_features: Features, feature_key: str = "targets"
) -> tf.data.Dataset:
    """Runs the tokens of all examples together and cuts them into segments of one length; the very last is shorter.

    Other features are left out.

    Args:
      dataset, sequence_length, output_features: as seqio gives them. Where the feature gets an end of sequence, there
        is room for it.
      feature_key: what is cut.

    Raises:
      UserError: the feature has no room for a token.
    """
    length = _room(sequence_length, feature_key, output_features[feature_key].add_eos)

    def step(pending, given):
        tokens, ends = given
        tokens = tf.concat([pending, tokens], axis=0)
        # At the end of the dataset all is taken, before it whole segments only.
        taken = tf.where(ends, tf.size(tokens), tf.size(tokens) // length * length)
        return tokens[taken:], _segments(tokens[:taken], length)

    kind = dataset.element_spec[feature_key].dtype
    tokens = dataset.map(lambda example: (example[feature_key], False))
    end = tf.data.Dataset.from_tensors((tf.zeros([0], kind), True))
    segments = tokens.concatenate(end).scan(tf.zeros([0], kind), step).unbatch()
    return segments.map(lambda tokens: {feature_key: tokens})


def _segments(tokens: tf.Tensor, length) -> tf.RaggedTensor:
    """Tokens [n] as rows of a length, the last one shorter."""
    return tf.RaggedTensor.from_row_starts(tokens, tf.range(0, tf.size(tokens), length), validate=False)


def _room(sequence_length: Lengths | None, key: str, closed: bool, least: int = 1) -> int:
    """The tokens of a feature without an end of sequence."""
    length = (sequence_length or {}).get(key)
    if length is None or length - closed < least:
        raise UserError(
            f"TASK_FEATURE_LENGTHS is {dict(sequence_length) if sequence_length else sequence_length}",
            f"the tokens of {key} are cut to its length, which has to be at least {least + closed}",
            f"Set --gin.TASK_FEATURE_LENGTHS with a length for {key}",
        )
    return length - closed
