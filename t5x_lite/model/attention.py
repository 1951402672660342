"""Multi-head attention of T5: no 1/sqrt(K) scale, an additive position bias, a boolean mask.

The bias [1, H, Q, K] and the mask [B, 1, Q, K] stay apart: folded into one, their
gradient would be accumulated for every row of the batch.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from t5x_lite.model.architecture import Architecture
from t5x_lite.model.layers import Dense, dropout, parameter
from t5x_lite.parallel.partition import Rules

Array = jax.Array

# Finite, so that a row without any visible key gives a uniform softmax and not NaN.
MASKED = -1e9


def dot_product_attention(
    query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None, rate: float, drop_key: Array | None
) -> Array:
    """softmax(query . key + bias) . value, the softmax in float32.

    Args:
      query: [B, Q, H, K].
      key, value: [B, S, H, K].
      bias: [1, H, Q, S] or None.
      mask: boolean, True where a query sees a key; broadcasts to [B, H, Q, S]. None: all.
      rate: dropout of the attention weights, shared over queries.
      drop_key: PRNG key, or None outside training.

    Returns:
      [B, Q, H, K] in the type of `query`.
    """
    # A weight that is dropped for all queries is a value that is dropped: far fewer numbers.
    return _attended(query, key, dropout(value, rate, drop_key, broadcast=(-1,)), bias, mask)


@jax.custom_vjp
def _attended(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    return _attend(query, key, value, bias, mask)[0]


def _scores(query: Array, key: Array, bias: Array | None, mask: Array | None) -> Array:
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key).astype(jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    return scores if mask is None else jnp.where(mask, scores, MASKED)


def _attend(query, key, value, bias, mask):
    """The output, and of each softmax [B, H, Q, 1] its largest score and the sum of its exponentials."""
    scores = _scores(query, key, bias, mask)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest).astype(query.dtype)
    # A column of ones: the product sums the weights too, in lanes that a head's width of 64 leaves idle.
    counted = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    sums = jnp.einsum("bhqs,bshk->bqhk", weights, counted, preferred_element_type=jnp.float32)
    attended = (sums[..., :-1] / sums[..., -1:]).astype(query.dtype)
    return attended, largest, jnp.swapaxes(sums[..., -1:], 1, 2)


def _attend_forward(query, key, value, bias, mask):
    attended, largest, total = (checkpoint_name(x, "attended") for x in _attend(query, key, value, bias, mask))
    return attended, (query, key, value, bias, mask, attended, largest, total)


def _attend_backward(residuals, grad):
    # As in FlashAttention (Dao et al. 2022), section 3.1 and appendix B: of [B, H, Q, S] two arrays, in the compute
    # type, and the softmax's own gradient from the output.
    query, key, value, bias, mask, attended, largest, total = residuals
    weights = jnp.exp(_scores(query, key, bias, mask) - largest) / total
    inner = jnp.sum(grad.astype(jnp.float32) * attended, axis=-1, keepdims=True)
    d_weights = jnp.einsum("bqhk,bshk->bhqs", grad, value).astype(jnp.float32)
    d_scores = weights * (d_weights - jnp.swapaxes(inner, 1, 2))
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0.0)  # of a row that sees nothing, which has weights all the same
    d_scores = d_scores.astype(query.dtype)
    d_bias = None if bias is None else _summed_over_rows(d_scores).astype(bias.dtype)
    d_query = jnp.einsum("bhqs,bshk->bqhk", d_scores, key)
    d_key = jnp.einsum("bhqs,bqhk->bshk", d_scores, query)
    d_value = jnp.einsum("bhqs,bqhk->bshk", weights.astype(query.dtype), grad)
    return d_query, d_key, d_value, d_bias, None


def _summed_over_rows(x: Array) -> Array:
    """The sum over the first dimension, which it keeps, in float32.

    Row is added to row, up to 32 at once: for one reduction over as many the TPU compiler reckons six times the cycles
    (v5p, libtpu 0.0.52).
    """
    sharding = jax.typeof(x).sharding
    cut, *others = sharding.spec.partitions
    shards = math.prod(sharding.mesh.shape[axis] for axis in (cut if isinstance(cut, tuple) else (cut,)) if axis)
    rows = x.shape[0] // shards
    together = max(n for n in range(1, 33) if rows % n == 0)
    x = jnp.reshape(
        x, (shards, rows // together, together, *x.shape[1:]), out_sharding=PartitionSpec(cut, None, None, *others)
    )
    added = functools.reduce(operator.add, (x[:, :, row].astype(jnp.float32) for row in range(together)))
    return jnp.sum(added, axis=(0, 1))[None]


_attended.defvjp(_attend_forward, _attend_backward)


class Attention(nnx.Module):
    """Projections around `dot_product_attention`.

    Kernels are 2-D, [D, H*K]: Adafactor factors their second moments.
    The query kernel starts smaller by sqrt(K), which stands in for the absent scale.
    """

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layers: int):
        width = arch.num_heads * arch.head_dim

        def dense(shape, axes, std):
            return Dense(parameter(rngs.params(), shape, axes, std, layers), axes, rules, arch.dtype)

        inward, outward = (arch.embed_dim, width), (width, arch.embed_dim)
        self.query = dense(inward, ("embed", "heads"), (arch.embed_dim * arch.head_dim) ** -0.5)
        self.key = dense(inward, ("embed", "heads"), arch.embed_dim**-0.5)
        self.value = dense(inward, ("embed", "heads"), arch.embed_dim**-0.5)
        self.out = dense(outward, ("heads", "embed"), width**-0.5)
        self.heads, self.rules, self.rate = arch.num_heads, rules, arch.dropout_rate

    def _split(self, x: Array) -> Array:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        return jnp.reshape(x, shape, out_sharding=self.rules.spec("batch", "length", "heads", None))

    def keys_values(self, source: Array) -> tuple[Array, Array]:
        """Keys and values [B, S, H, K] of `source` [B, S, D]."""
        axes = ("batch", "length", "heads")
        return self._split(self.key(source, axes)), self._split(self.value(source, axes))

    def __call__(
        self,
        x: Array,
        keys_values: tuple[Array, Array],
        bias: Array | None = None,
        mask: Array | None = None,
        drop_key: Array | None = None,
    ) -> Array:
        """[B, Q, D] attending to the given keys and values [B, S, H, K], back to [B, Q, D]."""
        query = self._split(self.query(x, ("batch", "length", "heads")))
        attended = dot_product_attention(query, *keys_values, bias, mask, self.rate, drop_key)
        joined = jnp.reshape(attended, (*x.shape[:2], -1), out_sharding=self.rules.spec("batch", "length", "heads"))
        return self.out(joined, ("batch", "length", None))


def relative_bucket(relative: np.ndarray, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each relative position (key minus query): exact when near, logarithmic when far.

    Source: T5 paper, section 2.1; Mesh TensorFlow's `_relative_position_bucket`.

    Args:
      relative: integer array of key position minus query position.
      bidirectional: half the buckets are for keys after the query; otherwise those share bucket 0.
      buckets: number of buckets.
      max_distance: distances from here on share the last bucket.

    Returns:
      int32 array in [0, buckets), of the same shape.
    """
    offset = np.zeros_like(relative)
    distance = -relative
    if bidirectional:
        buckets //= 2
        offset = (distance < 0) * buckets
        distance = np.abs(distance)
    else:
        distance = np.maximum(distance, 0)
    exact = buckets // 2
    # float32 as in the reference: a double would move a distance that falls on a boundary.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int32), buckets - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativeBias(nnx.Module):
    """One learned scalar for each head and bucket: of a whole stack, or with `layers` > 0 of each of its layers."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layers: int = 0):
        # Replicated: the table is tiny, and its heads need not divide over the mesh.
        shape = (arch.num_heads, arch.relative_buckets)
        draw = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=(0,) if layers else ())
        table = draw(rngs.params(), (layers, *shape) if layers else shape, jnp.float32)  # as in t5x
        self.rel_embedding = nnx.Param(table, axes=("layers", None, None) if layers else (None, None))
        self.max_distance, self.rules, self.dtype = arch.relative_max_distance, rules, arch.dtype

    def strip(self, queries: int, keys: int, bidirectional: bool) -> Array:
        """The bias by distance, [H, Q + K]: query q and key k have the value Q - 1 + k - q; see `relative_bucket`."""
        relative = np.arange(queries + keys) - (queries - 1)
        table = jnp.asarray(self.rel_embedding[...], self.dtype)
        buckets = relative_bucket(relative, bidirectional, table.shape[1], self.max_distance)
        return table.at[:, buckets].get(out_sharding=jax.sharding.PartitionSpec())

    def __call__(self, queries: int, keys: int, bidirectional: bool) -> Array:
        """[1, H, Q, K]."""
        strip = self.strip(queries, keys, bidirectional)
        return jax.sharding.reshard(toeplitz(strip, queries)[None], self.rules.spec(None, "heads", None, None))


def toeplitz(strip: Array, queries: int) -> Array:
    """[H, Q + K] values by distance -> [H, Q, K], where query q and key k have the value Q - 1 + k - q.

    By copies and reshapes alone: a gather of [Q, K] indices would have a scatter of as many as its gradient.
    """
    heads, length = strip.shape
    # Read in rows that are one shorter than the strip, copies of it move by one with each row.
    copies = jnp.reshape(jnp.broadcast_to(strip[:, None], (heads, queries, length)), (heads, -1))
    rows = copies[:, queries - 1 : queries - 1 + queries * (length - 1)]
    return jnp.reshape(rows, (heads, queries, length - 1))[:, :, : length - queries]
