"""Estimated time of one step: the compiler's cycles, bytes of HBM, and communication, each against the chip."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from t5x_lite.parallel import hlo
from t5x_lite.parallel.chips import Chip
from t5x_lite.parallel.collectives import DCN, KINDS, Collective

# A kernel of one's own has no cycles of the compiler's. It counts as this share of what the chip can do.
KERNEL_EFFICIENCY = 0.6
# Custom calls that are no kernels but marks for the compiler.
_MARKS = (
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "ConcatBitcast",
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step on one device.

    Args:
      compute_s: the compiler's estimated cycles over the clock, with kernels of one's own as above.
      kernels_s: the part of `compute_s` that is kernels of one's own.
      hbm_s: bytes that instructions read and write, over the bandwidth of the memory.
      ici_s: collectives within a slice, one after the other, by bandwidth alone.
      dcn_s: transfers between slices.
      uncounted: instructions that the compiler gives no cycles, with how often they run; they count as nothing.
    """

    compute_s: float
    kernels_s: float
    hbm_s: float
    ici_s: float
    dcn_s: float
    uncounted: int = 0

    @property
    def chip_s(self) -> float:
        """Without communication. The cycles of an instruction include its waiting for memory."""
        return max(self.compute_s, self.hbm_s)

    @property
    def overlapped_s(self) -> float:
        """All communication goes on beside the computation."""
        return max(self.chip_s, self.ici_s, self.dcn_s)

    @property
    def not_overlapped_s(self) -> float:
        """No communication does."""
        return self.chip_s + self.ici_s + self.dcn_s

    @property
    def bound(self) -> str:
        """What takes the longest."""
        times = {"compute": self.compute_s, "HBM": self.hbm_s, "ICI": self.ici_s, "DCN": self.dcn_s}
        return max(times, key=times.get)


def of_program(module: hlo.Module, chip: Chip, collectives: Sequence[Collective]) -> Roofline:
    """The estimate for a compiled program."""
    cycles, kernels, traffic, uncounted = 0, 0.0, 0, 0
    named = {i.name: i for body in module.computations.values() for i in body}
    for instruction, times in hlo.executed(module):
        moved = hlo.hbm_traffic(module, instruction, named)
        traffic += times * moved
        if instruction.opcode.removesuffix("-start") in KINDS or _communicates(module, instruction):
            continue  # the network's
        if instruction.opcode == "custom-call" and instruction.target not in _MARKS:
            kernels += times * kernel_seconds(instruction, named, chip)
        elif instruction.cycles is not None:
            cycles += times * instruction.cycles
        elif moved:
            uncounted += times
    dcn = sum(c.times * c.seconds for c in collectives if c.kind == DCN)
    ici = sum(c.times * c.seconds for c in collectives if c.kind != DCN)
    compute = cycles / chip.clock + kernels
    return Roofline(compute, kernels, traffic / chip.hbm_bandwidth, ici, dcn, uncounted)


def _communicates(module: hlo.Module, call: hlo.Instruction) -> bool:
    """Whether it has a SparseCore run a collective."""
    called = call.called("called_computations") if call.opcode == "custom-call" else ()
    return any(i.opcode in KINDS for name in called for i in module.computations[name])


def kernel_seconds(call: hlo.Instruction, named: Mapping[str, hlo.Instruction], chip: Chip) -> float:
    """max(operations / peak, bytes / bandwidth) / KERNEL_EFFICIENCY of a custom call.

    Operations are those that the kernel states (a Pallas kernel's `cost_estimate`); bytes are those that it states or,
    where they are more, those of its operands and results in HBM.
    """
    stated = {key: int(n) for key, n in re.findall(r'"(flops|bytes_accessed)":"?(\d+)', call.attributes)}
    seen = call.hbm_bytes + sum(named[o].hbm_bytes for o in call.operands if o in named)
    moved = max(stated.get("bytes_accessed", 0), seen)
    return max(stated.get("flops", 0) / chip.peak_flops, moved / chip.hbm_bandwidth) / KERNEL_EFFICIENCY
