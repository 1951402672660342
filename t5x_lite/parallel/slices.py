"""Where the devices of TPU slices that are not here lie, and on which hosts: all that laying out a mesh asks of them.

A test compares them with those of libtpu, which this does without.
"""

import dataclasses
import itertools

from t5x_lite.parallel.chips import CHIPS

# Chips of one host along the sides of a slice of several hosts.
_HOST = (2, 2, 1)


@dataclasses.dataclass(frozen=True)
class Device:
    """One device, by JAX's names for its attributes."""

    id: int
    device_kind: str
    coords: tuple[int, int, int]
    core_on_chip: int
    process_index: int
    slice_index: int
    platform: str = "tpu"


def devices(generation: str, shape: tuple[int, ...], hosts: int, num_slices: int = 1) -> list[Device]:
    """The devices of one or several equal slices, in JAX's order.

    Args:
      generation: a key of `chips.CHIPS`.
      shape: chips along each side of one slice.
      hosts: of one slice.
      num_slices: how many.
    """
    chip = CHIPS[generation]
    sides = (*shape, 1)[:3]
    block = sides if hosts == 1 else _HOST
    found = []
    for number in range(num_slices):
        places = itertools.product(*(range(0, side, step) for side, step in zip(sides[::-1], block[::-1])))
        for host, corner in enumerate(places):
            for offset in itertools.product(*(range(step) for step in block[::-1])):
                coords = tuple(a + b for a, b in zip(corner, offset))[::-1]
                for core in range(chip.devices_per_chip):
                    index = number * hosts + host
                    found.append(Device(len(found), chip.kinds[0], coords, core, index, number))
    return found
