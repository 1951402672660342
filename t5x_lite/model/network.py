"""T5: pre-norm residual layers in one or two stacks, position bias of a stack or a layer, tied or own head.

Parameter names are those of t5x, with the layers of a stack in one array
(`encoder/layers/attention/query/kernel` is [layers, D, H*K]).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from t5x_lite.model.architecture import Architecture
from t5x_lite.model.attention import Attention, RelativeBias
from t5x_lite.model.layers import Adapter, Embedding, Head, Mlp, RMSNorm, dropout
from t5x_lite.parallel.partition import Rules

Array = jax.Array

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "inner": jax.checkpoint_policies.save_only_these_names("mlp_input", "attended"),
    "full": None,
}


def _keys(key: Array | None, count: int) -> list[Array | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


class Layer(nnx.Module):
    """Self-attention, in a decoder attention to the encoder's output, feed-forward, adapter.

    Each is normed before and added to the residual stream. The layers of a stack are arrays with a leading axis.
    """

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layers: int, attention: str, cross: bool):
        self.own = attention
        setattr(self, f"pre_{attention}_layer_norm", RMSNorm(arch, layers))
        setattr(self, attention, Attention(arch, rules, rngs, layers))
        if arch.relative_bias_per_layer:
            self.relpos_bias = RelativeBias(arch, rules, rngs, layers)
        if cross:
            self.pre_cross_attention_layer_norm = RMSNorm(arch, layers)
            self.encoder_decoder_attention = Attention(arch, rules, rngs, layers)
        self.pre_mlp_layer_norm = RMSNorm(arch, layers)
        self.mlp = Mlp(arch, rules, rngs, layers)
        if arch.adapter_dim:
            self.adapter = Adapter(arch, rules, rngs, layers)
        self.rate = arch.dropout_rate

    @property
    def own_attention(self) -> Attention:
        return getattr(self, self.own)

    def __call__(
        self,
        x: Array,
        keys_values: Callable[[Array], tuple[Array, Array]],
        bias: Array,
        mask: Array | None,
        cross_keys_values: Callable[[], tuple[Array, Array]] | None = None,
        cross_mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """One layer; the caller says where keys and values come from (computed here, or a cache).

        Without `cross_keys_values` the attention to an encoder is left out, as in the encoder of shared layers.
        """
        weights, after_self, cross_weights, after_cross, hidden, after_mlp, after_adapter = _keys(key, 7)
        with jax.named_scope("self_attention"):
            h = getattr(self, f"pre_{self.own}_layer_norm")(x)
            h = self.own_attention(h, keys_values(h), bias, mask, weights)
            x = x + dropout(h, self.rate, after_self, broadcast=(-2,))
        if cross_keys_values is not None:
            with jax.named_scope("cross_attention"):
                h = self.pre_cross_attention_layer_norm(x)
                h = self.encoder_decoder_attention(h, cross_keys_values(), None, cross_mask, cross_weights)
                x = x + dropout(h, self.rate, after_cross, broadcast=(-2,))
        with jax.named_scope("mlp"):
            h = self.mlp(self.pre_mlp_layer_norm(x), hidden)
            x = x + dropout(h, self.rate, after_mlp, broadcast=(-2,))
        if hasattr(self, "adapter"):
            with jax.named_scope("adapter"):
                x = x + dropout(self.adapter(x), self.rate, after_adapter, broadcast=(-2,))
        return x


class Stack(nnx.Module):
    """Layers with their shared position bias and final norm."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layers: int, name: str, cross: bool):
        if not arch.relative_bias_per_layer:
            self.relpos_bias = RelativeBias(arch, rules, rngs)
        self.layers = Layer(arch, rules, rngs, layers, "attention" if name == "encoder" else "self_attention", cross)
        self.norm = f"{name}_norm"
        setattr(self, self.norm, RMSNorm(arch))
        self.arch, self.count = arch, layers

    def bias(self, queries: int, keys: int, bidirectional: bool) -> Callable[[Layer], Array]:
        """A function of a layer that gives its position bias [1, H, Q, K]."""
        if self.arch.relative_bias_per_layer:
            return lambda layer: layer.relpos_bias(queries, keys, bidirectional)
        shared = self.relpos_bias(queries, keys, bidirectional)
        return lambda layer: shared

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
    """Every architecture of the T5 paper, and its 1.1 revision, mT5, umT5 and ByT5; see `Architecture.structure`.

    Shared layers are the decoder's: the encoder is the same stack, which there attends to nothing but its inputs.
    """

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs):
        self.token_embedder = Embedding(arch, rules, rngs)
        if arch.structure == "encoder_decoder":
            self.encoder = Stack(arch, rules, rngs, arch.encoder_layers, "encoder", cross=False)
        self.decoder = Stack(arch, rules, rngs, arch.decoder_layers, "decoder", cross=not arch.decoder_only)
        if not arch.tied_head:
            self.decoder.logits_dense = Head(arch, rules, rngs)
        self.arch = arch

    @property
    def decoder_bidirectional(self) -> bool:
        """Whether the decoder's position bias tells keys behind a query apart.

        Only where some are visible. Source: Mesh TensorFlow's `compute_bias`; t5x differs in its prefix LM.
        """
        return self.arch.structure == "prefix_lm"

    def encode(self, tokens: Array, segments: Array | None = None, key: Array | None = None) -> Array:
        """Encodes input tokens.

        Args:
          tokens: [B, S] ids, 0 is padding.
          segments: [B, S] ids of the packed example of each position, 0 is padding; None: not packed.
          key: PRNG key for dropout, or None.

        Returns:
          [B, S, D] in the compute type.
        """
        stack, length = self.decoder if self.arch.structure == "shared" else self.encoder, tokens.shape[1]
        start, end, loop = _keys(key, 3)
        with jax.named_scope("encoder"):
            x = dropout(self.token_embedder(tokens), self.arch.dropout_rate, start, broadcast=(-2,))
            bias = stack.bias(length, length, bidirectional=True)
            mask = visible(tokens) if segments is None else same_segment(segments, segments)

            def step(layer, x, k):
                return layer(x, layer.own_attention.keys_values, bias(layer), mask, key=k), None

            keys = None if loop is None else jax.random.split(loop, stack.count)
            x, _ = stack.over_layers(step, x, keys)
            return stack.finish(x, end, broadcast=())

    def decode(
        self,
        inputs: Array,
        mask: Array,
        encoded: Array | None = None,
        cross_mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """Teacher-forced decoding of all positions at once.

        Args:
          inputs: [B, T] target ids shifted right, 0 first.
          mask: [B, 1, T, T] or broadcasting to it, which positions see which.
          encoded: [B, S, D] from `encode`; None where there is no encoder.
          cross_mask: [B, 1, T, S] or broadcasting to it, which positions see which of `encoded`.
          key: PRNG key for dropout, or None.

        Returns:
          Float32 logits [B, T, V].
        """
        stack, length = self.decoder, inputs.shape[1]
        start, end, loop = _keys(key, 3)
        with jax.named_scope("decoder"):
            x = dropout(self.token_embedder(inputs), self.arch.dropout_rate, start, broadcast=(-2,))
            bias = stack.bias(length, length, self.decoder_bidirectional)

            def step(layer, x, k):
                cross = None if encoded is None else lambda: layer.encoder_decoder_attention.keys_values(encoded)
                own = layer.own_attention.keys_values
                return layer(x, own, bias(layer), mask, cross, cross_mask, k), None

            keys = None if loop is None else jax.random.split(loop, stack.count)
            x, _ = stack.over_layers(step, x, keys)
            return self.logits(stack.finish(x, end, broadcast=(-2,)))

    def logits(self, x: Array) -> Array:
        """Float32 logits [B, T, V] of the decoder's output [B, T, D]."""
        with jax.named_scope("logits"):
            return self.token_embedder.attend(x) if self.arch.tied_head else self.decoder.logits_dense(x)

    def __call__(self, batch: dict[str, Array], key: Array | None = None) -> Array:
        """Logits [B, T, V] for a batch, packed or not.

        Args:
          batch: `decoder_input_tokens` [B, T]; `encoder_input_tokens` [B, S] where there is an encoder, or for a
            prefix LM `decoder_causal_attention` [B, T], 1 where a position belongs to the prefix, which sees itself
            whole; the segment ids of both stacks where rows are packed.
          key: PRNG key for dropout, or None.
        """
        encoder_key, decoder_key = _keys(key, 2)
        inputs, segments = batch["decoder_input_tokens"], batch.get("decoder_segment_ids")
        mask = causal(inputs.shape[1])
        if self.arch.structure == "prefix_lm":
            mask = mask | prefix(batch["decoder_causal_attention"])
        if segments is not None:
            mask = mask & same_segment(segments, segments)
        if self.arch.decoder_only:
            return self.decode(inputs, mask, key=decoder_key)
        tokens, encoder_segments = batch["encoder_input_tokens"], batch.get("encoder_segment_ids")
        encoded = self.encode(tokens, encoder_segments, encoder_key)
        cross_mask = visible(tokens) if segments is None else same_segment(segments, encoder_segments)
        return self.decode(inputs, mask, encoded, cross_mask, decoder_key)


def visible(keys: Array) -> Array:
    """[B, 1, 1, K] mask of the keys that are not padding (id 0)."""
    return (keys > 0)[:, None, None, :]


def same_segment(queries: Array, keys: Array) -> Array:
    """[B, 1, Q, K] mask of pairs within one packed example; padding (segment 0) sees nothing."""
    return ((queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :])[:, None]


def prefix(is_prefix: Array) -> Array:
    """[B, 1, Q, K] mask of pairs that both belong to the prefix."""
    return ((is_prefix[:, :, None] > 0) & (is_prefix[:, None, :] > 0))[:, None]


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


def split_adapters(tree: dict) -> tuple[dict, dict]:
    """A tree of parameters (or of anything for each of them) as two: all but the adapters, and the adapters."""
    flat = flatten_dict(tree)
    others, adapters = ({p: x for p, x in flat.items() if ("adapter" in p) == is_adapter} for is_adapter in (0, 1))
    return unflatten_dict(others), unflatten_dict(adapters)


def with_adapters(others: dict, adapters: dict) -> dict:
    """The tree that `split_adapters` took apart."""
    return unflatten_dict(flatten_dict(others) | flatten_dict(adapters))


def init(arch: Architecture, rules: Rules, key: Array) -> dict:
    """Freshly drawn float32 parameters as a nested dict. Jit it with `out_shardings` to create them sharded."""
    return nnx.to_pure_dict(nnx.state(T5(arch, rules, nnx.Rngs(key))))


def count(shapes) -> int:
    """Number of parameters of a tree of arrays or ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
