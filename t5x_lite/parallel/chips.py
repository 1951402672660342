"""What an accelerator chip can do, by the name that JAX gives its devices, and the shapes of TPU slices.

Peaks are dense bf16 operations a second of one JAX device (a chip, or half of one where JAX shows two
devices a chip). Sources: Google Cloud's TPU pages for v5e, v6e and tpu7x (docs.cloud.google.com/tpu/docs),
the v5p and v4 columns there and in jax-ml/scaling-book, NVIDIA's data sheets for A100 and H100/H200 (SXM,
without sparsity).
"""

import dataclasses
import math
import re

from t5x_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Args:
      kinds: values of `jax.Device.device_kind`.
      peak_flops: bf16 operations a second of one JAX device.
      hbm_gib: memory of one JAX device.
      dimensions: axes of a slice's topology.
      devices_per_chip: JAX devices of one chip.
      chips_per_host: chips of one host of a multi-host slice.
    """

    kinds: tuple[str, ...]
    peak_flops: float
    hbm_gib: float
    dimensions: int = 0
    devices_per_chip: int = 1
    chips_per_host: int = 1


CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32, dimensions=3, chips_per_host=4),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16, dimensions=2, chips_per_host=4),
    "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95, dimensions=3, chips_per_host=4),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32, dimensions=2, chips_per_host=4),
    "tpu7x": Chip(("TPU7x",), 2307e12 / 2, 96, dimensions=3, devices_per_chip=2, chips_per_host=4),
    "a100": Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12, 80, chips_per_host=8),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80, chips_per_host=8),
    "h200": Chip(("NVIDIA H200",), 989e12, 141, chips_per_host=8),
}


def peak_flops(device_kind: str) -> float | None:
    """bf16 operations a second of one device of this kind; None where the table has none (a CPU)."""
    return next((chip.peak_flops for chip in CHIPS.values() if device_kind in chip.kinds), None)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice: `v5p:4x4x4`."""

    generation: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * CHIPS[self.generation].devices_per_chip

    @property
    def hosts(self) -> int:
        return -(-self.chips // CHIPS[self.generation].chips_per_host)


def parse_topology(text: str) -> Slice:
    """A slice from text such as `v5e:4x4` or `v5p:4x4x4`.

    Raises:
      UserError: the generation is unknown or the shape is not one of its.
    """
    tpus = [name for name, chip in CHIPS.items() if chip.dimensions]
    generation, _, shape = text.partition(":")
    if generation not in tpus:
        raise UserError(
            f"--topology={text} names no TPU generation",
            nearest(generation, tpus),
            "write for example --topology=v5e:4x4",
        )
    dimensions = CHIPS[generation].dimensions
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != dimensions:
        example = "x".join(["4"] * dimensions)
        raise UserError(
            f"--topology={text} has no shape of {dimensions} sizes",
            f"a {generation} slice is a {dimensions}-dimensional block of chips",
            f"write for example --topology={generation}:{example}",
        )
    return Slice(generation, tuple(int(n) for n in shape.split("x")))
