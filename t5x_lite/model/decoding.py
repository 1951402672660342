"""Cached greedy decoding: one token a step, keys and values kept.

A cache is one array for all layers, [layers, B, T, H, K], cut as activations
are. Keys and values of the encoder's output are computed once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.model.network import T5, visible

Array = jax.Array


def cross_cache(model: T5, encoded: Array) -> tuple[Array, Array]:
    """Keys and values of the encoder's output for every decoder layer, each [layers, B, S, H, K]."""

    def step(layer, x, _):
        return x, layer.encoder_decoder_attention.keys_values(x)

    return model.decoder.over_layers(step, encoded, None)[1]


def empty_cache(model: T5, batch: int, length: int) -> tuple[Array, Array]:
    """Keys and values of no token yet, each [layers, B, T, H, K]."""
    arch = model.arch
    shape = (arch.decoder_layers, batch, length, arch.num_heads, arch.head_dim)
    rules = model.token_embedder.rules
    spec = rules.spec("layers", "batch", "length", "heads", None)
    return tuple(jnp.zeros(shape, arch.dtype, out_sharding=spec) for _ in range(2))


def step_logits(
    model: T5,
    tokens: Array,
    position: Array,
    bias: Callable,
    cache: tuple[Array, Array],
    cross: tuple[Array, Array],
    encoder_tokens: Array,
) -> tuple[Array, tuple[Array, Array]]:
    """Logits of the token after `tokens`.

    Args:
      model: the merged model.
      tokens: [B] the decoder's inputs at `position`.
      position: scalar, how many tokens came before.
      bias: layer -> [1, H, T, T], the position bias of the whole target length.
      cache: self-attention keys and values so far.
      cross: from `cross_cache`.
      encoder_tokens: [B, S], to hide their padding.

    Returns:
      Float32 logits [B, V] and the cache with this position filled in.
    """
    length = cache[0].shape[2]
    self_mask = (jnp.arange(length) <= position)[None, None, None, :]
    cross_mask = visible(encoder_tokens)

    def step(layer, x, kept):
        (keys, values), cross_kv = kept
        filled = []

        def own(h):
            new = layer.own_attention.keys_values(h)
            filled.extend(
                jax.lax.dynamic_update_slice_in_dim(old, one, position, axis=1) for old, one in zip((keys, values), new)
            )
            return tuple(filled)

        row = jax.lax.dynamic_slice_in_dim(bias(layer), position, 1, axis=2)
        x = layer(x, own, row, self_mask, lambda: cross_kv, cross_mask)
        return x, tuple(filled)

    x = model.token_embedder(tokens[:, None])
    x, cache = model.decoder.over_layers(step, x, (cache, cross))
    return model.logits(model.decoder.finish(x, None, ()))[:, 0], cache


def greedy(graphdef: nnx.GraphDef, params: dict, encoder_tokens: Array, length: int, eos: int) -> tuple[Array, Array]:
    """The most probable token at each step, until every row has ended.

    Args:
      graphdef: from `network.split`.
      params: the parameters.
      encoder_tokens: [B, S] input ids, 0 is padding.
      length: T, the most tokens to produce.
      eos: id that ends a sequence; what follows it is 0.

    Returns:
      Token ids [B, T] and the log-probability of each sequence [B] (nats, the end token included).
    """
    model = nnx.merge(graphdef, params)
    rows = encoder_tokens.shape[0]
    cross = cross_cache(model, model.encode(encoder_tokens))
    bias = model.decoder.bias(length, length, bidirectional=False)
    by_row = model.token_embedder.rules.spec("batch")
    start = jnp.zeros((rows,), jnp.int32, out_sharding=by_row)
    state = {
        "position": jnp.zeros((), jnp.int32),
        "token": start,  # decoding starts from the padding id
        "ended": start > 0,
        "score": start.astype(jnp.float32),
        "output": jnp.zeros((rows, length), jnp.int32, out_sharding=model.token_embedder.rules.spec("batch", "length")),
        "cache": empty_cache(model, rows, length),
    }

    def unfinished(state):
        return (state["position"] < length) & ~jnp.all(state["ended"])

    def advance(state):
        position, ended = state["position"], state["ended"]
        logits, cache = step_logits(model, state["token"], position, bias, state["cache"], cross, encoder_tokens)
        best = jnp.max(logits, axis=-1)
        token = jnp.where(ended, 0, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        gain = jnp.where(ended, 0.0, best - jax.nn.logsumexp(logits, axis=-1))
        return {
            "position": position + 1,
            "token": token,
            "ended": ended | (token == eos),
            "score": state["score"] + gain,
            "output": jax.lax.dynamic_update_slice_in_dim(state["output"], token[:, None], position, axis=1),
            "cache": cache,
        }

    final = jax.lax.while_loop(unfinished, advance, state)
    return final["output"], final["score"]
