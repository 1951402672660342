"""The decoder one token at a time: what came before is kept as keys and values.

W sequences of a row are decoded beside each other. They are the query axis of attention: all of them look into the
same cache, so that keys and values of the inputs are there once and not W times. A cache of self-attention is, of each
layer, [B, H, K, P + T*W]: P positions of the prompt, then W of each step. It is never reordered when sequences are
dropped and others continued twice: `ancestry` [B, W, T] says in which of the W places each step of a sequence is, -1
where none is yet, and a mask makes each sequence see its own.

The prompt is what is known before the first step: the start token, in front of the inputs where there is no encoder.
Prompts end at the same position and begin at different ones: the distance from a step to any place is then the same in
all rows.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.model.network import T5, causal, visible

Array = jax.Array
# Of each layer, keys and values.
Cache = list[tuple[Array, Array]]
# (tokens [B, W], which step they are of, ancestry, cache) -> float32 logits [B, W, V] of what follows, the cache.
Step = Callable[[Array, Array, Array, Cache], tuple[Array, Cache]]


def prefill(model: T5, tokens: Array, width: int, length: int) -> tuple[Array, Cache, Step]:
    """Reads the inputs.

    Args:
      model: the merged model.
      tokens: [B, S] inputs, 0 behind them.
      width: W, sequences of a row.
      length: T, the most tokens of a sequence.

    Returns:
      Float32 logits [B, 1, V] of the first token; the cache; the function that goes on from them.
    """
    encoded = None if model.arch.decoder_only else model.encode(tokens)
    model = ready(model)
    rules, arch, stack = model.token_embedder.rules, model.arch, model.decoder
    layers = unstacked(stack.layers, arch.decoder_layers)
    if encoded is None:
        prompt, known = right_aligned(tokens)
        cross, cross_mask = [None] * len(layers), None
    else:
        prompt, known = jnp.zeros_like(tokens[:, :1]), jnp.ones_like(tokens[:, :1], bool)
        cross, cross_mask = (
            [kept(layer.encoder_decoder_attention.keys_values(encoded)) for layer in layers],
            visible(tokens),
        )
    rows, before = prompt.shape
    spec = rules.spec("batch", "heads", None, None)

    def room(filled: Array) -> Array:
        """Adds the T*W places of the steps."""
        shape = (rows, arch.num_heads, arch.head_dim, length * width)
        return jnp.concatenate([filled, jnp.zeros(shape, filled.dtype, out_sharding=spec)], axis=3)

    x = model.token_embedder(prompt)
    mask = known[:, None, None, :]
    if arch.structure != "prefix_lm":
        mask = mask & causal(before)
    bias, cache = stack.bias(before, before, model.decoder_bidirectional), []
    for layer, across in zip(layers, cross):
        x, filled = through(layer, x, lambda new: new, bias(layer), mask, across, cross_mask)
        cache.append(tuple(room(one) for one in filled))
    first = model.logits(stack.finish(x[:, -1:], None, ()))

    places = before + length
    strips = bias_strips(model, layers, places)

    def step(tokens: Array, at: Array, ancestry: Array, cache: Cache) -> tuple[Array, Cache]:
        own = jnp.reshape(ancestry[..., None] == jnp.arange(width), (rows, width, length * width))
        seen = jnp.concatenate([jnp.broadcast_to(known[:, None], (rows, width, before)), own], axis=-1)[:, None]

        def row(strip: Array) -> Array:
            """[1, H, 1, P + T*W], the bias of this step's position."""
            by_place = jax.lax.dynamic_slice_in_dim(strip, length - 1 - at, places, axis=1)
            steps = jnp.repeat(by_place[:, before:], width, axis=1, total_repeat_length=length * width)
            return jnp.concatenate([by_place[:, :before], steps], axis=1)[None, :, None]

        def written(old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
            start = before + at * width
            return tuple(jax.lax.dynamic_update_slice_in_dim(o, n, start, axis=3) for o, n in zip(old, new))

        x, after = model.token_embedder(tokens), []
        rows_of_bias = [row(strip) for strip in strips]
        for i, layer in enumerate(layers):
            bias = rows_of_bias[i % len(rows_of_bias)]
            x, filled = through(layer, x, functools.partial(written, cache[i]), bias, seen, cross[i], cross_mask)
            after.append(filled)
        return model.logits(stack.finish(x, None, ())), after

    return first, cache, step


def ready(model: T5) -> T5:
    """The model with its matrices as they are used, in the compute type and whole along `embed`.

    Once before the first step and not in each of them. It takes the memory of the gathered decoder.
    """
    rules, dtype = model.token_embedder.rules.without("embed"), model.arch.dtype
    graphdef, params = nnx.split(model)

    def gathered(param: nnx.Variable) -> nnx.Variable:
        axes = param.get_metadata()["axes"]
        if "embed" not in axes:
            return param
        return param.replace(jax.sharding.reshard(param[...].astype(dtype), rules.spec(*axes)))

    return nnx.merge(graphdef, jax.tree.map(gathered, params, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def unstacked(layers: nnx.Module, count: int) -> list[nnx.Module]:
    """The layers of a stack one by one.

    A loop over a stack would copy the slices of its weights and of the cache at each step.
    """
    graphdef, params = nnx.split(layers)
    return [nnx.merge(graphdef, jax.tree.map(operator.itemgetter(i), params)) for i in range(count)]


def kept(keys_values: tuple[Array, Array]) -> tuple[Array, Array]:
    """[B, S, H, K] -> [B, H, K, S]. Products of few queries with many keys read them so ten times faster on a CPU."""
    return tuple(x.transpose(0, 2, 3, 1) for x in keys_values)


def read(keys_values: tuple[Array, Array]) -> tuple[Array, Array]:
    """[B, H, K, S] -> [B, S, H, K]."""
    return tuple(x.transpose(0, 3, 1, 2) for x in keys_values)


def through(
    layer: nnx.Module,
    x: Array,
    write: Callable[[tuple[Array, Array]], tuple[Array, Array]],
    bias: Array,
    mask: Array,
    cross: tuple[Array, Array] | None,
    cross_mask: Array | None,
) -> tuple[Array, tuple[Array, Array]]:
    """One layer over [B, Q, D], whose keys and values [B, H, K, Q] go through `write`; and what that made of them."""
    filled = []

    def own(h: Array) -> tuple[Array, Array]:
        filled.extend(write(kept(layer.own_attention.keys_values(h))))
        return read(filled)

    across = None if cross is None else lambda: read(cross)
    return layer(x, own, bias, mask, across, cross_mask), tuple(filled)


def right_aligned(tokens: Array) -> tuple[Array, Array]:
    """[B, S] inputs with 0 behind them -> [B, S + 1] prompts 0, ..., 0, inputs; and which positions are the prompt's.

    A prompt is the start token, whose id is 0, and the inputs.
    """
    length = tokens.shape[1]
    behind = length - jnp.max(jnp.where(tokens > 0, jnp.arange(1, length + 1), 0), axis=1, keepdims=True)
    index = jnp.arange(length) - behind
    moved = jnp.where(index < 0, 0, jnp.take_along_axis(tokens, jnp.maximum(index, 0), axis=1))
    prompt = jnp.pad(moved, ((0, 0), (1, 0)))
    return prompt, jnp.arange(length + 1) >= behind


def bias_strips(model: T5, layers: Sequence[nnx.Module], places: int) -> list[Array]:
    """The position bias by distance [H, 2 * places] of the stack, or of each layer; see `RelativeBias.strip`."""
    owners = layers if model.arch.relative_bias_per_layer else [model.decoder]
    spec = model.token_embedder.rules.spec("heads", None)
    strips = [owner.relpos_bias.strip(places, places, model.decoder_bidirectional) for owner in owners]
    return [jax.sharding.reshard(strip, spec) for strip in strips]
