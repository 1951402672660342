"""What precompile prints: one line that says it all, and the tables behind it."""

from collections.abc import Mapping

from t5x_lite.parallel.roofline import KERNEL_EFFICIENCY
from t5x_lite.parameter_table import shown

ASSUMPTIONS = (
    "Nothing ran on a TPU. Memory is what the compiler allocates; it is exact for this version of libtpu.",
    "Times are estimates. Compute is the compiler's estimated cycles, times the turns of loops, over the clock at "
    "which the matrix units reach the chip's peak; its model of fusions that wait for HBM is pessimistic.",
    "HBM time is the bytes that instructions read and write over the bandwidth of the memory. The compiler's cycles "
    "include waiting for memory, so compute and HBM are not added.",
    "ICI time is the bytes that rings send over the links of the torus that a group of devices spans, one collective "
    "after the other, without latency; DCN time is the bytes sent to other slices over a chip's share of the network.",
    "Overlapped: all communication is hidden, the step takes the longest of the four. Not overlapped: none is hidden.",
    f"A custom call, which has no cycles, counts as max(FLOPs / peak, bytes / bandwidth) / {KERNEL_EFFICIENCY}.",
    "MFU is the analytic FLOPs of the model (no recomputation, full attention squares) over the chips' bf16 peak and "
    "the step time. FLOPs of the program are counted on the traced program, with what remat computes again.",
    "Time and cost of the job are its steps alone: no start-up, input waits, evaluation, checkpoints or restarts.",
    "Decoding is greedy and counts every row to the full targets length.",
)

_LEAST = 5e-6  # seconds that two decimals of a millisecond show

_KINDS = ("parameters", "optimizer", "activations", "temporaries", "batch", "outputs", "code")


def line(report: Mapping) -> str:
    """The result in one line, as the headers of gin/examples quote it."""
    memory = report["memory"]
    parts = [f"{report['program']} step {memory['verdict']}"]
    if times := report.get("roofline"):
        fast, slow = times["overlapped"], times["not_overlapped"]
        parts += [
            f"estimated {_seconds(fast['step_s'])} to {_seconds(slow['step_s'])} a step, {times['bound']} bound",
            f"MFU {fast['mfu']:.3f} with communication hidden, {slow['mfu']:.3f} not hidden",
            f"{slow['tokens_per_second']:,.0f} tokens a second",
        ]
    return "; ".join(parts)


def text(report: Mapping) -> str:
    """All tables."""
    where, job, lengths = report["slice"], report["job"], report["job"]["feature_lengths"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    slices = f" x {where['slices']} slices" if where["slices"] > 1 else ""
    lines = [
        line(report),
        "",
        f"{job['parameters']:,} parameters, batch {job['batch_size']} x ({lengths['inputs']} + {lengths['targets']}) "
        f"tokens in {_plural(job['microbatches'], 'microbatch')}, remat {job['remat']}",
        f"{where['topology']} ({where['accelerator_type']}){slices}: {_plural(where['chips'], 'chip')}, "
        f"{_plural(where['devices'], 'device')}; mesh {mesh}; compiled in {report['compile_seconds']:.0f} s",
        "",
        *_memory(report["memory"]),
    ]
    if "roofline" in report:
        lines += ["", *_collectives(report["collectives"]), "", *_times(report)]
    if job := report.get("whole_job"):
        lines += ["", _whole(job)]
    lines += ["", *(f"warning: {warning}" for warning in report["warnings"])] if report["warnings"] else []
    return "\n".join(lines)


def _memory(memory: Mapping) -> list[str]:
    rows = [("memory of a device", "", "of usable HBM")]
    rows += [
        (kind, shown(memory[kind]), f"{memory[kind] / memory['usable']:.1%}") for kind in _KINDS if memory.get(kind)
    ]
    rows.append(("total", shown(memory["total"]), f"{memory['total'] / memory['usable']:.1%}"))
    if memory.get("peak", memory["total"]) < memory["total"]:  # of small programs it counts VMEM too
        rows.append(("  alive at once", shown(memory["peak"]), f"{memory['peak'] / memory['usable']:.1%}"))
    rows.append(("usable HBM", shown(memory["usable"]), ""))
    return table(rows)


def _collectives(found: list[Mapping]) -> list[str]:
    if not found:
        return ["no collectives"]
    rows = [("collectives a step", "over", "devices", "runs", "bytes", "sent a device", "estimated ms")]
    rows += [
        (
            c["kind"], " x ".join(c["axes"]) or "-", f"{c['devices']}", f"{c['runs']:,}", shown(c["bytes"]),
            shown(c["sent_bytes"]), f"{1e3 * c['seconds']:,.2f}",
        )
        for c in found
    ]  # fmt: skip
    return table(rows)


def _times(report: Mapping) -> list[str]:
    times, flops = report["roofline"], report["flops"]
    rows = [("estimated time of a step", "ms")]
    for name, key in (
        ("compute", "compute_s"), ("  of it custom calls", "kernels_s"), ("HBM", "hbm_s"), ("ICI", "ici_s"),
        ("DCN", "dcn_s"), ("model FLOPs at peak", "at_peak_s"),
    ):  # fmt: skip
        if times[key] > _LEAST or key not in ("kernels_s", "dcn_s"):
            rows.append((name, f"{1e3 * times[key]:,.2f}"))
    both = [("", "step ms", "MFU", "tokens a second")]
    for name, key in (("communication hidden", "overlapped"), ("not hidden", "not_overlapped")):
        speed = times[key]
        both.append(
            (name, f"{1e3 * speed['step_s']:,.2f}", f"{speed['mfu']:.3f}", f"{speed['tokens_per_second']:,.0f}")
        )
    counted = (
        f"FLOPs a step: {flops['analytic']:.4g} by the model's formula, {flops['traced']:.4g} in the program "
        f"({flops['ratio']:.2f} times)"
    )
    return [*table(rows), f"{times['bound']} dominates", "", *table(both), "", counted]


def _whole(job: Mapping) -> str:
    hours, usd = job["hours"], job["usd"]
    days = f"{duration(hours['overlapped'])} to {duration(hours['not_overlapped'])}"
    took = f"{job['steps']:,} steps take an estimated {days} on {job['chips']:,} chips"
    if usd is None:
        return took
    price = job["usd_per_chip_hour"]
    return f"{took}, {money(usd['overlapped'])} to {money(usd['not_overlapped'])} USD at {price:g} a chip hour"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Aligned lines: the first row is the heading, the first column names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() for row in rows
    ]


def _seconds(value: float) -> str:
    return f"{value:,.3f} s" if value >= 1 else f"{1e3 * value:,.1f} ms"


def duration(hours: float) -> str:
    """Hours as a reader takes them in."""
    if hours < 1 / 60:
        return f"{3600 * hours:,.1f} seconds"
    if hours < 1:
        return f"{60 * hours:,.1f} minutes"
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} hours"


def money(usd: float) -> str:
    """An amount, with cents where they count."""
    return f"{usd:,.0f}" if usd >= 100 else f"{usd:,.2f}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("ch") else "s")
