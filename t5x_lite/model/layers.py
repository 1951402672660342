"""The layers of T5, each a small Flax NNX module over explicitly sharded arrays.

Every parameter carries its logical axes as metadata (`axes`); parameters of a
stack have a leading `layers` axis and are created all at once, so the layer
loop may be compiled or unrolled over the same arrays. A weight that is cut over
`embed` is gathered at its point of use, after the cast to the compute type, so
that half the bytes travel.

Shapes: B rows, L positions, D embed, H heads, K width of a head, F mlp, V vocab.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel.partition import Rules

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # tanh, as in T5 1.1; not erf
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def parameter(
    key: Array, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float, layers: int = 0
) -> nnx.Param:
    """A float32 parameter drawn from N(0, std^2); `layers` > 0 stacks that many."""
    if layers:
        shape, axes = (layers, *shape), ("layers", *axes)
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32), axes=axes)


def truncated(
    key: Array, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float, layers: int = 0
) -> nnx.Param:
    """As `parameter`, from a normal cut at two standard deviations and rescaled to `std`."""
    # The standard deviation of a unit normal truncated to [-2, 2].
    unit = 0.87962566103423978
    if layers:
        shape, axes = (layers, *shape), ("layers", *axes)
    return nnx.Param(std / unit * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32), axes=axes)


def gathered(param: nnx.Param, rules: Rules, axes: tuple[str | None, ...], dtype) -> Array:
    """A weight in the compute type, whole along `embed` (the ZeRO-3 gather)."""
    weight = param[...].astype(dtype)
    if jax.typeof(weight).sharding.spec.partitions[axes.index("embed")] is None:
        return weight  # nothing cuts it, or it has been made whole for many steps
    if axes[-1] == "embed":
        # A thin shard of the last dimension fills no tile of 128 lanes: the TPU compiler would gather by all-reduce.
        return _whole(weight.swapaxes(-1, -2), rules, (*axes[:-2], axes[-1], axes[-2])).swapaxes(-1, -2)
    return _whole(weight, rules, axes)


def _whole(weight: Array, rules: Rules, axes: tuple[str | None, ...]) -> Array:
    """Gathers `embed`. Its gradient is reduced and scattered over the same devices, then summed over the other rows.

    Without `reduced` every device would get the whole sum over all rows of the batch, and throw all but its share away.
    Over all chips of a square slice or a cube the TPU compiler leaves it at that (libtpu 0.0.52).
    """
    cut, beside = rules.gradient_sums()
    for spec, reduced in ((rules.spec(*axes), beside), (rules.without("embed").spec(*axes), beside | cut)):
        weight = jax.sharding.reshard(weight, PartitionSpec(*spec, reduced=reduced))
    return weight


def dropout(x: Array, rate: float, key: Array | None, broadcast: tuple[int, ...] = ()) -> Array:
    """Zeroes elements with probability `rate` and scales the rest; identity without a key.

    Args:
      x: any array.
      rate: probability of zero.
      key: PRNG key, or None outside training.
      broadcast: dimensions along which one draw is shared, which saves random bits.
    """
    if key is None or rate == 0.0:
        return x
    spec = list(jax.typeof(x).sharding.spec)
    shape = list(x.shape)
    for axis in broadcast:
        shape[axis], spec[axis] = 1, None
    keep = jax.random.bernoulli(key, 1.0 - rate, tuple(shape), out_sharding=PartitionSpec(*spec))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32; no mean subtraction and no bias (T5 paper, section 2.1)."""

    def __init__(self, arch: Architecture, layers: int = 0):
        shape = (layers, arch.embed_dim) if layers else (arch.embed_dim,)
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32), axes=("layers", None) if layers else (None,))
        self.epsilon, self.dtype = arch.norm_epsilon, arch.dtype

    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * self.scale[...]).astype(self.dtype)


class Dense(nnx.Module):
    """x @ kernel, without a bias."""

    def __init__(self, kernel: nnx.Param, axes: tuple[str | None, str | None], rules: Rules, dtype: str):
        self.kernel = kernel
        self.axes, self.rules, self.dtype = axes, rules, dtype

    def __call__(self, x: Array, out_axes: tuple[str | None, ...]) -> Array:
        kernel = gathered(self.kernel, self.rules, self.axes, self.dtype)
        return jnp.einsum("bli,io->blo", x, kernel, out_sharding=self.rules.spec(*out_axes))


class Mlp(nnx.Module):
    """Feed-forward layer: the product of the activations of one projection each, then back to D."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layers: int):
        self.activations, self.rate = arch.mlp_activations, arch.dropout_rate

        def dense(shape, axes):
            kernel = truncated(rngs.params(), shape, axes, shape[0] ** -0.5, layers)
            return Dense(kernel, axes, rules, arch.dtype)

        for name in self.input_names():
            setattr(self, name, dense((arch.embed_dim, arch.mlp_dim), ("embed", "mlp")))
        self.wo = dense((arch.mlp_dim, arch.embed_dim), ("mlp", "embed"))

    def input_names(self) -> list[str]:
        """`wi` alone in T5 1.0, `wi_0` and `wi_1` in T5 1.1."""
        return ["wi"] if len(self.activations) == 1 else [f"wi_{i}" for i in range(len(self.activations))]

    def __call__(self, x: Array, key: Array | None) -> Array:
        hidden = [
            ACTIVATIONS[activation](checkpoint_name(getattr(self, name)(x, ("batch", "length", "mlp")), "mlp_input"))
            for name, activation in zip(self.input_names(), self.activations)
        ]
        hidden = dropout(math.prod(hidden[1:], start=hidden[0]), self.rate, key, broadcast=(-2,))
        return self.wo(hidden, ("batch", "length", None))


class Adapter(nnx.Module):
    """A narrow feed-forward layer with a norm of its own, behind the feed-forward layer of a block.

    It starts as nothing: its last kernel is 0. Sources: T5 paper, section 3.5.1; Houlsby et al. 2019.
    """

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs, layers: int):
        def dense(shape, axes, std):
            return Dense(truncated(rngs.params(), shape, axes, std, layers), axes, rules, arch.dtype)

        self.layer_norm = RMSNorm(arch, layers)
        self.wi = dense((arch.embed_dim, arch.adapter_dim), ("embed", None), arch.embed_dim**-0.5)
        self.wo = dense((arch.adapter_dim, arch.embed_dim), (None, "embed"), 0.0)

    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.relu(self.wi(self.layer_norm(x), ("batch", "length", None)))
        return self.wo(hidden, ("batch", "length", None))


class Embedding(nnx.Module):
    """Token embedding, read by gather; drawn from N(0, 1) and not scaled."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs):
        self.embedding = parameter(rngs.params(), (arch.vocab_size, arch.embed_dim), ("vocab", "embed"), 1.0)
        self.rules, self.dtype = rules, arch.dtype

    def __call__(self, tokens: Array) -> Array:
        table = gathered(self.embedding, self.rules, ("vocab", "embed"), self.dtype)
        return table.at[tokens].get(out_sharding=self.rules.spec("batch", "length", None))

    def attend(self, x: Array) -> Array:
        """Logits of a tied head [B, L, V] in float32."""
        table = gathered(self.embedding, self.rules, ("vocab", "embed"), self.dtype)
        return logits(x * x.shape[-1] ** -0.5, table, "bld,vd->blv", self.rules)


class Head(nnx.Module):
    """An output projection of its own (T5 1.1); its input is scaled only with `scaled_head`."""

    def __init__(self, arch: Architecture, rules: Rules, rngs: nnx.Rngs):
        # Either way the logits start with a variance of 1.
        self.scale, std = (arch.embed_dim**-0.5, 1.0) if arch.scaled_head else (1.0, arch.embed_dim**-0.5)
        self.kernel = truncated(rngs.params(), (arch.embed_dim, arch.vocab_size), ("embed", "vocab"), std)
        self.rules, self.dtype = rules, arch.dtype

    def __call__(self, x: Array) -> Array:
        kernel = gathered(self.kernel, self.rules, ("embed", "vocab"), self.dtype)
        return logits(x * self.scale, kernel, "bld,dv->blv", self.rules)


def logits(x: Array, table: Array, equation: str, rules: Rules) -> Array:
    """Float32 logits: products in the compute type, sums in float32."""
    return jnp.einsum(
        equation, x, table, preferred_element_type=jnp.float32, out_sharding=rules.spec("batch", "length", "vocab")
    )
