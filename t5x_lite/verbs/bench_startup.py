"""t5x_lite bench startup: from the start of the process to the first step, with a cold and a warm cache, and resumed.

Each run is `t5x_lite train` as a user starts it, in a fresh process, on the demo corpus and vocabulary;
the moments are those at which its lines arrive here.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from t5x_lite.errors import RunError
from t5x_lite.verbs.bench import table

# What a run says at each moment, in order. The step that is compiled is named train_step.
_MOMENTS = {
    "task_s": r"[\d,]+ parameters on ",
    "ready_s": r"ready after ",
    "first_step_s": r"first step done after ",
}
# JAX says these with JAX_LOG_COMPILES. Compiling and initialising run beside each other.
_DURATIONS = {
    "trace_s": r"Finished tracing train_step .* in ([\d.]+) sec",
    "lower_s": r"Finished jaxpr to MLIR module conversion jit\(train_step\) in ([\d.]+) sec",
    "compile_s": r"Finished XLA compilation of jit\(train_step\) in ([\d.]+) sec",
}
_CASES = ("cold cache", "warm cache", "resume")


def measure(args) -> dict:
    """Starts the job over and over, prints the table and returns all figures.

    Raises:
      UserError: the gin files cannot be read.
      RunError: a run failed.
    """
    from t5x_lite import config

    files = [config.find(name) for name in ("runs/pretrain.gin", *(args.gin_file or ["models/t5_1_1_small.gin"]))]
    # Imported once, so that no case alone pays for reading the libraries from the disk or for the demo corpus.
    _run(
        [
            sys.executable,
            "-c",
            "import seqio, jax, orbax.checkpoint; from t5x_lite.tasks import corpus; corpus.ensure()",
        ],
        {},
    )
    cases: dict[str, list[dict]] = {case: [] for case in _CASES}
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory(prefix="t5x_lite_bench_") as folder:
            cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache")), "JAX_LOG_COMPILES": "1"}
            for case, model_dir, steps in zip(_CASES, ("cold", "warm", "warm"), (1, 1, 2)):
                command = _command(args, files, Path(folder, model_dir), steps)
                cases[case].append(moments(_run(command, cache)))
    result = {"workload": {"command": _command(args, files, Path("MODEL_DIR"), 1)[1:]}, "cases": cases}
    print(text(cases))
    return result


def _command(args, files: Iterable[str], model_dir: Path, steps: int) -> list[str]:
    bindings = (
        "MIXTURE_OR_TASK_NAME=demo_span_corruption",
        "VOCABULARY=demo",
        f"TASK_FEATURE_LENGTHS={ {'inputs': args.inputs, 'targets': args.targets} }",
        f"BATCH_SIZE={args.batch_size}",
        "DATA_SHARDS=1",
        f"architecture.Architecture.dtype={args.dtype}",
        "EVAL_PERIOD=0",
        *args.gin,
        f"TRAIN_STEPS={steps}",
        f"MODEL_DIR={model_dir}",
    )
    flags = [f"--gin_file={name}" for name in files] + [f"--gin.{binding}" for binding in bindings]
    return [sys.executable, "-m", "t5x_lite", "train", *flags]


def _run(command: list[str], environment: dict[str, str]) -> list[tuple[float, str]]:
    """The lines that a process writes, each with the seconds since its start at which it came."""
    began = time.perf_counter()
    lines: list[tuple[float, str]] = []
    with subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            lines.append((time.perf_counter() - began, line.rstrip()))
    if process.returncode:
        last = lines[-1][1] if lines else ""
        raise RunError(
            f"a run ended with status {process.returncode}: {last.removeprefix('t5x_lite: ')}",
            "nothing was written",
            f"see it alone: {' '.join(command[1:])}",
        )
    return lines


def moments(lines: Iterable[tuple[float, str]]) -> dict[str, float | None]:
    """What the lines of a run tell, in seconds; None where they do not.

    Returns:
      `task_s`: imports are done, shapes are known and the task is open; `ready_s`: parameters are there and
      the step is compiled; `first_step_s`: the first step has finished; all since the start of the process.
      `trace_s`, `lower_s`, `compile_s`: how long these took for the train step.
    """
    found: dict[str, float | None] = dict.fromkeys((*_MOMENTS, *_DURATIONS))
    for at, line in lines:
        for name, pattern in _MOMENTS.items():
            if re.match(pattern, line):
                found[name] = at
        for name, pattern in _DURATIONS.items():
            if match := re.search(pattern, line):
                found[name] = float(match[1])
    return found


def text(cases: dict[str, list[dict]]) -> str:
    """Medians, with the range of the two totals."""

    def median(runs: list[dict], later: str, earlier: str | None = None) -> str:
        values = [
            r[later] - (r[earlier] if earlier else 0.0) for r in runs if None not in (r[later], r.get(earlier, 0))
        ]
        return f"{statistics.median(values):.1f}" if values else "-"

    def spread(runs: list[dict], key: str) -> str:
        values = [r[key] for r in runs if r[key] is not None]
        return f"{median(runs, key)} ({min(values):.1f} to {max(values):.1f})" if values else "-"

    rows = [
        (
            "s",
            "step 1 begins",
            "step 1 ends",
            "imports, task",
            "init, compile",
            "batch, step 1",
            "trace",
            "lower",
            "compile",
        )
    ]
    for case, runs in cases.items():
        rows.append((
            case,
            spread(runs, "ready_s"),
            spread(runs, "first_step_s"),
            median(runs, "task_s"),
            median(runs, "ready_s", "task_s"),
            median(runs, "first_step_s", "ready_s"),
            median(runs, "trace_s"),
            median(runs, "lower_s"),
            median(runs, "compile_s"),
        ))  # fmt: skip
    count = len(next(iter(cases.values())))
    return f"t5x_lite train from the start of its process; median (range) of {count} runs\n{table(rows)}"
