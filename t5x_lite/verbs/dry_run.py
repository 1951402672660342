"""t5x_lite train --dry_run: the whole job built abstractly; nothing is allocated, compiled, read or written."""

import jax
import numpy as np

from t5x_lite import memory, parameter_table
from t5x_lite.data import batches as batching
from t5x_lite.errors import RunError
from t5x_lite.job import Job
from t5x_lite.model import flops, network
from t5x_lite.parallel import chips, partition, slices
from t5x_lite.parameter_table import bytes_a_device, shown
from t5x_lite.program import Program, lay_out


def describe(job: Job, topology: str | None, num_slices: int, config_text: str) -> None:
    """Prints the configuration, the sharding of every parameter, and bytes a device.

    Args:
      job: the job.
      topology: a TPU slice to lay it out on (`v5p:4x4x4` or `v5p-128`); None: the devices of this machine.
      num_slices: how many such slices, joined by the data-centre network.
      config_text: the resolved gin configuration.

    Raises:
      UserError: the job does not fit the devices: mesh, batch or an axis does not divide.
      RunError: it needs more memory than a device of the slice has, by more than the estimate may be wrong.
    """
    wanted = None
    if topology is not None:
        from t5x_lite.tpu import hardware

        wanted = hardware.parse(topology)
        devices = slices.devices(wanted.generation, wanted.shape, wanted.hosts, num_slices)
        hosts = num_slices * wanted.hosts
        place = (
            f"{topology}{f' x {num_slices} slices' * (num_slices > 1)}: {_plural(len(devices), 'device')}, "
            f"{_plural(hosts, 'host')} of {_plural(wanted.chips_per_host, 'chip')}\n"
            f"Ask Cloud TPU for accelerator type {wanted.accelerator_type} with runtime version "
            f"{wanted.runtime_version}"
        )
    else:
        devices, hosts = jax.devices(), jax.process_count()
        place = f"this machine: {len(devices)} x {devices[0].device_kind}"
    mesh = job.partition.abstract(len(devices), partition.slices_of(devices))
    batching.check_hosts(job.data_shards, hosts)
    with jax.sharding.use_abstract_mesh(mesh):
        program = lay_out(job, mesh)
        estimate = memory.estimate(job, program, wanted.generation if wanted else None)

    print(config_text)
    print(f"On {place}\nMesh {' x '.join(f'{a}={n}' for a, n in mesh.shape.items())}\n")
    print("\n".join(parameter_table.lines(program, grouped=False)))
    lengths = job.feature_lengths
    work = flops.train_step(job.model, job.batch_size, lengths["inputs"], lengths["targets"])
    print(
        f"\n{network.count(program.params):,} parameters\n"
        f"{shown(bytes_a_device(program.params))} of parameters and "
        f"{shown(bytes_a_device(program.state['opt_state']))} of optimizer state a device\n"
        f"{job.batch_size} rows of {lengths['inputs']} + {lengths['targets']} tokens a batch, "
        f"{work / 1e12:,.3g} TFLOP a step"
    )
    _print_memory(estimate, chips.CHIPS[wanted.generation].usable_bytes if wanted else 0)
    if wanted:
        _print_layout(mesh, wanted)
    _print_reading(job, partition.hosts_of_batch(job.partition.placed(devices), program.rules))
    if wanted:
        _judge(job, program, estimate, wanted, num_slices)


def _print_layout(mesh, wanted) -> None:
    """That a mesh axis has no ring of links of its own."""
    sides = (*wanted.shape, chips.CHIPS[wanted.generation].devices_per_chip)
    if split := partition.split_axis(mesh.shape, sides):
        axis, size, whole = split
        print(
            f"note: mesh axis {axis} of size {size} takes part of a side of the slice, where it has no whole ring: "
            f"sizes of whole sides: {', '.join(map(str, whole))}"
        )


def _print_reading(job: Job, on: np.ndarray) -> None:
    """That hosts read rows which others compute, and how many data shards would spare them that."""
    times, least = batching.times_read(on, job.data_shards), batching.shards_read_least(on, job.batch_size)
    if times > (fewest := batching.times_read(on, least)):
        print(
            f"note: with DATA_SHARDS={job.data_shards} the hosts read each row {times:g} times, for the rows of a host "
            f"lie apart in the batch; with --gin.DATA_SHARDS={least} {'once' if fewest == 1 else f'{fewest:g} times'}"
        )


def _print_memory(estimate: memory.Estimate, usable: int) -> None:
    """Bytes of a device by kind, and where a chip is known the part of what is usable."""
    print(f"\nMemory of a device, estimated without compiling; at its largest at {estimate.moment}")
    for kind, size in (*estimate.kinds().items(), ("all", estimate.peak)):
        print(f"{kind:<12}{shown(size):>12}" + (f"{size / usable:>8.1%}" if usable else ""))


def _judge(job: Job, program: Program, estimate: memory.Estimate, wanted, num_slices: int) -> None:
    """Says whether the job fits, and what would make it.

    Raises:
      RunError: it does not fit, by more than the estimate may be wrong.
    """
    from t5x_lite.verbs.dry_run_remedies import remedies

    usable = chips.CHIPS[wanted.generation].usable_bytes
    doubt = f"the estimate may be {memory.ERROR:.0%} off, precompile asks the compiler"
    if estimate.peak <= usable:
        close = estimate.peak * (1 + memory.ERROR) > usable
        print(f"fits: {shown(usable)} of a device are usable" + f"; {doubt}" * close)
        return
    changes = remedies(job, program, wanted, num_slices)
    needs = f"{shown(usable)} of a device are usable, and a step needs an estimated {shown(estimate.peak)}"
    fix = (
        f"it would fit with {' or '.join(changes)}"
        if changes
        else "no remat, smaller batch, wider cut of parameters or larger slice of the kind would do alone"
    )
    if estimate.peak > usable * (1 + memory.ERROR):
        raise RunError(f"the job does not fit on {num_slices} x {wanted.accelerator_type}", needs, fix)
    print(f"warning: the job may not fit: {needs}; {doubt}. {fix[:1].upper()}{fix[1:]}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
