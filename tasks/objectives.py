"""Pretraining objectives: documents of tokens -> pairs of inputs and targets.

Span corruption as T5 trains it: documents are run together and chopped, random
spans are cut out, each leaving a sentinel, and the targets are the spans, each after
its sentinel. The arithmetic of lengths, the masks and the sentinels are those of
`t5.data.preprocessors` (google-research/text-to-text-transfer-transformer), but
whole groups of documents and whole batches of segments are processed by each
TensorFlow op.

A preprocessor here is a function of a dataset, for the `preprocessors` of any
seqio.Task. Random numbers are stateless: the seeds come from seqio, one pair for each
group or batch, are fixed by the seed given to `get_dataset`, go on from epoch to
epoch, and are part of a saved position.
"""

import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks.vocabulary import SENTINELS

# Tokens of a document that are used in one epoch: a segment of this size, drawn at random, of longer ones.
LONGEST_DOCUMENT = 65_536

# Documents that are run together, without a separator, before they are chopped.
CONCATENATED = 128

_SEGMENTS_AT_ONCE = 64


def _counts(tokens: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """(noise tokens, noise spans) that lengths are reckoned with, rounded half to even in double precision."""
    noise = round(tokens * noise_density)
    return noise, round(noise / mean_span)


def span_corruption_lengths(inputs_length: int, noise_density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """The segment length that span corruption turns into exactly full inputs, and the length of its targets.

    Args:
      inputs_length: tokens of the inputs, the end of sequence included.
      noise_density: fraction of the tokens that is cut out.
      mean_span: mean length of a span, in tokens.

    Returns:
      (tokens_length, targets_length): the raw tokens of a segment, and the tokens of its targets, the end of
      sequence included. T5's baseline: 512 -> (568, 114).

    Raises:
      UserError: the density or span is out of range, or the inputs are too short for one span.
    """
    if not 0 < noise_density < 1 or mean_span < 1:
        raise UserError(
            f"Span corruption with noise_density {noise_density} and mean_span {mean_span}",
            "the density lies between 0 and 1, and a span has at least one token",
            "Correct noise_density and mean_span of the task",
        )

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = _counts(tokens, noise_density, mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = max(inputs_length - 1, 0)
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    noise, spans = _counts(tokens, noise_density, mean_span)
    if spans < 1 or spans > tokens - noise:
        shortest = next((n for n in range(1, 100_000) if _counts(n, noise_density, mean_span)[1] > 0), None)
        needed = lengths(shortest)[0] if shortest else "more"
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the inputs {inputs_length} tokens",
            f"span corruption with density {noise_density} and mean span {mean_span} needs {needed} for one span",
            f"Set --gin.TASK_FEATURE_LENGTHS to inputs of at least {needed}",
        )
    targets = lengths(tokens)[1]
    if noise_density == 0.5 and targets > lengths(tokens)[0]:
        # T5's exception: with half of the tokens cut out, the targets are to be as long as the inputs.
        tokens, targets = tokens - 1, targets - 1
    return tokens, targets


def span_corruption(
    dataset: tf.data.Dataset, sequence_length, output_features, noise_density: float = 0.15, mean_span: float = 3.0
) -> tf.data.Dataset:
    """Span corruption of {"targets": tokens [n]} into {"inputs", "targets"}, both without end of sequence.

    Raises:
      UserError: the lengths are not given, are too short, or need more sentinels than the vocabulary has.
    """
    if not sequence_length or not {"inputs", "targets"} <= set(sequence_length):
        raise UserError(
            f"TASK_FEATURE_LENGTHS is {sequence_length}",
            "span corruption cuts text to the lengths of inputs and targets",
            "Set --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 114}\"",
        )
    tokens_length, targets_length = span_corruption_lengths(sequence_length["inputs"], noise_density, mean_span)
    inputs_length = sequence_length["inputs"]
    if sequence_length["targets"] < targets_length:
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the targets {sequence_length['targets']} tokens",
            f"span corruption of {inputs_length} input tokens makes {targets_length} target tokens",
            f"Set --gin.TASK_FEATURE_LENGTHS=\"{{'inputs': {inputs_length}, 'targets': {targets_length}}}\"",
        )
    vocabulary = output_features["targets"].vocabulary
    spans = _counts(tokens_length, noise_density, mean_span)[1]
    # A vocabulary without extra ids has T5's 100 sentinels among its own: pieces made for that or, as in ByT5, the last
    # bytes, of which 11 occur in no text. Beyond 128 they would be the letters.
    sentinels = vocabulary.extra_ids or SENTINELS
    if sentinels < spans:
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the inputs {inputs_length} tokens",
            f"their {spans} spans need a sentinel each, and the vocabulary has {sentinels}",
            "Shorten the inputs in --gin.TASK_FEATURE_LENGTHS, or use a task with a larger mean_span",
        )
    dataset = segments(dataset, tokens_length)
    return denoise(dataset, vocabulary.vocab_size - 1, noise_density, mean_span)


def segments(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """Chops {"targets": tokens [n]} into {"targets": tokens [length]}, the last of every 128 documents shorter.

    A document of more than 65,536 tokens gives one of its segments of that size; then 128 documents are run
    together. An empty rest gives nothing.
    """

    @seqio.map_over_dataset(num_seeds=1)
    def chopped(documents, seed):
        tokens = random_chunks(documents, LONGEST_DOCUMENT, seed).flat_values
        starts = tf.range(0, tf.size(tokens), length)
        return tf.RaggedTensor.from_row_starts(tokens, tf.cast(starts, tf.int64))

    grouped = dataset.map(lambda example: example["targets"]).ragged_batch(CONCATENATED)
    return chopped(grouped).unbatch().map(lambda tokens: {"targets": tokens})


def random_chunks(documents: tf.RaggedTensor, length: int, seed: tf.Tensor) -> tf.RaggedTensor:
    """One chunk of each row: of ceil(n / length) consecutive chunks, drawn uniformly. [rows, None] -> [rows, None]"""
    sizes = documents.row_lengths()
    chunks = -(-sizes // length)
    drawn = tf.random.stateless_uniform(tf.shape(sizes), seed, maxval=1.0, dtype=tf.float64)
    start = length * tf.cast(drawn * tf.cast(chunks, tf.float64), tf.int64)
    position = tf.ragged.range(sizes)
    kept = (position.values >= _per_value(start, position)) & (position.values < _per_value(start + length, position))
    return tf.ragged.boolean_mask(documents, position.with_values(kept))


def _per_value(rows: tf.Tensor, ragged: tf.RaggedTensor) -> tf.Tensor:
    return tf.gather(rows, ragged.value_rowids())


def denoise(
    dataset: tf.data.Dataset, first_sentinel: int, noise_density: float = 0.15, mean_span: float = 3.0
) -> tf.data.Dataset:
    """Cuts random spans out of {"targets": tokens [n]}.

    The k-th span, from 0, stands for sentinel `first_sentinel - k`: in the inputs in its place, in the targets in
    front of it.

    Returns:
      {"inputs": tokens [n - noise + spans], "targets": tokens [noise + spans]}.
    """

    @seqio.map_over_dataset(num_seeds=2)
    def corrupted(tokens, seeds):
        span = span_numbers(tokens.row_lengths(), noise_density, mean_span, seeds)
        tokens = tokens.to_tensor()
        inside = span < _NO_SPAN
        noise = inside & (span % 2 == 1)
        starts = inside & (span != tf.pad(span, [[0, 0], [1, 0]], constant_values=-1)[:, :-1])
        sentinels = first_sentinel - span // 2

        def collapsed(cut):
            return tf.ragged.boolean_mask(tf.where(cut, sentinels, tokens), inside & (~cut | starts))

        return {"inputs": collapsed(noise), "targets": collapsed(inside & ~noise)}

    grouped = dataset.map(lambda example: example["targets"]).ragged_batch(_SEGMENTS_AT_ONCE)
    return corrupted(grouped).unbatch()


_NO_SPAN = 1 << 20


def span_numbers(lengths: tf.Tensor, noise_density: float, mean_span: float, seeds) -> tf.Tensor:
    """Draws alternating spans for a batch of segments: even ones are kept, odd ones are noise.

    Every segment has as many noise tokens and spans as `noise_counts` says, separated by at least one kept token. It
    starts with a kept span and ends with noise. All ways to divide noise and text into spans are equally likely.

    Args:
      lengths: [rows] int64, tokens of each segment.
      seeds: two stateless seeds, of two integers each.

    Returns:
      [rows, longest] int32: the number of the span that each token lies in, `_NO_SPAN` past the end of a segment.
    """
    # A segment of one token is kept whole: it is the first of two.
    total = tf.maximum(lengths, 2)
    noise, spans = noise_counts(total, noise_density, mean_span)
    # Where there are fewer kept tokens than spans to separate, T5 fails.
    spans = tf.minimum(spans, total - noise)
    kept_lengths = _random_segmentation(total - noise, spans, seeds[0])
    noise_lengths = _random_segmentation(noise, spans, seeds[1])
    interleaved = tf.reshape(tf.stack([kept_lengths, noise_lengths], axis=2), [tf.shape(lengths)[0], -1])
    ends = tf.cumsum(interleaved, axis=1)
    position = tf.range(tf.reduce_max(lengths))
    number = tf.searchsorted(ends, tf.tile(position[None], [tf.shape(lengths)[0], 1]), side="right")
    return tf.where(position < lengths[:, None], number, _NO_SPAN)


def noise_counts(lengths: tf.Tensor, noise_density: float, mean_span: float) -> tuple[tf.Tensor, tf.Tensor]:
    """round(n * noise_density) noise tokens, at least one and not all, in round(noise / mean_span) spans, at least one.

    As in T5, halves are rounded to even in single precision, other than where `span_corruption_lengths` reckons: of 190
    tokens 15% are 28 there and 29 here. Full segments of such a length make targets that are one or two tokens longer
    than reckoned, and are trimmed.

    Args:
      lengths: [rows] int64, at least 2.

    Returns:
      (noise tokens, spans): [rows] int64 each.
    """

    def rounded(x):
        return tf.cast(tf.round(x), tf.int64)

    noise = tf.clip_by_value(rounded(tf.cast(lengths, tf.float32) * noise_density), 1, lengths - 1)
    spans = tf.maximum(rounded(tf.cast(noise, tf.float32) / mean_span), 1)
    return noise, spans


def _random_segmentation(items: tf.Tensor, parts: tf.Tensor, seed) -> tf.Tensor:
    """Lengths of `parts` non-empty parts that make up `items`, uniformly drawn. [rows] -> [rows, most parts] int64.

    Rows with fewer parts end in zeros.
    """
    inner = tf.reduce_max(parts) - 1  # boundaries between parts
    places = tf.reduce_max(items) - 1  # where one can be: before item 1, 2, ...
    place = tf.range(1, places + 1)
    keys = tf.random.stateless_uniform(
        [tf.size(items, tf.int64), places], seed, minval=0, maxval=1 << 30, dtype=tf.int64
    )
    # The place itself in the low bits keeps keys apart, so that exactly the wanted number is drawn.
    keys = tf.where(place < items[:, None], keys * _NO_SPAN + place, tf.int64.max)
    drawn = tf.math.top_k(-keys, k=tf.cast(tf.maximum(inner, 0), tf.int32)).indices
    drawn = tf.cast(drawn, tf.int64) + 1
    used = tf.range(inner) < parts[:, None] - 1
    boundaries = tf.sort(tf.where(used, drawn, items[:, None]), axis=1)
    edges = tf.concat([tf.zeros_like(items)[:, None], boundaries, items[:, None]], axis=1)
    return edges[:, 1:] - edges[:, :-1]
