"""t5x_lite train: shapes, shardings, state, data, compile, loop."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
from etils import epath

from t5x_lite import config
from t5x_lite.data import batches as batching
from t5x_lite.data import examples
from t5x_lite.errors import UserError
from t5x_lite.job import UNUSED_WHEN_DRY, Job
from t5x_lite.model import flops, network
from t5x_lite.model_dir import CONFIG, DONE, VOCABULARY
from t5x_lite.parallel import chips, start
from t5x_lite.program import Program, abstract_batch, eval_step, init_params, init_state, lay_out, train_step
from t5x_lite.train import checkpoint, evaluation, loop
from t5x_lite.train.metrics import MetricsWriter, append_result, say, write_whole


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
    from t5x_lite.tasks import quiet, vocabulary

    check_vocabulary(job, vocabulary.size(job.vocabulary))
    quiet.load_tensorflow()
    from t5x_lite.tasks import registry, sources

    task = registry.prepare(
        job.mixture_or_task_name, job.mixture_or_task_module, job.vocabulary, job.data_glob, job.validation_glob,
        job.data_dir, job.use_cached_tasks,
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


def vocabulary_file(job: Job, model_dir: epath.Path) -> bytes | None:
    """The SentencePiece model of the job, None for bytes.

    Raises:
      UserError: the model directory was trained with another one.
    """
    from t5x_lite.tasks import codec

    source = codec.model_file(job.vocabulary)
    if source is None:
        return None
    data, copy = epath.Path(source).read_bytes(), model_dir / VOCABULARY
    if copy.exists() and copy.read_bytes() != data:
        raise UserError(
            f"VOCABULARY={job.vocabulary} is not the vocabulary that {model_dir} was trained with",
            f"it differs from the copy {copy}",
            f"Set --gin.VOCABULARY={copy}, or choose another --gin.MODEL_DIR",
        )
    return data


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
        program = lay_out(job, mesh)
        done = checkpoint.steps(model_dir)
        if done and done[-1] >= job.train_steps:
            say(f"t5x_lite: {model_dir} is already at step {done[-1]} of {job.train_steps}: nothing to do")
            (model_dir / DONE).touch()
            return
        # What can be wrong with the input is found before anything is compiled or written.
        task, explain = open_task(job)
        vocabulary = vocabulary_file(job, model_dir)
        if job.eval_period:
            examples.check_split(task, "validation", job.use_cached_tasks)
        batch_shapes = abstract_batch(job, program)
        source = None if done or not job.initial_checkpoint else find_initial(job)
        streams = examples.train_streams(
            task, shards, job.data_shards, job.feature_lengths, job.pack, job.seed, job.use_cached_tasks, explain
        )
        _say_start(job, program, devices)

        place = partial(batching.to_global, shardings={k: s.sharding for k, s in batch_shapes.items()})
        compiled = beside.submit(_compile, train_step(job, program), mesh, program.state, batch_shapes)
        first, state, position = _initial(job, program, done, source, shards)
        plan = _plan(job, devices)
        batches = batching.TrainBatches(
            streams,
            position,
            job.feature_lengths,
            job.batch_size // job.data_shards,
            job.pack,
            place,
            first,
            job.train_steps,
            plan.saves,
        )
        batches.wait_for_first()
        _write_description(config_text, vocabulary, model_dir)
        checkpoints = checkpoint.manager(model_dir, job.keep_checkpoints)
        writer = MetricsWriter(model_dir, first, active=jax.process_index() == 0)
        evaluate = partial(_evaluate, job, eval_step(program), task, explain, writer, place)
        with loop.StopRequest() as stop:
            compiled_step = compiled.result()
            say(f"ready after {time.monotonic() - began:.1f} s; training from step {first} to {job.train_steps}")
            try:
                loop.run(
                    plan, state, first, compiled_step, batches, checkpoints, writer, evaluate, stop,
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


def find_initial(job: Job) -> tuple[epath.Path, int]:
    """The model directory and step of INITIAL_CHECKPOINT_PATH, whose steps TRAIN_STEPS counts too."""
    directory, at = checkpoint.find(job.initial_checkpoint, "--gin.INITIAL_CHECKPOINT_PATH")
    if at >= job.train_steps:
        raise UserError(
            f"TRAIN_STEPS={job.train_steps} leaves nothing to train",
            f"it counts the steps of INITIAL_CHECKPOINT_PATH={job.initial_checkpoint} too, which is at step {at}",
            f"set --gin.TRAIN_STEPS to more than {at}",
        )
    return directory, at


def _initial(job: Job, program: Program, done: list[int], source, shards: list[int]):
    """The step, state and data position to begin with: resumed, from an initial checkpoint, or fresh."""
    if done:
        say(f"resuming from {job.model_dir} at step {done[-1]}")
        with checkpoint.manager(job.model_dir, keep=None, read_only=True) as checkpoints:
            state, position = checkpoint.restore(checkpoints, done[-1], program.state, identity(job), shards)
        return done[-1], state, position.shards
    if source is None:
        params = init_params(job, program)(jax.random.key(job.seed))
        return 0, init_state(program)(params), None
    directory, at = source
    say(f"starting from the checkpoint {directory} of step {at}")
    saved = directory / checkpoint.FOLDER / str(at)
    wanted = ["params", "step"]
    if job.initial_optimizer_state and "opt_state" in checkpoint.entries(saved):
        wanted.append("opt_state")
    part = checkpoint.restore_part(saved, {name: program.state[name] for name in wanted})
    state = init_state(program)(part["params"]) | part
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


def _write_description(config_text: str, vocabulary: bytes | None, model_dir: epath.Path) -> None:
    """Makes the model directory self-describing: its configuration and its vocabulary."""
    if jax.process_index():
        return
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / DONE).unlink(missing_ok=True)
    write_whole(model_dir / CONFIG, config_text.encode())
    if vocabulary is not None:
        write_whole(model_dir / VOCABULARY, vocabulary)


def _evaluate(job: Job, sums_of, task, explain, writer: MetricsWriter, place, params: dict, at: int) -> None:
    """Teacher-forced loss and accuracy on the validation split of each task, to the terminal and eval/results.jsonl."""
    streams = examples.evaluation_streams(
        task, "validation", job.feature_lengths, job.pack, job.seed, job.use_cached_tasks, explain
    )
    host = jax.process_index(), jax.process_count()
    for name, stream in streams:
        rows = batching.eval_batches(stream, job.feature_lengths, job.batch_size, job.pack, job.eval_batches, host)
        result = evaluation.teacher_forced(sums_of, params, map(place, rows))
        if jax.process_index() == 0:
            append_result(
                epath.Path(job.model_dir) / "eval", {"step": at, "task": name, "split": "validation", **result}
            )
            writer.scalars(at, {f"eval/{name}/{k}": v for k, v in result.items()})
            say(f"step {at}  eval {name}: loss {result['loss']:.3f}  accuracy {result['accuracy']:.3f}")


def _say_start(job: Job, program: Program, devices) -> None:
    kinds = f"{len(devices)} x {devices[0].device_kind}"
    axes = {a: n for a, n in program.mesh.shape.items() if n > 1} or "one device"
    say(
        f"{network.count(program.params):,} parameters on {kinds} (mesh {axes}); batch {job.batch_size} x "
        f"({job.feature_lengths['inputs']} + {job.feature_lengths['targets']}) tokens of {job.mixture_or_task_name}"
    )
