"""t5x_lite bench: measurements on this machine, each as a ratio against a peer or between ways to start, in one run."""

import importlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from t5x_lite.errors import RunError, UserError

_PACKAGES = ("t5x_lite", "jax", "jaxlib", "flax", "optax", "tensorflow", "seqio", "torch", "transformers")


def main(args) -> None:
    """The verb: measures, prints a table, and with --output writes every raw figure as JSON.

    Raises:
      UserError: --output lies in no folder.
      RunError: what is measured failed.
    """
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise UserError(f"--output={args.output}", "its folder is not there", "make the folder, or change --output")
    measure = importlib.import_module(f"t5x_lite.verbs.bench_{args.what}").measure
    result = {"bench": args.what, "machine": machine(), **measure(args)}
    if args.output:
        try:
            Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{args.output} could not be written: {error}", "the table above is complete", "choose another --output"
            ) from error


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
