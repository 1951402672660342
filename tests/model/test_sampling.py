"""What is drawn, against the exact filtered softmax; and the best of many scores, against sorting."""

import functools

import jax
import numpy as np
import pytest

from t5x_lite.model import sampling, selection

LOGITS = np.array([1.0, 3.0, -2.0, 2.0, 3.0, 0.5, -1.0, 2.5], np.float32)


def exact(temperature, k, p):
    """The probabilities that are drawn from, by sorting."""
    probabilities = np.exp(LOGITS.astype(np.float64) / temperature)
    if k:
        probabilities[LOGITS < np.sort(LOGITS)[-k]] = 0
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    last = probabilities[order][before < p].min()
    probabilities[probabilities < last] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "temperature, k, p", [(1, 0, 1), (0.5, 0, 1), (2, 3, 1), (1, 0, 0.6), (1.5, 4, 0.8), (1, 1, 1), (1, 0, 1e-6)]
)
def test_samples_have_the_frequencies_of_the_filtered_softmax(temperature, k, p):
    count = 20_000
    expected = exact(temperature, k, p)
    filtered = sampling.filtered(jax.numpy.asarray(LOGITS), temperature, k, p)
    np.testing.assert_allclose(jax.nn.softmax(filtered), expected, atol=1e-6)
    keys = sampling.sample_keys(5, np.arange(count // 10, dtype=np.int32), 10)
    drawn = jax.jit(sampling.drawn)(jax.numpy.broadcast_to(filtered, (count // 10, 10, 8)), keys, 3)
    found = np.bincount(np.asarray(drawn).ravel(), minlength=8) / count
    assert (found[expected == 0] == 0).all()
    # Five standard deviations of a share.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count)).all()


def test_a_sample_has_its_own_key_for_each_seed_row_number_and_step():
    logits = jax.numpy.zeros((3, 2, 1000))
    ids = [
        np.asarray(sampling.drawn(logits, sampling.sample_keys(s, np.arange(3), 2), t)) for s in (0, 1) for t in (0, 1)
    ]
    assert len(set(np.concatenate(ids).ravel().tolist())) > 20
    few = sampling.drawn(logits[:1], sampling.sample_keys(0, np.array([2]), 2), 0)
    np.testing.assert_array_equal(few[0], ids[0][2])


@pytest.mark.parametrize("width, k", [(128 * 9, 4), (1000, 7), (300, 3), (40, 5), (128 * 3, 1), (260, 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_is_that_of_a_stable_sort(width, k, ties):
    rng = np.random.default_rng(width)
    scores = rng.integers(-9, -3, (5, 2, width)) if ties else rng.normal(-9, 1, size=(5, 2, width))
    scores = np.asarray(scores, np.float32)
    scores[..., -1] = -1  # the best is in the last block: what ties in it with others comes behind them
    best, index = jax.jit(functools.partial(selection.top_k, k=k))(scores)
    expected = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, axis=-1))


def test_filters_keep_what_ties_with_the_last():
    scores = jax.numpy.array([-1.0, 2.0, 1.0, 1.0, -3.0])
    assert np.isfinite(selection.keep_top_k(scores, 2)).tolist() == [False, True, True, True, False]
    assert np.isfinite(selection.keep_top_k(scores, 99)).all()
    assert np.isfinite(selection.keep_top_p(scores, 0.6)).tolist() == [False, True, True, True, False]
    assert np.isfinite(selection.keep_top_p(scores, 0.5)).tolist() == [False, True, False, False, False]
    negative = jax.numpy.array([-1.0, -5.0, -3.0, -3.0, -9.0])
    assert np.isfinite(selection.keep_top_k(negative, 2)).tolist() == [True, False, True, True, False]
