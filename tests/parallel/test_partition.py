"""Meshes from gin's sizes, and shardings from logical axes."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.parallel import chips, compile_only, partition
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


@pytest.mark.parametrize("mesh, devices, axis, size, nearest", [
    ({"data": 3}, 8, "data", 3, 8),
    ({"data": 16}, 8, "data", 16, 8),
    ({}, 2, "data", 1, 2),
    ({"data": -1, "model": 3}, 8, "model", 3, 4),
    ({"data": -1, "fsdp": 12, "model": 2}, 64, "fsdp", 12, 16),
    ({"data": -1, "model": 5}, 12, "model", 5, 6),
    ({"data": -1, "fsdp": 64}, 16, "fsdp", 64, 16),
    ({"data": 2, "fsdp": 4}, 16, "data", 2, 4),  # either would do
])  # fmt: skip
def test_a_mesh_that_does_not_fit_is_refused_and_the_nearest_size_fits(mesh, devices, axis, size, nearest):
    with pytest.raises(UserError) as error:
        Partition(mesh, {}).sizes(devices)
    said = str(error.value)
    assert said.startswith(f"mesh axis {axis} of size {size} does not fit {devices} devices.")
    assert f"Partition.mesh with {axis}={nearest}, the nearest that fits" in said
    assert math.prod(Partition(mesh | {axis: nearest}, {}).sizes(devices).values()) == devices


@pytest.mark.parametrize("mesh, devices, slices, said, nearest", [
    ({"data": 3, "fsdp": 5}, 8, None, "data of size 3 and fsdp of size 5 do not fit 8 devices", {"data": 2, "fsdp": 4}),
    ({"data": 5, "fsdp": 3}, 16, 1, "data of size 5 and fsdp of size 3 do not fit 16", {"data": 4, "fsdp": 4}),
    ({"data": 5, "fsdp": 3}, 64, 4, "data of size 5 and fsdp of size 3 do not fit 64", {"data": 4, "fsdp": 4}),
    ({"fsdp": 3, "data": -1, "model": 5}, 16, 1, "fsdp of size 3 and model of size 5 do", {"fsdp": 4, "model": 4}),
    ({"slice": 3, "data": -1}, 8, None, "slice of size 3 does not fit 8 devices", {"slice": 4}),
])  # fmt: skip
def test_axes_that_must_change_together_are_named_with_the_nearest_sizes(mesh, devices, slices, said, nearest):
    with pytest.raises(UserError) as error:
        Partition(mesh, {}).sizes(devices, slices)
    sizes = " and ".join(f"{axis}={size}" for axis, size in nearest.items())
    assert said in str(error.value)
    assert f"Partition.mesh with {sizes}, the nearest that fits" in str(error.value)
    assert math.prod(Partition(mesh | nearest, {}).sizes(devices, slices).values()) == devices


def test_slices_are_as_many_as_there_are():
    assert Partition({"fsdp": -1}, {}).sizes(64, slices=4) == {"slice": 4, "data": 1, "fsdp": 16, "model": 1}
    assert Partition({"slice": -1, "data": -1}, {}).sizes(64, slices=4)["slice"] == 4
    # Devices that are no TPUs belong to no slice: the axis is one like the others.
    assert Partition({"slice": 2, "data": -1}, {}).sizes(8) == {"slice": 2, "data": 4, "fsdp": 1, "model": 1}
    assert Partition({"slice": -1, "data": -1}, {}).sizes(8)["slice"] == 1
    with pytest.raises(UserError, match=r"^mesh axis slice of size 2 does not fit 1 slice\. .*Set slice to 1 in --gin"):
        Partition({"slice": 2, "data": -1}, {}).sizes(8, slices=1)


# Slice, its sides, slices, mesh sizes: whole sides and parts of them, two devices a chip, a third of a side.
SLICES = [
    ("v4", (4, 4, 4), 1, {"data": -1, "fsdp": 8}),
    ("v5e", (4, 4), 1, {"data": -1, "fsdp": 8}),
    ("v5e", (16, 16), 2, {"data": -1, "fsdp": 8, "model": 2}),
    ("v5p", (4, 4, 4), 4, {"data": -1, "fsdp": 32}),
    ("v5p", (4, 4, 12), 1, {"data": -1, "fsdp": 3, "model": 2}),
    ("v6e", (4, 4), 1, {"data": -1, "fsdp": 2}),
    ("tpu7x", (4, 4, 4), 2, {"fsdp": -1, "model": 8}),
]


@pytest.mark.parametrize("generation, shape, slices, mesh", SLICES, ids=lambda value: str(value).replace(" ", ""))
def test_every_mesh_can_be_laid_on_the_devices_of_tpu_slices(generation, shape, slices, mesh):
    """And then has the sizes of the abstract mesh, which a dry run checks without libtpu."""
    pytest.importorskip("libtpu", reason="only libtpu knows the devices of a slice that is not here")
    devices = compile_only.devices(generation, shape, slices)
    assert len(devices) == slices * math.prod(shape) * chips.CHIPS[generation].devices_per_chip
    assert devices[0].device_kind in chips.CHIPS[generation].kinds
    laid = Partition(mesh, {})
    built = laid.build(devices)
    assert len({d.id for d in built.devices.flat}) == len(devices)
    assert dict(built.shape) == dict(laid.abstract(len(devices), slices).shape)
    for number, of_slice in enumerate(built.devices):
        assert slices == 1 or {d.slice_index for d in of_slice.flat} == {number}


def test_without_libtpu_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(compile_only.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^libtpu is not installed\. .*pip install 't5x_lite\[tpu\]'"):
        compile_only.devices("v5e", (4, 4))


@pytest.mark.parametrize("sizes, sides, found", [
    ({"data": 4, "fsdp": 4, "model": 1}, (4, 4), None),
    ({"data": 16, "fsdp": 4, "model": 1}, (4, 4, 4), None),
    ({"data": 2, "fsdp": 8, "model": 1}, (4, 4), ("fsdp", 8, [4, 16])),
    ({"slice": 2, "data": 32, "fsdp": 8, "model": 1}, (16, 16), ("fsdp", 8, [16, 256])),
    ({"data": 4, "fsdp": 4, "model": 4}, (4, 16), ("fsdp", 4, [16])),  # model has the side of 4
    ({"data": 4, "fsdp": 2, "model": 1}, (2, 2, 1, 2), None),
])  # fmt: skip
def test_an_axis_on_part_of_a_side_is_found(sizes, sides, found):
    assert partition.split_axis(sizes, sides) == found


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
    ({"length": "model"}, "cuts length over 'model'. Every device computes whole sequences .* Cut batch, embed,"),
    ({"layers": ("data", "fsdp")}, "cuts layers over .'data', 'fsdp'.. Every device"),
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
    assert """mesh='{"data": -1, "model": 4}', the nearest that fits""" in said  # the most that 12 divides over
    both = Rules((("mlp", ("fsdp", "model")),))
    with pytest.raises(UserError, match=r"mesh axes fsdp\*model = 8\. .* so that they multiply to 4, or take mlp out"):
        partition.shardings(
            Partition({"fsdp": 4, "model": 2}, {}).abstract(8), both, shapes, {"mlp": {"wi": (None, "mlp")}}
        )


@pytest.mark.parametrize("path", sorted((config.root() / "partition").glob("*.gin")), ids=lambda p: p.stem)
@pytest.mark.parametrize("devices", [8, 16, 256])
def test_shipped_layouts_fit_any_power_of_two(path, devices):
    made = config.build(config.load([str(path), "models/t5_1_1_small.gin", "runs/pretrain.gin", str(path)], [
        "TRAIN_STEPS=1", "MODEL_DIR=m", "VOCABULARY=v", "MIXTURE_OR_TASK_NAME=t",
    ])).partition  # fmt: skip
    mesh = made.abstract(devices)
    assert math.prod(mesh.shape.values()) == devices
    assert devices % partition.batch_divisor(mesh, made.table()) == 0
