"""t5x_lite train: shapes, shardings, state, data, compile, loop."""

import dataclasses
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
from etils import epath

from t5x_lite import config
from t5x_lite.data import batches as batching
from t5x_lite.data import examples, packing
from t5x_lite.errors import UserError
from t5x_lite.job import UNUSED_WHEN_DRY, Job
from t5x_lite.model import flops, loss, network
from t5x_lite.parallel import chips, partition, start
from t5x_lite.train import checkpoint, evaluation, loop, optimizer, step
from t5x_lite.train.metrics import MetricsWriter, append_result, say

CONFIG_FILE = "config.gin"
VOCABULARY_FILE = "vocabulary.model"
DONE = "DONE"


def main(args) -> None:
    """The verb: parses the gin files, then trains, or with --dry_run describes."""
    began = time.monotonic()
    make = config.load(args.gin_file, args.gin, optional=UNUSED_WHEN_DRY if args.dry_run else ())
    job: Job = config.build(make)
    if args.dry_run:
        from t5x_lite.verbs import dry_run

        dry_run.describe(job, args.topology, config.resolved())
    else:
        if args.topology:
            raise UserError(
                f"--topology={args.topology} is given without --dry_run",
                "training runs on the devices of this machine",
                "add --dry_run, or leave --topology out",
            )
        train(job, config.resolved(), began)


def open_task(job: Job):
    """The job's seqio task or mixture, and what explains the errors of its pipeline.

    Checks what can be wrong with the vocabulary and the data before anything is compiled.
    """
    from t5x_lite.tasks import vocabulary

    check_vocabulary(job, vocabulary.size(job.vocabulary))
    from t5x_lite.tasks import registry, sources

    task = registry.prepare(
        job.mixture_or_task_name, job.mixture_or_task_module, job.vocabulary, job.data_glob, job.validation_glob,
        job.data_dir,
    )  # fmt: skip
    return task, sources.explain


def check_vocabulary(job: Job, size: int) -> None:
    """Refuses a vocabulary with ids that the embedding table does not have."""
    if size > job.model.vocab_size:
        raise UserError(
            f"the vocabulary {job.vocabulary} has {size} ids, but the model's table has {job.model.vocab_size} rows",
            "ids past the table would be read as its last row",
            f"set --gin.architecture.Architecture.vocab_size={-(-size // 128) * 128} or use the model's own vocabulary",
        )


def identity(job: Job) -> dict:
    """What the data shards are a cut of: a saved position is good only under the same."""
    return {
        "MIXTURE_OR_TASK_NAME": job.mixture_or_task_name,
        "TASK_FEATURE_LENGTHS": dict(job.feature_lengths),
        "DATA_SHARDS": job.data_shards,
        "RANDOM_SEED": job.seed,
        "PACK": job.pack,
        "USE_CACHED_TASKS": job.use_cached_tasks,
    }


@dataclasses.dataclass(frozen=True)
class Program:
    """The abstract side of a job: everything that is known before any array exists.

    Args:
      mesh: the devices.
      rules: logical axes to mesh axes.
      graphdef: for `nnx.merge` with the parameters.
      params: ShapeDtypeStructs with shardings.
      state: the same for the whole training state.
      tx: the optimizer over stacked layers.
    """

    mesh: jax.sharding.Mesh
    rules: partition.Rules
    graphdef: object
    params: dict
    state: dict
    tx: object


def program(job: Job, mesh) -> Program:
    """Shapes and shardings of a job on a mesh (a concrete one must be set; see `jax.set_mesh`)."""
    rules = job.partition.table()
    batching.check_batch(job.batch_size, job.microbatches, partition.batch_divisor(mesh, rules))
    # Kernels join heads with their width, which may divide where the heads themselves do not.
    partition.check_divides(mesh, rules, "heads", job.model.num_heads, "attention heads")
    graphdef, shapes, axes = network.split(job.model, rules)
    shardings = partition.shardings(mesh, rules, shapes, axes)
    params = jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)
    tx = optimizer.over_layers(job.optimizer, axes)
    state = jax.eval_shape(partial(step.initial_state, tx=tx), params)
    state = jax.tree.map(partial(_on_mesh, mesh), state)
    return Program(mesh, rules, graphdef, params, state, tx)


def _on_mesh(mesh, shape):
    """Gives a scalar of the state, which follows from no parameter, its (replicated) place."""
    spec = shape.sharding.spec if shape.sharding is not None else jax.sharding.PartitionSpec()
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


def abstract_batch(job: Job, prog: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the global batch, from the feature lengths alone."""
    sharding = jax.sharding.NamedSharding(prog.mesh, prog.rules.spec("batch", "length"))
    return {
        name: jax.ShapeDtypeStruct((job.batch_size, length), dtype, sharding=sharding)
        for name, (length, dtype) in packing.feature_types(job.feature_lengths, job.pack).items()
    }


def step_function(job: Job, prog: Program):
    """The job's train step, jitted with the state donated."""
    loss_fn = partial(loss.batch_loss, prog.graphdef, z_loss=job.z_loss, label_smoothing=job.label_smoothing)
    train_step = step.make_train_step(
        loss_fn, prog.tx, job.learning_rate, job.seed, job.microbatches, job.loss_normalizing_factor
    )
    return jax.jit(train_step, donate_argnums=0)


def train(job: Job, config_text: str, began: float) -> None:
    """Trains a job to its end, from its newest checkpoint where there is one.

    Raises:
      UserError: wrong input, before anything is compiled or written.
      Preempted, RunError: see `loop.run`.
    """
    start.compilation_cache()
    devices = jax.devices()
    mesh = job.partition.build(devices)
    shards = batching.owned_shards(job.data_shards, job.batch_size, jax.process_index(), jax.process_count())
    model_dir = epath.Path(job.model_dir)

    with jax.set_mesh(mesh), ThreadPoolExecutor(1) as beside:
        prog = program(job, mesh)
        done = checkpoint.steps(model_dir)
        if done and done[-1] >= job.train_steps:
            say(f"t5x_lite: {model_dir} is already at step {done[-1]} of {job.train_steps}: nothing to do")
            (model_dir / DONE).touch()
            return
        task, explain = open_task(job)
        _say_start(job, prog, devices)

        batch_shapes = abstract_batch(job, prog)
        place = partial(batching.to_global, shardings={k: s.sharding for k, s in batch_shapes.items()})
        compiled = beside.submit(_compile, step_function(job, prog), mesh, prog.state, batch_shapes)
        checkpoints = checkpoint.manager(model_dir, job.keep_checkpoints)
        first, state, position = _initial(job, prog, checkpoints, done, shards, identity(job))
        plan = _plan(job, devices)
        batches = batching.TrainBatches(
            lambda: examples.train_streams(
                task, shards, job.data_shards, job.feature_lengths, job.pack, job.seed, job.use_cached_tasks, explain
            ),
            position,
            job.feature_lengths,
            job.batch_size // job.data_shards,
            job.pack,
            place,
            first,
            job.train_steps,
            plan.saves,
        )
        _write_description(job, config_text, model_dir)
        writer = MetricsWriter(model_dir, first, active=jax.process_index() == 0)
        evaluate = partial(_evaluate, job, prog, task, explain, writer, place)
        with loop.StopRequest() as stop:
            train_step = compiled.result()
            say(f"ready after {time.monotonic() - began:.1f} s; training from step {first} to {job.train_steps}")
            try:
                loop.run(
                    plan, state, first, train_step, batches, checkpoints, writer, evaluate, stop,
                    lambda: say(f"first step done after {time.monotonic() - began:.1f} s"),
                )  # fmt: skip
            finally:
                writer.close()
                checkpoints.close()
    if jax.process_index() == 0:
        (model_dir / DONE).touch()
        say(f"done: step {job.train_steps} is saved in {model_dir}")


def _compile(function, mesh, *shapes):
    """Compiles in another thread, which has its own current mesh."""
    with jax.set_mesh(mesh):
        return function.lower(*shapes).compile()


def _initial(job: Job, prog: Program, checkpoints, done: list[int], shards: list[int], identity: dict):
    """The step, state and data position to begin with: resumed, from an initial checkpoint, or fresh."""
    if done:
        say(f"resuming from {job.model_dir} at step {done[-1]}")
        state, position = checkpoint.restore(checkpoints, done[-1], prog.state, identity, shards)
        return done[-1], state, position.shards
    if not job.initial_checkpoint:
        shardings = jax.tree.map(lambda s: s.sharding, prog.params)
        make = jax.jit(partial(network.init, job.model, prog.rules), out_shardings=shardings)
        params = make(jax.random.key(job.seed))
        return 0, jax.jit(partial(step.initial_state, tx=prog.tx))(params), None
    directory, at = checkpoint.find(job.initial_checkpoint, "--gin.INITIAL_CHECKPOINT_PATH")
    say(f"starting from the checkpoint {directory} of step {at}")
    saved = directory / checkpoint.FOLDER / str(at)
    wanted = ["params", "step"] + (["opt_state"] if job.initial_optimizer_state else [])
    part = checkpoint.restore_part(saved, {name: prog.state[name] for name in wanted})
    state = jax.jit(partial(step.initial_state, tx=prog.tx))(part["params"]) | part
    return int(state["step"]), state, None


def _plan(job: Job, devices) -> loop.Plan:
    lengths = job.feature_lengths
    return loop.Plan(
        model_dir=str(job.model_dir),
        train_steps=job.train_steps,
        log_period=job.log_period,
        save_period=job.save_period,
        eval_period=job.eval_period,
        max_nonfinite_steps=job.max_nonfinite_steps,
        tokens_per_batch=job.batch_size * sum(lengths.values()),
        sequences_per_batch=job.batch_size,
        flops_per_batch=flops.train_step(job.model, job.batch_size, lengths["inputs"], lengths["targets"]),
        peak_flops=chips.peak_flops(devices[0].device_kind),
        identity=identity(job),
    )


def _write_description(job: Job, config_text: str, model_dir: epath.Path) -> None:
    """Makes the model directory self-describing: its configuration and its vocabulary."""
    if jax.process_index():
        return
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / DONE).unlink(missing_ok=True)
    (model_dir / CONFIG_FILE).write_text(config_text)
    from t5x_lite.tasks import vocabulary

    source = vocabulary.file(job.vocabulary)
    if source is not None and not (model_dir / VOCABULARY_FILE).exists():
        with epath.Path(source).open("rb") as read, (model_dir / VOCABULARY_FILE).open("wb") as write:
            shutil.copyfileobj(read, write)


def _evaluate(job: Job, prog: Program, task, explain, writer: MetricsWriter, place, params: dict, at: int) -> None:
    """Teacher-forced loss and accuracy on the validation split of each task, to the terminal and eval/results.jsonl."""
    sums_of = eval_function(prog)
    streams = examples.evaluation_streams(
        task, "validation", job.feature_lengths, job.pack, job.seed, job.use_cached_tasks, explain
    )
    host = jax.process_index(), jax.process_count()
    for name, stream in streams:
        rows = batching.eval_batches(stream, job.feature_lengths, job.batch_size, job.pack, job.eval_batches, host)
        result = evaluation.teacher_forced(sums_of, params, map(place, rows))
        if jax.process_index() == 0:
            append_result(job.model_dir, {"step": at, "task": name, "split": "validation", **result})
            writer.scalars(at, {f"eval/{name}/{k}": v for k, v in result.items()})
            say(f"step {at}  eval {name}: loss {result['loss']:.3f}  accuracy {result['accuracy']:.3f}")


def eval_function(prog: Program):
    """Compiled (params, batch) -> summed loss, correct tokens and weight."""
    return jax.jit(lambda params, batch: loss.batch_loss(prog.graphdef, params, batch, None)[1])


def _say_start(job: Job, prog: Program, devices) -> None:
    kinds = f"{len(devices)} x {devices[0].device_kind}"
    axes = {a: n for a, n in prog.mesh.shape.items() if n > 1} or "one device"
    say(
        f"{network.count(prog.params):,} parameters on {kinds} (mesh {axes}); batch {job.batch_size} x "
        f"({job.feature_lengths['inputs']} + {job.feature_lengths['targets']}) tokens of {job.mixture_or_task_name}"
    )
