"""The chip table, against the numbers that JAX itself carries."""

import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from t5x_lite.parallel.chips import CHIPS, peak_flops


def test_peaks_of_known_devices():
    """Google's and NVIDIA's data sheets, in bf16 without sparsity."""
    assert peak_flops("TPU v4") == 275e12
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v2", "NVIDIA H100"])
def test_an_unknown_device_has_no_peak(kind):
    assert peak_flops(kind) is None


def test_a_device_kind_is_one_chip():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(
    "name, version, cores",
    [
        ("v4", "TPU_V4", 2),
        ("v5e", "TPU_V5E", 1),
        ("v5p", "TPU_V5P", 2),
        ("v6e", "TPU_V6E", 1),
        ("tpu7x", "TPU_7X", 1),  # two cores a chip, each of them a device
    ],
)
def test_a_tpus_peak_and_memory_are_those_of_jax(name, version, cores):
    """JAX has them for a core; `cores` make one device."""
    a_core = pallas_tpu.get_tpu_info_for_chip(getattr(pallas_tpu.ChipVersion, version), cores)
    assert CHIPS[name].peak_flops == pytest.approx(a_core.bf16_ops_per_second * cores, rel=0.01)
    assert CHIPS[name].hbm_gib == pytest.approx(a_core.hbm_capacity_bytes * cores / 2**30, rel=0.02)


@pytest.mark.parametrize(
    "name, version, cores, within",
    [
        ("v4", "TPU_V4", 2, 0.03),
        ("v5e", "TPU_V5E", 1, 0.01),
        ("v5p", "TPU_V5P", 2, 0.13),  # Google's page has 2765 GB/s, JAX 2460
        ("v6e", "TPU_V6E", 1, 0.01),
        ("tpu7x", "TPU_7X", 1, 0.01),
    ],
)
def test_a_tpus_bandwidth_and_usable_memory_are_near_those_of_jax(name, version, cores, within):
    a_core = pallas_tpu.get_tpu_info_for_chip(getattr(pallas_tpu.ChipVersion, version), cores)
    chip = CHIPS[name]
    assert chip.hbm_bandwidth == pytest.approx(a_core.mem_bw_bytes_per_second * cores, rel=within)
    # The system keeps some of the memory for itself.
    assert 0.95 < chip.usable_hbm_gib * 2**30 / (a_core.hbm_capacity_bytes * cores) <= 1


@pytest.mark.parametrize("name, gigahertz", [("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75), ("tpu7x", 2.2)])
def test_the_clock_follows_from_the_peak_and_the_matrix_units(name, gigahertz):
    assert CHIPS[name].clock == pytest.approx(gigahertz * 1e9, rel=0.01)


@pytest.mark.parametrize("name, of_chip", [("v4", 540), ("v5e", 400), ("v5p", 1200), ("v6e", 800), ("tpu7x", 1200)])
def test_the_links_of_a_chip_make_its_published_bandwidth(name, of_chip):
    links = 4 if name in ("v5e", "v6e") else 6
    assert CHIPS[name].ici_link * links * 2 == of_chip * 1e9
