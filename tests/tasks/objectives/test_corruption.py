"""Corruption of given masks equals t5's; what is drawn has its properties."""

import json

import numpy as np
import pytest

from t5x_lite.tasks.objectives import corruption
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.ragged import filled, ragged, split

IDS = Ids(size=1000, sentinels=100, eos=1, encode=list)


@pytest.fixture(scope="module")
def cases(references):
    return json.loads((references / "t5_objectives.json").read_text())["rows"]


@pytest.mark.parametrize(
    "name",
    [
        "noise_span_to_unique_sentinel",
        "nonnoise_span_to_unique_sentinel",
        "noise_span_to_sentinel",
        "nonnoise_span_to_sentinel",
        "noise_token_to_sentinel",
        "drop_noise_tokens",
        "drop_nonnoise_tokens",
    ],
)
def test_equal_to_t5_whatever_stands_beside_a_row(cases, name):
    """All rows at once, so that each is filled up to the longest; what the mask says of the filling does not count."""
    rows = filled(ragged([case["tokens"] for case in cases]))
    for filling in (False, True):
        noise = np.full(rows.tokens.shape, filling)
        for row, case in zip(noise, cases):
            row[: len(case["noise"])] = case["noise"]
        made = getattr(corruption, name)(rows, noise, IDS, None)
        assert [row.tolist() for row in split(made)] == [case[name] for case in cases]


def test_permuted_noise_stays_in_its_places():
    rng = np.random.default_rng(0)
    rows = filled(ragged([range(10, 40), range(50, 53), [7]]))
    noise = rng.random(rows.tokens.shape) < 0.5
    made = split(corruption.permute_noise_tokens(rows, noise, IDS, rng))
    for before, after, mask in zip(rows.tokens, made, noise):
        mask = mask[: len(after)]
        before = before[: len(after)]
        assert (before[~mask] == after[~mask]).all()
        assert sorted(before[mask]) == sorted(after[mask])
    assert (made[0] != rows.tokens[0]).any()


def test_every_permutation_is_equally_likely():
    rows = filled(ragged([[5, 6, 7]] * 6000))
    made = corruption.permute_noise_tokens(rows, np.ones((6000, 3), bool), IDS, np.random.default_rng(1))
    _, counts = np.unique(made.values.reshape(-1, 3), axis=0, return_counts=True)
    assert len(counts) == 6 and ((counts - 1000) ** 2 / 1000).sum() < 20.5


def test_a_tenth_of_the_noise_becomes_random_ids():
    rng = np.random.default_rng(2)
    rows = filled(ragged([[4] * 500] * 200))
    noise = rng.random((200, 500)) < 0.3
    made = corruption.noise_token_to_random_token_or_sentinel(rows, noise, IDS, rng).values.reshape(200, 500)
    assert (made[~noise] == 4).all()
    drawn = made[noise & (made != 999)]
    assert abs(len(drawn) / noise.sum() - 0.1) < 0.01
    assert drawn.min() == 3 and drawn.max() == 998 and len(np.unique(drawn)) > 900


def test_gathered_tokens_come_from_their_own_row_each_place_equally_likely():
    rng = np.random.default_rng(3)
    rows = filled(ragged([[10, 11, 12, 13], [], [20, 21, 20]] * 3000))
    noise = rng.random(rows.tokens.shape) < 0.5
    made = split(corruption.noise_token_to_gathered_token(rows, noise, IDS, rng))
    for own, before, after, mask in zip([{10, 11, 12, 13}, set(), {20, 21}] * 3000, rows.tokens, made, noise):
        mask = mask[: len(after)]
        assert len(after) == (before > 0).sum() and (before[: len(after)][~mask] == after[~mask]).all()
        assert set(after.tolist()) <= own
    drawn = np.concatenate([after[mask[: len(after)]] for after, mask in zip(made, noise)])
    _, counts = np.unique(drawn, return_counts=True)
    shares = counts / np.array(
        [np.repeat((drawn < 20).sum() / 4, 4).tolist() + [(drawn >= 20).sum() / 3 * n for n in (2, 1)]]
    )
    assert abs(shares - 1).max() < 0.06


def test_random_tokens_are_of_the_whole_vocabulary_but_the_reserved_ids():
    rng = np.random.default_rng(4)
    rows = filled(ragged([[1000] * 500] * 200))
    noise = rng.random((200, 500)) < 0.3
    made = corruption.noise_token_to_random_token(rows, noise, IDS, rng).values.reshape(200, 500)
    assert (made[~noise] == 1000).all()
    assert np.unique(made[noise]).tolist() == list(range(3, 1000))
