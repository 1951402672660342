"""The estimate of memory, against the peaks of the TPU compiler and against itself."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from t5x_lite import cli, config, memory, parameter_table, program
from t5x_lite.job import UNUSED_WHEN_DRY
from t5x_lite.parallel import chips
from t5x_lite.parallel.partition import Partition
from t5x_lite.tpu import hardware
from tests.train import tiny

# Real train steps compiled by libtpu; make_tpu_memory.py wrote it.
COMPILED = json.loads((Path(__file__).parent / "references/tpu_memory.json").read_text())


def estimated(flags):
    """The estimate of a dry run's flags, and its device's usable bytes."""

    def values(name):
        return [flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}=")]

    bindings = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
    job = config.build(config.load(values("gin_file"), bindings, optional=UNUSED_WHEN_DRY))
    wanted, slices = hardware.parse(values("topology")[0]), int((values("num_slices") or [1])[0])
    chip = chips.CHIPS[wanted.generation]
    mesh = job.partition.abstract(slices * wanted.chips * chip.devices_per_chip, slices)
    with jax.sharding.use_abstract_mesh(mesh):
        return memory.estimate(job, program.lay_out(job, mesh)), chip.usable_hbm_gib * 2**30


@pytest.mark.parametrize("name", COMPILED)
def test_the_estimate_is_near_the_compilers_peak(name):
    found, usable = estimated(COMPILED[name]["flags"])
    assert found.peak == pytest.approx(COMPILED[name]["peak_bytes"], rel=0.15)
    assert (found.peak <= usable) == ("refused_above_bytes" not in COMPILED[name])


@pytest.mark.parametrize("name", [name for name in COMPILED if name.startswith("c4_")])
def test_an_examples_header_says_what_the_compiler_found(name):
    header = (config.root() / "examples" / f"{name}.gin").read_text()
    _, usable = estimated(COMPILED[name]["flags"])
    gib = COMPILED[name]["peak_bytes"] / 2**30
    assert f"# A step needs {gib:.2f} GiB of {usable / 2**30:.2f} usable, by libtpu" in header


def of(layout=tiny.ONE, devices=1, **changed):
    job = tiny.job(layout, **changed)
    mesh = layout.abstract(devices)
    with jax.sharding.use_abstract_mesh(mesh):
        laid = program.lay_out(job, mesh)
        return memory.estimate(job, laid), laid


def test_state_is_what_the_program_holds():
    found, laid = of(Partition({"fsdp": 4, "model": 2}, {"batch": "fsdp", "embed": "fsdp", "mlp": "model"}), 8)
    assert found.parameters == parameter_table.bytes_a_device(laid.params)
    assert found.optimizer == parameter_table.bytes_a_device(laid.state["opt_state"])
    assert found.peak == sum(found.kinds().values())


def test_what_computes_more_keeps_less():
    # Wide and long enough that what layers keep decides.
    model = dataclasses.replace(tiny.ARCHITECTURE, encoder_layers=8, decoder_layers=8)
    sizes = {"batch_size": 256, "feature_lengths": {"inputs": 128, "targets": 64}}
    peaks = [of(model=dataclasses.replace(model, remat=policy), **sizes)[0].peak for policy in ("none", "dots", "full")]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 3
    whole, parts = (of(model=model, microbatches=n, **sizes)[0] for n in (1, 4))
    assert parts.activations == pytest.approx(whole.activations / 4, rel=0.1)
    assert parts.gradients >= whole.gradients
    alone, shared = (of(Partition({"data": n}, {"batch": "data"}), n, model=model, **sizes)[0] for n in (1, 4))
    assert shared.parameters == alone.parameters
    assert shared.activations == pytest.approx(alone.activations / 4, rel=0.1)


def test_frozen_parameters_have_no_gradients():
    sizes = {"batch_size": 4}
    assert of(trainable=["norm"], **sizes)[0].gradients < of(**sizes)[0].gradients / 10


TOO_LARGE = [
    "--gin_file=models/t5_1_1_base.gin", "--gin_file=runs/pretrain.gin", "--gin_file=partition/fsdp.gin",
    "--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=2048", "--topology=v5e:4x4",
]  # fmt: skip


def test_a_dry_run_says_that_a_job_does_not_fit_and_what_would(capsys):
    def run(*flags):
        assert cli.run(["train", "--dry_run", *TOO_LARGE, *flags]) == 0
        return capsys.readouterr().out

    said = re.search(r"^warning: does not fit: 15\.75 GiB of a device are usable, .*", run(), re.MULTILINE)[0]
    changes = re.findall(r"--\S+=\w+", said)
    assert [change.partition("=")[0] for change in changes] == [
        "--gin.architecture.Architecture.remat", "--gin.MICROBATCHES", "--gin.BATCH_SIZE",
    ]  # fmt: skip
    for change in changes:
        assert "\nfits: 15.75 GiB of a device are usable\n" in run(change)


def test_a_dry_run_says_where_no_change_but_a_larger_slice_would_do(capsys):
    flags = ["--gin_file=models/t5_1_1_xxl.gin", "--gin_file=partition/data.gin", "--gin.BATCH_SIZE=16"]
    assert cli.run(["train", "--dry_run", *TOO_LARGE, *flags]) == 0
    assert "usable, the step needs an estimated" in (said := capsys.readouterr().out)
    assert "No smaller batch would do: it needs a larger slice" in said
