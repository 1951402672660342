"""precompile --compare: one job in several variants, each compiled in a process of its own, ranked in a table.

A process of its own keeps a variant that the compiler dies of from taking the others with it.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_lite.errors import RunError, UserError, nearest
from t5x_lite.verbs.precompile_text import table

# Short names of what is compared most.
_NAMES = {
    "batch_size": "BATCH_SIZE",
    "microbatches": "MICROBATCHES",
    "remat": "architecture.Architecture.remat",
    "mesh": "partition.Partition.mesh",
}


def run(args) -> None:
    """Compiles every combination of what --compare names, prints them best first, and writes --output.

    Raises:
      UserError: there is no such slice, --compare is not NAME=VALUE,VALUE, or is given with a flag that is for one job.
      RunError: no variant could be compiled and fits.
    """
    from t5x_lite.verbs.precompile import slice_of, write

    for flag in ("html", "price"):
        if getattr(args, flag) is not None:
            raise UserError(
                f"--{flag} is given with --compare", "it describes one job", f"leave --{flag} or --compare out"
            )
    if args.program == "all":
        raise UserError("--program=all is given with --compare", "variants are ranked by one program", "name one")
    axes = [_axis(text) for text in args.compare]
    names = [name for name, _ in axes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"--compare names {twice} twice",
            "a variant has one value of each name",
            f"give all of them at once: --compare={twice}={','.join(v for n, vs in axes if n == twice for v in vs)}",
        )
    slice_of(args.topology, args.num_slices)  # what is wrong with it is wrong with every variant
    rows = []
    for values in itertools.product(*(values for _, values in axes)):
        variant = dict(zip((name for name, _ in axes), values))
        row = {"variant": variant, **_compiled(args, variant)}
        rows.append(row)
        print(f"{_named(variant)}: {row.get('reason') or _figures(row)}", flush=True)
    rows.sort(key=lambda row: -row.get("tokens_per_second", 0.0))
    print("\n" + "\n".join(_table(rows)))
    write(args.output, json.dumps({"compare": rows}, indent=1) + "\n")
    if all("reason" in row for row in rows):
        raise RunError(
            f"none of the {len(rows)} variants could be compiled and fits on {args.topology}",
            "the reason of each stands above",
            "compare others: --compare=remat=full --compare=partition=fsdp,hsdp --compare=microbatches=1,2,4",
        )


def _axis(text: str) -> tuple[str, list[str]]:
    """`remat=none,dots` -> ("remat", ["none", "dots"]); commas within brackets and braces do not part."""
    name, sign, rest = text.partition("=")
    values, depth = [""], 0
    for letter in rest:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    if not name or not sign or not all(values):
        raise UserError(
            f"--compare={text} is not NAME=VALUE,VALUE",
            "it names what differs, and the values to try",
            "write for example --compare=partition=data,fsdp --compare=remat=dots,full --compare=batch_size=1024,2048",
        )
    if name not in (*_NAMES, "partition") and not name.isupper() and "." not in name:
        raise UserError(
            f"--compare={text} compares {name}, which is no name of a job's",
            nearest(name, (*_NAMES, "partition")),
            "name one of these, or what --gin. takes: --compare=optimizer.adafactor.decay_rate=0.8,0.9",
        )
    return name, values


def _compiled(args, variant: Mapping[str, str]) -> dict:
    """What precompile finds of one variant, or why there is none."""
    files, bindings = list(args.gin_file), list(args.gin)
    for name, value in variant.items():
        if name == "partition":
            files.append(value if value.endswith(".gin") else f"partition/{value}.gin")
        else:
            bindings.append(f"{_NAMES.get(name, name)}={value}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "t5x_lite", "precompile", f"--topology={args.topology}",
            f"--num_slices={args.num_slices}", f"--program={args.program}", f"--output={path}",
            *(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in bindings),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr.strip().splitlines()
        if not path.exists():
            return {"reason": said[-1].removeprefix("t5x_lite: error: ") if said else f"exit status {done.returncode}"}
        report = json.loads(path.read_text(encoding="utf-8"))["reports"][0]
    found = {"report": report, "total_bytes": report["memory"]["total"], "fits": report["memory"]["fits"]}
    if not found["fits"]:
        return found | {"reason": report["memory"]["verdict"]}
    slow, fast = report["roofline"]["not_overlapped"], report["roofline"]["overlapped"]
    return found | {
        "step_s_not_overlapped": slow["step_s"],
        "mfu_not_overlapped": slow["mfu"],
        "mfu_overlapped": fast["mfu"],
        "tokens_per_second": slow["tokens_per_second"],
    }


def _named(variant: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in variant.items())


def _figures(row: Mapping) -> str:
    return f"MFU {row['mfu_not_overlapped']:.3f} not hidden, {row['total_bytes'] / 2**30:,.2f} GiB a device"


def _table(rows: Sequence[Mapping]) -> list[str]:
    """The rows in their order; what could not be compiled or does not fit comes last with its reason."""
    names = list(rows[0]["variant"])
    lines = [(*names, "GiB a device", "step ms", "MFU hidden", "MFU not hidden", "tokens a second", "bound")]
    for row in rows:
        start = tuple(row["variant"].values())
        if "step_s_not_overlapped" in row:
            lines.append((
                *start, f"{row['total_bytes'] / 2**30:,.2f}", f"{1e3 * row['step_s_not_overlapped']:,.1f}",
                f"{row['mfu_overlapped']:.3f}", f"{row['mfu_not_overlapped']:.3f}",
                f"{row['tokens_per_second']:,.0f}", row["report"]["roofline"]["bound"],
            ))  # fmt: skip
    failed = [f"{_named(row['variant'])}: {row['reason']}" for row in rows if "reason" in row]
    ranked = [*table(lines), "Times and MFU are estimates of the compiler's cost model."] if len(lines) > 1 else []
    return [*ranked, *failed]
