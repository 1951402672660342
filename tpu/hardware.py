"""Slices of Cloud TPU: their accelerator type, runtime version, chips and hosts.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} for names, shapes and hosts,
docs.cloud.google.com/tpu/docs/runtimes for runtime versions; the one of tpu7x is in none of Google's
pages, but in the README of AI-Hypercomputer/accelerator-microbenchmarks.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from t5x_lite.errors import UserError, nearest

# All slices of the generations whose chips lie on a plane.
_PLANE = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))

# Slices below one cube of 64 chips where they fill a space; above it every size is a multiple of 4.
_SPACE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 64


@dataclasses.dataclass(frozen=True)
class _Generation:
    """One generation.

    Args:
      prefix: what its accelerator types begin with.
      units_per_chip: of what the number of an accelerator type counts: 1 for chips, 2 for cores.
      runtime_version: the TPU software version to create a VM with.
      dimensions: of a slice's shape.
      largest_slice: chips.
      largest_host: chips of the one host of a small slice. A slice with more has hosts of 4 chips.
    """

    prefix: str
    units_per_chip: int
    runtime_version: str
    dimensions: int
    largest_slice: int
    largest_host: int = 4


GENERATIONS = {
    "v4": _Generation("v4", 2, "tpu-ubuntu2204-base", 3, 4096),
    "v5e": _Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", 2, 256, largest_host=8),
    "v5p": _Generation("v5p", 2, "v2-alpha-tpuv5", 3, 6144),
    "v6e": _Generation("v6e", 1, "v2-alpha-tpuv6e", 2, 256, largest_host=8),
    "tpu7x": _Generation("tpu7x", 2, "v2-alpha-tpu7-ubuntu2404", 3, 9216),
}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One slice.

    Args:
      generation: a key of GENERATIONS, as topologies name it: "v5e".
      accelerator_type: as gcloud names it: "v5litepod-16".
      runtime_version: the TPU software version that goes with it.
      shape: chips along each side of the torus, as its topology names it.
      chips: of the slice.
      hosts: VMs of the slice.
      chips_per_host: of each VM.
    """

    generation: str
    accelerator_type: str
    runtime_version: str
    shape: tuple[int, ...]
    chips: int
    hosts: int
    chips_per_host: int


def parse(text: str, name: str = "--topology") -> Hardware:
    """A slice from its accelerator type (`v5litepod-16`, `v4-32`) or its topology (`v5e:4x4`).

    Args:
      text: the accelerator type or topology.
      name: the flag that holds it, for error messages.

    Raises:
      UserError: the generation is unknown, or it has no such slice.
    """
    if ":" in text:
        generation, _, shape = text.partition(":")
        _check_known(generation, GENERATIONS, text, name)
        return _slice(generation, _shape_of(generation, shape, text, name))
    prefix, _, count = text.rpartition("-")
    of_prefix = {g.prefix: key for key, g in GENERATIONS.items()}
    _check_known(prefix or count, of_prefix, text, name)
    generation = of_prefix[prefix or count]
    return _slice(generation, _most_compact(generation, _chips_of_count(generation, prefix and count, text, name)))


def larger(own: Hardware) -> Iterator[Hardware]:
    """Slices of the same generation with more chips, the smallest first; above a cube those that double."""
    of = GENERATIONS[own.generation]
    for count in _counts(own.generation):
        chips = count // of.units_per_chip
        if chips > own.chips and chips & (chips - 1) == 0:
            yield _slice(own.generation, _most_compact(own.generation, chips))


def _check_known(generation: str, known, text: str, name: str) -> None:
    if generation not in known:
        raise UserError(
            f"{name}={text} names no TPU generation",
            nearest(generation, known),
            f"write a topology such as {name}=v5e:4x4, or an accelerator type such as {name}=v5litepod-16",
        )


def _shape_of(generation: str, shape: str, text: str, name: str) -> tuple[int, ...]:
    of = GENERATIONS[generation]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", shape) or shape.count("x") + 1 != of.dimensions:
        example = "x".join(["4"] * of.dimensions)
        raise UserError(
            f"{name}={text} has no shape of {of.dimensions} sizes",
            f"a {generation} slice is a {of.dimensions}-dimensional block of chips",
            f"write for example {name}={generation}:{example}",
        )
    sizes = tuple(int(n) for n in shape.split("x"))
    if of.dimensions == 2:
        fits = sizes in _PLANE
    else:
        fits = sizes in _SPACE or all(n % 4 == 0 for n in sizes)
    if not fits or math.prod(sizes) > of.largest_slice:
        raise UserError(f"{name}={text} is no slice of {generation}", _shapes(generation), f"choose one for {name}")
    return sizes


def _chips_of_count(generation: str, count: str, text: str, name: str) -> int:
    of = GENERATIONS[generation]
    counts = _counts(generation)
    if not re.fullmatch(r"[1-9]\d{0,5}", count) or int(count) not in counts:
        unit = "chips" if of.units_per_chip == 1 else "TensorCores, two a chip"
        raise UserError(
            f"{name}={text} is no accelerator type of {generation}",
            f"the number counts {unit}: {_few(counts)}",
            f"write for example {name}={of.prefix}-{16 * of.units_per_chip}",
        )
    return int(count) // of.units_per_chip


def _most_compact(generation: str, chips: int) -> tuple[int, ...]:
    """The shape that a slice of so many chips has where none is named: the one with the shortest sides."""
    if GENERATIONS[generation].dimensions == 2:
        return next(shape for shape in _PLANE if math.prod(shape) == chips)
    if chips < _CUBE:
        return next(shape for shape in _SPACE if math.prod(shape) == chips)
    cubes = chips // _CUBE
    blocks = [
        (x, y, cubes // (x * y))
        for x in range(1, cubes + 1)
        for y in range(x, cubes // x + 1)
        if cubes % (x * y) == 0 and cubes // (x * y) >= y
    ]
    return tuple(4 * side for side in min(blocks, key=sum))


def _counts(generation: str) -> list[int]:
    """The numbers that an accelerator type of this generation can end in."""
    of = GENERATIONS[generation]
    if of.dimensions == 2:
        chips = [math.prod(shape) for shape in _PLANE]
    else:
        chips = [math.prod(shape) for shape in _SPACE] + list(range(_CUBE, of.largest_slice + 1, _CUBE))
    return [n * of.units_per_chip for n in chips]


def _shapes(generation: str) -> str:
    of = GENERATIONS[generation]
    if of.dimensions == 2:
        return "its slices are " + ", ".join("x".join(map(str, s)) for s in _PLANE)
    small = ", ".join("x".join(map(str, s)) for s in _SPACE)
    return f"its slices are {small}, and blocks of multiples of 4 with up to {of.largest_slice} chips"


def _few(counts: list[int]) -> str:
    return ", ".join(map(str, counts[:8])) + (f" and so on, up to {counts[-1]}" if len(counts) > 8 else "")


def _slice(generation: str, shape: tuple[int, ...]) -> Hardware:
    of, chips = GENERATIONS[generation], math.prod(shape)
    chips_per_host = chips if chips <= of.largest_host else 4
    return Hardware(
        generation,
        f"{of.prefix}-{chips * of.units_per_chip}",
        of.runtime_version,
        shape,
        chips,
        chips // chips_per_host,
        chips_per_host,
    )
