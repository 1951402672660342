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

# Generations for which the compiler leaves the gradient of the logits' weights, and so the logits, to the end of the
# backward pass.
_LATE_LOGITS = ("tpu7x",)


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
    def largest(self) -> int:
        """Numbers of the kernels of its feed-forward layer or of its attention, the more of the two."""
        mlp = self.embed * (self.projections + 1) * self.mlp
        return max(mlp, self.weights - mlp)

    @property
    def scores(self) -> int:
        """Numbers of its attention scores, in tiles of 128."""
        own = self.queries * _up(self.queries, 128)
        return self.rows * self.heads * (own + self.queries * _up(self.keys, 128) * bool(self.keys))

    @property
    def stream(self) -> int:
        """Bytes of the residual stream."""
        return self.item * self.rows * self.queries * max(self.embed, self.inner)

    @property
    def hidden(self) -> int:
        """Bytes of the products of the feed-forward layer."""
        return self.item * self.rows * self.queries * self.projections * self.mlp

    @property
    def merged(self) -> int:
        """Bytes that it keeps where nothing hides from the compiler that the backward pass computes it again.

        Products with weights, softmaxes, and what these sum of the values.
        """
        attentions, width = 1 + bool(self.keys), self.rows * self.queries
        products = (2 + attentions) * self.inner + (1 + attentions) * self.embed
        of_encoder = 2 * self.rows * self.keys * self.inner
        sums = _FLOAT * attentions * width * self.inner
        return self.item * (width * products + of_encoder + self.scores) + sums + self.hidden

    def working(self, remat: str) -> int:
        """Bytes that its backward pass needs: the more of the feed-forward layer's and of attention's, and weights.

        Attention has scores before and after their softmax, and beside them what the policy kept of the feed-forward
        layer; that has its products and their gradients, and the softmaxes that were computed again. Of
        each weight there is the gathered array or its gradient, not yet cut; of the position bias, which all rows
        share, squares of positions and a strip for each query.
        """
        attention = 2 * self.item * self.scores + (remat not in ("none", "full")) * self.hidden
        again = 0 if remat == "none" else self.item * self.scores + 2 * self.stream
        feed_forward = 2 * self.hidden + again
        bias = self.all_heads * self.queries * _up(self.queries, 128)
        return (
            max(attention, feed_forward) + 6 * self.stream + self.item * self.largest + (_FLOAT + 3 * self.item) * bias
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


def estimate(job: Job, program: Program, generation: str | None = None) -> Estimate:
    """Memory of one device in a train step; the program's mesh must be the current one.

    Args:
      job: the job.
      program: the same laid out on a mesh.
      generation: of TPU, a key of `chips.CHIPS`; None: any other device.

    Returns:
      Bytes by kind at the moment where they sum to the most: `activations` are what the forward pass keeps for the
      backward pass, `temporaries` what comes and goes, logits and gathered weights among it.
    """
    state = {
        "parameters": bytes_a_device(program.params),
        "optimizer": bytes_a_device(program.state["opt_state"]),
        "batch": bytes_a_device(abstract_batch(job, program)),
    }
    every = moments(job, program, generation)
    name, gradients, activations, temporaries = max(every, key=lambda m: sum(m[1:]))
    return Estimate(**state, gradients=gradients, activations=activations, temporaries=temporaries, moment=name)


def moments(job: Job, program: Program, generation: str | None) -> list[tuple[str, int, int, int]]:
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
    # The weights of all layers are cast in one go before the loop over them, which ends their need.
    ways = partition.ways(program.mesh, program.rules, "embed")
    casts = [item * n // ways if item < _FLOAT else 0 for n in layer_weights]
    if not arch.scan_layers:  # all but the embedding is copied to other tiles
        copied = bytes_a_device(program.params) - bytes_a_device(program.params["token_embedder"])
        casts = [cast + copied // 2 for cast in casts]
    head = ("token_embedder", "embedding") if arch.tied_head else ("decoder", "logits_dense")
    # The gradient of the logits' weights comes first and is cut last.
    of_head = _FLOAT * table if any(jax.tree.leaves(program.trained[head[0]][head[1]])) else 0
    at_loss, later = of_kept.logits, 0
    if generation in _LATE_LOGITS:
        # Where the vocabulary is cut, the targets' mask, its product and copies of them are written out.
        cut = partition.ways(program.mesh, program.rules, "vocab") > 1
        at_loss, later = (4 * of_kept.logits, 2 * of_kept.logits) if cut else (of_kept.logits, of_kept.logits)

    every, of_both = of_kept.encoder + of_kept.decoder, sum(casts)
    at_decoder = of_both + of_head + later + decoder.working(arch.remat)
    found = [
        ("the loss", summed, every, of_both + at_loss + of_head),
        ("the decoder's backward pass", summed + of_decoder, every, at_decoder),
        ("the update", summed + trained, 0, max(map(bytes_a_device, jax.tree.leaves(program.params)))),
    ]
    if not arch.decoder_only:
        temporaries = casts[0] + of_head + later + encoder.working(arch.remat)
        found.append(("the encoder's backward pass", summed + trained, of_kept.encoder, temporaries))
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
    if not job.model.scan_layers and job.model.remat == "none":
        for stack, layer in zip(("encoder", "decoder"), layers(job, program)):
            sums[stack] = min(sums[stack], getattr(job.model, f"{stack}_layers") * layer.merged)
    return Kept(**sums)


def layers(job: Job, program: Program) -> tuple[Layer, Layer]:
    """A layer of the encoder and of the decoder."""
    arch = job.model
    item = 2 if arch.dtype == "bfloat16" else 4
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
            item=item,
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
