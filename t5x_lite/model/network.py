"""The T5 encoder-decoder: pre-norm residual layers, one position bias a stack, tied or own head.

Parameter names are those of t5x, with the layers of a stack in one array
(`encoder/layers/attention/query/kernel` is [layers, D, H*K]).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.model.architecture import Architecture
from t5x_lite.model.attention import Attention, RelativeBias
from t5x_lite.model.layers import Embedding, Head, Mlp, RMSNorm, dropout
from t5x_lite.parallel.partition import Rules

Array = jax.Array

_REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def _keys(key: Array | None, count: int) -> list[Array | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each normed before and added to the residual stream."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs):
        layers = arch.encoder_layers
        self.pre_attention_layer_norm = RMSNorm(arch, layers)
        self.attention = Attention(arch, rules, rngs, layers)
        self.pre_mlp_layer_norm = RMSNorm(arch, layers)
        self.mlp = Mlp(arch, rules, rngs, layers)
        self.rate = arch.dropout_rate

    def __call__(self, x: Array, bias: Array, mask: Array | None, key: Array | None) -> Array:
        weights, after_attention, hidden, after_mlp = _keys(key, 4)
        with jax.named_scope("attention"):
            h = self.pre_attention_layer_norm(x)
            h = self.attention(h, self.attention.keys_values(h), bias, mask, weights)
            x = x + dropout(h, self.rate, after_attention, broadcast=(-2,))
        with jax.named_scope("mlp"):
            h = self.mlp(self.pre_mlp_layer_norm(x), hidden)
            return x + dropout(h, self.rate, after_mlp, broadcast=(-2,))


class DecoderLayer(nnx.Module):
    """Causal self-attention, attention to the encoder's output, feed-forward."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs):
        layers = arch.decoder_layers
        self.pre_self_attention_layer_norm = RMSNorm(arch, layers)
        self.self_attention = Attention(arch, rules, rngs, layers)
        self.pre_cross_attention_layer_norm = RMSNorm(arch, layers)
        self.encoder_decoder_attention = Attention(arch, rules, rngs, layers)
        self.pre_mlp_layer_norm = RMSNorm(arch, layers)
        self.mlp = Mlp(arch, rules, rngs, layers)
        self.rate = arch.dropout_rate

    def __call__(
        self,
        x: Array,
        self_keys_values: Callable[[Array], tuple[Array, Array]],
        cross_keys_values: Callable[[], tuple[Array, Array]],
        bias: Array,
        self_mask: Array | None,
        cross_mask: Array | None,
        key: Array | None = None,
    ) -> Array:
        """One layer; the caller says where keys and values come from (computed here, or a cache)."""
        weights, after_self, cross_weights, after_cross, hidden, after_mlp = _keys(key, 6)
        with jax.named_scope("self_attention"):
            h = self.pre_self_attention_layer_norm(x)
            h = self.self_attention(h, self_keys_values(h), bias, self_mask, weights)
            x = x + dropout(h, self.rate, after_self, broadcast=(-2,))
        with jax.named_scope("cross_attention"):
            h = self.pre_cross_attention_layer_norm(x)
            h = self.encoder_decoder_attention(h, cross_keys_values(), None, cross_mask, cross_weights)
            x = x + dropout(h, self.rate, after_cross, broadcast=(-2,))
        with jax.named_scope("mlp"):
            h = self.mlp(self.pre_mlp_layer_norm(x), hidden)
            return x + dropout(h, self.rate, after_mlp, broadcast=(-2,))


class Stack(nnx.Module):
    """Layers with their shared position bias and final norm."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layer: type[nnx.Module], norm: str):
        self.relpos_bias = RelativeBias(arch, rules, rngs, bidirectional=layer is EncoderLayer)
        self.layers = layer(arch, rules, rngs)
        setattr(self, norm, RMSNorm(arch))
        self.norm, self.arch = norm, arch
        self.count = arch.encoder_layers if layer is EncoderLayer else arch.decoder_layers

    def over_layers(self, step: Callable, x: Array, scanned):
        """Folds `step(layer, x, slice) -> (x, out)` over the layers and slices of `scanned` [layers, ...]."""
        graphdef, params = nnx.split(self.layers)

        def body(x, inputs):
            layer_params, rest = inputs
            with jax.named_scope("layer"):
                return step(nnx.merge(graphdef, layer_params), x, rest)

        if self.arch.remat != "none":
            # In a loop each iteration is its own barrier; unrolled layers need one against being merged back.
            body = jax.checkpoint(body, policy=_REMAT_POLICIES[self.arch.remat], prevent_cse=not self.arch.scan_layers)
        return jax.lax.scan(body, x, (params, scanned), length=self.count, unroll=1 if self.arch.scan_layers else True)

    def finish(self, x: Array, key: Array | None, broadcast: tuple[int, ...]) -> Array:
        return dropout(getattr(self, self.norm)(x), self.arch.dropout_rate, key, broadcast)


class T5(nnx.Module):
    """The encoder-decoder of the T5 paper (1.0) and its 1.1 revision."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs):
        self.token_embedder = Embedding(arch, rules, rngs)
        self.encoder = Stack(arch, rules, rngs, EncoderLayer, "encoder_norm")
        self.decoder = Stack(arch, rules, rngs, DecoderLayer, "decoder_norm")
        if not arch.tied_head:
            self.decoder.logits_dense = Head(arch, rules, rngs)
        self.arch = arch

    def encode(self, tokens: Array, segments: Array | None = None, key: Array | None = None) -> Array:
        """Encodes input tokens.

        Args:
          tokens: [B, S] ids, 0 is padding.
          segments: [B, S] ids of the packed example of each position, 0 is padding; None: not packed.
          key: PRNG key for dropout, or None.

        Returns:
          [B, S, D] in the compute type.
        """
        stack, length = self.encoder, tokens.shape[1]
        start, end, loop = _keys(key, 3)
        with jax.named_scope("encoder"):
            x = dropout(self.token_embedder(tokens), self.arch.dropout_rate, start, broadcast=(-2,))
            bias = stack.relpos_bias(length, length)
            mask = visible(tokens) if segments is None else same_segment(segments, segments)
            keys = None if loop is None else jax.random.split(loop, stack.count)
            x, _ = stack.over_layers(lambda layer, x, k: (layer(x, bias, mask, k), None), x, keys)
            return stack.finish(x, end, broadcast=())

    def decode(
        self,
        inputs: Array,
        encoded: Array,
        encoder_tokens: Array,
        segments: Array | None = None,
        encoder_segments: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """Teacher-forced decoding of all positions at once.

        Args:
          inputs: [B, T] target ids shifted right, 0 first.
          encoded: [B, S, D] from `encode`.
          encoder_tokens: [B, S] ids that were encoded, to hide their padding.
          segments, encoder_segments: [B, T] and [B, S] ids of packed examples, or None.
          key: PRNG key for dropout, or None.

        Returns:
          Float32 logits [B, T, V].
        """
        stack, length = self.decoder, inputs.shape[1]
        start, end, loop = _keys(key, 3)
        with jax.named_scope("decoder"):
            x = dropout(self.token_embedder(inputs), self.arch.dropout_rate, start, broadcast=(-2,))
            bias = stack.relpos_bias(length, length)
            self_mask = causal(length)
            if segments is None:
                cross_mask = visible(encoder_tokens)
            else:
                self_mask = self_mask & same_segment(segments, segments)
                cross_mask = same_segment(segments, encoder_segments)

            def step(layer, x, k):
                cross = layer.encoder_decoder_attention.keys_values
                own = layer.self_attention.keys_values
                return layer(x, own, lambda: cross(encoded), bias, self_mask, cross_mask, k), None

            keys = None if loop is None else jax.random.split(loop, stack.count)
            x, _ = stack.over_layers(step, x, keys)
            return self.logits(stack.finish(x, end, broadcast=(-2,)))

    def logits(self, x: Array) -> Array:
        """Float32 logits [B, T, V] of the decoder's output [B, T, D]."""
        with jax.named_scope("logits"):
            return self.token_embedder.attend(x) if self.arch.tied_head else self.decoder.logits_dense(x)

    def __call__(self, batch: dict[str, Array], key: Array | None = None) -> Array:
        """Logits [B, T, V] for a batch of `encoder_input_tokens` and `decoder_input_tokens` (packed or not)."""
        encoder_key, decoder_key = _keys(key, 2)
        segments, encoder_segments = batch.get("decoder_segment_ids"), batch.get("encoder_segment_ids")
        tokens = batch["encoder_input_tokens"]
        encoded = self.encode(tokens, encoder_segments, encoder_key)
        return self.decode(batch["decoder_input_tokens"], encoded, tokens, segments, encoder_segments, decoder_key)


def visible(keys: Array) -> Array:
    """[B, 1, 1, K] mask of the keys that are not padding (id 0)."""
    return (keys > 0)[:, None, None, :]


def same_segment(queries: Array, keys: Array) -> Array:
    """[B, 1, Q, K] mask of pairs within one packed example; padding (segment 0) sees nothing."""
    return ((queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :])[:, None]


def causal(length: int) -> Array:
    """[1, 1, Q, K] mask of keys at or before the query."""
    positions = jnp.arange(length)
    return (positions[None, :] <= positions[:, None])[None, None]


def split(arch: Architecture, rules: Rules) -> tuple[nnx.GraphDef, dict, dict]:
    """The model without any array.

    Returns:
      The graph definition for `nnx.merge(graphdef, params)`; the parameters as a nested dict of
      ShapeDtypeStruct; the same dict with each parameter's logical axes.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: T5(arch, rules, nnx.Rngs(0))))
    axes = jax.tree.map(lambda v: v.get_metadata()["axes"], state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    shapes = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    return graphdef, nnx.to_pure_dict(shapes), nnx.to_pure_dict(axes)


def init(arch: Architecture, rules: Rules, key: Array) -> dict:
    """Freshly drawn float32 parameters as a nested dict. Jit it with `out_shardings` to create them sharded."""
    return nnx.to_pure_dict(nnx.state(T5(arch, rules, nnx.Rngs(key))))


def count(shapes) -> int:
    """Number of parameters of a tree of arrays or ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
