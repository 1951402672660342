"""t5x_lite bench train: the job's own train step on fixed random tokens, beside Hugging Face's where it is installed.

Each contestant lives in a process of its own and they take steps in turns, one idle while the other
works: neither a thread pool nor an allocator is shared, load on the machine falls on both alike, and CPU
seconds and peak memory can be told apart. Needs neither TensorFlow nor seqio.
"""

import dataclasses
import importlib.util
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from t5x_lite.errors import RunError, UserError

OURS, PEER = "t5x_lite", "Hugging Face eager"


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is measured.

    Args:
      gin_files, bindings: of the job.
      batch, inputs, targets: rows, and tokens of each row.
      dtype: type that is computed in; parameters are float32.
    """

    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    batch: int
    inputs: int
    targets: int
    dtype: str

    @property
    def tokens(self) -> int:
        """Of a batch, inputs and targets together."""
        return self.batch * (self.inputs + self.targets)


# Does the work and returns what it found, once it has finished: of a train step, `loss` in nats a token.
Step = Callable[[], dict]


def measure(args) -> dict:
    """Measures the contestants, prints the table and returns all figures.

    Raises:
      UserError: the job cannot be built.
      RunError: a contestant failed.
    """
    work = Workload(
        # What the job leaves open comes from runs/pretrain.gin; the files given may bind it otherwise.
        ("runs/pretrain.gin", *(args.gin_file or ["models/t5_1_1_small.gin"])),
        tuple(args.gin),
        args.batch_size,
        args.inputs,
        args.targets,
        args.dtype,
    )
    job = load_job(work)
    makers: dict[str, tuple[Callable, object]] = {OURS: (our_step, work)}
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        print(f"{PEER}: not measured, {' and '.join(absent)} not installed")
    else:
        from t5x_lite.verbs import bench_huggingface

        makers[PEER] = (bench_huggingface.step, (bench_huggingface.configuration(job.model), work))
    # Two processes may share an accelerator: neither takes its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    contestants = {}
    try:
        for name, (make, argument) in makers.items():
            contestants[name] = Contestant(name, make, argument)
        if PEER in contestants and contestants[PEER].about["device"] == "cpu" != contestants[OURS].about["platform"]:
            print(f"{PEER}: not measured, torch sees no accelerator and {OURS} has one")
            contestants.pop(PEER).close()
        for contestant in contestants.values():
            contestant.step()
        samples: dict[str, list[dict]] = {name: [] for name in contestants}
        for _ in range(args.runs):
            for name, contestant in contestants.items():
                samples[name].append(contestant.step())
        results = {n: {**c.about, "steps": samples[n], "peak_rss_bytes": c.close()} for n, c in contestants.items()}
    finally:
        for contestant in contestants.values():
            contestant.kill()
    result = {"workload": dataclasses.asdict(work), "contestants": results, **_ratios(samples)}
    result["mfu"] = _mfu(job, work, results[OURS])
    print(text(result, work))
    return result


def load_job(work: Workload):
    """The job of a workload: dropout 0, rows not packed, everything else as its gin files say."""
    from t5x_lite import config
    from t5x_lite.job import UNUSED_WHEN_DRY

    lengths = {"inputs": work.inputs, "targets": work.targets}
    fixed = (
        f"BATCH_SIZE={work.batch}",
        f"TASK_FEATURE_LENGTHS={lengths}",
        f"architecture.Architecture.dtype={work.dtype}",
        "DROPOUT_RATE=0.0",
        "PACK=False",
        "DATA_SHARDS=1",
        "TRAIN_STEPS=1000000",
    )
    make = config.load(work.gin_files, (*work.bindings, *fixed), optional=UNUSED_WHEN_DRY)
    return config.build(make)


def random_tokens(work: Workload, vocab_size: int):
    """The same int32 ids for every contestant, none of them padding: inputs [B, S] and targets [B, T]."""
    import numpy as np

    draw = np.random.default_rng(0).integers
    return tuple(draw(2, vocab_size, (work.batch, n), np.int32) for n in (work.inputs, work.targets))


def our_step(work: Workload) -> tuple[dict, Step]:
    """The step that `t5x_lite train` runs, compiled, and the seconds of its making."""
    import jax
    import numpy as np

    from t5x_lite import program as programs
    from t5x_lite.model import network
    from t5x_lite.parallel import start

    job = load_job(work)
    start.keep_memory()
    devices = jax.devices()
    mesh = job.partition.build(devices)
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    with jax.set_mesh(mesh):
        program = programs.lay_out(job, mesh)
        shapes = programs.abstract_batch(job, program)
        parts = {"shapes_s": lap()}
        lowered = programs.train_step(job, program).lower(program.state, shapes)
        parts["trace_s"] = lap()
        compiled = lowered.compile()
        parts["compile_s"] = lap()
        params = programs.init_params(job, program)(jax.random.key(job.seed))
        state = jax.block_until_ready(programs.init_state(program)(params))
        parts["init_s"] = lap()
        inputs, targets = random_tokens(work, job.model.vocab_size)
        arrays = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": np.ones_like(targets),
        }
        batch = {k: jax.device_put(arrays[k].astype(s.dtype), s.sharding) for k, s in shapes.items()}

    def step() -> dict:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        return {"loss": float(metrics["loss"] / metrics["weight"])}

    about = {
        "parameters": network.count(program.params),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "parts": parts,
    }
    return about, step


class Contestant:
    """A process that makes a step and then takes one whenever it is told to.

    Args:
      name: for messages.
      make: importable function argument -> (about, step).
      argument: of `make`.
    """

    def __init__(self, name: str, make: Callable, argument):
        # A fresh interpreter: a fork would copy the thread pools and imports of this one.
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, argument), daemon=True)
        self._process.start()
        theirs.close()
        self.about: dict = self._receive()

    def _receive(self):
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RunError(
                f"the process of {self.name} ended with status {self._process.exitcode}",
                "nothing was written",
                "a smaller --batch_size or model needs less memory",
            ) from None
        if kind == "wrong":
            raise UserError(f"{self.name} cannot take this job", value, "correct what it names")
        if kind == "failed":
            raise RunError(
                f"{self.name} failed: {value}", "nothing was written", "a smaller --batch_size needs less memory"
            )
        return value

    def step(self) -> dict:
        """One step: `wall_s`, `cpu_s` of its process over all threads, and what it found."""
        self._pipe.send("step")
        return self._receive()

    def close(self) -> int:
        """Ends the process and returns the most memory it held, in bytes."""
        self._pipe.send("stop")
        peak = self._receive()
        self._process.join()
        return peak

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe, make: Callable, argument) -> None:
    """The other end of a Contestant."""
    try:
        about, step = make(argument)
        pipe.send(("made", about))
        while pipe.recv() == "step":
            wall, cpu = time.perf_counter(), time.process_time()
            found = step()
            taken = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            pipe.send(("step", taken | found))
        # ru_maxrss is in KiB, on macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        pipe.send(("stopped", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
    except UserError as error:
        pipe.send(("wrong", str(error)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"))
    except KeyboardInterrupt:
        # The parent has it too, and says so.
        pass


def _ratios(samples: dict[str, list[dict]]) -> dict:
    """Ours over the peer's for each pair of neighbouring steps."""
    if PEER not in samples:
        return {}
    pairs = list(zip(samples[OURS], samples[PEER]))
    return {f"{key}_ratio": [ours[key] / theirs[key] for ours, theirs in pairs] for key in ("wall_s", "cpu_s")}


def _mfu(job, work: Workload, ours: dict) -> float | None:
    """Model FLOPs utilisation of the median step; None where the peak of the device is not known."""
    from t5x_lite.model import flops
    from t5x_lite.parallel import chips

    peak = chips.peak_flops(ours["device"])
    seconds = statistics.median(s["wall_s"] for s in ours["steps"])
    done = flops.train_step(job.model, work.batch, work.inputs, work.targets)
    return done / seconds / (peak * ours["devices"]) if peak else None


def spread(values: Sequence[float]) -> str:
    """Median (least to most), with two decimals, or as many as three digits of a small median take."""
    median = statistics.median(values)
    digits = 2 if median <= 0 else max(2, 2 - math.floor(math.log10(median)))
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def text(result: dict, work: Workload) -> str:
    """The figures as a plain table: medians, with the range in brackets."""
    from t5x_lite.verbs.bench import table

    contestants = result["contestants"]
    ours = contestants[OURS]
    rows = [("", "wall s a step", "CPU s a step", "tokens/s", "peak RSS MiB", "loss")]
    for name, c in contestants.items():
        wall = [s["wall_s"] for s in c["steps"]]
        rows.append((
            name,
            spread(wall),
            spread([s["cpu_s"] for s in c["steps"]]),
            f"{work.tokens / statistics.median(wall):,.0f}",
            f"{c['peak_rss_bytes'] / 2**20:,.0f}",
            f"{c['steps'][-1]['loss']:.3f}",
        ))  # fmt: skip
    if "wall_s_ratio" in result:
        rows.append((f"{OURS} / {PEER}", spread(result["wall_s_ratio"]), spread(result["cpu_s_ratio"]), "", "", ""))
    counts = {n: c["parameters"] for n, c in contestants.items()}
    parts = ", ".join(f"{name.removesuffix('_s')} {seconds:.1f} s" for name, seconds in ours["parts"].items())
    lines = [
        f"{ours['parameters']:,} parameters, {work.dtype}, batch {work.batch} x ({work.inputs} + {work.targets}), "
        f"dropout 0, on {ours['devices']} x {ours['device']}; median (range) of {len(ours['steps'])} steps in turns",
        table(rows),
        f"{OURS} before its first step: {parts}",
    ]
    if len(set(counts.values())) > 1:
        lines.append("parameters differ: " + ", ".join(f"{n} {count:,}" for n, count in counts.items()))
    if result["mfu"] is not None:
        lines.append(f"MFU {100 * result['mfu']:.1f} % of {ours['devices']} x {ours['device']}, bf16 peak")
    return "\n".join(lines)
