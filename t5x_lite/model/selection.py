"""The best of many scores, without sorting them all.

Scores [..., V] are float32 and V is a vocabulary: one pass over it, or a few, and no sort, which takes longer than the
rest of a step on a CPU.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

_BLOCK = 128


def top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """The k largest of the last axis in descending order, and their indices; of equal ones the lower index is first.

    Blocks of neighbours are ranked by their maximum: all of the k largest are in the best k blocks.
    """
    *rows, width = scores.shape
    blocks = -(-width // _BLOCK)
    if blocks <= k:
        return jax.lax.top_k(scores, k)
    if width % _BLOCK:
        scores = jnp.pad(scores, [(0, 0)] * len(rows) + [(0, -width % _BLOCK)], constant_values=-jnp.inf)
    scores = jnp.reshape(scores, (*rows, blocks, _BLOCK))
    _, chosen = jax.lax.top_k(jnp.max(scores, axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)  # in their order, so that of equal scores the lower index stays first
    within = jnp.take_along_axis(scores, chosen[..., None], axis=-2)
    best, place = jax.lax.top_k(jnp.reshape(within, (*rows, k * _BLOCK)), k)
    return best, jnp.take_along_axis(chosen, place // _BLOCK, axis=-1) * _BLOCK + place % _BLOCK


def keep_top_k(scores: Array, k: int) -> Array:
    """-inf in place of all but the k largest; those equal to the last of them stay too."""
    return _above(scores, jnp.ones_like(scores), jnp.float32(k))


def keep_top_p(scores: Array, p: float) -> Array:
    """-inf in place of all but the fewest most probable whose probabilities sum to p; those equal to the last stay."""
    return _above(scores, jax.nn.softmax(scores, axis=-1), jnp.float32(p))


def _above(scores: Array, weights: Array, limit: Array) -> Array:
    """Keeps each score above which there is less than `limit` of weight.

    By bisection over the bits of a float, whose order is that of whole numbers: 32 sums instead of a sort.
    """
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(_, bounds):
        low, high = bounds  # the weight above `low` reaches the limit, that above `high` does not
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = jnp.sum(jnp.where(ordered > middle, weights, 0.0), axis=-1, keepdims=True) >= limit
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = jnp.max(ordered, axis=-1, keepdims=True)
    low = jnp.full_like(top, jnp.iinfo(jnp.int32).min)
    _, least = jax.lax.fori_loop(0, 32, halve, (low, top))
    return jnp.where(ordered >= least, scores, -jnp.inf)
