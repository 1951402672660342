"""Span corruption: the arithmetic of lengths by search, the masks by their properties, the pairs by undoing them."""

import re

import numpy as np
import pytest

from t5x_lite.errors import UserError

objectives = pytest.importorskip("t5x_lite.tasks.objectives")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

FIRST = 999  # the first sentinel


@pytest.mark.parametrize(
    "inputs, density, mean, expected",
    [
        (512, 0.15, 3.0, (568, 114)),
        (512, 0.15, 2.0, (552, 126)),
        (512, 0.15, 5.0, (581, 105)),
        (512, 0.15, 10.0, (591, 99)),
        (1024, 0.15, 20.0, (1193, 189)),
    ],
)
def test_the_lengths_of_the_paper(inputs, density, mean, expected):
    assert objectives.span_corruption_lengths(inputs, density, mean) == expected


@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.15, 2.0), (0.25, 5.0), (0.1, 10.0), (0.5, 3.0)])
def test_lengths_are_the_longest_segment_that_fits(density, mean):
    def used(tokens):
        noise = int(np.round(tokens * density))
        spans = int(np.round(noise / mean))
        return tokens - noise + spans + 1, noise + spans + 1

    for inputs in range(60, 700, 13):
        tokens, targets = objectives.span_corruption_lengths(inputs, density, mean)
        longest = max(n for n in range(4 * inputs) if used(n)[0] <= inputs)
        if density == 0.5 and used(longest)[1] > used(longest)[0]:
            assert (tokens, targets) == (longest - 1, used(longest)[1] - 1)
        else:
            assert (tokens, targets) == (longest, used(longest)[1])


def test_inputs_that_are_too_short_say_the_length_needed():
    for length in (0, 1, 5, 9):
        with pytest.raises(
            UserError, match=r"TASK_FEATURE_LENGTHS gives the inputs \d tokens. .* needs (\d+)"
        ) as caught:
            objectives.span_corruption_lengths(length)
        needed = int(re.search(r"needs (\d+)", str(caught.value))[1])
    objectives.span_corruption_lengths(needed)
    with pytest.raises(UserError, match="noise_density 1.5"):
        objectives.span_corruption_lengths(512, 1.5)


def single_precision_counts(length, density, mean):
    """Noise tokens and spans as t5.data.preprocessors.random_spans_noise_mask counts them."""
    noise = int(np.round(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    return noise, max(int(np.round(np.float32(noise) / np.float32(mean))), 1)


@pytest.mark.parametrize("density", [0.1, 0.15, 0.2, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("mean", [1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 20.0])
def test_noise_is_counted_in_single_precision(density, mean):
    lengths = np.arange(2, 4097)
    noise, spans = objectives.noise_counts(tf.constant(lengths, tf.int64), density, mean)
    expected = [single_precision_counts(int(n), density, mean) for n in lengths]
    assert list(zip(noise.numpy().tolist(), spans.numpy().tolist())) == expected


@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.15, 1.0), (0.5, 3.0), (0.9, 2.0)])
def test_spans(density, mean):
    lengths = np.array([568, 568, 190, 100, 31, 5, 3, 2, 1, 568] * 4)
    numbers = objectives.span_numbers(
        tf.constant(lengths, tf.int64), density, mean, [tf.constant([1, 2]), tf.constant([3, 4])]
    ).numpy()
    assert numbers.shape == (40, 568)
    for length, row in zip(lengths, numbers):
        assert (row[length:] > length).all()
        row = row[:length]
        if length == 1:
            assert row.tolist() == [0]
            continue
        noise, spans = single_precision_counts(length, density, mean)
        spans = min(spans, length - noise)
        assert (row % 2).sum() == noise
        # Numbers rise by at most one from token to token: no span is empty, so no two of one kind touch.
        assert row[0] == 0 and row[-1] == 2 * spans - 1 and set(np.diff(row)) <= {0, 1}


def test_all_divisions_into_spans_are_equally_likely():
    # 8 tokens, 4 of them noise, in 2 spans: 3 ways to divide the text, 3 to divide the noise.
    rows = 9000
    numbers = objectives.span_numbers(
        tf.fill([rows], tf.constant(8, tf.int64)), 0.5, 2.0, [tf.constant([5, 6]), tf.constant([7, 8])]
    ).numpy()
    _, counts = np.unique(numbers, axis=0, return_counts=True)
    # Chi-squared with 8 degrees of freedom passes 26.1 once in a thousand.
    assert len(counts) == 9 and ((counts - rows / 9) ** 2 / (rows / 9)).sum() < 26.1


def documents(lengths, start=1):
    values = np.arange(start, start + sum(lengths), dtype=np.int32)
    ragged = tf.RaggedTensor.from_row_lengths(values, lengths)
    return tf.data.Dataset.from_tensor_slices(ragged).map(lambda x: {"targets": tf.ensure_shape(x, [None])})


def seeded(make, seed=0):
    with seqio.utils.map_seed_manager(seed):
        return list(make().as_numpy_iterator())


def restored(inputs, targets, first):
    """Puts the spans of the targets back in the place of their sentinels."""
    spans, tokens = {}, []
    for token in targets:
        if token > first - 200:
            spans[token] = []
        else:
            spans[max_sentinel(spans)].append(token)
    for token in inputs:
        tokens += spans.pop(token) if token in spans else [token]
    assert all(not left for left in spans.values())
    return tokens


def max_sentinel(spans):
    return list(spans)[-1]


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0])
def test_inputs_and_targets_restore_the_text(mean):
    first = 1_000_000
    lengths = [100] * 70 + [37, 3, 2, 1]
    pairs = seeded(lambda: objectives.denoise(documents(lengths), first, 0.15, mean))
    start = 1
    for length, pair in zip(lengths, pairs, strict=True):
        inputs, targets = pair["inputs"].tolist(), pair["targets"].tolist()
        assert restored(inputs, targets, first) == list(range(start, start + length))
        sentinels = [t for t in targets if t > first - 200]
        assert sentinels == list(range(first, first - len(sentinels), -1))
        if length > 1:
            assert [t for t in inputs if t > first - 200] == sentinels
            assert targets[-1] not in sentinels  # no closing sentinel
        start += length


def test_documents_are_run_together_in_groups_and_the_rest_is_kept():
    lengths = [10] * 128 + [3] * 5
    chopped = [x["targets"].tolist() for x in seeded(lambda: objectives.segments(documents(lengths), 100))]
    assert [len(x) for x in chopped] == [100] * 12 + [80] + [15]
    assert sum(chopped, []) == list(range(1, sum(lengths) + 1))


def test_long_documents_give_one_aligned_chunk():
    ragged = tf.RaggedTensor.from_row_lengths(tf.range(10 + 25 + 8), [10, 25, 8])
    seen = set()
    for seed in range(60):
        rows = objectives.random_chunks(ragged, 10, tf.constant([seed, 1])).to_list()
        assert rows[0] == list(range(10)) and rows[2] == list(range(35, 43))
        assert rows[1] in ([*range(10, 20)], [*range(20, 30)], [*range(30, 35)])
        seen.add(rows[1][0])
    assert seen == {10, 20, 30}


def task():
    return seqio.Task(
        "objective_test",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: documents([50] * 128), splits=["train"]
        ),
        preprocessors=[objectives.span_corruption, seqio.preprocessors.append_eos_after_trim],
        output_features={k: seqio.Feature(seqio.ByteVocabulary(extra_ids=10_000)) for k in ("inputs", "targets")},
    )


def examples(**options):
    dataset = task().get_dataset({"inputs": 64, "targets": 20}, shuffle=False, **options)
    return [(x["inputs"].tolist(), x["targets"].tolist()) for x in dataset.as_numpy_iterator()]


def test_a_task_is_full_deterministic_and_new_in_each_epoch():
    tokens, targets = objectives.span_corruption_lengths(64)
    once = examples(seed=1)
    assert {(len(i), len(t)) for i, t in once[:-1]} == {(64, targets)} and 6400 // tokens == len(once) - 1
    assert all(i[-1] == 1 and t[-1] == 1 for i, t in once)
    assert once == examples(seed=1) != examples(seed=2)
    # One epoch is one group of documents here, so the segments of both epochs are the same and only the masks differ.
    twice = examples(seed=1, num_epochs=2)
    first, second = twice[: len(once)], twice[len(once) :]
    top = 259 + 10_000 - 1
    texts = [[restored(i[:-1], t[:-1], top) for i, t in epoch] for epoch in (first, second)]
    assert first == once and texts[0] == texts[1] and sum(a == b for a, b in zip(first, second)) <= 1


def test_lengths_that_cannot_hold_the_pairs():
    ask = lambda **lengths: task().get_dataset(lengths or None, shuffle=False)  # noqa: E731
    with pytest.raises(UserError, match=r"gives the targets 10 tokens. .* makes 114 .*'inputs': 512, 'targets': 114"):
        ask(inputs=512, targets=10)
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS is None"):
        ask()
    few = {k: seqio.Feature(seqio.ByteVocabulary(extra_ids=10)) for k in ("inputs", "targets")}
    with pytest.raises(UserError, match="Their 28 spans need a sentinel each, and the vocabulary has 10"):
        objectives.span_corruption(documents([5]), {"inputs": 512, "targets": 114}, few)
    bytes_alone = {k: seqio.Feature(seqio.ByteVocabulary()) for k in ("inputs", "targets")}
    with pytest.raises(UserError, match="Their 114 spans need a sentinel each, and the vocabulary has 100"):
        objectives.span_corruption(documents([5]), {"inputs": 2048, "targets": 512}, bytes_alone)
