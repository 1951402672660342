"""Reading the text of a compiled program: instructions, how often each runs, and the bytes that it moves.

The TPU compiler's text is after all its passes: sharded to one device, fused, scheduled, with layouts that name the
memory of each array, and with its own estimate of the cycles of most instructions.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?|(token|opaque)\[\]")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result.

    Args:
      dtype: as HLO names it, "bf16".
      dims: of one device.
      space: of memory: 0 is HBM, 1 VMEM, others are small.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype) or int((re.search(r"\d+", self.dtype) or ["0"])[0])
        return math.prod(self.dims) * bits // 8 if self.dtype not in ("token", "opaque") else 0

    @property
    def hbm_bytes(self) -> int:
        return self.bytes if self.space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Args:
      name: unique in the module.
      opcode: "fusion", "all-gather", "while".
      shapes: of the result, the leaves of a tuple in order.
      operands: names, of the same computation.
      attributes: the text behind the operands.
      literal: what stands between the brackets of a constant or parameter.
      root: it is its computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str = ""
    root: bool = False

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def hbm_bytes(self) -> int:
        return sum(shape.hbm_bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """The path of JAX's names."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one run; None where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under these attributes."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [name.strip(" %") for text in found for name in text.strip("{}").split(",")]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program of one device.

    Args:
      entry: the computation that runs.
      computations: name -> instructions in their order.
    """

    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]


def parse(text: str) -> Module:
    """Reads a module's text.

    Raises:
      ValueError: it has no entry computation.
    """
    entry, name, computations, lines = None, None, {}, []
    for line in text.splitlines():
        if line.startswith("}") and name:
            computations[name], name = tuple(lines), None
        elif name and line.startswith("  "):
            if instruction := _instruction(line):
                lines.append(instruction)
        elif header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            if line.startswith("HloModule"):
                continue
            name, lines = header[2], []
            entry = name if header[1] else entry
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    return Module(entry, computations)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    return Instruction(
        found[2],
        opcode,
        _shapes(result),
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest[close + 1 :],
        "" if "%" in inside else inside,
        bool(found[1]),
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text) - 1


@functools.cache
def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(
            dtype or other,
            tuple(int(d) for d in dims.split(",") if d) if dims else (),
            int(space[1]) if (space := re.search(r"S\((\d+)\)", layout or "")) else 0,
        )
        for dtype, dims, layout, other in _SHAPE.findall(text)
    )


def executed(
    module: Module, computation: str | None = None, times: int = 1, beside: bool = False
) -> Iterator[tuple[Instruction, int]]:
    """Every instruction that runs, with how often: loops count as often as they turn, fusions as one instruction.

    All branches of a conditional are taken to run.

    Args:
      module: the program.
      computation: where to begin; None: the entry.
      times: how often that runs.
      beside: also what SparseCores run beside the program, whose cycles are none of the TensorCore's.
    """
    for instruction in module.computations[computation or module.entry]:
        yield instruction, times
        if instruction.opcode == "while":
            turns = trip_count(module, instruction)
            for body in instruction.called("body"):
                yield from executed(module, body, times * turns, beside)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            keys = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
            for name in instruction.called(*keys):
                yield from executed(module, name, times, beside)
        elif beside and instruction.opcode == "custom-call":
            for name in instruction.called("called_computations"):
                yield from executed(module, name, times, beside)


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a `while` turns: what the compiler says, or the constant that its counter is compared with.

    A loop that may end early, as in decoding, counts in full; one without any constant counts once.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    bounds = [
        int(i.literal)
        for name in _within(module, loop.called("condition"))
        for i in module.computations[name]
        if i.opcode == "constant" and i.shapes[0].dtype in ("s32", "u32") and re.fullmatch(r"\d+", i.literal)
    ]
    return max(bounds, default=1)


def _within(module: Module, names: list[str]) -> Iterator[str]:
    """These computations and those that their fusions and calls name."""
    for name in names:
        yield name
        for instruction in module.computations[name]:
            yield from _within(module, instruction.called("calls", "to_apply"))


# What neither reads nor writes an array: names for parts of others, and the ends of what began earlier.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call", "conditional", "iota",
    "partition-id", "replica-id", "after-all", "opt-barrier", "copy-done", "slice-done", "async-done", "async-update",
    "async-start", "all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done",
}  # fmt: skip


def hbm_traffic(module: Module, instruction: Instruction, shapes: Mapping[str, Instruction]) -> int:
    """Bytes that one run of an instruction reads from and writes to HBM.

    An array that a fusion only slices counts as its slices, one that it updates in place as the update, and one that
    it passes on, as those of collectives under way, not at all.

    Args:
      module: the program.
      instruction: one that `executed` gives.
      shapes: name -> instruction, for the operands.
    """
    if instruction.opcode in _FREE or instruction.target in ("AllocateBuffer", "ConcatBitcast"):
        return 0
    operands = [shapes[name] for name in instruction.operands if name in shapes]
    if instruction.opcode in ("copy-start", "slice-start"):
        # The other parts of the result are the operand itself and a word to wait for.
        moved = instruction.shapes[0 if instruction.opcode == "copy-start" else -2]
        return moved.hbm_bytes + (moved.bytes if operands[0].hbm_bytes else 0)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return instruction.hbm_bytes * 2
    if instruction.opcode == "dynamic-update-slice":
        return operands[1].hbm_bytes * 2
    if instruction.opcode != "fusion":
        return instruction.hbm_bytes + sum(o.hbm_bytes for o in operands)
    body = module.computations[instruction.called("calls")[0]]
    return _fusion_reads(body, operands) + _fusion_writes(body, instruction)


def _fusion_reads(body: tuple[Instruction, ...], operands: list[Instruction]) -> int:
    total = 0
    for parameter in (i for i in body if i.opcode == "parameter"):
        index = int(parameter.literal)
        if index >= len(operands) or not (size := operands[index].hbm_bytes):
            continue
        uses = [i for i in body if parameter.name in i.operands]
        moved = 0
        for use in uses:
            if use.opcode in ("dynamic-slice", "slice", "gather"):
                moved += use.bytes
            elif use.opcode == "dynamic-update-slice" and use.operands[0] == parameter.name:
                moved += 0
            elif use.opcode in ("tuple", "custom-call", "all-gather", "all-reduce", "collective-permute"):
                moved += 0
            else:
                moved = size
                break
        total += min(moved, size)
    return total


def _fusion_writes(body: tuple[Instruction, ...], fusion: Instruction) -> int:
    named = {i.name: i for i in body}
    root = next(i for i in body if i.root)
    results = [named[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.shapes):
        return fusion.hbm_bytes
    total = 0
    for result, shape in zip(results, fusion.shapes):
        while result.opcode == "bitcast":
            result = named[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            total += named[result.operands[1]].bytes if shape.space == 0 else 0
        elif result.opcode not in ("parameter", "get-tuple-element", "all-gather"):
            total += shape.hbm_bytes
    return total
