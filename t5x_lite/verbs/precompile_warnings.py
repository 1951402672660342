"""Known bad signs in a job and in its compiled program, each as a sentence with what to change."""

from collections.abc import Iterator, Sequence

import jax

from t5x_lite.job import Job
from t5x_lite.parallel import collectives, hlo, jaxprs, partition
from t5x_lite.parallel.chips import Chip
from t5x_lite.parameter_table import bytes_a_device, shown
from t5x_lite.program import Program

# Below this an array is not worth a word.
_LARGE = 2**26
_UNFACTORED = 2**22

# What the compiler may name a gather of parameters after: what `layers.gathered` does.
_GATHERS = ("convert_element_type", "transpose", "reshard")


def of_job(job: Job, laid: Program, jaxpr, chip: Chip) -> list[str]:
    """What can be seen before compiling."""
    return [*_whole_parameters(laid, chip), *_unfactored(laid), *_bias_gradient(job, jaxpr)]


def of_program(job: Job, laid: Program, module: hlo.Module, found: Sequence[collectives.Collective]) -> list[str]:
    """What the compiler made of it."""
    return [*_failed_gathers(job, laid, found), *_whole_activations(job, laid, module)]


def _whole_parameters(laid: Program, chip: Chip) -> Iterator[str]:
    """Parameters that every device holds whole and that fill a twentieth of its memory together."""
    whole = [p for p in jax.tree.leaves(laid.params) if not any(p.sharding.spec)]
    held = bytes_a_device(whole)
    if laid.mesh.size > 1 and held > chip.usable_bytes / 20:
        yield (
            f"unsharded parameters: every device holds {shown(held)} of them whole; "
            "partition/fsdp.gin cuts parameters over the devices"
        )


def _unfactored(laid: Program) -> Iterator[str]:
    """Second moments that Adafactor keeps whole, and moments of others that are as large as the parameters."""
    state = jax.tree_util.tree_leaves_with_path(laid.state["opt_state"])
    names = [jax.tree_util.keystr(path) for path, _ in state]
    for (_, leaf), name in zip(state, names):
        of_layer = leaf.shape if "['other']" in name else leaf.shape[1:]
        if ".v['" in name and len(of_layer) > 1 and bytes_a_device(leaf) > _UNFACTORED:
            yield (
                f"unfactored optimizer state: {name.split(chr(39))[-2]} of shape {leaf.shape} keeps a whole second "
                f"moment, {shown(bytes_a_device(leaf))} a device: one of its sides is below min_dim_size_to_factor"
            )
    moments = sum(bytes_a_device(leaf) for (_, leaf), name in zip(state, names) if ".mu['" in name or ".nu['" in name)
    if moments > _LARGE:
        yield (
            f"unfactored optimizer state: whole moments take {shown(moments)} a device; optim/adafactor.gin keeps row "
            "and column means instead"
        )


def _bias_gradient(job: Job, jaxpr) -> Iterator[str]:
    rows = job.batch_size // job.microbatches
    for shape in jaxprs.summed_over_rows(jaxpr, rows, job.model.num_heads):
        yield (
            f"bias gradient for every row: the backward pass adds up an array of shape {shape}; keep bias "
            "[1, H, Q, K] and mask [B, 1, Q, K] apart in the attention"
        )


def _failed_gathers(job: Job, laid: Program, found: Sequence[collectives.Collective]) -> Iterator[str]:
    """All-reduces that come from a gather of parameters; a sum of gradients is over other devices than the cut."""
    cut = set(dict(laid.rules.table).get("embed", ()))
    failed = [
        c for c in found
        if c.kind == "all-reduce" and cut.issuperset(c.axes) and c.op_name.endswith(_GATHERS)
        and ("transpose(" not in c.op_name or "rematted_computation" in c.op_name)
    ]  # fmt: skip
    if sent := sum(c.times * c.sent for c in failed):
        width, parts = job.model.embed_dim, max(c.devices for c in failed)
        most = max(width // partition.THINNEST, 1)
        reason = f"the compiler does not gather {width} over {parts} devices; "
        reason += "set others with --gin.partition.Partition.mesh"
        if parts > most:
            reason = f"the shards of {width} over {parts} devices are too thin; "
            reason += f"let fsdp be at most {most} and data take the rest"
        yield (
            f"gathers turned into all-reduces: {sum(c.times for c in failed)} a step send {shown(sent)} a device, "
            f"twice what a gather would: {reason}"
        )


def _whole_activations(job: Job, laid: Program, module: hlo.Module) -> Iterator[str]:
    """Large arrays that hold the rows of all devices."""
    if partition.batch_divisor(laid.mesh, laid.rules) == 1:
        return
    rows, lengths = job.batch_size // job.microbatches, set(job.feature_lengths.values())
    seen = {
        shape.dims: instruction.op_name
        for instruction, _ in hlo.executed(module)
        for shape in instruction.shapes
        if len(shape.dims) > 2 and shape.dims[0] == rows and shape.dims[1] in lengths and shape.bytes > _LARGE
    }
    for dims, name in seen.items():
        yield f"unsharded large array: every device holds all {rows} rows of {list(dims)}, made by {name or 'a copy'}"
