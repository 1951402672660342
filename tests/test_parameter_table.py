"""The table of parameters, of a tiny job on a mesh of no devices."""

import math
import re

import jax
import pytest

from t5x_lite import parameter_table, program
from t5x_lite.parallel.partition import Partition
from tests.train import tiny


@pytest.fixture(scope="module")
def laid():
    layout = Partition({"fsdp": 4, "model": 2}, {"batch": "fsdp", "embed": "fsdp", "mlp": "model"})
    mesh = layout.abstract(8)
    with jax.sharding.use_abstract_mesh(mesh):
        return program.lay_out(tiny.job(layout), mesh)


def test_a_group_is_what_one_module_has_alike(laid):
    lines = parameter_table.lines(laid, grouped=True)
    assert lines[0].split("  ")[0] == "parameter" and len({len(line) for line in lines}) == 1
    by_name = {line.split()[0]: re.split("  +", line) for line in lines}
    assert by_name["encoder/layers/mlp/{wi_0,wi_1}/kernel"][1:3] == ["2x32x48", "-, fsdp, model"]
    assert by_name["encoder/layers/mlp/wo/kernel"][1:3] == ["2x48x32", "-, model, fsdp"]
    assert "decoder/layers/{pre_cross_attention_layer_norm,+2}/scale" in by_name
    assert len(lines) < len(parameter_table.lines(laid, grouped=False))


@pytest.mark.parametrize("grouped", [True, False])
def test_its_bytes_are_those_of_the_shards(laid, grouped):
    def share(leaf):
        return 4 * leaf.size / math.prod({"fsdp": 4, "model": 2}.get(axis, 1) for axis in leaf.sharding.spec)

    wanted = sum(map(share, jax.tree.leaves(laid.params)))
    assert parameter_table.bytes_a_device(laid.params) == wanted
    lines = parameter_table.lines(laid, grouped)[1:]
    assert sum(float(line.split()[-1]) for line in lines) == pytest.approx(wanted / 2**20, abs=0.005 * len(lines))


def test_bytes_are_shown_in_the_unit_that_suits_them():
    assert parameter_table.shown(3 * 2**19) == "1.5 MiB"
    assert parameter_table.shown(1536 * 2**20) == "1.50 GiB"
