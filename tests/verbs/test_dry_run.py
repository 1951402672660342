"""train --dry_run: the whole job described, for hardware that is not here; nothing is allocated or written."""

import math
import re
from pathlib import Path

import jax
import pytest

from t5x_lite import cli

pytestmark = pytest.mark.sharded

ROOT = Path(__file__).resolve().parents[2]

RUN = ["train", "--dry_run", "--gin_file=runs/pretrain.gin", "--gin.TRAIN_STEPS=10"]

# Parameters of the public models, as Hugging Face's T5ForConditionalGeneration counts them.
PUBLISHED = {
    "t5_1_0_small": 60_506_624,
    "t5_1_0_base": 222_903_552,
    "t5_1_0_large": 737_668_096,
    "t5_1_0_3b": 2_851_598_336,
    "t5_1_0_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
}


@pytest.fixture
def dry_run(capsys, tmp_path, monkeypatch):
    """A function: model, flags -> (exit status, what is printed); the working directory must stay empty."""
    monkeypatch.chdir(tmp_path)

    def run(model, *flags):
        status = cli.run([*RUN, f"--gin_file=models/{model}.gin", *flags])
        out, err = capsys.readouterr()
        assert list(tmp_path.iterdir()) == []
        return status, out + err

    return run


def rows(text):
    """name -> (shape, the mesh axes that cut each dimension, MiB a device) of the printed table."""
    table = re.search(r"^parameter +shape .*\n((?:.+\n)+)", text, re.MULTILINE)[1]
    found = {}
    for line in table.splitlines():
        name, shape, spec, mib = re.fullmatch(r"(\S+) +(\S+) +(\S.*?) +(\S+)", line).groups()
        axes = [re.findall(r"\w+", part) for part in re.split(r", (?![^(]*\))", spec)]
        found[name] = tuple(map(int, shape.split("x"))), axes, float(mib.replace(",", ""))
    return found


def mesh(text):
    line = re.search(r"^Mesh (.*)$", text, re.MULTILINE)[1]
    return {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", line)}


def parameters(text):
    return int(re.search(r"^([\d,]+) parameters$", text, re.MULTILINE)[1].replace(",", ""))


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_of_the_public_models(model, dry_run):
    status, text = dry_run(model)
    assert status == 0
    assert parameters(text) == PUBLISHED[model]
    assert sum(math.prod(shape) for shape, _, _ in rows(text).values()) == PUBLISHED[model]


@pytest.mark.parametrize("partition", ["data", "fsdp", "tensor", "2d", "multi_slice"])
def test_the_table_shows_each_devices_share(partition, dry_run):
    flags = [f"--gin_file=partition/{partition}.gin", "--topology=v5e:2x2", "--gin.BATCH_SIZE=16"]
    status, text = dry_run("t5_1_0_base", *flags)
    assert status == 0
    sizes = mesh(text)
    assert math.prod(sizes.values()) == 4
    total = 0.0
    for shape, axes, mib in rows(text).values():
        share = 4 * math.prod(shape) / math.prod(sizes[axis] for part in axes for axis in part)
        assert mib == pytest.approx(share / 2**20, abs=0.005)
        total += share
    shown = float(re.search(r"^([\d.]+) MiB of parameters", text, re.MULTILINE)[1])
    assert shown == pytest.approx(total / 2**20, abs=0.05)


def test_a_job_for_256_chips_is_checked_here(dry_run):
    flags = ["--gin_file=partition/2d.gin", "--gin.DATA_SHARDS=64", "--gin.BATCH_SIZE=2048"]
    status, text = dry_run("t5_1_1_xxl", "--topology=v5p:4x8x8", *flags)
    assert status == 0
    assert "On v5p:4x8x8: 256 devices, 64 hosts of 4 chips\n" in text
    assert "accelerator type v5p-512 with runtime version v2-alpha-tpuv5\n" in text
    assert mesh(text) == {"slice": 1, "data": 1, "fsdp": 128, "model": 2}
    shape, axes, _ = rows(text)["encoder/layers/mlp/wi_0/kernel"]
    assert (shape, axes) == ((24, 4096, 10240), [[], ["fsdp"], ["model"]])
    assert parameters(text) == PUBLISHED["t5_1_1_xxl"]
    assert "2048 rows of 512 + 114 tokens a batch" in text
    # An accelerator type says the same as the topology.
    assert dry_run("t5_1_1_xxl", "--topology=v5p-512", *flags)[1].replace("v5p-512:", "v5p:4x8x8:") == text


def test_slices_are_joined_by_the_data_centre_network(dry_run):
    """Every layout spreads over them; each holds a copy of the parameters."""
    for layout, sizes in {
        "multi_slice": {"slice": 4, "data": 1, "fsdp": 16, "model": 1},
        "hsdp": {"slice": 4, "data": 2, "fsdp": 8, "model": 1},
    }.items():
        flags = [f"--gin_file=partition/{layout}.gin", "--topology=v5e:4x4", "--num_slices=4", "--gin.DATA_SHARDS=16"]
        status, text = dry_run("t5_1_1_base", *flags)
        assert status == 0
        assert "On v5e:4x4 x 4 slices: 64 devices, 16 hosts of 4 chips\n" in text
        assert mesh(text) == sizes
        _, axes, mib = rows(text)["encoder/layers/mlp/wi_0/kernel"]
        assert axes == [[], ["fsdp"], []]
        assert mib == pytest.approx(4 * 12 * 768 * 2048 / sizes["fsdp"] / 2**20, abs=0.005)


@pytest.mark.parametrize("topology, mesh, said", [
    ("v5p:4x4x4", "{'data':-1,'fsdp':8}", "fsdp of size 8 takes part of a side .* whole sides: 4, 16, 64$"),
    ("v5e:16x16", "{'data':-1,'fsdp':16,'model':4}", "model of size 4 takes part .* whole sides: 16, 256$"),
    ("v5p:4x4x4", "{'data':-1,'fsdp':16}", None),
    ("tpu7x:2x2x2", "{'data':-1,'fsdp':8}", None),
])  # fmt: skip
def test_an_axis_on_part_of_a_side_is_noted(topology, mesh, said, dry_run):
    flags = ["--gin.DATA_SHARDS=64", "--gin.BATCH_SIZE=256", f"--gin.partition.Partition.mesh={mesh}"]
    rules = "--gin.partition.Partition.rules={'batch':('data','fsdp'),'embed':'fsdp','mlp':'model'}"
    status, text = dry_run("t5_1_1_base", *flags, rules, f"--topology={topology}")
    assert status == 0
    assert re.search(f"^note: mesh axis {said}" if said else r"\Z", text, re.MULTILINE)
    assert ("takes part" in text) == bool(said)


def test_hosts_that_read_rows_of_others_are_noted_with_the_shards_that_mend_it(dry_run):
    """On a 4x4 of 2x2 hosts, a host has rows in two places of the batch."""
    flags = [
        "--gin_file=partition/fsdp.gin",
        "--gin.partition.Partition.mesh={'data':-1,'fsdp':4}",
        "--topology=v5e:4x4",
    ]
    status, text = dry_run("t5_1_1_base", *flags, "--gin.DATA_SHARDS=4")
    note = r"^note: with DATA_SHARDS=4 the hosts read each row 2 times, .* with --gin\.DATA_SHARDS=8 once$"
    assert status == 0 and re.search(note, text, re.MULTILINE)
    status, text = dry_run("t5_1_1_base", *flags, "--gin.DATA_SHARDS=8")
    assert status == 0 and "the hosts read" not in text


def test_two_devices_a_chip_where_jax_has_them(dry_run):
    status, text = dry_run("t5_1_1_small", "--topology=tpu7x:2x2x1")
    assert status == 0
    assert "On tpu7x:2x2x1: 8 devices, 1 host of 4 chips\n" in text


def test_nothing_is_allocated_or_compiled_or_read(dry_run):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    before = len(jax.live_arrays())
    missing = ["--gin.VOCABULARY=/no/such.model", "--gin.DATA_GLOB=/no/such*", "--gin.MODEL_DIR=out/model"]
    status, text = dry_run("t5_1_1_base", *missing, "--gin.MIXTURE_OR_TASK_NAME=none", "--module=no_such_module")
    assert status == 0 and f"On this machine: {jax.device_count()} x cpu\n" in text
    assert not [event for event in compiled if "backend_compile" in event]
    assert len(jax.live_arrays()) == before


def test_the_configuration_is_printed_first(dry_run, capsys, tmp_path, monkeypatch):
    _, text = dry_run("t5_1_1_small")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "printed.gin").write_text(text.partition("\nOn this machine")[0])
    assert cli.run(["config", "--gin_file=printed.gin"]) == 0
    assert text.startswith(capsys.readouterr().out)


# Flags -> the error: what does not fit, with the numbers, and the name to change.
WRONG = {
    "--gin.BATCH_SIZE=12": r"BATCH_SIZE=12 does not divide over 8 devices in 1 microbatch\. .* --gin\.BATCH_SIZE=16",
    "--gin.BATCH_SIZE=8 --gin.MICROBATCHES=2": r"BATCH_SIZE=8 does not divide over 8 devices in 2 microbatches\.",
    "--gin.BATCH_SIZE=16 --gin.DATA_SHARDS=3": r"BATCH_SIZE=16 does not divide by DATA_SHARDS=3\. .*BATCH_SIZE=24",
    "--topology=v5p:4x4x4": r"DATA_SHARDS=4 does not divide over 16 hosts\. .* --gin\.DATA_SHARDS=16",
    "--topology=v6e:8x8 --gin.DATA_SHARDS=16 --gin.BATCH_SIZE=32": r"BATCH_SIZE=32 does not divide over 64 devices",
    "--gin.partition.Partition.mesh={'data':3}":
        r"mesh axis data of size 3 does not fit 8 devices\. The mesh data=3 multiplies to 3\. .* with data=8, the near",
    "--gin.partition.Partition.mesh={'data':-1,'model':3}":
        r"mesh axis model of size 3 does not fit 8 devices\. .* multiply to 3\. .*\.mesh with model=4, the nearest",
    "--gin_file=partition/hsdp.gin --topology=v5e:2x2":
        r"mesh axis fsdp of size 8 does not fit 4 devices\. .* with fsdp=4, the nearest that fits",
    "--gin.partition.Partition.mesh={'slice':2,'data':-1} --topology=v5e:2x2 --num_slices=4":
        r"mesh axis slice of size 2 does not fit 4 slices\. .* Set slice to 4 in --gin\.partition",
    "--gin_file=partition/tensor.gin":
        r"""axis heads of size 6 .* model = 8\. .* --gin\S+mesh='{"data": -1, "model": 2}', the nearest""",
    "--gin.partition.Partition.rules={'bacth':'data'}":
        r"bacth in Partition\.rules is no logical axis\. Nearest: batch",
    "--gin.partition.Partition.rules={'batch':'dta'}": r"dta in Partition\.rules is no mesh axis\. Nearest: data",
    "--gin.partition.Partition.mesh={'dta':-1}": r"dta in Partition\.mesh is no mesh axis\. Nearest: data",
    "--topology=": r"--topology= names no TPU generation\.",
    "--topology=v9:4x4": r"--topology=v9:4x4 names no TPU generation\.",
    "--topology=v5e:4x4x4": r"--topology=v5e:4x4x4 has no shape of 2 sizes\. .* --topology=v5e:4x4",
    "--topology=v5litepod-12": r"--topology=v5litepod-12 is no accelerator type of v5e\.",
}  # fmt: skip


@pytest.mark.parametrize("flags", WRONG)
def test_what_does_not_fit_is_named(flags, dry_run):
    status, text = dry_run("t5_1_1_small", *flags.split())
    assert status == 2
    assert re.match(r"t5x_lite: error: [^\n]+\n\Z", text)
    assert re.search(WRONG[flags], text), text


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "gin/examples").glob("c4_*.gin")))
def test_the_examples_fit_the_slices_that_they_name(example, capfd):
    """The command of the file's own header."""
    header = (ROOT / "gin/examples" / example).read_text()
    command = re.search(r"t5x_lite (train --dry_run .*)", header)[1]
    assert example in command
    assert cli.run(command.split()) == 0
    printed = capfd.readouterr().out
    assert "2048 rows of 512 + 114 tokens a batch" in printed
    assert re.search(r"Expected, as --dry_run counts: (.* a device)\.", header)[1] in printed
