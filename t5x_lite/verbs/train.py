"""t5x_lite train: shapes, shardings, state, data, compile, loop."""

import contextlib
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
from etils import epath

from t5x_lite import config, output, parameter_table, validation
from t5x_lite.data import batches as batching
from t5x_lite.data import examples
from t5x_lite.data.tokens import Tokens
from t5x_lite.errors import UserError
from t5x_lite.job import UNUSED_WHEN_DRY, Job
from t5x_lite.model import flops, network
from t5x_lite.model_dir import CONFIG, DONE, VOCABULARY
from t5x_lite.parallel import chips, hosts, start
from t5x_lite.program import Program, abstract_batch, init_adapters, init_params, init_state, lay_out, train_step
from t5x_lite.task import open_task
from t5x_lite.train import checkpoint, loop
from t5x_lite.train.metrics import MetricsWriter, say, write_whole
from t5x_lite.train.watchdog import Watchdog

_SHARED = "name a folder with --gin.MODEL_DIR that all hosts see, such as one on a network file system, or gs://"

# Seconds until a network file system shows one machine what another one has written.
_FILE_SYSTEM = 60


def main(args) -> None:
    """The verb: parses the gin files, then trains, or with --dry_run describes."""
    began = time.monotonic()
    for flag in ("topology", "num_slices"):
        if not args.dry_run and (given := getattr(args, flag)) is not None:
            raise UserError(
                f"--{flag}={given} is given without --dry_run",
                "training runs on the devices of this machine",
                f"add --dry_run, or leave --{flag} out",
            )
    make = config.load(args.gin_file, args.gin, optional=UNUSED_WHEN_DRY if args.dry_run else ())
    job: Job = config.build(make)
    if job.vocabulary is None and job.tokens_dir is not None and not args.dry_run:
        from t5x_lite.tasks import tokenized

        found = tokenized.vocabulary_of(job.tokens_dir)
        job = config.build(config.load(args.gin_file, [*args.gin, f"VOCABULARY={found}"]))
    if args.dry_run:
        from t5x_lite.verbs import dry_run

        if args.num_slices and args.topology is None:
            raise UserError(
                f"--num_slices={args.num_slices} is given without --topology",
                "it counts slices of that topology",
                "add for example --topology=v5e:16x16",
            )
        dry_run.describe(job, args.topology, args.num_slices or 1, config.resolved())
    else:
        with hosts.joined(hosts.place(vars(args)), job.host_timeout, lambda: loop.safe(job.model_dir)):
            train(job, config.resolved(), began)


def train(job: Job, config_text: str, began: float) -> None:
    """Trains a job to its end, from its newest checkpoint where there is one; all hosts of a run do so together.

    Raises:
      UserError: wrong input, before anything is compiled or written.
      Preempted, RunError: see `loop.run`.
    """
    model_dir = epath.Path(job.model_dir)
    output.check_folder(model_dir, "--gin.MODEL_DIR")
    hosts.check_alike("the configuration", _digest(config_text), "start the same command with the same files on all")
    if _is_finished(job, checkpoint.steps(model_dir)):
        return
    start.compilation_cache()
    start.keep_memory()
    devices = jax.devices()
    mesh = job.partition.build(devices)
    batching.check_hosts(job.data_shards, hosts.count())

    with contextlib.ExitStack() as ending:
        stop = ending.enter_context(loop.StopRequest(job.model_dir))
        ending.enter_context(jax.set_mesh(mesh))
        # What another process still writes there is not to be gone on with.
        resumable = model_dir.is_dir()
        if resumable:
            ending.enter_context(_held(model_dir))
        done = checkpoint.steps(model_dir)
        hosts.check_alike("the list of checkpoints in MODEL_DIR", f"{done}", _SHARED)
        program = lay_out(job, mesh)
        batch_shapes = abstract_batch(job, program)
        share = batching.share(next(iter(batch_shapes.values())), job.data_shards)
        # What can be wrong with the input is found before anything is compiled or written.
        task, explain = open_task(job)
        vocabulary = vocabulary_file(job)
        identity = data_identity(job, task, vocabulary)
        validation.check(job, task)
        saved = find_start(job, program, done, vocabulary, identity)
        hosts.check_alike("the data", _digest(repr(identity)), "give all hosts the same files")
        streams = examples.train_streams(
            task, share.shards, job.data_shards, job.feature_lengths, job.pack, job.seed, job.use_cached_tasks, explain
        )
        _say_start(job, program, devices, share)
        _say_untrained(task)

        ending.enter_context(loop.failures(job.model_dir))
        compiling = ThreadPoolExecutor(1)
        # The compiler cannot be stopped: where something else fails, nobody waits for it.
        ending.callback(compiling.shutdown, wait=False)
        compiled = compiling.submit(_compile, train_step(job, program), mesh, program.state, batch_shapes)
        state, position, tokens_before = read_start(job, program, saved, bool(done), share.shards)
        plan = _plan(job, devices, int(state["step"]), tokens_before, identity)
        onto_devices = partial(batching.to_global, shapes=batch_shapes, rows=share.rows)
        batches = batching.TrainBatches(
            streams, position, job.feature_lengths, job.batch_size // job.data_shards, share, job.pack,
            program.convert, onto_devices, plan.first_step, job.train_steps, plan.saves,
        )  # fmt: skip
        ending.callback(batches.close)
        batches.wait_for_first()
        if not resumable and hosts.is_first():
            model_dir.mkdir(parents=True, exist_ok=True)
            ending.enter_context(_held(model_dir))
        _describe(config_text, vocabulary, model_dir)
        _check_shared(config_text, model_dir)
        checkpoints = ending.enter_context(checkpoint.manager(job.model_dir, job.keep_checkpoints))
        writer = MetricsWriter(job.model_dir, plan.first_step, active=hosts.is_first())
        ending.callback(writer.close)
        watchdog = Watchdog(job.hang_timeout, partial(loop.safe, job.model_dir))

        def stopped() -> bool:
            watchdog.moved("a batch of an evaluation is under way")
            return bool(stop.seen_anywhere())

        evaluate = validation.evaluator(job, program, task, explain, writer, onto_devices, share.rows, stopped)
        compiled_step = compiled.result()
        say(f"ready after {time.monotonic() - began:.1f} s; training from step {plan.first_step} to {job.train_steps}")
        stop.training()
        ending.enter_context(watchdog)
        # Only the first host knows: it writes what the others would read.
        if done and hosts.any_of(hosts.is_first() and validation.is_missing(job, task, plan.first_step)):
            if not evaluate(state["params"], plan.first_step):
                raise loop.preempted(plan, plan.first_step)
        loop.run(
            plan, state, compiled_step, batches, checkpoints, writer, evaluate, stop, watchdog,
            lambda: say(f"first step done after {time.monotonic() - began:.1f} s"),
        )  # fmt: skip
    if hosts.is_first():
        (model_dir / DONE).touch()
        say(f"done: step {job.train_steps} is saved in {model_dir}")


def _is_finished(job: Job, done: list[int]) -> bool:
    """Whether there is nothing left to do, and says so."""
    at = done[-1] if done else -1
    if at > job.train_steps or at == job.train_steps and (epath.Path(job.model_dir) / DONE).exists():
        say(f"t5x_lite: {job.model_dir} is already at step {at} of {job.train_steps}: nothing to do")
        return True
    return False


def _held(model_dir: epath.Path) -> contextlib.AbstractContextManager:
    """The first host keeps the directory for the run."""
    return output.held(model_dir, "--gin.MODEL_DIR") if hosts.is_first() else contextlib.nullcontext()


def vocabulary_file(job: Job) -> bytes | None:
    """The SentencePiece model of the job, None for bytes."""
    from t5x_lite.tasks import codec

    source = codec.model_file(job.vocabulary)
    return None if source is None else epath.Path(source).read_bytes()


def data_identity(job: Job, task, vocabulary: bytes | None) -> dict:
    """What the data shards are a cut of: a saved position is good only under the same."""
    if isinstance(task, Tokens):
        data = {"the tokens": task.identity()}
    else:
        from t5x_lite.tasks import fingerprint

        data = fingerprint.of(task, job.use_cached_tasks)
    return {
        "--gin.MIXTURE_OR_TASK_NAME": job.mixture_or_task_name,
        "--gin.TASK_FEATURE_LENGTHS": dict(job.feature_lengths),
        "--gin.DATA_SHARDS": job.data_shards,
        "--gin.RANDOM_SEED": job.seed,
        "--gin.PACK": job.pack,
        "--gin.USE_CACHED_TASKS": job.use_cached_tasks,
        "--gin.VOCABULARY": _known_as(vocabulary),
        **data,
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _known_as(vocabulary: bytes | None) -> str:
    return "bytes" if vocabulary is None else f"a SentencePiece model, md5 {hashlib.md5(vocabulary).hexdigest()[:12]}"


def find_start(job: Job, program: Program, done: list[int], vocabulary: bytes | None, identity: dict):
    """The checkpoint to begin with, found to fit: the newest of the run, the initial one, or None.

    Raises:
      UserError: it is of another model, optimizer, vocabulary or cut of the data.
    """
    if done:
        saved = epath.Path(job.model_dir) / checkpoint.FOLDER / str(done[-1])
        checkpoint.check(saved, program.state, identity)
        return saved
    if not job.initial_checkpoint:
        return None
    directory, at = checkpoint.find(job.initial_checkpoint, "--gin.INITIAL_CHECKPOINT_PATH")
    if at >= job.train_steps:
        raise UserError(
            f"TRAIN_STEPS={job.train_steps} leaves nothing to train",
            f"it counts the steps of INITIAL_CHECKPOINT_PATH={job.initial_checkpoint} too, which is at step {at}",
            f"set --gin.TRAIN_STEPS to more than {at}",
        )
    copy = directory / VOCABULARY
    if copy.exists() and copy.read_bytes() != vocabulary:
        raise UserError(
            f"VOCABULARY={job.vocabulary} is not the vocabulary of INITIAL_CHECKPOINT_PATH={job.initial_checkpoint}",
            f"its embeddings were trained with {copy}",
            f"set --gin.VOCABULARY={copy}",
        )
    saved = directory / checkpoint.FOLDER / str(at)
    checkpoint.check(saved, _taken(job, program, saved), None)
    return saved


def _taken(job: Job, program: Program, saved: epath.Path) -> dict:
    """What a new run takes of an initial checkpoint, as shapes; adapters may be new."""
    held = checkpoint.contents(saved)
    taken = {name: program.state[name] for name in ("params", "step")}
    if job.initial_optimizer_state and "opt_state" in held:
        taken["opt_state"] = program.state["opt_state"]
    if not network.split_adapters(held["params"])[1]:
        taken["params"] = network.split_adapters(taken["params"])[0]
    return taken


def read_start(job: Job, program: Program, saved: epath.Path | None, resumed: bool, shards: list[int]):
    """The state to begin with, the data position of each shard (None: the beginning), and the tokens seen so far."""
    if saved is None:
        params = init_params(job, program)(jax.random.key(job.seed))
        return init_state(program)(params), None, 0
    if resumed:
        say(f"resuming from {job.model_dir} at step {saved.name}")
        with checkpoint.manager(job.model_dir, keep=None, read_only=True) as checkpoints:
            state, position = checkpoint.restore(checkpoints, int(saved.name), program.state, shards)
        return state, position.shards, position.tokens_seen
    say(f"starting from the checkpoint {saved.parent.parent} of step {saved.name}")
    part = checkpoint.restore_part(saved, _taken(job, program, saved))
    if job.model.adapter_dim and not network.split_adapters(part["params"])[1]:
        say("its adapters are new")
        part["params"] = network.with_adapters(part["params"], init_adapters(job, program)(jax.random.key(job.seed)))
    before = checkpoint.position_of(saved)
    return init_state(program)(part["params"]) | part, None, before["tokens_seen"] if before else 0


def _compile(function, mesh, *shapes):
    """Compiles in another thread, which has its own current mesh."""
    with jax.set_mesh(mesh):
        return function.lower(*shapes).compile()


def _plan(job: Job, devices, first_step: int, tokens_before: int, identity: dict) -> loop.Plan:
    lengths = job.feature_lengths
    return loop.Plan(
        model_dir=job.model_dir,
        first_step=first_step,
        train_steps=job.train_steps,
        tokens_before=tokens_before,
        log_period=job.log_period,
        save_period=job.save_period,
        eval_period=job.eval_period,
        max_nonfinite_steps=job.max_nonfinite_steps,
        tokens_per_batch=job.batch_size * sum(lengths.values()),
        sequences_per_batch=job.batch_size,
        flops_per_batch=flops.train_step(job.model, job.batch_size, lengths["inputs"], lengths["targets"]),
        peak_flops=chips.peak_flops(devices[0].device_kind),
        identity=identity,
    )


def _describe(config_text: str, vocabulary: bytes | None, model_dir: epath.Path) -> None:
    """Makes the model directory self-describing: its configuration and its vocabulary."""
    if not hosts.is_first():
        return
    (model_dir / DONE).unlink(missing_ok=True)
    write_whole(model_dir / CONFIG, config_text.encode())
    if vocabulary is not None:
        write_whole(model_dir / VOCABULARY, vocabulary)


def _say_untrained(task) -> None:
    trained = {member.name for member in examples.members(task, "train")}
    if others := [member.name for member in examples.members(task, None) if member.name not in trained]:
        say(f"without a split train, so not trained on: {', '.join(others)}")


def _check_shared(config_text: str, model_dir: epath.Path) -> None:
    """Refuses a MODEL_DIR that is not one folder for all hosts, once the first one has described it."""
    hosts.check_alike("the beginning", "", _SHARED)
    end = time.monotonic() + _FILE_SYSTEM
    while not (found := hosts.is_first() or _holds(model_dir / CONFIG, config_text)) and time.monotonic() < end:
        time.sleep(1)
    hosts.check_alike("MODEL_DIR", f"{model_dir}" if found else "another folder of the same name", _SHARED)


def _holds(path: epath.Path, text: str) -> bool:
    return path.exists() and path.read_bytes() == text.encode()


def _say_start(job: Job, program: Program, devices, share: batching.Share) -> None:
    kinds = f"{len(devices)} x {devices[0].device_kind}"
    if hosts.count() > 1:
        kinds += f" of {hosts.count()} hosts, each reading {len(share.shards)} of {job.data_shards} data shards"
    axes = {a: n for a, n in program.mesh.shape.items() if n > 1} or "one device"
    say(
        f"{network.count(program.params):,} parameters on {kinds} (mesh {axes}); batch {job.batch_size} x "
        f"({job.feature_lengths['inputs']} + {job.feature_lengths['targets']}) tokens of {job.mixture_or_task_name}"
    )
    for line in parameter_table.lines(program, grouped=True):
        say(f"  {line}")
    held = parameter_table.bytes_a_device(program.params), parameter_table.bytes_a_device(program.state["opt_state"])
    say("{} of parameters and {} of optimizer state a device".format(*map(parameter_table.shown, held)))
