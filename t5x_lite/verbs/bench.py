"""t5x_lite bench: measurements on this machine, each as a ratio against a peer or between ways to start, in one run."""

import importlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_lite import output
from t5x_lite.errors import RunError, UserError

_PACKAGES = (
    *("t5x_lite", "jax", "jaxlib", "flax", "optax", "tensorflow", "seqio", "sentencepiece"),
    *("t5", "torch", "transformers"),
)

# What each measurement sets itself, by its name in gin, and what a user gives in its place.
_SET = {
    "train": {
        "BATCH_SIZE": "give --batch_size",
        "TASK_FEATURE_LENGTHS": "give --inputs and --targets",
        "Architecture.dtype": "give --dtype",
        "DROPOUT_RATE": "leave it out: the contestants compute the same, without dropout",
        "Architecture.dropout_rate": "leave it out: the contestants compute the same, without dropout",
        "DATA_SHARDS": "leave it out: no data is read",
        "PACK": "leave it out: every row holds one example without padding",
        "TRAIN_STEPS": "give --runs",
    },
    "decode": {
        "BATCH_SIZE": "give --batch_size",
        "TASK_FEATURE_LENGTHS": "give --inputs and --targets",
        "Architecture.dtype": "give --dtype",
        "TRAIN_STEPS": "leave it out: nothing is trained",
        "MODEL_DIR": "leave it out: the weights are drawn",
    },
    "startup": {
        "TRAIN_STEPS": "leave it out: the first step is what is waited for",
        "MODEL_DIR": "leave it out: each run has a folder of its own",
    },
    "input": {
        "BATCH_SIZE": "give --batch_size",
        "TASK_FEATURE_LENGTHS": "give --inputs and --targets",
        "PACK": "leave it out: rows are packed",
        "USE_CACHED_TASKS": "leave it out: the way from the source is measured",
        "TOKENS_DIR": "leave it out: the way from the source is measured",
        "TRAIN_STEPS": "leave it out: nothing is trained",
        "MODEL_DIR": "leave it out: nothing is trained",
    },
}

# Rows of a batch, unless --batch_size is given. On a CPU a train step of 8 takes seconds; decode has several.
_BATCH_SIZE = {"train": 8, "decode": None, "startup": 8, "input": 128}
# Target tokens of each row, unless --targets is given: those of T5's span corruption, and new ones.
_TARGETS = {"train": 114, "decode": 64, "startup": 114, "input": 114}


def main(args) -> None:
    """The verb: measures, prints a table, and with --output writes every raw figure as JSON.

    Raises:
      UserError: --output cannot be written, or a binding is given that the measurement sets itself.
      RunError: what is measured failed.
    """
    output.check_file(args.output, "--output")
    for binding in args.gin:
        name = binding.partition("=")[0].strip()
        if fix := _SET[args.what].get(".".join(name.split(".")[-2:])):
            raise UserError(f"--gin.{name} is given", f"bench {args.what} sets it itself", fix)
    args.batch_size = args.batch_size or _BATCH_SIZE[args.what]
    args.targets = args.targets or _TARGETS[args.what]
    measure = importlib.import_module(f"t5x_lite.verbs.bench_{args.what}").measure
    result = {"bench": args.what, "machine": machine(), **measure(args)}
    if args.output:
        try:
            Path(args.output).write_text(
                json.dumps(_finite(result), indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise RunError(
                f"{args.output} could not be written: {error}", "the table above is complete", "choose another --output"
            ) from error


def _finite(value):
    """The same figures with None for those that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine() -> dict:
    """What figures depend on: processor, cores, memory in bytes, load and versions of what is installed."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first row is the heading, the first column the names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )
