"""TPU slices: names, shapes and hosts, against the tables of Google's documentation."""

import pytest

from t5x_lite.errors import UserError
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.tpu.hardware import GENERATIONS, Hardware, larger, parse

# topology, accelerator type, chips, hosts: rows of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.
SLICES = [
    ("v4:2x2x1", "v4-8", 4, 1),
    ("v4:2x2x4", "v4-32", 16, 4),
    ("v4:4x4x4", "v4-128", 64, 16),
    ("v4:8x8x16", "v4-2048", 1024, 256),
    ("v5e:1x1", "v5litepod-1", 1, 1),
    ("v5e:2x2", "v5litepod-4", 4, 1),
    ("v5e:2x4", "v5litepod-8", 8, 1),
    ("v5e:4x4", "v5litepod-16", 16, 4),
    ("v5e:16x16", "v5litepod-256", 256, 64),
    ("v5p:2x2x1", "v5p-8", 4, 1),
    ("v5p:2x2x2", "v5p-16", 8, 2),
    ("v5p:4x4x4", "v5p-128", 64, 16),
    ("v5p:16x16x24", "v5p-12288", 6144, 1536),
    ("v6e:2x4", "v6e-8", 8, 1),
    ("v6e:4x4", "v6e-16", 16, 4),
    ("v6e:8x16", "v6e-128", 128, 32),
    ("tpu7x:2x2x1", "tpu7x-8", 4, 1),
    ("tpu7x:4x4x4", "tpu7x-128", 64, 16),
]

RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
    "tpu7x": "v2-alpha-tpu7-ubuntu2404",
}


@pytest.mark.parametrize("topology, accelerator_type, chips, hosts", SLICES)
def test_a_topology_and_its_accelerator_type_are_one_slice(topology, accelerator_type, chips, hosts):
    generation = topology.split(":")[0]
    shape = tuple(int(side) for side in topology.split(":")[1].split("x"))
    wanted = Hardware(generation, accelerator_type, RUNTIMES[generation], shape, chips, hosts, chips // hosts)
    assert parse(topology) == wanted
    assert parse(accelerator_type) == wanted


def test_a_shape_other_than_the_most_compact_is_named_by_its_topology_alone():
    assert parse("v5p:4x4x16").shape == (4, 4, 16)
    assert parse("v5p-512").shape == (4, 8, 8)
    assert parse("v5p-6144").shape == (12, 16, 16)


@pytest.mark.parametrize("text, said", {
    "v7:2x2x1": "--topology=v7:2x2x1 names no TPU generation. Nearest: ",
    "v5e-16": "--topology=v5e-16 names no TPU generation. Nearest: ",  # gcloud calls it v5litepod
    "v5litepod": "--topology=v5litepod is no accelerator type of v5e. The number counts chips: 1, 4, 8, 16, ",
    "v5litepod-12": "--topology=v5litepod-12 is no accelerator type of v5e. The number counts chips: 1, 4, 8, 16, ",
    "v4-4": "--topology=v4-4 is no accelerator type of v4. The number counts TensorCores, two a chip: 8, 16, ",
    "v5p-12416": "--topology=v5p-12416 is no accelerator type of v5p. ",
    "v5p-0x10": "--topology=v5p-0x10 is no accelerator type of v5p. ",
    "v5e:": "--topology=v5e: has no shape of 2 sizes. ",
    "v5e:4": "--topology=v5e:4 has no shape of 2 sizes. ",
    "v5p:4x4": "--topology=v5p:4x4 has no shape of 3 sizes. ",
    "v5e:0x4": "--topology=v5e:0x4 has no shape of 2 sizes. ",
    "v5e:3x3": "--topology=v5e:3x3 is no slice of v5e. Its slices are 1x1, 2x2, 2x4, 4x4, ",
    "v5e:32x32": "--topology=v5e:32x32 is no slice of v5e. ",
    "v5p:3x4x4": "--topology=v5p:3x4x4 is no slice of v5p. Its slices are 2x2x1, 2x2x2, ",
    "v5p:16x20x28": "--topology=v5p:16x20x28 is no slice of v5p. ",  # a whole pod is no slice
    "": "--topology= names no TPU generation. ",
}.items())  # fmt: skip
def test_what_is_no_slice_is_refused(text, said):
    with pytest.raises(UserError) as error:
        parse(text)
    assert str(error.value).startswith(said)
    assert "--topology" in str(error.value).rpartition(". ")[2]


def test_an_error_names_the_flag_that_holds_the_slice():
    with pytest.raises(UserError, match="^--type=v4-9 is no accelerator type"):
        parse("v4-9", "--type")


def test_every_generation_has_a_chip():
    """A verb lays a job out on a slice with the JAX devices of its chips."""
    assert set(GENERATIONS) <= set(CHIPS)


@pytest.mark.parametrize("of, found", [
    ("v5e:4x4", ["v5litepod-32", "v5litepod-64", "v5litepod-128", "v5litepod-256"]),
    ("v6e:16x16", []),
    ("v4:2x2x1", [f"v4-{2 * 4 * 2**n}" for n in range(1, 11)]),
    ("v5p:4x4x12", [f"v5p-{2 * n}" for n in (256, 512, 1024, 2048, 4096)]),
])  # fmt: skip
def test_larger_slices_of_a_generation(of, found):
    assert [slice_.accelerator_type for slice_ in larger(parse(of))] == found
