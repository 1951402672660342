"""Meshes and axis rules: what is laid out where, and what is said where it cannot be."""

import jax
import pytest
from jax.sharding import PartitionSpec

from t5x_lite.errors import UserError
from t5x_lite.parallel.partition import MESH_AXES, Partition, Rules, batch_divisor, check_divides, shardings
from tests.train import tiny


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        ({}, 1, (1, 1, 1, 1)),
        ({"data": -1}, 8, (1, 8, 1, 1)),
        ({"fsdp": -1, "model": 2}, 8, (1, 1, 4, 2)),
        ({"slice": 2, "data": -1, "fsdp": 4}, 256, (2, 32, 4, 1)),
        ({"model": -1}, 1, (1, 1, 1, 1)),
        ({"data": 2, "model": 4}, 8, (1, 2, 1, 4)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(mesh, devices, sizes):
    partition = Partition(mesh, {})
    assert partition.sizes(devices) == dict(zip(MESH_AXES, sizes))
    assert dict(partition.abstract(devices).shape) == dict(zip(MESH_AXES, sizes))
    if devices <= 8:
        assert dict(partition.build(jax.devices()[:devices]).shape) == dict(zip(MESH_AXES, sizes))


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        ({"data": 3}, 8, r"a mesh of data=3 does not fit 8 devices\. .*product is 8"),
        ({"fsdp": -1, "model": 3}, 8, r"a mesh of .*model=3 does not fit 8 devices\. Its fixed sizes multiply to 3"),
        ({"data": 8}, 1, "does not fit 1 device"),
        ({}, 8, "a mesh of one device does not fit 8 devices"),
        ({"data": 16, "fsdp": -1}, 8, "does not fit 8 devices"),
    ],
)
def test_devices_that_do_not_fit_are_refused(mesh, devices, message):
    with pytest.raises(UserError, match=message):
        Partition(mesh, {}).sizes(devices)


@pytest.mark.parametrize(
    ("mesh", "rules", "message"),
    [
        ({"fdsp": 2}, {}, r"fdsp in Partition.mesh is no mesh axis\. Nearest: fsdp"),
        ({}, {"embd": "fsdp"}, r"embd in Partition.rules is no logical axis\. Nearest: embed"),
        ({}, {"embed": "fdsp"}, r"fdsp in Partition.rules is no mesh axis\. Nearest: fsdp"),
        ({"data": -1, "fsdp": -1}, {}, "has two axes of size -1"),
    ],
)
def test_unknown_axes_are_refused(mesh, rules, message):
    with pytest.raises(UserError, match=message):
        Partition(mesh, rules)


def test_rules_turn_names_into_specs():
    rules = tiny.shipped("2d").table()
    assert rules.spec("batch", "length") == PartitionSpec(("slice", "data", "fsdp"), None)
    assert rules.spec("layers", "embed", "mlp") == PartitionSpec(None, ("fsdp",), ("model",))
    assert rules.spec(None, "vocab") == PartitionSpec(None, ("model",))
    assert rules.without("embed").spec("embed", "heads") == PartitionSpec(None, ("model",))
    assert Rules().spec("batch", "embed") == PartitionSpec(None, None)
    assert hash(rules) == hash(tiny.shipped("2d").table())


@pytest.mark.parametrize(("name", "parts"), [("data", 8), ("fsdp", 8), ("tensor", 1), ("2d", 4)])
def test_the_shipped_layouts_cut_a_batch(name, parts):
    partition = tiny.shipped(name)
    assert batch_divisor(partition.abstract(8), partition.table()) == parts


def test_a_dimension_that_does_not_divide_is_refused():
    partition = tiny.shipped("2d")
    mesh, rules = partition.abstract(8), partition.table()
    message = r"logical axis heads of size 7 \(attention heads\) does not divide over mesh axes model = 2\..*multiply to 1"
    with pytest.raises(UserError, match=message):
        check_divides(mesh, rules, "heads", 7, "attention heads")
    check_divides(mesh, rules, "heads", 6, "attention heads")
    check_divides(mesh, rules, None, 7, "anything")
    shape = jax.ShapeDtypeStruct((10, 4), "float32")
    with pytest.raises(UserError, match=r"embed of size 10 \(encoder/kernel\) .*fsdp = 4\..*multiply to 2"):
        shardings(mesh, rules, {"encoder": {"kernel": shape}}, {"encoder": {"kernel": ("embed", None)}})


def test_parameters_and_optimizer_state_are_cut_alike():
    from t5x_lite import program

    partition = tiny.shipped("fsdp")
    with jax.set_mesh(partition.build(jax.devices())):
        laid = program.lay_out(tiny.job(partition), jax.sharding.get_mesh())
    kernel = laid.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, ("fsdp",), None)
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 4, 48)
    rows = [leaf for leaf in jax.tree.leaves(laid.state["opt_state"]) if leaf.shape == (2, 32)]
    assert rows and any(leaf.sharding.shard_shape(leaf.shape) == (2, 4) for leaf in rows)
