"""t5x_lite precompile: a job compiled for a TPU slice that is not here, and what the compiler says of it.

Nothing is allocated and no device is touched: libtpu compiles for any slice on any machine. Memory is the compiler's
own figure; times are estimates of its cost model and of bandwidths, and are called so.
"""

import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from t5x_lite import config, output
from t5x_lite import program as programs
from t5x_lite.errors import RunError
from t5x_lite.job import UNUSED_WHEN_DRY, Job
from t5x_lite.model import decoding, flops, network
from t5x_lite.parallel import collectives, compile_only, hlo, jaxprs, roofline
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.parameter_table import bytes_a_device, shown
from t5x_lite.verbs import precompile_page, precompile_text, precompile_warnings

PROGRAMS = ("train", "eval", "decode")
_EOS = 1  # of every T5 vocabulary; the program is the same for any other


def main(args) -> None:
    """The verb: compiles, prints a table, and writes what --output and --html name.

    Raises:
      UserError: the job or the slice is wrong, libtpu is not installed, or a file cannot be written.
      RunError: the job does not fit into the memory of the chips, or the compiler failed.
    """
    output.check_file(args.output, "--output")
    output.check_file(args.html, "--html")
    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine stays free
    if args.compare:
        from t5x_lite.verbs import precompile_compare

        precompile_compare.run(args)
        return
    make = config.load(args.gin_file, args.gin, optional=UNUSED_WHEN_DRY)
    job = config.build(make)
    where = slice_of(args.topology, args.num_slices)
    names = PROGRAMS if args.program == "all" else (args.program,)
    title = " ".join(Path(file).stem for file in args.gin_file) or "job"
    reports = []
    for name in names:
        report = estimate(job, where, name)
        report["job"] = {"gin_files": args.gin_file, "bindings": args.gin, **report["job"]}
        if name == "train":
            report["whole_job"] = whole_job(report, job.train_steps, args.price)
        print(("\n" if reports else "") + precompile_text.text(report), flush=True)
        reports.append(report)
    result = {"reports": reports, "assumptions": precompile_text.ASSUMPTIONS}
    write(args.output, json.dumps(result, indent=1) + "\n")
    write(args.html, precompile_page.render(title, reports) if args.html else "")
    if too_large := [r for r in reports if not r["memory"]["fits"]]:
        raise RunError(
            f"the {' and the '.join(r['program'] for r in too_large)} step does not fit on {args.topology}"
            + (f" x {args.num_slices} slices" if args.num_slices > 1 else ""),
            too_large[0]["memory"]["verdict"],
            "lower --gin.BATCH_SIZE, raise --gin.MICROBATCHES, set --gin.architecture.Architecture.remat=full, cut "
            "parameters over more chips with partition/fsdp.gin, or take a larger --topology; train --dry_run with the "
            "same flags names the least of each that would do, by its estimate",
        )


def write(path: str | None, text: str) -> None:
    """Writes a file whole, or not at all where no path is given.

    Raises:
      RunError: it cannot be written.
    """
    if path is not None:
        output.write_text(path, text, "the table above is complete")


def slice_of(topology: str, num_slices: int) -> dict:
    """What is compiled for: the slice as a name, its chip, and devices that compile and do not run.

    Raises:
      UserError: there is no such slice, or libtpu is not installed.
    """
    from t5x_lite.tpu import hardware

    wanted = hardware.parse(topology)
    devices = compile_only.devices(wanted.generation, wanted.shape, num_slices)
    return {
        "topology": f"{wanted.generation}:{'x'.join(map(str, wanted.shape))}",
        "accelerator_type": wanted.accelerator_type,
        "generation": wanted.generation,
        "shape": wanted.shape,
        "slices": num_slices,
        "chips": wanted.chips * num_slices,
        "devices": devices,
    }


def estimate(job: Job, where: Mapping, name: str) -> dict:
    """Lays out, traces and compiles one program of a job, and reads the result.

    Args:
      job: the job.
      where: from `slice_of`.
      name: one of PROGRAMS.

    Returns:
      The report, plain values that JSON holds.

    Raises:
      UserError: the job does not divide over the slice.
      RunError: the compiler failed, other than for want of memory.
    """
    chip = CHIPS[where["generation"]]
    mesh = job.partition.build(where["devices"])
    with jax.set_mesh(mesh):
        laid = programs.lay_out(job, mesh)
        function, arguments = step_of(job, laid, name)
        began = time.monotonic()
        traced = function.trace(*arguments)
        lowered = traced.lower()
        text, memory = compile_(lowered)
    lengths = job.feature_lengths
    counted, work = jaxprs.flops(traced.jaxpr), analytic_flops(job, name)
    tokens = lengths["targets"] if name == "decode" else lengths["inputs"] + lengths["targets"]
    report = {
        "program": name,
        "slice": {k: where[k] for k in ("topology", "accelerator_type", "generation", "slices", "chips")}
        | {"devices": mesh.size, "devices_per_chip": chip.devices_per_chip},
        "mesh": dict(mesh.shape),
        "job": {
            "parameters": network.count(laid.params),
            "batch_size": job.batch_size,
            "feature_lengths": dict(lengths),
            "microbatches": job.microbatches,
            "remat": job.model.remat,
        },
        "compile_seconds": round(time.monotonic() - began, 1),
        "memory": memory_by_kind(laid, arguments, traced, name, memory, chip),
        "flops": {"analytic": work, "traced": counted, "ratio": counted / work},
    }
    if text is None:
        return report | {"warnings": precompile_warnings.of_job(job, laid, traced.jaxpr, chip)}
    module = hlo.parse(text)
    torus = torus_of(mesh, where)
    found = collectives.found(module, torus)
    times = roofline.of_program(module, chip, found)
    return report | {
        "collectives": [
            {
                "kind": c.kind, "axes": list(c.axes), "devices": c.devices, "runs": c.times, "bytes": c.bytes,
                "sent_bytes": round(c.sent), "seconds": c.seconds,
            }
            for c in collectives.summed(found)
        ],
        "roofline": roofline_values(times, work / mesh.size / chip.peak_flops, job.batch_size * tokens),
        "warnings": [
            *precompile_warnings.of_job(job, laid, traced.jaxpr, chip),
            *precompile_warnings.of_program(job, laid, module, found),
        ],
    }  # fmt: skip


def step_of(job: Job, laid: programs.Program, name: str):
    """The jitted function of a program and the shapes of its arguments."""
    if name == "decode":
        rows = laid.rules.spec("batch")
        inputs = jax.ShapeDtypeStruct(
            (job.batch_size, job.feature_lengths["inputs"]), np.int32, sharding=laid.batch_sharding
        )
        ids = jax.ShapeDtypeStruct((job.batch_size,), np.int32, sharding=NamedSharding(laid.mesh, rows))
        generate = programs.generate_step([laid], decoding.Strategy(), job.feature_lengths["targets"], _EOS)
        return generate, ((laid.params,), inputs, ids)
    batch = programs.abstract_batch(job, laid)
    if name == "eval":
        return programs.eval_step(laid), (laid.params, batch)
    return programs.train_step(job, laid), (laid.state, batch)


def compile_(lowered) -> tuple[str | None, object]:
    """Compiles for a TPU.

    The text is that which the compiler leaves in a folder: `as_text` of the compiled program refuses those in which a
    SparseCore works beside the TensorCore, as v5p's do.

    Returns:
      The program's text and JAX's memory statistics; where it has not enough memory, None and the compiler's words.

    Raises:
      RunError: it failed for another reason.
    """
    # JAX's cache could be written for a slice that is not here, but never read back.
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
            "xla_dump_hlo_as_long_text": True,  # with the compiler's own estimates
        }
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return None, str(error)
            raise RunError(
                f"the TPU compiler failed: {next(iter(str(error).splitlines()), '')}",
                "nothing was written",
                "try another --topology or partition/*.gin",
            ) from error
        text = next(Path(folder).glob("*after_codegen.txt")).read_text(encoding="utf-8")
        return text, compiled.memory_analysis()


def analytic_flops(job: Job, name: str) -> int:
    """Operations that the model needs for one step of a program, by `model/flops.py`."""
    lengths = job.feature_lengths
    forward = job.batch_size * flops.forward(job.model, lengths["inputs"], lengths["targets"])
    return 3 * forward if name == "train" else forward


def memory_by_kind(laid: programs.Program, arguments, traced, name: str, memory, chip) -> dict:
    """Bytes of one device, and whether they fit.

    Parameters, optimizer state and batch are arguments, by their shardings; what is kept for the backward pass is
    counted on the traced program; temporaries are the rest of what the compiler allocates.
    """
    usable = chip.usable_bytes
    parameters = bytes_a_device(laid.params)
    optimizer = bytes_a_device(laid.state["opt_state"]) if name == "train" else 0
    given = bytes_a_device(arguments)
    kept = jaxprs.kept_for_backward(traced.jaxpr) if name == "train" else 0
    kinds = {"parameters": parameters, "optimizer": optimizer, "activations": kept}
    if isinstance(memory, str):
        needed = refused_bytes(memory, given)
        kinds["activations"] = min(kept, max(needed - parameters - optimizer, 0))  # some are fused away
        rest = max(needed - sum(kinds.values()), 0)
        why = f"the compiler needs at least {shown(needed)} a device where a program can have {shown(usable)}"
        return kinds | {
            "temporaries": rest, "total": needed, "usable": usable, "fits": False, "verdict": f"does not fit: {why}",
            "compiler": memory.splitlines()[0],
        }  # fmt: skip
    kinds["activations"] = min(kept, memory.temp_size_in_bytes)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + outputs
    fits = total <= usable
    return kinds | {
        "temporaries": memory.temp_size_in_bytes - kinds["activations"],
        "batch": memory.argument_size_in_bytes - parameters - optimizer,
        "outputs": outputs,
        "code": memory.generated_code_size_in_bytes,
        "total": total,
        "peak": memory.peak_memory_in_bytes,
        "usable": usable,
        "fits": fits,
        "verdict": f"{'fits' if fits else 'does not fit'}: {shown(total)} a device of {shown(usable)}",
    }


def refused_bytes(message: str, arguments: int) -> int:
    """What a program needs by the compiler's words when it refuses it."""
    unit = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if used := re.search(r"Used ([\d.]+)([KMGT]?) of", message):
        return int(float(used[1]) * unit[used[2] or "B"])
    if temporaries := re.search(r"memory required for [^(]*\(([\d.]+)([KMGT]?)\)", message):
        return int(float(temporaries[1]) * unit[temporaries[2] or "B"]) + arguments
    return arguments


def torus_of(mesh, where: Mapping) -> collectives.Torus:
    """Where the mesh lies on the slices."""
    flat = list(mesh.devices.flat)
    return collectives.Torus(
        dict(mesh.shape),
        np.array([device.coords for device in flat]),
        tuple(where["shape"]),
        collectives.rings(len(where["shape"]), where["shape"]),
        CHIPS[where["generation"]],
    )


def roofline_values(times: roofline.Roofline, ideal_s: float, tokens: int) -> dict:
    """The times of a step with what follows from them, overlapped and not."""
    return {
        "compute_s": times.compute_s,
        "kernels_s": times.kernels_s,
        "hbm_s": times.hbm_s,
        "ici_s": times.ici_s,
        "dcn_s": times.dcn_s,
        "bound": times.bound,
        "at_peak_s": ideal_s,
        "overlapped": _speed(times.overlapped_s, ideal_s, tokens),
        "not_overlapped": _speed(times.not_overlapped_s, ideal_s, tokens),
    }


def _speed(seconds: float, ideal_s: float, tokens: int) -> dict:
    return {"step_s": seconds, "mfu": ideal_s / seconds, "tokens_per_second": tokens / seconds}


def whole_job(report: Mapping, steps: int, price: float | None) -> dict:
    """Hours of all steps, and what they cost at a price in USD a chip and hour."""
    if "roofline" not in report:
        return {}
    hours = {k: report["roofline"][k]["step_s"] * steps / 3600 for k in ("overlapped", "not_overlapped")}
    chips = report["slice"]["chips"]
    cost = {k: h * chips * price for k, h in hours.items()} if price is not None else None
    return {"steps": steps, "hours": hours, "chips": chips, "usd_per_chip_hour": price, "usd": cost}
