"""An estimate of the memory that one device needs for a train step, from shapes alone: nothing is compiled.

A step is at its largest at one of four moments, each a sum of what is then alive: the loss, where all that the backward
pass reads is kept and the logits are there; the backward pass of the decoder; that of the encoder; the update. What a
layer keeps for the backward pass follows from the remat policy, and was read off the program that JAX makes of
`network.Layer`. What XLA then needs besides within a layer was fitted to its peaks; tests/references/tpu_memory.json
holds them.
"""

import dataclasses

from t5x_lite.job import Job
from t5x_lite.parallel import partition
from t5x_lite.parameter_table import bytes_a_device
from t5x_lite.program import Program, abstract_batch
from t5x_lite.train import trainable

_FLOAT = 4  # bytes of parameters, gradients, logits and of softmaxes


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer on one device, for the rows of one microbatch.

    Args:
      rows: of a microbatch.
      queries: positions of the stack.
      keys: positions of the encoder's output that the layer attends to; 0: it does not.
      embed, inner, heads, mlp: widths, the last three cut over the mesh.
      projections: kernels from `embed` to `mlp`.
      hidden: arrays [rows, queries, mlp] that are kept where nothing is computed again.
      item: bytes of an activation.
    """

    rows: int
    queries: int
    keys: int
    embed: int
    inner: int
    heads: int
    mlp: int
    projections: int
    hidden: float
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

    def kept(self, remat: str) -> int:
        """Bytes that it keeps for the backward pass."""
        stream = self.rows * self.queries * self.item
        of_encoder = 2 * self.rows * self.keys * self.inner * self.item
        attentions = 1 + bool(self.keys)
        if remat == "full":
            return stream * self.embed
        if remat == "dots":
            products = (2 + attentions) * self.inner + (1 + attentions) * self.embed + self.projections * self.mlp
            return stream * products + of_encoder
        floats = _FLOAT * self.rows * self.queries * (3 * (1 + attentions) * self.embed + attentions * self.inner)
        others = stream * ((1 + 2 * attentions) * self.embed + (2 + attentions) * self.inner + self.hidden * self.mlp)
        return floats + int(others) + of_encoder + (_FLOAT + self.item) * self.scores + self.item * self.weights

    def working(self, remat: str) -> int:
        """Bytes that its backward pass needs besides: scores, gathered weights, and their gradients not yet cut."""
        again = 0 if remat == "none" else self.kept("dots")
        return again + 2 * self.item * self.scores + (self.item + _FLOAT) * self.weights


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
    """Memory of one device in a train step.

    Args:
      job: the job.
      program: the same laid out on a mesh.

    Returns:
      Bytes by kind at the moment where they sum to the most: `activations` are what the forward pass keeps for the
      backward pass, `temporaries` what comes and goes, logits and gathered weights among it.
    """
    arch = job.model
    cut = dict(program.rules.table)

    def share(axis: str, size: int) -> int:
        parts = 1
        for name in cut.get(axis, ()):
            parts *= program.mesh.shape[name]
        return size // parts

    item = 2 if arch.dtype == "bfloat16" else 4
    rows = job.batch_size // job.microbatches // partition.batch_divisor(program.mesh, program.rules)
    inputs, targets = (_up(job.feature_lengths[name], 8) for name in ("inputs", "targets"))
    length = _up(sum(job.feature_lengths.values()), 8) if arch.decoder_only else targets
    projections = len(arch.mlp_activations)

    def layer(queries: int, keys: int) -> Layer:
        return Layer(
            rows, queries, keys, arch.embed_dim, share("heads", arch.num_heads * arch.head_dim),
            share("heads", arch.num_heads), share("mlp", arch.mlp_dim), projections,
            sum(_KEPT_BY[name] for name in arch.mlp_activations) + projections, item,
        )  # fmt: skip

    encoder, decoder = layer(inputs, 0), layer(length, 0 if arch.decoder_only else inputs)
    has_encoder = not arch.decoder_only
    kept_encoder = has_encoder * arch.encoder_layers * encoder.kept(arch.remat)
    kept_decoder = arch.decoder_layers * decoder.kept(arch.remat)
    encoded = has_encoder * rows * inputs * arch.embed_dim * item

    vocab = share("vocab", arch.vocab_size)
    logits, table = rows * length * vocab, vocab * arch.embed_dim
    parameters = bytes_a_device(program.params)
    trained = bytes_a_device(trainable.only(program.trained, program.params))
    state = {
        "parameters": parameters,
        "optimizer": bytes_a_device(program.state["opt_state"]),
        "batch": bytes_a_device(abstract_batch(job, program)),
    }
    summed = trained if job.microbatches > 1 else 0
    of_decoder = (
        trained
        * arch.decoder_layers
        * decoder.weights
        // max(
            1, arch.decoder_layers * decoder.weights + has_encoder * arch.encoder_layers * encoder.weights + 2 * table
        )
    )
    kept = kept_encoder + kept_decoder + encoded
    moments = [
        ("the loss", 0, kept, (_FLOAT + item) * logits + item * table),
        ("the decoder's backward pass", of_decoder, kept + encoded, decoder.working(arch.remat)),
        ("the update", trained, 0, trained),
    ]
    if has_encoder:
        moments.append(("the encoder's backward pass", trained, kept_encoder + encoded, encoder.working(arch.remat)))
    moment, gradients, activations, temporaries = max(moments, key=lambda m: sum(m[1:]))
    return Estimate(
        **state, gradients=gradients + summed, activations=activations, temporaries=temporaries, moment=moment
    )


# Arrays [rows, length, mlp] that an activation keeps for its backward pass; relu a mask of bytes.
_KEPT_BY = {"relu": 0.5, "gelu": 5, "silu": 2, "linear": 1}


def remedies(job: Job, program: Program, usable: float) -> list[str]:
    """The least change of each kind by which a job that is too large would fit, as flags.

    Args:
      job: the job.
      program: the same laid out on a mesh.
      usable: bytes of one device.
    """
    found = []

    def fits(**changed) -> bool:
        return estimate(dataclasses.replace(job, dropout_rate=None, **changed), program).peak <= usable

    policies = ["none", "dots", "full"]
    for policy in policies[policies.index(job.model.remat) + 1 :]:
        if fits(model=dataclasses.replace(job.model, remat=policy)):
            found.append(f"--gin.architecture.Architecture.remat={policy}")
            break
    rows = job.batch_size // partition.batch_divisor(program.mesh, program.rules)
    for parts in range(job.microbatches + 1, rows + 1):
        if rows % parts == 0 and fits(microbatches=parts):
            found.append(f"--gin.MICROBATCHES={parts}")
            break
    for fewer in range(rows - 1, 0, -1):
        size = fewer * (job.batch_size // rows)
        if fewer % job.microbatches == 0 and size % job.data_shards == 0 and fits(batch_size=size):
            found.append(f"--gin.BATCH_SIZE={size}")
            break
    return found


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile
