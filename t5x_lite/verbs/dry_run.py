"""t5x_lite train --dry_run: the whole job built abstractly; nothing is allocated, compiled, read or written."""

import jax

from t5x_lite import memory, parameter_table
from t5x_lite.data import batches as batching
from t5x_lite.job import Job
from t5x_lite.model import flops, network
from t5x_lite.parallel import chips, partition
from t5x_lite.parameter_table import bytes_a_device, shown
from t5x_lite.program import Program, abstract_batch, lay_out


def describe(job: Job, topology: str | None, num_slices: int, config_text: str) -> None:
    """Prints the configuration, the sharding of every parameter, and bytes a device.

    Args:
      job: the job.
      topology: a TPU slice to lay it out on (`v5p:4x4x4` or `v5p-128`); None: the devices of this machine.
      num_slices: how many such slices, joined by the data-centre network.
      config_text: the resolved gin configuration.

    Raises:
      UserError: the job does not fit the devices: mesh, batch or an axis does not divide.
    """
    if topology:
        from t5x_lite.tpu import hardware

        wanted = hardware.parse(topology)
        chip = chips.CHIPS[wanted.generation]
        devices, hosts = num_slices * wanted.chips * chip.devices_per_chip, num_slices * wanted.hosts
        mesh = job.partition.abstract(devices, num_slices)
        place = (
            f"{topology}{f' x {num_slices} slices' * (num_slices > 1)}: {_plural(devices, 'device')}, "
            f"{_plural(hosts, 'host')} of {_plural(wanted.chips_per_host, 'chip')}\n"
            f"Ask Cloud TPU for accelerator type {wanted.accelerator_type} with runtime version "
            f"{wanted.runtime_version}"
        )
        split = partition.split_axis(mesh.shape, (*wanted.shape, chip.devices_per_chip))
        usable = chip.usable_hbm_gib * 2**30
    else:
        here = jax.devices()
        hosts, place, split = jax.process_count(), f"this machine: {len(here)} x {here[0].device_kind}", None
        usable = 0
        mesh = job.partition.abstract(len(here), partition.slices_of(here))
    batching.check_hosts(job.data_shards, hosts)
    with jax.sharding.use_abstract_mesh(mesh):
        program = lay_out(job, mesh)
        abstract_batch(job, program)

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
    _print_memory(job, program, usable)
    if split:
        axis, size, whole = split
        print(
            f"note: mesh axis {axis} of size {size} takes part of a side of the slice, where it has no whole ring: "
            f"sizes of whole sides: {', '.join(map(str, whole))}"
        )


def _print_memory(job: Job, program: Program, usable: float) -> None:
    """Bytes of a device by kind, and whether they fit where a chip is known."""
    estimate = memory.estimate(job, program)
    print(f"\nMemory of a device, estimated without compiling; at its largest at {estimate.moment}")
    for kind, size in (*estimate.kinds().items(), ("all", estimate.peak)):
        print(f"{kind:<12}{shown(size):>12}" + (f"{size / usable:>8.1%}" if usable else ""))
    if not usable:
        return
    if estimate.peak <= usable:
        print(f"fits: {shown(usable)} of a device are usable")
        return
    change = " or ".join(memory.remedies(job, program, usable))
    print(
        f"warning: does not fit: {shown(usable)} of a device are usable, the step needs an estimated "
        f"{shown(estimate.peak)}. "
        + (f"It would fit with {change}, or" if change else "No smaller batch would do: it needs")
        + " a larger slice whose mesh cuts parameters or batch over more devices"
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
