"""The attention core, which has a gradient of its own, beside what JAX derives from the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.model.attention import dot_product_attention
from t5x_lite.parallel.partition import single_device

ROWS, QUERIES, KEYS, HEADS, WIDTH = 3, 7, 9, 2, 8


def plain(query, key, value, bias, mask):
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores, axis=-1), value)


def drawn(dtype, rows=ROWS):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    query, key, value = (draw(rows, length, HEADS, WIDTH) for length in (QUERIES, KEYS, KEYS))
    mask = rng.random((rows, 1, QUERIES, KEYS)) > 0.3
    mask[0, :, 2] = False  # a query that sees nothing
    return query, key, value, draw(1, HEADS, QUERIES, KEYS), jnp.asarray(mask), draw(rows, QUERIES, HEADS, WIDTH)


def with_gradients(function, arguments, cotangent):
    with jax.set_mesh(single_device()):
        output, gradient = jax.vjp(function, *arguments)
        return output, *gradient(cotangent)


@pytest.mark.parametrize("has_bias, has_mask", [(True, True), (False, True), (True, False), (False, False)])
def test_output_and_gradients_are_those_of_the_plain_formula(has_bias, has_mask):
    query, key, value, bias, mask, cotangent = drawn(jnp.float32)
    arguments = (query, key, value) + ((bias,) if has_bias else ())
    mask = mask if has_mask else None

    def ours(query, key, value, bias=None):
        return dot_product_attention(query, key, value, bias, mask, 0.0, None)

    def theirs(query, key, value, bias=None):
        return plain(query, key, value, bias, mask)

    expected = with_gradients(theirs, arguments, cotangent)
    for found, wanted in zip(with_gradients(ours, arguments, cotangent), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 33, 37, 64])
def test_the_gradient_of_the_bias_is_the_sum_over_any_number_of_rows(rows):
    """Rows are added one to another in groups of up to 32, of the same size."""
    query, key, value, bias, mask, cotangent = drawn(jnp.float32, rows)
    *_, found = with_gradients(
        lambda *x: dot_product_attention(*x, mask, 0.0, None), (query, key, value, bias), cotangent
    )
    *_, wanted = with_gradients(lambda *x: plain(*x, mask), (query, key, value, bias), cotangent)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


def test_in_bfloat16_output_and_gradients_are_within_its_precision():
    query, key, value, bias, mask, cotangent = drawn(jnp.bfloat16)
    found = with_gradients(lambda *x: dot_product_attention(*x, mask, 0.0, None), (query, key, value, bias), cotangent)
    wanted = with_gradients(
        lambda *x: plain(*x, mask),
        [x.astype(jnp.float32) for x in (query, key, value, bias)],
        cotangent.astype(jnp.float32),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(np.asarray(ours, np.float32) - theirs)
        assert error.max() < 0.02 * np.abs(theirs).max()


def test_dropout_drops_a_key_for_all_queries_of_a_head_and_keeps_the_expectation():
    query, key, _, bias, mask, _ = drawn(jnp.float32)
    value = jnp.broadcast_to(jnp.eye(KEYS)[None, :, None], (ROWS, KEYS, HEADS, KEYS))  # the output is the weights
    rate = 0.25
    with jax.set_mesh(single_device()):
        whole = dot_product_attention(query, key, value, bias, mask, rate, None)
        draws = [
            dot_product_attention(query, key, value, bias, mask, rate, jax.random.key(seed)) for seed in range(200)
        ]
    kept = np.asarray(draws[0]) / np.maximum(whole, 1e-30)  # [B, Q, H, S]: 0 or 1 / (1 - rate)
    seen = np.asarray(whole) > 1e-6
    np.testing.assert_allclose(np.unique(np.round(kept[seen], 4)), [0.0, 1 / (1 - rate)], atol=1e-3)
    for row in range(ROWS):
        for head in range(HEADS):
            for k in range(KEYS):
                assert len(set(np.round(kept[row, :, head, k][seen[row, :, head, k]], 4))) <= 1
    np.testing.assert_allclose(np.mean(draws, axis=0), whole, atol=0.2)
