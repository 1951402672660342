"""The estimate of a step, on a program that is counted by hand."""

import pytest

from t5x_lite.parallel import hlo, roofline
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.parallel.collectives import DCN, Collective
from tests.parallel.test_hlo import PROGRAM, TILE

V5E = CHIPS["v5e"]


def test_cycles_kernels_and_bytes_of_a_program():
    times = roofline.of_program(hlo.parse(PROGRAM), V5E, [])
    kernel = max(1e6 / V5E.peak_flops, 2 * TILE / V5E.hbm_bandwidth) / roofline.KERNEL_EFFICIENCY
    assert times.kernels_s == pytest.approx(kernel)
    assert times.compute_s == pytest.approx(12 * 150 / V5E.clock + kernel)
    # Twelve rows read and written, with their index; one fetched, and the kernel's operand and result.
    assert times.hbm_s == pytest.approx((12 * (2 * TILE + 8) + TILE + 2 * TILE) / V5E.hbm_bandwidth)
    assert times.ici_s == times.dcn_s == 0


def test_hiding_work_in_a_kernel_gains_nothing():
    """The same product as the compiler's own, at its best, is faster than what a kernel counts as."""
    call = hlo.Instruction("k", "custom-call", (), (), '"flops":"1000000000","bytes_accessed":"8"')
    assert roofline.kernel_seconds(call, {}, V5E) > 1e9 / V5E.peak_flops


def test_hidden_communication_takes_the_longest_and_what_is_not_hidden_adds_up():
    collectives = [
        Collective("all-gather", ("fsdp",), 4, 3, 1, 1.0, 2.0),
        Collective(DCN, ("slice",), 2, 2, 1, 1.0, 4.0),
    ]
    times = roofline.of_program(hlo.parse(PROGRAM), V5E, collectives)
    assert (times.ici_s, times.dcn_s) == (6.0, 8.0)
    assert times.overlapped_s == 8.0
    assert times.not_overlapped_s == pytest.approx(14.0 + times.chip_s)
    assert times.bound == "DCN"
