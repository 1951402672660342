"""Meshes from gin's sizes, and shardings from logical axes."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.parallel import partition
from t5x_lite.parallel.partition import MESH_AXES, Partition, Rules

pytestmark = pytest.mark.sharded

RULES = Partition({}, {"batch": ("slice", "data", "fsdp"), "embed": "fsdp", "mlp": "model"}).table()


@pytest.mark.parametrize("mesh, devices, wanted", [
    ({}, 1, (1, 1, 1, 1)),
    ({"data": -1}, 8, (1, 8, 1, 1)),
    ({"fsdp": -1, "model": 2}, 256, (1, 1, 128, 2)),
    ({"slice": 2, "data": -1, "fsdp": 16, "model": 1}, 512, (2, 16, 16, 1)),
    ({"data": 2, "model": 4}, 8, (1, 2, 1, 4)),
    ({"data": 8, "fsdp": -1}, 8, (1, 8, 1, 1)),
])  # fmt: skip
def test_sizes_of_a_mesh(mesh, devices, wanted):
    sizes = Partition(mesh, {}).sizes(devices)
    assert tuple(sizes) == MESH_AXES and tuple(sizes.values()) == wanted
    assert dict(Partition(mesh, {}).abstract(devices).shape) == sizes


def test_a_mesh_holds_each_device_once():
    devices = jax.devices()
    built = Partition({"fsdp": -1, "model": 2}, {}).build()
    assert sorted(d.id for d in built.devices.flat) == sorted(d.id for d in devices)
    assert dict(built.shape) == {"slice": 1, "data": 1, "fsdp": len(devices) // 2, "model": 2}
    assert partition.single_device().devices.size == 1


@pytest.mark.parametrize("mesh, devices", [
    ({"data": 3}, 8), ({"data": 4}, 8), ({"data": 16}, 8), ({"data": -1, "model": 3}, 8), ({}, 2),
])  # fmt: skip
def test_a_mesh_that_does_not_fit_is_refused(mesh, devices):
    with pytest.raises(UserError, match=rf"does not fit {devices} devices.*Partition\.mesh.*product is {devices}"):
        Partition(mesh, {}).sizes(devices)


@pytest.mark.parametrize("mesh, rules, said", [
    ({"dta": -1}, {}, r"^dta in Partition\.mesh is no mesh axis\. Nearest: data"),
    ({"data": -1, "model": -1}, {}, r"two axes of size -1"),
    ({}, {"bacth": "data"}, r"^bacth in Partition\.rules is no logical axis\. Nearest: batch"),
    ({}, {"batch": ("data", "modle")}, r"^modle in Partition\.rules is no mesh axis\. Nearest: model"),
])  # fmt: skip
def test_unknown_names_are_refused(mesh, rules, said):
    with pytest.raises(UserError, match=said):
        Partition(mesh, rules)


@pytest.mark.parametrize("rules, said", [
    ({"embed": "model", "mlp": "model"}, "cuts embed and mlp over the mesh axis model"),
    ({"batch": ("data", "model"), "heads": "model"}, "cuts batch and heads over the mesh axis model"),
    ({"vocab": ("model", "model")}, "cuts vocab over the mesh axis model"),
])  # fmt: skip
def test_a_mesh_axis_cuts_an_array_once(rules, said):
    with pytest.raises(UserError, match=said):
        Partition({}, rules)


def test_rules_make_specs():
    assert RULES.spec("batch", "length") == P(("slice", "data", "fsdp"), None)
    assert RULES.spec("layers", "embed", "mlp") == P(None, ("fsdp",), ("model",))
    assert RULES.spec(None, "vocab") == P(None, None)
    assert RULES.without("mlp").spec("embed", "mlp") == P(("fsdp",), None)
    assert Rules().spec("batch") == P(None)
    # An axis of one device cuts nothing.
    over = RULES.over(Partition({"data": 4}, {}).abstract(4))
    assert over.spec("batch", "embed", "mlp") == P(("data",), None, None)
    assert hash(RULES) == hash(Rules(RULES.table))  # layers hold it as static data


def test_shardings_cut_as_the_rules_say():
    mesh = Partition({"fsdp": 4, "model": 2}, {}).build()
    shapes = {"wi": jax.ShapeDtypeStruct((8, 6), jnp.float32), "scale": jax.ShapeDtypeStruct((8,), jnp.float32)}
    found = partition.shardings(mesh, RULES, shapes, {"wi": ("embed", "mlp"), "scale": (None,)})
    placed = jax.tree.map(lambda s, h: jax.device_put(jnp.zeros(s.shape), h), shapes, found)
    assert {shard.data.shape for shard in placed["wi"].addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in placed["scale"].addressable_shards} == {(8,)}
    assert partition.batch_divisor(mesh, RULES) == 4


def test_a_dimension_that_does_not_divide_is_named():
    mesh = Partition({"model": 8}, {}).abstract(8)
    shapes = {"mlp": {"wi": jax.ShapeDtypeStruct((8, 12), jnp.float32)}}
    with pytest.raises(UserError) as error:
        partition.shardings(mesh, RULES, shapes, {"mlp": {"wi": ("embed", "mlp")}})
    said = str(error.value)
    assert said.startswith("logical axis mlp of size 12 (mlp/wi) does not divide over mesh axes model = 8.")
    assert "multiply to 4" in said  # the most of these devices that 12 divides over


@pytest.mark.parametrize("path", sorted((config.root() / "partition").glob("*.gin")), ids=lambda p: p.stem)
@pytest.mark.parametrize("devices", [8, 16, 256])
def test_shipped_layouts_fit_any_power_of_two(path, devices):
    made = config.build(config.load([str(path), "models/t5_1_1_small.gin", "runs/pretrain.gin", str(path)], [
        "TRAIN_STEPS=1", "MODEL_DIR=m", "VOCABULARY=v", "MIXTURE_OR_TASK_NAME=t",
    ])).partition  # fmt: skip
    mesh = made.abstract(devices)
    assert math.prod(mesh.shape.values()) == devices
    assert devices % partition.batch_divisor(mesh, made.table()) == 0
