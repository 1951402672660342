"""A job laid out on a mesh, before any array exists: shapes, shardings and the functions to compile."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.data import batches, packing
from t5x_lite.job import Job
from t5x_lite.model import decoding, loss, network
from t5x_lite.parallel import partition
from t5x_lite.train import optimizer, step, trainable


@dataclasses.dataclass(frozen=True)
class Program:
    """The abstract side of a job.

    Args:
      mesh: the devices, real or not.
      rules: logical axes to mesh axes.
      graphdef: for `nnx.merge` with the parameters.
      params: ShapeDtypeStructs with shardings.
      axes: the logical axes of each parameter.
      state: the same for the whole training state.
      tx: the optimizer over stacked layers, of the parameters that are trained.
      trained: True or False for each parameter.
      convert: what the model reads, from inputs and targets.
    """

    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    rules: partition.Rules
    graphdef: nnx.GraphDef
    params: dict
    axes: dict
    state: dict
    tx: optax.GradientTransformation
    trained: dict
    convert: packing.Convert

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of a [rows, length] feature."""
        return NamedSharding(self.mesh, self.rules.spec("batch", "length"))


def lay_out(job: Job, mesh) -> Program:
    """Shapes and shardings of a job on a mesh, which must be the current one (`jax.set_mesh`).

    Raises:
      UserError: a logical axis does not divide over the mesh, or TRAINABLE fits no parameter.
    """
    rules = job.partition.table().over(mesh)
    # Kernels join heads with their width, which may divide where the heads themselves do not.
    partition.check_divides(mesh, rules, "heads", job.model.num_heads, "attention heads")
    graphdef, shapes, axes = network.split(job.model, rules)
    shardings = partition.shardings(mesh, rules, shapes, axes)
    params = jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)
    trained = trainable.matching(axes, job.trainable)
    tx = optimizer.over_layers(job.optimizer, trainable.only(trained, axes))
    begin = partial(step.initial_state, tx=tx, trained=trained)
    state = jax.tree.map(partial(_placed, mesh), jax.eval_shape(begin, params))
    return Program(mesh, rules, graphdef, params, axes, state, tx, trained, _converter(job))


def _converter(job: Job) -> packing.Convert:
    if not job.model.decoder_only:
        return packing.encoder_decoder
    return partial(packing.decoder_only, prefix=job.model.structure == "prefix_lm", loss_on_inputs=job.loss_on_inputs)


def _placed(mesh, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Replicates what follows from no parameter: the counters of the state."""
    spec = shape.sharding.spec if shape.sharding is not None else PartitionSpec()
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec))


def abstract_batch(job: Job, program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the global batch, from the feature lengths alone.

    Raises:
      UserError: the batch does not divide over the mesh, the microbatches and the data shards.
    """
    parts = partition.batch_divisor(program.mesh, program.rules)
    batches.check_batch(job.batch_size, job.data_shards, job.microbatches, parts)
    return {
        name: jax.ShapeDtypeStruct((job.batch_size, length), dtype, sharding=program.batch_sharding)
        for name, (length, dtype) in packing.feature_types(job.feature_lengths, job.pack, program.convert).items()
    }


# XLA gives the reductions of a CPU program to YNNPACK, whose sums over leading dimensions, as in the gradient of the
# relative position biases, take ten times as long as its own (https://github.com/jax-ml/jax/issues/37465). And its own
# loops use half of a vector register of 512 bits unless told otherwise.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": "512",
}


# Decoding is a quarter faster without YNNPACK: forward it fuses a whole feed-forward layer into one slow kernel.
_CPU_DECODING_OPTIONS = _CPU_OPTIONS | {"xla_cpu_experimental_ynn_fusion_type": ""}


def _compiler_options(mesh: jax.sharding.Mesh, on_cpu: dict[str, str] = _CPU_OPTIONS) -> dict[str, str] | None:
    return on_cpu if mesh.devices.flat[0].platform == "cpu" else None


def init_params(job: Job, program: Program) -> Callable[[jax.Array], dict]:
    """key -> freshly drawn parameters, created where they belong."""
    shardings = jax.tree.map(lambda s: s.sharding, program.params)
    return jax.jit(partial(network.init, job.model, program.rules), out_shardings=shardings)


def init_adapters(job: Job, program: Program) -> Callable[[jax.Array], dict]:
    """key -> freshly drawn adapters alone, for a checkpoint that has none."""
    shardings = jax.tree.map(lambda s: s.sharding, network.split_adapters(program.params)[1])

    def draw(key):
        return network.split_adapters(network.init(job.model, program.rules, key))[1]

    return jax.jit(draw, out_shardings=shardings)


def init_state(program: Program) -> Callable[[dict], dict]:
    """params -> the training state at step 0."""
    return jax.jit(partial(step.initial_state, tx=program.tx, trained=program.trained))


def loss_function(job: Job, program: Program) -> step.LossFn:
    """(params, batch, key) -> the summed loss of the job and the sums of its metrics."""
    return partial(loss.batch_loss, program.graphdef, z_loss=job.z_loss, label_smoothing=job.label_smoothing)


def _without_sums(program: Program) -> dict:
    """The specs of parameters whose gradients stay what each device's own rows add to them.

    Only products, gathers and casts can have them so: those of weights, which carry `embed`.
    """
    _, beside = program.rules.gradient_sums()

    def spec(param: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> PartitionSpec:
        return PartitionSpec(*param.sharding.spec, reduced=beside if "embed" in axes else set())

    return jax.tree.map(spec, program.params, program.axes)


def train_step(job: Job, program: Program) -> Callable[[dict, dict], tuple[dict, dict]]:
    """(state, batch) -> (state, metrics), with the state donated."""
    function = step.make_train_step(
        loss_function(job, program),
        program.tx,
        job.learning_rate,
        job.seed,
        job.microbatches,
        job.loss_normalizing_factor,
        program.trained,
        _without_sums(program),
    )
    return jax.jit(function, donate_argnums=0, compiler_options=_compiler_options(program.mesh))


def eval_step(program: Program) -> Callable[[dict, dict], dict]:
    """(params, batch) -> sums of loss, z-loss, correct tokens and weight."""
    return jax.jit(lambda params, batch: loss.batch_loss(program.graphdef, params, batch, None)[1])


def ensemble_score_step(
    programs: Sequence[Program],
) -> Callable[[tuple[dict, ...], dict], tuple[jax.Array, jax.Array]]:
    """(params of each program, batch) -> two arrays [B, T], by the mean of their logits.

    The log-probability of each target token (nats, 0 where its weight is 0), and whether it is the most probable.
    """
    graphdefs = [program.graphdef for program in programs]
    return jax.jit(partial(_ensemble_scores, graphdefs), compiler_options=_compiler_options(programs[0].mesh))


def ensemble_eval_step(programs: Sequence[Program]) -> Callable[[tuple[dict, ...], dict], dict]:
    """(params of each program, batch) -> sums of loss, correct tokens and weight, by the mean of their logits."""
    graphdefs = [program.graphdef for program in programs]

    def sums(params, batch):
        log_probabilities, correct = _ensemble_scores(graphdefs, params, batch)
        weights = batch["decoder_loss_weights"]
        return {"loss": -jnp.sum(log_probabilities), "correct": jnp.sum(correct), "weight": jnp.sum(weights)}

    return jax.jit(sums, compiler_options=_compiler_options(programs[0].mesh))


def _ensemble_scores(graphdefs: Sequence[nnx.GraphDef], params: tuple[dict, ...], batch: dict[str, jax.Array]):
    logits = [nnx.merge(graphdef, own)(batch) for graphdef, own in zip(graphdefs, params, strict=True)]
    mean = sum(logits[1:], start=logits[0]) / len(logits)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    nats, _ = loss.cross_entropy(mean, targets)
    return -nats * weights, (jnp.argmax(mean, axis=-1) == targets) & (weights > 0)


def generate_step(
    programs: Sequence[Program], strategy: decoding.Strategy, length: int, eos: int, seed: int = 0
) -> Callable[[tuple[dict, ...], jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """(params of each program, inputs [B, S], row ids [B]) -> ids [B, N, T], scores [B, N], log-probabilities [B, N].

    See `decoding.generate`. Several programs are an ensemble, of embedding tables of one size.
    """
    function = partial(
        decoding.generate, [p.graphdef for p in programs], strategy=strategy, length=length, eos=eos, seed=seed
    )
    return jax.jit(function, compiler_options=_compiler_options(programs[0].mesh, _CPU_DECODING_OPTIONS))
