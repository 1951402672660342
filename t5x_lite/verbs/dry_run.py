"""t5x_lite train --dry_run: the whole job built abstractly; nothing is allocated, compiled, read or written."""

import math

import jax

from t5x_lite.data import batches as batching
from t5x_lite.job import Job
from t5x_lite.model import flops, network
from t5x_lite.parallel import chips
from t5x_lite.program import abstract_batch, lay_out


def describe(job: Job, topology: str | None, config_text: str) -> None:
    """Prints the configuration, the sharding of every parameter, and bytes a device.

    Args:
      job: the job.
      topology: a TPU slice to lay it out on (`v5p:4x4x4`); None: the devices of this machine.
      config_text: the resolved gin configuration.

    Raises:
      UserError: the job does not fit the devices: mesh, batch or an axis does not divide.
    """
    if topology:
        slice_ = chips.parse_topology(topology)
        devices, hosts = slice_.devices, slice_.hosts
        place = f"{topology}: {slice_.chips} chips, {hosts} hosts, {devices} devices"
    else:
        devices, hosts = jax.device_count(), jax.process_count()
        place = f"this machine: {devices} x {jax.devices()[0].device_kind}"
    batching.owned_shards(job.data_shards, job.batch_size, 0, hosts)
    mesh = job.partition.abstract(devices)
    with jax.sharding.use_abstract_mesh(mesh):
        program = lay_out(job, mesh)
        abstract_batch(job, program)

    print(config_text)
    print(f"On {place}; mesh {' x '.join(f'{a}={n}' for a, n in mesh.shape.items())}\n")
    rows = [("parameter", "shape", "sharding", "MiB a device")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.params):
        name = "/".join(k.key for k in path)
        spec = ", ".join(str(s) if s else "-" for s in leaf.sharding.spec)
        rows.append((name, "x".join(map(str, leaf.shape)), spec, f"{_bytes(leaf) / 2**20:,.2f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))))
    parameters = sum(map(_bytes, jax.tree.leaves(program.params)))
    optimizer = sum(map(_bytes, jax.tree.leaves(program.state["opt_state"])))
    lengths = job.feature_lengths
    work = flops.train_step(job.model, job.batch_size, lengths["inputs"], lengths["targets"])
    print(
        f"\n{network.count(program.params):,} parameters\n"
        f"{_shown(parameters)} of parameters and {_shown(optimizer)} of optimizer state a device\n"
        f"{job.batch_size} rows of {lengths['inputs']} + {lengths['targets']} tokens a batch, "
        f"{work / 1e12:,.3g} TFLOP a step"
    )


def _shown(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _bytes(leaf) -> int:
    """Bytes of an array on one device."""
    cut = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(cut) * leaf.dtype.itemsize
