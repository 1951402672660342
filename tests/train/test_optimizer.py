"""Optimizers and schedules against numpy, written from the papers, one layer at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.errors import UserError
from t5x_lite.train import optimizer, schedule

# Logical axes of a small tree: a factored and an unfactored stack, and parameters of no stack.
SHAPES = {
    "encoder": {
        "layers": {"wi": {"kernel": (3, 130, 140)}, "narrow": {"kernel": (3, 130, 100)}, "norm": {"scale": (3, 130)}},
        "norm": {"scale": (130,)},
    },
    "decoder": {"layers": {"wo": {"kernel": (2, 140, 130)}}},
    "embedder": {"table": (200, 128)},
    "bias": {"table": (4, 32)},
}


def is_shape(x):
    return isinstance(x, tuple)


def axes():
    def one(path, shape):
        stacked = any(key.key == "layers" for key in path)
        return ("layers",) * stacked + (None,) * (len(shape) - stacked)

    return jax.tree_util.tree_map_with_path(one, SHAPES, is_leaf=is_shape)


def drawn(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    # Scales differ by layer, so that a statistic of the whole stack would show.
    return jax.tree.map(
        lambda s: (scale * rng.standard_normal(s) * 10.0 ** rng.integers(-4, 2, (s[0],) + (1,) * (len(s) - 1))).astype(
            np.float32
        ),
        SHAPES,
        is_leaf=is_shape,
    )


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


class Adafactor:
    """One parameter's Adafactor in float64: Shazeer and Stern 2018, algorithms 4 and 5, with T5's constants."""

    def __init__(self, shape):
        self.factored = len(shape) == 2 and min(shape) >= 128
        self.rows, self.columns, self.all = np.zeros(shape[:1]), np.zeros(shape[-1:]), np.zeros(shape)

    def update(self, gradient, parameter, t):
        decay = 1 - (t + 1) ** -0.8
        squared = np.square(gradient) + 1e-30
        if self.factored:
            self.rows = decay * self.rows + (1 - decay) * squared.mean(axis=1)
            self.columns = decay * self.columns + (1 - decay) * squared.mean(axis=0)
            second = np.outer(self.rows, self.columns) / self.rows.mean()
        else:
            second = self.all = decay * self.all + (1 - decay) * squared
        update = gradient / np.sqrt(second)
        update /= max(1.0, rms(update) / 1.0)
        return update * max(rms(parameter), 1e-3)


class AdamRms:
    """One parameter's Adam, its update scaled by the parameter's RMS, then decoupled weight decay."""

    def __init__(self, shape):
        self.first, self.second = np.zeros(shape), np.zeros(shape)

    def update(self, gradient, parameter, t):
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.98 * self.second + 0.02 * gradient**2
        first, second = self.first / (1 - 0.9 ** (t + 1)), self.second / (1 - 0.98 ** (t + 1))
        return first / (np.sqrt(second) + 1e-6) * max(rms(parameter), 1e-3) + 0.01 * parameter


def layer_by_layer(make, params, gradients, rate):
    """Parameters after each step: every layer of a stack is updated as if it were alone."""

    def one(path, parameter):
        stacked = any(key.key == "layers" for key in path)
        layers = list(np.float64(parameter)) if stacked else [np.float64(parameter)]
        steps = []
        grads = [jax.tree_util.tree_leaves_with_path(g) for g in gradients]
        grads = [next(leaf for p, leaf in g if p == path) for g in grads]
        states = [make(layer.shape) for layer in layers]
        for t, gradient in enumerate(grads):
            parts = list(np.float64(gradient)) if stacked else [np.float64(gradient)]
            layers = [x - rate * s.update(g, x, t) for x, s, g in zip(layers, states, parts)]
            steps.append(np.stack(layers) if stacked else layers[0])
        return steps

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.parametrize(
    ("transformation", "reference"),
    [
        (optimizer.adafactor(), Adafactor),
        (optimizer.adamw_rms(b1=0.9, b2=0.98, weight_decay=0.01), AdamRms),
    ],
    ids=["adafactor", "adamw_rms"],
)
def test_optimizers_follow_their_papers_layer_by_layer(transformation, reference):
    params, rate = drawn(0), 0.05
    gradients = [drawn(seed, scale=10.0 ** (1 - seed)) for seed in range(1, 6)]
    expected = layer_by_layer(reference, params, gradients, rate)
    tx = optimizer.over_layers(transformation, axes())
    state, step = tx.init(params), jax.jit(tx.update)
    for t, gradient in enumerate(gradients):
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            wanted = expected
            for key in path:
                wanted = wanted[key.key]
            tolerance = 2e-6 * np.abs(wanted[t]).max()
            np.testing.assert_allclose(leaf, wanted[t], rtol=2e-5, atol=tolerance, err_msg=str((t, path)))


def test_only_large_matrices_are_factored():
    state = optimizer.over_layers(optimizer.adafactor(), axes()).init(drawn(0))
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    factored = 3 * (130 + 140) + 2 * (140 + 130) + (200 + 128)
    whole = 3 * (130 * 100 + 130) + 130 + 4 * 32
    assert factored + whole <= held < factored + whole + 100  # a few counters and placeholders of one element


def test_pretraining_schedule():
    """T5 paper, section 3.1.2: 0.01 for the first 10,000 steps, then 1/sqrt(step)."""
    rate = schedule.rsqrt()
    steps = [0, 1, 500, 9_999, 10_000, 10_001, 40_000, 524_288, 1_000_000]
    expected = [0.01] * 5 + [10_001**-0.5, 0.005, 524_288**-0.5, 0.001]
    np.testing.assert_allclose([rate(jnp.asarray(step)) for step in steps], expected, rtol=1e-6)


def test_schedules_with_a_ramp_at_either_end():
    rate = schedule.rsqrt(base=2.0, warmup_steps=100, linear_decay_steps=50, total_steps=400)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 350, 375, 399, 400, 500)],
        [0.2, 2 / 350**0.5, 0.5 * 2 / 375**0.5, 0.02 * 2 / 399**0.5, 0.0, 0.0],
        rtol=1e-6,
    )
    warm = schedule.linear_warmup(schedule.constant(0.4), 4)
    np.testing.assert_allclose([warm(step) for step in (0, 1, 2, 3, 4, 50)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_fine_tuning_schedule():
    np.testing.assert_allclose([schedule.constant()(step) for step in (0, 1, 1_000_000)], 0.001, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule.rsqrt(warmup_steps=0), r"rsqrt\.warmup_steps is 0\. .*sqrt\(warmup_steps\).*--gin\.schedule"),
        (lambda: schedule.rsqrt(linear_decay_steps=5), r"rsqrt\.total_steps is None\. .*linear_decay_steps end there"),
        (lambda: schedule.rsqrt(linear_decay_steps=-1), r"rsqrt\.linear_decay_steps is -1"),
        (lambda: schedule.linear_warmup(schedule.constant(), 0), r"linear_warmup\.steps is 0"),
    ],
)
def test_a_schedule_without_a_rate_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
