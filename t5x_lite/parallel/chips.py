"""What an accelerator chip can do, by the name that JAX gives its devices. Shapes of slices: tpu/hardware.py.

All figures are of one JAX device: a chip, or half of one where JAX shows two devices a chip. Sources:

  peak_flops, hbm_gib, hbm_bandwidth   Google Cloud's TPU pages (docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}),
                   dense bf16; NVIDIA's data sheets for A100 and H100/H200 (SXM, without sparsity).
  ici_link         one link, one way: the same pages' bidirectional interconnect of a chip (v5e 400, v5p 1200, v6e 800,
                   tpu7x 1200 GB/s) over its links, four on a plane and six in space, and both ways; v4: 45 GB/s,
                   jax-ml/scaling-book, tpus.md.
  dcn              the data-centre network, each way: the same pages for v5e (6.4 Tbit/s a pod of 256), v5p (50), v6e
                   (100) and tpu7x (100 Gbit/s a chip). Google publishes none for v4, which is taken to be as v5p.
  flops_per_cycle  of the matrix units: a multiply and an add in each cell of 128 x 128, four units on v5e and eight on
                   v4 and v5p, and as many cells as sixteen of these on v6e and on one core of tpu7x. The clock follows:
                   1.05 GHz for v4, as Jouppi et al. 2023 (TPU v4, table 4) have it, 1.5 for v5e and 1.75 for v5p.
  usable_hbm_gib   what libtpu 0.0.52 says is left for programs when it refuses one that is too large.
  links_between_cores  tpu7x: the two halves of a chip are joined six times as fast as by one link (the tpu7x page).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip; every figure is of one JAX device.

    Args:
      kinds: values of `jax.Device.device_kind`.
      peak_flops: bf16 operations a second.
      hbm_gib: memory.
      devices_per_chip: JAX devices of one chip.
      hbm_bandwidth: bytes a second. This and the rest are 0 where they are not known: not TPUs.
      usable_hbm_gib: memory that the compiler gives to programs.
      ici_link: bytes a second of one link of a chip to a neighbour, one way.
      dcn: bytes a second to other slices.
      flops_per_cycle: of the matrix units.
      links_between_cores: how many links of a chip the path between its devices is worth.
    """

    kinds: tuple[str, ...]
    peak_flops: float
    hbm_gib: float
    devices_per_chip: int = 1
    hbm_bandwidth: float = 0.0
    usable_hbm_gib: float = 0.0
    ici_link: float = 0.0
    dcn: float = 0.0
    flops_per_cycle: int = 0
    links_between_cores: int = 1

    @property
    def usable_bytes(self) -> int:
        """Memory that the compiler gives to programs."""
        return int(self.usable_hbm_gib * 2**30)

    @property
    def clock(self) -> float:
        """Cycles a second at which the matrix units reach the peak."""
        return self.peak_flops / self.flops_per_cycle


_MXU = 2 * 128 * 128

CHIPS = {
    "v4": Chip(
        ("TPU v4",), 275e12, 32, hbm_bandwidth=1.2e12, usable_hbm_gib=30.75, ici_link=45e9, dcn=50e9 / 8,
        flops_per_cycle=8 * _MXU,
    ),
    "v5e": Chip(
        ("TPU v5 lite", "TPU v5e"), 197e12, 16, hbm_bandwidth=819e9, usable_hbm_gib=15.75, ici_link=400e9 / 8,
        dcn=6.4e12 / 256 / 8, flops_per_cycle=4 * _MXU,
    ),
    "v5p": Chip(
        ("TPU v5", "TPU v5p"), 459e12, 95, hbm_bandwidth=2765e9, usable_hbm_gib=95.73, ici_link=1200e9 / 12,
        dcn=50e9 / 8, flops_per_cycle=8 * _MXU,
    ),
    "v6e": Chip(
        ("TPU v6 lite", "TPU v6e"), 918e12, 32, hbm_bandwidth=1638e9, usable_hbm_gib=31.24, ici_link=800e9 / 8,
        dcn=100e9 / 8, flops_per_cycle=16 * _MXU,
    ),
    "tpu7x": Chip(
        ("TPU7x",), 2307e12 / 2, 96, devices_per_chip=2, hbm_bandwidth=7380e9 / 2, usable_hbm_gib=94.74,
        ici_link=1200e9 / 12, dcn=100e9 / 8 / 2, flops_per_cycle=16 * _MXU, links_between_cores=6,
    ),
    "a100": Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12, 80),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80),
    "h200": Chip(("NVIDIA H200",), 989e12, 141),
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
    """bf16 operations a second of one device of this kind; None where the table has none (a CPU)."""
    return next((chip.peak_flops for chip in CHIPS.values() if device_kind in chip.kinds), None)
