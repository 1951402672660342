"""An objective as a seqio preprocessor.

Random numbers follow from seqio's stateless seeds, one for each group of documents: they are fixed by the seed given
to `get_dataset`, go on from epoch to epoch, and are part of a saved position.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.packed_prefix import packed_length
from t5x_lite.tasks.objectives.ragged import Ragged, padded
from t5x_lite.tasks.sources import as_written, python_op
from t5x_lite.tasks.vocabulary import SENTINELS

# Documents that are run together before they are cut.
TOGETHER = 128


@as_written
def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None,
    output_features: Mapping[str, seqio.Feature],
    *,
    objective: Callable,
    names: Sequence[str] = ("inputs", "targets"),
) -> tf.data.Dataset:
    """{"targets": tokens [n]} a document -> {"inputs", "targets"}, each closed by an end of sequence and short enough.

    Nothing needs to be trimmed or appended afterwards. For the `preprocessors` of a seqio.Task after tokenisation:
    `functools.partial(preprocess, objective=OBJECTIVES["prefix_lm"])`.

    Args:
      dataset, sequence_length, output_features: as seqio gives them.
      objective: a function of denoising.py, with parameters of its own if wanted.
      names: of the features that it makes.

    Raises:
      UserError: the lengths do not fit the objective; see denoising.py.
    """
    make = objective(sequence_length, ids(output_features["targets"].vocabulary))

    def examples(values, splits, seed):
        rng = _generator(seed)
        made = make(Ragged(values, np.diff(splits)), rng)
        return [array for name in names for array in (made[name].values.astype(np.int32), made[name].lengths)]

    @seqio.map_over_dataset(num_seeds=1)
    def group(documents, seed):
        # seqio's seeds of one op are two int32.
        arrays = iter(
            python_op(
                examples,
                [documents.values, documents.row_splits, tf.cast(seed, tf.int64)],
                [tf.int32, tf.int64] * len(names),
            )
        )
        return {
            name: tf.RaggedTensor.from_row_lengths(
                tf.ensure_shape(next(arrays), [None]), tf.ensure_shape(next(arrays), [None]), validate=False
            )
            for name in names
        }

    documents = dataset.map(lambda example: tf.cast(example["targets"], tf.int32))
    return group(documents.ragged_batch(TOGETHER)).unbatch()


@as_written
def packed(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None, *, pack: Callable, names: Sequence[str]
) -> tf.data.Dataset:
    """{"targets": tokens [n]} a segment -> the features of rows, which a function of packed_prefix.py makes.

    Segments are cut to the length of rows or padded up to it. One that is left over at the end, where a row takes two,
    is left out.

    Args:
      dataset, sequence_length: as seqio gives them.
      pack: segments [n, length] int32 and a random generator -> features by name, [rows, length] int32.
      names: of the features.

    Raises:
      UserError: rows have no one even length.
    """
    length = packed_length(sequence_length)

    def rows(values, splits, seed):
        segments = padded(Ragged(values, np.diff(splits)), length)
        made = pack(segments, _generator(seed))
        return [made[name] for name in names]

    @seqio.map_over_dataset(num_seeds=1)
    def group(segments, seed):
        arrays = python_op(
            rows, [segments.values, segments.row_splits, tf.cast(seed, tf.int64)], [tf.int32] * len(names)
        )
        return {name: tf.ensure_shape(array, [None, length]) for name, array in zip(names, arrays)}

    segments = dataset.map(lambda example: example["targets"])
    return group(segments.ragged_batch(TOGETHER)).unbatch()


def _generator(seed: np.ndarray) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed.astype(np.uint64)))


def ids(vocabulary: seqio.Vocabulary) -> Ids:
    """What the objectives need of a vocabulary."""
    # A vocabulary without extra ids has T5's 100 sentinels among its own: pieces made for that or, as in ByT5, the last
    # bytes, of which 11 occur in no text. Beyond 128 they would be the letters.
    return Ids(
        size=vocabulary.vocab_size,
        sentinels=vocabulary.extra_ids or SENTINELS,
        eos=vocabulary.eos_id,
        encode=lambda text: vocabulary.encode(text) if text else [],
    )
