"""An estimate of the memory that one device needs for a train step: nothing is compiled.

A step is at its largest at one of four moments, each a sum of what is then alive: the loss, where all that the backward
pass reads is kept and the logits are there; the backward pass of the decoder; that of the encoder; the update. What the
forward pass keeps is read off JAX's own trace of the loss, array by array, so that it follows the model, the remat
policy and the mesh. What a layer needs besides while its gradient is computed was read off the TPU compiler's buffers;
tests/references/tpu_memory.json holds the peaks that the sum is held to.
"""

import dataclasses
import math

import jax

from t5x_lite.job import Job
from t5x_lite.parallel import jaxprs, partition
from t5x_lite.parameter_table import bytes_a_device
from t5x_lite.program import Program, abstract_batch, loss_function
from t5x_lite.train import trainable

# Largest difference from the compiler's peak, in parts of it, that tests allow.
ERROR = 0.15

_FLOAT = 4  # bytes of parameters, gradients and logits


@dataclasses.dataclass(frozen=True)
class Kept:
    """Bytes of one device that a microbatch keeps for the backward pass: of each stack, and logits."""

    encoder: int
    decoder: int
    logits: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer on one device, for the rows of one microbatch.

    Args:
      rows: of a microbatch.
      queries: positions of the stack.
      keys: positions of the encoder's output that the layer attends to; 0: it does not.
      embed, inner, heads, mlp: widths, the last three cut over the mesh.
      all_heads: heads of all devices.
      projections: kernels from `embed` to `mlp`.
      item: bytes of an activation.
    """

    rows: int
    queries: int
    keys: int
    embed: int
    inner: int
    heads: int
    all_heads: int
    mlp: int
    projections: int
    item: int

    @property
    def weights(self) -> int:
        """Numbers of its kernels, whole along `embed`."""
        return self.embed * (4 * self.inner * (1 + bool(self.keys)) + (self.projections + 1) * self.mlp)

    @property
    def scores(self) -> int:
        """Numbers of its attention scores, in tiles of 128."""
        own = self.queries * _up(self.queries, 128)
        return self.rows * self.heads * (own + self.queries * _up(self.keys, 128) * bool(self.keys))

    @property
    def products(self) -> int:
        """Bytes of its products with weights."""
        attentions = 1 + bool(self.keys)
        widths = (2 + attentions) * self.inner + (1 + attentions) * self.embed + self.projections * self.mlp
        return self.item * self.rows * (self.queries * widths + 2 * self.keys * self.inner)

    @property
    def working(self) -> int:
        """Bytes that its backward pass needs: products, scores in float32 and in the compute type, and weights.

        Weights are gathered, and their gradients not yet cut. The position bias, which all rows share, is there for the
        squares of positions and, as a strip for each query, for twice of them.
        """
        bias = self.all_heads * self.queries * _up(self.queries, 128)
        return (
            self.products
            + (_FLOAT + self.item) * (self.scores + bias)
            + 2 * self.item * bias
            + (self.item + _FLOAT) * self.weights
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one device at the largest moment of a step, by kind; see `estimate`."""

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporaries: int
    moment: str

    @property
    def peak(self) -> int:
        return sum(self.kinds().values())

    def kinds(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if name != "moment"}


def estimate(job: Job, program: Program) -> Estimate:
    """Memory of one device in a train step; the program's mesh must be the current one.

    Args:
      job: the job.
      program: the same laid out on a mesh.

    Returns:
      Bytes by kind at the moment where they sum to the most: `activations` are what the forward pass keeps for the
      backward pass, `temporaries` what comes and goes, logits and gathered weights among it.
    """
    state = {
        "parameters": bytes_a_device(program.params),
        "optimizer": bytes_a_device(program.state["opt_state"]),
        "batch": bytes_a_device(abstract_batch(job, program)),
    }
    every = moments(job, program)
    name, gradients, activations, temporaries = max(every, key=lambda m: sum(m[1:]))
    return Estimate(**state, gradients=gradients, activations=activations, temporaries=temporaries, moment=name)


def moments(job: Job, program: Program) -> list[tuple[str, int, int, int]]:
    """The moments at which a step may be at its largest: name, and bytes of gradients, activations, temporaries."""
    arch = job.model
    item = 2 if arch.dtype == "bfloat16" else 4
    encoder, decoder = layers(job, program)
    of_kept = kept(job, program)
    trained = bytes_a_device(trainable.only(program.trained, program.params))
    summed = trained if job.microbatches > 1 else 0

    layer_weights = [n * layer.weights for n, layer in ((arch.encoder_layers, encoder), (arch.decoder_layers, decoder))]
    table = _cut(program, "vocab", arch.vocab_size) * arch.embed_dim
    of_decoder = trained * layer_weights[1] // (sum(layer_weights) + (2 - arch.tied_head) * table)
    # The weights of all layers are cast in one go before the loop over them.
    cast = item * sum(layer_weights) // partition.ways(program.mesh, program.rules, "embed") if item < _FLOAT else 0

    every = of_kept.encoder + of_kept.decoder
    found = [
        ("the loss", summed, every, cast + of_kept.logits + _FLOAT * table),
        ("the decoder's backward pass", summed + of_decoder, every, cast + decoder.working),
        ("the update", summed + trained, 0, trained),
    ]
    if not arch.decoder_only:
        found.append(("the encoder's backward pass", summed + trained, of_kept.encoder, cast + encoder.working))
    return found


def kept(job: Job, program: Program) -> Kept:
    """Traces the loss of one microbatch under `jax.vjp` and adds up what its pullback holds."""
    rows = job.batch_size // job.microbatches
    batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for name, x in abstract_batch(job, program).items()
    }
    loss = loss_function(job, program)

    def pullback(params, frozen, batch, key):
        return jax.vjp(lambda p: loss(trainable.joined(p, frozen), batch, key), params, has_aux=True)[1]

    params, frozen = (part(program.trained, program.params) for part in (trainable.only, trainable.rest))
    key = jax.eval_shape(lambda: jax.random.key(0))
    sums = {"encoder": 0, "decoder": 0, "logits": 0}
    vocab = job.model.vocab_size
    for name, array in jaxprs.residuals(jax.make_jaxpr(pullback)(params, frozen, batch, key)):
        size = _tiled(array)
        if array.shape[-1:] == (vocab,) and array.ndim == 3:
            sums["logits"] += size
        elif array.ndim < 4 and array.dtype == "float32" and array.shape[0] == rows:
            continue  # norms outside of the loops over layers, which the compiler computes again
        else:
            sums["encoder" if "encoder" in name else "decoder"] += size
    return Kept(**sums)


def layers(job: Job, program: Program) -> tuple[Layer, Layer]:
    """A layer of the encoder and of the decoder."""
    arch = job.model
    rows = job.batch_size // job.microbatches // partition.batch_divisor(program.mesh, program.rules)
    inputs, targets = (_up(job.feature_lengths[name], 8) for name in ("inputs", "targets"))
    length = _up(sum(job.feature_lengths.values()), 8) if arch.decoder_only else targets

    def layer(queries: int, keys: int) -> Layer:
        return Layer(
            rows=rows,
            queries=queries,
            keys=keys,
            embed=arch.embed_dim,
            inner=_cut(program, "heads", arch.num_heads * arch.head_dim),
            heads=_cut(program, "heads", arch.num_heads),
            all_heads=arch.num_heads,
            mlp=_cut(program, "mlp", arch.mlp_dim),
            projections=len(arch.mlp_activations),
            item=2 if arch.dtype == "bfloat16" else 4,
        )

    return layer(inputs, 0), layer(length, 0 if arch.decoder_only else inputs)


def _cut(program: Program, axis: str, size: int) -> int:
    return size // partition.ways(program.mesh, program.rules, axis)


def _tiled(array) -> int:
    """Bytes that one device holds of an array, of which the compiler keeps rows of 128 in tiles of 8."""
    *outer, rows, width = (1, 1, *array.sharding.shard_shape(array.shape))
    if width >= 128:
        rows, width = _up(rows, 8), _up(width, 128)
    return math.prod(outer) * rows * width * array.dtype.itemsize


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile
