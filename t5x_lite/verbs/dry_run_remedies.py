"""What would make a job that is too large for its slice fit: the least change of each kind, as flags."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

from t5x_lite import memory
from t5x_lite.errors import UserError
from t5x_lite.job import Job
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.parallel.partition import THINNEST, batch_divisor
from t5x_lite.program import Program, lay_out

_POLICIES = ("none", "dots", "inner", "full")  # from what keeps the most to what keeps the least
_REMAT = "--gin.architecture.Architecture.remat="


def remedies(job: Job, program: Program, own, num_slices: int) -> list[str]:
    """Flags, each choice of which lets the job fit by `memory.estimate`; none where nothing that is tried does.

    Args:
      job: the job.
      program: the same laid out on the slices.
      own: one of the slices, a `tpu.hardware.Hardware`.
      num_slices: how many.
    """
    usable = CHIPS[own.generation].usable_bytes

    def fits(changed: Job, on=own, laid: Program | None = None) -> bool:
        try:
            devices = num_slices * on.chips * CHIPS[on.generation].devices_per_chip
            mesh = laid.mesh if laid else changed.partition.abstract(devices, num_slices)
            with jax.sharding.use_abstract_mesh(mesh):
                return memory.estimate(changed, laid or lay_out(changed, mesh), on.generation).peak <= usable
        except UserError:  # it does not divide
            return False

    alone = [
        _remat(job, fits),
        *_rows(job, lambda changed: fits(changed, laid=program), program),
        _wider_cut(job, fits, program),
        _larger_slice(job, fits, own, num_slices),
    ]
    if found := [flags for flags in alone if flags]:
        return found
    lean = _with(job, model=dataclasses.replace(job.model, remat="full"))
    wider = _wider_cut(lean, fits, program)
    return [f"{_REMAT}full {wider}"] if wider else []


def _with(job: Job, **fields) -> Job:
    return dataclasses.replace(job, dropout_rate=None, **fields)


def _remat(job: Job, fits: Callable) -> str | None:
    for policy in _POLICIES[_POLICIES.index(job.model.remat) + 1 :]:
        if fits(_with(job, model=dataclasses.replace(job.model, remat=policy))):
            return f"{_REMAT}{policy}"
    return None


def _rows(job: Job, fits: Callable, program: Program) -> Iterator[str]:
    """More microbatches, or a smaller batch: both leave fewer rows to a device at a time."""
    parts = batch_divisor(program.mesh, program.rules)
    rows = job.batch_size // parts
    if rows > job.microbatches and fits(_with(job, microbatches=rows)):
        for n in range(job.microbatches + 1, rows + 1):
            if rows % n == 0 and fits(_with(job, microbatches=n)):
                yield f"--gin.MICROBATCHES={n}"
                break
    unit = math.lcm(parts * job.microbatches, job.data_shards)
    least, most = 0, (job.batch_size - 1) // unit
    if not most or not fits(_with(job, batch_size=unit)):
        return
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(_with(job, batch_size=middle * unit)) else (least, middle - 1)
    yield f"--gin.BATCH_SIZE={least * unit}"


def _wider_cut(job: Job, fits: Callable, program: Program) -> str | None:
    """Parameters cut over more devices, though no wider than the compiler gathers well."""
    sizes = program.mesh.shape
    model, now = sizes["model"], sizes["fsdp"] if "embed" in job.partition.rules else 1
    available = program.mesh.size // sizes["slice"] // model
    for ways in range(now + 1, min(available, job.model.embed_dim // THINNEST) + 1):
        mesh = {"data": -1, "fsdp": ways} | ({"model": model} if model > 1 else {})
        rules = {**job.partition.rules, "batch": ("slice", "data", "fsdp"), "embed": "fsdp"}
        if available % ways == 0 and fits(
            _with(job, partition=dataclasses.replace(job.partition, mesh=mesh, rules=rules))
        ):
            shown = ", ".join(f'"{axis}": {size}' for axis, size in mesh.items())
            layout = "2d" if model > 1 else "hsdp"
            return f"--gin_file=partition/{layout}.gin --gin.partition.Partition.mesh='{{{shown}}}'"
    return None


def _larger_slice(job: Job, fits: Callable, own, num_slices: int) -> str | None:
    """The smallest larger slice of the generation on which the same job fits."""
    from t5x_lite.tpu import hardware

    for larger in hardware.larger(own):
        hosts = num_slices * larger.hosts
        shards = math.lcm(job.data_shards, hosts)
        if fits(_with(job, data_shards=shards), larger):
            more = f" --gin.DATA_SHARDS={shards}" if shards != job.data_shards else ""
            return f"--topology={larger.generation}:{'x'.join(map(str, larger.shape))}{more}"
    return None
