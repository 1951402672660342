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
