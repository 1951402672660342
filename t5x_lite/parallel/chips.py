"""What an accelerator chip can do, by the name that JAX gives its devices. Shapes of slices: tpu/hardware.py.

Peaks are dense bf16 operations a second of one JAX device (a chip, or half of one where JAX shows two
devices a chip). Sources: Google Cloud's TPU pages for v5e, v6e and tpu7x (docs.cloud.google.com/tpu/docs),
the v5p and v4 columns there and in jax-ml/scaling-book, NVIDIA's data sheets for A100 and H100/H200 (SXM,
without sparsity).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Args:
      kinds: values of `jax.Device.device_kind`.
      peak_flops: bf16 operations a second of one JAX device.
      hbm_gib: memory of one JAX device.
      devices_per_chip: JAX devices of one chip.
      usable_hbm_gib: memory that the compiler gives to programs: what libtpu 0.0.52 says when it refuses one that is
        too large. 0 where it is not known.
    """

    kinds: tuple[str, ...]
    peak_flops: float
    hbm_gib: float
    devices_per_chip: int = 1
    usable_hbm_gib: float = 0.0


CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32, usable_hbm_gib=30.75),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16, usable_hbm_gib=15.75),
    "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95, usable_hbm_gib=95.73),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32, usable_hbm_gib=31.24),
    "tpu7x": Chip(("TPU7x",), 2307e12 / 2, 96, devices_per_chip=2, usable_hbm_gib=94.74),
    "a100": Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12, 80),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80),
    "h200": Chip(("NVIDIA H200",), 989e12, 141),
}


def peak_flops(device_kind: str) -> float | None:
    """bf16 operations a second of one device of this kind; None where the table has none (a CPU)."""
    return next((chip.peak_flops for chip in CHIPS.values() if device_kind in chip.kinds), None)
