"""Devices of slices that are not here, described: where libtpu puts them, and on its hosts."""

import collections
import math

import numpy as np
import pytest

from t5x_lite.parallel import chips, compile_only, partition, slices
from t5x_lite.parallel.partition import MESH_AXES, Partition
from t5x_lite.tpu import hardware

MESHES = [
    ("v5e:2x2", 1, {"fsdp": -1}),
    ("v5e:4x4", 1, {"data": -1, "fsdp": 4}),
    ("v5e:16x16", 2, {"data": -1, "fsdp": 8, "model": 2}),
    ("v6e:4x8", 1, {"data": -1, "fsdp": 8}),
    ("v4:2x2x4", 1, {"data": -1, "fsdp": 4}),
    ("v4:4x4x8", 1, {"data": -1, "fsdp": 8}),
    ("v5p:4x4x12", 1, {"data": -1, "fsdp": 3, "model": 2}),
    ("v5p:4x4x4", 4, {"data": -1, "fsdp": 32}),
    ("tpu7x:2x2x2", 1, {"data": -1, "fsdp": 8}),
    ("tpu7x:4x4x4", 2, {"fsdp": -1, "model": 8}),
]


def described(topology, num_slices=1):
    wanted = hardware.parse(topology)
    return wanted, slices.devices(wanted.generation, wanted.shape, wanted.hosts, num_slices)


def place(device):
    return getattr(device, "slice_index", 0), tuple(device.coords), device.core_on_chip, device.process_index


@pytest.mark.parametrize("topology, num_slices, mesh", MESHES)
def test_they_lie_on_a_mesh_as_those_of_libtpu(topology, num_slices, mesh):
    pytest.importorskip("libtpu", reason="only libtpu knows the devices of a slice that is not here")
    wanted, ours = described(topology, num_slices)
    real = compile_only.devices(wanted.generation, wanted.shape, num_slices)
    assert list(map(place, ours)) == list(map(place, real))
    layout = Partition(mesh, {})
    assert list(map(place, layout.placed(ours).flat)) == list(map(place, layout.placed(real).flat))


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:2x4", "v6e:8x16", "v4:2x2x1", "v5p:4x4x4", "tpu7x:2x2x4"])
def test_hosts_have_the_chips_that_cloud_tpu_gives_them(topology):
    wanted, devices = described(topology, 2)
    per_chip = chips.CHIPS[wanted.generation].devices_per_chip
    assert len(devices) == 2 * wanted.chips * per_chip
    of_host = collections.Counter(d.process_index for d in devices)
    assert of_host == dict.fromkeys(range(2 * wanted.hosts), wanted.chips_per_host * per_chip)
    assert len({d.coords for d in devices}) == wanted.chips == math.prod(wanted.shape)
    assert {(d.process_index < wanted.hosts, d.slice_index) for d in devices} == {(True, 0), (False, 1)}


@pytest.mark.parametrize("batch, parts", [(("slice", "data", "fsdp"), 16), ("data", 4), ((), 1)])
def test_hosts_follow_the_order_of_the_batch(batch, parts):
    _, devices = described("v5e:4x4")
    layout = Partition({"data": -1, "fsdp": 4}, {"batch": batch})
    placed = layout.placed(devices)
    hosts = partition.hosts_of_batch(placed, layout.table())
    assert hosts.shape == (parts, 16 // parts)
    by_axis = dict(zip(MESH_AXES, np.moveaxis(np.indices(placed.shape), 0, 0)))
    for index in np.ndindex(placed.shape):
        part = by_axis["data"][index] * (4 if parts == 16 else 1) + (by_axis["fsdp"][index] if parts == 16 else 0)
        assert placed[index].process_index in hosts[part if parts > 1 else 0]
