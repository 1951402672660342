"""Noise masks: what is counted by formula, what is drawn by its distribution."""

import json

import numpy as np
import pytest

from t5x_lite.tasks.objectives import masks


def chi_squared(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def single_precision_counts(length, density, mean):
    """Noise tokens and spans as t5.data.preprocessors.random_spans_noise_mask counts them."""
    noise = int(np.round(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    return noise, max(int(np.round(np.float32(noise) / np.float32(mean))), 1)


@pytest.mark.parametrize("density", [0.1, 0.15, 0.2, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("mean", [1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 20.0])
def test_noise_is_counted_in_single_precision(density, mean):
    lengths = np.arange(2, 4097)
    noise, spans = masks.noise_counts(lengths, density, mean)
    expected = [single_precision_counts(int(n), density, mean) for n in lengths]
    assert list(zip(noise.tolist(), spans.tolist())) == expected


def test_counts_are_those_of_t5(references):
    for case in json.loads((references / "t5_objectives.json").read_text())["counts"]:
        noise = masks.spans(np.array([case["length"]]), case["density"], case["mean"], np.random.default_rng(0))[0]
        first = noise & ~np.concatenate([[False], noise[:-1]])
        assert (noise.sum(), first.sum()) == (case["noise"], case["spans"]), case


@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.15, 1.0), (0.5, 3.0), (0.9, 2.0)])
def test_spans(density, mean):
    lengths = np.array([568, 568, 190, 100, 31, 5, 3, 2, 1, 568] * 4)
    noise = masks.spans(lengths, density, mean, np.random.default_rng(1))
    assert noise.shape == (40, 568)
    for length, row in zip(lengths, noise):
        row = row[:length]
        if length == 1:
            assert row.tolist() == [False]
            continue
        count, spans = single_precision_counts(length, density, mean)
        assert row.sum() == count and not row[0] and row[-1]
        assert (row[1:] & ~row[:-1]).sum() == min(spans, length - count)


def test_all_divisions_into_spans_are_equally_likely():
    # 8 tokens, 4 of them noise, in 2 spans: 3 ways to divide the text, 3 to divide the noise.
    rows = 9000
    noise = masks.spans(np.full(rows, 8), 0.5, 2.0, np.random.default_rng(2))
    _, counts = np.unique(noise, axis=0, return_counts=True)
    # Chi-squared with 8 degrees of freedom passes 26.1 once in a thousand.
    assert len(counts) == 9 and chi_squared(counts, rows / 9) < 26.1


def test_a_draw_of_many_rows_is_not_the_same_in_each():
    noise = masks.spans(np.full(50, 200), 0.15, 3.0, np.random.default_rng(3))
    assert len(np.unique(noise, axis=0)) == 50


@pytest.mark.parametrize("density", [0.1, 0.15, 0.25, 0.5])
def test_iid_tokens_are_noise_each_by_itself(density):
    noise = masks.iid(np.full(400, 500), density, np.random.default_rng(4))
    assert abs(noise.mean() - density) < 4 * np.sqrt(density * (1 - density) / noise.size)
    both = (noise[:, 1:] & noise[:, :-1]).mean()
    assert abs(both - density**2) < 0.003


def test_every_prefix_is_equally_likely():
    noise = masks.prefix(np.full(7000, 8), 0.5, np.random.default_rng(5))
    sizes = noise.sum(axis=1)
    assert (np.diff(noise.astype(int), axis=1) <= 0).all()  # nothing of the prefix comes after its end
    counts = np.bincount(sizes, minlength=9)
    # 6 degrees of freedom.
    assert counts[0] == counts[8] == 0 and chi_squared(counts[1:8], 1000) < 22.5


def test_the_rest_behind_a_prefix_makes_up_the_density():
    noise = masks.prefix(np.full(4000, 401), 0.25, np.random.default_rng(6))
    rest = 401 - noise.sum(axis=1)
    assert rest.min() >= 1 and rest.max() <= 201 and abs(rest.mean() - 101) < 4
    assert masks.prefix(np.array([1, 2, 3]), 0.5, np.random.default_rng(0)).sum(axis=1)[0] == 0


class Drawn:
    """A generator that draws numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def integers(self, low, high=None, size=None):
        return np.full(size or low.shape, next(self.numbers))


def test_regular_spans_are_those_of_t5(references):
    for case in json.loads((references / "t5_objectives.json").read_text())["regular"]:
        drawn = Drawn(case["span"], case["offset"])
        assert masks.regular(np.array([case["length"]]), case["density"], drawn)[0].tolist() == case["mask"], case


def test_regular_spans_have_their_density_and_draw_all_sizes_and_places():
    noise = masks.regular(np.full(4000, 200), 0.25, np.random.default_rng(5), min_span=2, max_span=3)
    assert abs(noise.mean() - 0.25) < 0.005
    assert np.ptp(noise.mean(axis=0)) < 0.06  # no place is noise more often than others
    inner = np.diff(np.flatnonzero(np.diff(noise[0].astype(int))))
    assert set(inner.tolist()) in ({2, 6}, {3, 9})


def test_rolled_masks_keep_their_count_and_have_noise_everywhere():
    lengths = np.array([20, 13, 1, 0] * 1000)
    rolled = masks.spans(lengths, 0.15, 3.0, np.random.default_rng(6), random_roll=True)
    plain = masks.spans(lengths, 0.15, 3.0, np.random.default_rng(6))
    inside = np.arange(20) < lengths[:, None]
    assert ((rolled & inside).sum(axis=1) == (plain & inside).sum(axis=1)).all()
    assert (plain[::4].mean(axis=0) == [0.0] * 17 + [1.0] * 3).all()  # one span, the end
    assert abs(rolled[::4].mean(axis=0) - 0.15).max() < 0.05


def test_no_density_no_noise():
    assert not masks.spans(np.array([9, 1]), 0.0, 3.0, np.random.default_rng(0)).any()
