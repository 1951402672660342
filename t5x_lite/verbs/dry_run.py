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
      topology: a TPU slice to lay it out on (`v5p:4x4x4` or `v5p-128`); None: the devices of this machine.
      config_text: the resolved gin configuration.

    Raises:
      UserError: the job does not fit the devices: mesh, batch or an axis does not divide.
    """
    devices, hosts, place = _on_slice(topology) if topology else _on_this_machine()
    batching.owned_shards(job.data_shards, 0, hosts)
    mesh = job.partition.abstract(devices)
    with jax.sharding.use_abstract_mesh(mesh):
        program = lay_out(job, mesh)
        abstract_batch(job, program)

    print(config_text)
    print(f"On {place}\nMesh {' x '.join(f'{a}={n}' for a, n in mesh.shape.items())}\n")
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


def _on_slice(topology: str) -> tuple[int, int, str]:
    """JAX devices and hosts of a TPU slice, and what to ask Cloud TPU for."""
    from t5x_lite.tpu import hardware

    wanted = hardware.parse(topology)
    devices = wanted.chips * chips.CHIPS[wanted.generation].devices_per_chip
    place = (
        f"{topology}: {_plural(devices, 'device')}, {_plural(wanted.hosts, 'host')} of "
        f"{_plural(wanted.chips_per_host, 'chip')}\nAsk Cloud TPU for accelerator type {wanted.accelerator_type} "
        f"with runtime version {wanted.runtime_version}"
    )
    return devices, wanted.hosts, place


def _on_this_machine() -> tuple[int, int, str]:
    devices = jax.devices()
    return len(devices), jax.process_count(), f"this machine: {len(devices)} x {devices[0].device_kind}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _shown(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _bytes(leaf) -> int:
    """Bytes of an array on one device."""
    cut = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(cut) * leaf.dtype.itemsize
