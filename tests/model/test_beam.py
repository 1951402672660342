"""The rules of beam search on tables of random logits instead of a network."""

import functools
import itertools

import jax
import numpy as np
import pytest

from t5x_lite.model import beam
from tests.model import beam_reference

EOS = 1


def table(seed, vocab):
    """tokens -> logits, drawn anew for each history."""

    @functools.cache
    def logits(tokens):
        return np.random.default_rng([seed, *tokens]).normal(0, 2, vocab).astype(np.float32)

    return lambda histories: [logits(tokens) for tokens in histories]


@functools.cache
def compiled(alpha):
    return jax.jit(functools.partial(beam.advance, eos=EOS, alpha=alpha)), jax.jit(
        functools.partial(beam.unfinished, alpha=alpha)
    )


def search(next_logits, width, length, alpha):
    """As `beam_reference.search`, by what decoding runs."""
    advance, unfinished = compiled(alpha)
    state = beam.begin(np.zeros((1, width, length), np.int32) + jax.numpy.int32(0))
    for step in range(length):
        logits = np.stack(next_logits([tuple(map(int, ids[:step])) for ids in np.asarray(state["ids"])[0]]))
        state = advance(state, logits[None], np.int32(step))
        if not unfinished(state):
            break
    ids, scores, totals = (np.asarray(x)[0] for x in beam.result(state, alpha))
    return ids, scores, totals, step + 1


def padded(found, length):
    return np.array([tokens + (0,) * (length - len(tokens)) for _, _, tokens in found])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("width", [2, 3])
def test_search_follows_the_rules(width, alpha):
    length, vocab, stops = 6, 5, set()
    for seed in range(12):
        expected, steps = beam_reference.search(table(seed, vocab), width, length, EOS, alpha)
        ids, scores, totals, taken = search(table(seed, vocab), width, length, alpha)
        np.testing.assert_array_equal(ids, padded(expected, length))
        np.testing.assert_allclose(scores, [e[0] for e in expected], rtol=1e-5)
        np.testing.assert_allclose(totals, [e[1] for e in expected], rtol=1e-5)
        assert taken == steps
        stops.add(steps < length)
    assert True in stops or alpha == 2  # some stop before the greatest length


def test_a_beam_as_wide_as_the_space_finds_the_best_of_all():
    vocab, length, alpha, width = 3, 3, 0.6, 16
    next_logits = table(4, vocab)

    def total(tokens):
        return sum(beam_reference.log_softmax(next_logits([tokens[:i]])[0])[token] for i, token in enumerate(tokens))

    ended, others = [], []
    for n in range(1, length + 1):
        for tokens in itertools.product(range(vocab), repeat=n):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or n == length):
                score = total(tokens) / ((5 + n) / 6) ** alpha
                (ended if tokens[-1] == EOS else others).append((score, total(tokens), tokens))
    expected = sorted(ended, reverse=True) + sorted(others, reverse=True)
    ids, scores, _, _ = search(next_logits, width, length, alpha)
    np.testing.assert_array_equal(ids[: len(expected)], padded(expected, length))
    np.testing.assert_allclose(scores[: len(expected)], [e[0] for e in expected], rtol=1e-5)
    # What there is no sequence for is not among them, and is of ids all the same.
    assert (scores[len(expected) :] == -np.inf).all() and ((0 <= ids) & (ids < vocab)).all()


def test_of_equal_continuations_the_better_sequence_and_the_lower_id_come_first():
    ids, scores, _, _ = search(lambda histories: [np.zeros(4, np.float32)] * len(histories), 2, 2, 0.0)
    # The four tokens tie: of 0, 1, 2 and 3 the end is 1. Then 0 0 and 0 2 come before 2 0.
    assert ids.tolist() == [[1, 0], [0, 1]]
    np.testing.assert_allclose(scores, np.log([1 / 4, 1 / 16]), rtol=1e-6)


def test_sequences_keep_the_place_of_each_of_their_steps():
    """What `ancestry` says is where the keys of a sequence's own tokens were written."""
    width, length, next_logits = 3, 6, table(8, 7)
    advance, _ = compiled(0.0)
    state = beam.begin(np.zeros((1, width, length), np.int32) + jax.numpy.int32(0))
    written = np.zeros((length, width), int)
    for step in range(length):
        logits = np.stack(next_logits([tuple(map(int, ids[:step])) for ids in np.asarray(state["ids"])[0]]))
        state = advance(state, logits[None], np.int32(step))
        written[step] = state["tokens"][0]
        places = np.asarray(state["ancestry"])[0]
        assert (places[:, step + 1 :] == -1).all()
        for sequence, place in zip(np.asarray(state["ids"])[0], places):
            np.testing.assert_array_equal(sequence[: step + 1], written[range(step + 1), place[: step + 1]])
