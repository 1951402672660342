"""The communication of a compiled program: kinds, mesh axes, counts, bytes, and the time of each on the torus."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from t5x_lite.parallel import hlo
from t5x_lite.parallel.chips import Chip

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
DCN = "send to another slice"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Args:
      kind: one of KINDS, or DCN.
      axes: mesh axes that it joins.
      devices: how many it joins.
      times: runs a step.
      bytes: of the whole array that one run gathers, reduces or moves, on one device.
      sent: bytes that one device sends in one run, by rings.
      seconds: of one run, by bandwidth alone.
      op_name: where it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    times: int
    bytes: int
    sent: float
    seconds: float
    op_name: str = ""


@dataclasses.dataclass(frozen=True)
class Torus:
    """Where the devices of a mesh lie.

    Args:
      mesh: sizes of the mesh axes, outermost first.
      coords: [devices, 3] of each device in the order of the mesh; one line a device.
      sides: chips along each side of a slice.
      rings: whether the links along each side close to a ring.
      chip: what it can do.
    """

    mesh: Mapping[str, int]
    coords: np.ndarray
    sides: tuple[int, ...]
    rings: tuple[bool, ...]
    chip: Chip

    def axes(self, group: Sequence[int]) -> tuple[str, ...]:
        """Mesh axes along which the devices of a group differ."""
        places = np.unravel_index(np.asarray(group), tuple(self.mesh.values()))
        return tuple(axis for axis, place in zip(self.mesh, places) if len(set(place.tolist())) > 1)

    def bandwidth(self, group: Sequence[int]) -> float:
        """Bytes a second that each device of a group sends to its neighbours in the group.

        Along a side of the torus a group has one link each way, both where it closes to a ring. A group that skips
        chips shares its links with the groups of those between. All sides count at once.
        """
        coords = self.coords[list(group)]
        total = 0.0
        for side, size in enumerate(self.sides):
            places = sorted(set(coords[:, side].tolist()))
            if len(places) < 2:
                continue
            steps = np.diff(places)
            stride = int(steps.max())
            ring = self.rings[side] and len(places) * stride == size and stride == steps.min()
            total += self.chip.ici_link * (2 if ring else 1) / stride
        if not total:  # both devices of one chip
            return self.chip.ici_link * self.chip.links_between_cores
        return total / self.chip.devices_per_chip


def rings(generation_dimensions: int, sides: Sequence[int]) -> tuple[bool, ...]:
    """Whether each side of a slice closes to a ring.

    Planes (v5e, v6e) only at 16 chips, the whole pod; spaces (v4, v5p, tpu7x) where all sides are multiples of 4,
    for their cubes of 4x4x4 are joined by optical switches. Source: jax-ml/scaling-book, tpus.md.
    """
    if generation_dimensions == 2:
        return tuple(side == 16 for side in sides)
    return tuple(all(side % 4 == 0 for side in sides) for _ in sides)


def found(module: hlo.Module, torus: Torus) -> list[Collective]:
    """Every collective that a program runs, once however many instructions its start and end are spread over."""
    started = {
        channel(i)
        for body in module.computations.values()
        if any(i.target == "AsyncCollectiveStart" for i in body)
        for i in body
        if i.opcode in KINDS
    }
    result = []
    for instruction, times in hlo.executed(module, beside=True):
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in KINDS and instruction.opcode == opcode or instruction.opcode.removesuffix("-start") in KINDS:
            result.append(_collective(opcode, instruction, times, torus))
        elif instruction.opcode == "fusion":
            body = module.computations[instruction.called("calls")[0]]
            for kind, inner in _of_fusion(body, started):
                result.append(_collective(kind, inner, times, torus))
        elif instruction.opcode == "send" and "is_host_transfer=true" in instruction.attributes:
            size = instruction.shapes[0].bytes
            result.append(Collective(DCN, ("slice",), 2, times, size, size, size / torus.chip.dcn, instruction.op_name))
    return result


def _of_fusion(body: tuple[hlo.Instruction, ...], started: set) -> Iterator[tuple[str, hlo.Instruction]]:
    targets = {i.target for i in body}
    size = next(i for i in body if i.root).bytes
    for inner in (i for i in body if i.opcode in KINDS):
        if "AsyncCollectiveStart" in targets:
            yield inner.opcode, inner
        elif "AsyncCollectiveDone" in targets or channel(inner) in started:
            continue  # the same one, on its way or at its end
        elif inner.opcode == "all-reduce" and size < inner.bytes:
            yield "reduce-scatter", inner  # the TPU's is an all-reduce of which each device keeps its part
        else:
            yield inner.opcode, inner


def channel(instruction: hlo.Instruction) -> str | None:
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else None


def _collective(kind: str, instruction: hlo.Instruction, times: int, torus: Torus) -> Collective:
    group = first_group(instruction.attributes, len(torus.coords))
    count = len(group)
    size = instruction.bytes
    if instruction.opcode.endswith("-start") and len(instruction.shapes) % 2 == 0:
        size = sum(s.bytes for s in instruction.shapes[len(instruction.shapes) // 2 :])  # behind the operands
    if instruction.opcode == "reduce-scatter":
        size *= count
    sent = size * sent_share(kind, count)
    seconds = sent / torus.bandwidth(group) if count > 1 else 0.0
    return Collective(kind, torus.axes(group), count, times, size, sent, seconds, instruction.op_name)


def sent_share(kind: str, devices: int) -> float:
    """Of the whole array, what each device sends in a ring."""
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (devices - 1) / devices


def first_group(attributes: str, devices: int) -> list[int]:
    """The devices that a collective joins with the first one, from any of the three ways to write groups.

    `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` and `mesh['axis_0'=2,'axis_1'=4] {'axis_1'}`, whose devices may be in another
    order: `mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}`. Without groups: all devices.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return sorted({int(pairs[1]), int(pairs[2])})
    if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(n) for n in lists[1].split(",")]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source, order = ([int(n) for n in text.split(",")] if text else None for text in iota.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        return np.transpose(ids, order).reshape(-1, shape[-1])[0].tolist()
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        ids = np.arange(math.prod(sizes.values()))
        if order := re.search(r"device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)", mesh[2]):
            source, turned = ([int(n) for n in text.split(",")] for text in order.groups())
            ids = ids.reshape(source).transpose(turned)
        ids = ids.reshape(tuple(sizes.values()))
        index: list = []
        for name, size in sizes.items():
            part = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", mesh[3])
            if part and part[1]:
                after = size // (int(part[1]) * int(part[2]))
                index.append(slice(0, int(part[2]) * after, after))
            else:
                index.append(slice(None) if part else slice(0, 1))
        return ids[tuple(index)].reshape(-1).tolist()
    return list(range(devices))


def summed(collectives: Sequence[Collective]) -> list[Collective]:
    """One for each kind and axes, with the runs of a step added up; bytes, sent and seconds are then of a step."""
    sums: dict[tuple, list[Collective]] = {}
    for one in collectives:
        sums.setdefault((one.kind, one.axes, one.devices), []).append(one)
    return [
        Collective(
            *key,
            sum(o.times for o in group),
            sum(o.times * o.bytes for o in group),
            sum(o.times * o.sent for o in group),
            sum(o.times * o.seconds for o in group),
        )
        for key, group in sums.items()
    ]
