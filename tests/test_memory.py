"""The estimate of memory, against the peaks of the TPU compiler and against itself."""

import dataclasses
import json
import re
import shlex
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
REMATS = ("none", "dots", "inner", "full")  # from what keeps the most to what keeps the least


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
        return memory.estimate(job, program.lay_out(job, mesh), wanted.generation), chip.usable_bytes


@pytest.mark.parametrize("name", COMPILED)
def test_the_estimate_is_near_the_compilers_peak(name):
    found, usable = estimated(COMPILED[name]["flags"])
    assert found.peak == pytest.approx(COMPILED[name]["peak_bytes"], rel=memory.ERROR)
    assert (found.peak <= usable) == COMPILED[name]["fits"]


@pytest.mark.parametrize("name", [name for name in COMPILED if name.startswith("c4_")])
def test_an_examples_header_says_what_the_compiler_found(name):
    header = (config.root() / "examples" / f"{name}.gin").read_text()
    _, usable = estimated(COMPILED[name]["flags"])
    gib = COMPILED[name]["peak_bytes"] / 2**30
    assert f"# A step needs {gib:.2f} GiB of {usable / 2**30:.2f} usable, by libtpu" in header


def laid_out(layout=tiny.ONE, devices=1, **changed):
    job = tiny.job(layout, **changed)
    with jax.sharding.use_abstract_mesh(mesh := layout.abstract(devices)):
        return job, program.lay_out(job, mesh)


def of(*layout, **changed):
    job, laid = laid_out(*layout, **changed)
    with jax.sharding.use_abstract_mesh(laid.mesh):
        return memory.estimate(job, laid), laid


def kept(*layout, **changed):
    job, laid = laid_out(*layout, **changed)
    with jax.sharding.use_abstract_mesh(laid.mesh):
        return memory.kept(job, laid)


def test_state_is_what_the_program_holds():
    found, laid = of(Partition({"fsdp": 4, "model": 2}, {"batch": "fsdp", "embed": "fsdp", "mlp": "model"}), 8)
    assert found.parameters == parameter_table.bytes_a_device(laid.params)
    assert found.optimizer == parameter_table.bytes_a_device(laid.state["opt_state"])
    assert found.peak == sum(found.kinds().values())


def test_what_computes_more_keeps_less():
    # Wide and long enough that what layers keep decides.
    model = dataclasses.replace(tiny.ARCHITECTURE, encoder_layers=8, decoder_layers=8)
    sizes = {"batch_size": 256, "feature_lengths": {"inputs": 128, "targets": 64}}
    peaks = [of(model=dataclasses.replace(model, remat=policy), **sizes)[0].peak for policy in REMATS]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    whole, parts = (of(model=model, microbatches=n, **sizes)[0] for n in (1, 4))
    assert parts.activations == pytest.approx(whole.activations / 4, rel=0.1)
    assert parts.gradients >= whole.gradients
    alone, shared = (of(Partition({"data": n}, {"batch": "data"}), n, model=model, **sizes)[0] for n in (1, 4))
    assert shared.parameters == alone.parameters
    assert shared.activations == pytest.approx(alone.activations / 4, rel=0.1)


def test_frozen_parameters_have_no_gradients():
    sizes = {"batch_size": 4}
    assert of(trainable=["norm"], **sizes)[0].gradients < of(**sizes)[0].gradients / 10


@pytest.mark.parametrize("structure", ["encoder_decoder", "language_model"])
@pytest.mark.parametrize("remat", REMATS)
def test_what_is_kept_is_what_the_loops_over_layers_stack(structure, remat):
    """Against the whole train step, traced: a stack of L layers keeps L times what one of them does."""
    lone = structure != "encoder_decoder"
    model = dataclasses.replace(
        tiny.ARCHITECTURE, structure=structure, remat=remat, encoder_layers=0 if lone else 2, adapter_dim=8
    )
    sizes = {"batch_size": 8, "feature_lengths": {"inputs": 16, "targets": 8}}
    two = kept(model=model, **sizes)
    four = kept(model=dataclasses.replace(model, encoder_layers=0 if lone else 4, decoder_layers=4), **sizes)
    job = tiny.job(model=model, **sizes)
    with jax.set_mesh(mesh := tiny.ONE.build(jax.devices()[:1])):
        laid = program.lay_out(job, mesh)
        traced = program.train_step(job, laid).trace(laid.state, program.abstract_batch(job, laid)).jaxpr
    stacked = {"encoder": 0, "decoder": 0}
    for name, array in stacks(traced.jaxpr, layers=2):
        stacked["encoder" if "encoder" in name else "decoder"] += array.size * array.dtype.itemsize
    assert four.decoder - two.decoder == stacked["decoder"] > 0
    assert four.encoder - two.encoder == stacked["encoder"]
    assert bool(stacked["encoder"]) == (not lone)
    assert four.logits == two.logits == 4 * 8 * (24 if lone else 8) * 96


def stacks(jaxpr, layers):
    """What the loops of the forward pass give out, one for each layer: (names, array)."""
    for equation in jaxpr.eqns:
        name = str(equation.source_info.name_stack)
        if equation.primitive.name == "scan" and equation.params["length"] == layers and "transpose" not in name:
            yield from ((name, out.aval) for out in equation.outvars[equation.params["num_carry"] :])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from stacks(inner, layers)


TOO_LARGE = [
    "--gin_file=models/t5_1_1_base.gin", "--gin_file=runs/pretrain.gin", "--gin_file=partition/fsdp.gin",
    "--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=2048", "--topology=v5e:4x4",
]  # fmt: skip


def dry_run(capsys, *flags):
    status = cli.run(["train", "--dry_run", *TOO_LARGE, *flags])
    return status, "".join(capsys.readouterr())


def test_a_job_that_does_not_fit_is_refused_with_what_would(capsys):
    status, said = dry_run(capsys)
    refusal = re.search(
        r"^t5x_lite: error: the job does not fit on 1 x v5litepod-16\. 15\.75 GiB of a device are usable, and a step "
        r"needs an estimated \S+ GiB\. It would fit with (.*)\.$",
        said, re.MULTILINE,
    )  # fmt: skip
    assert status == 1 and refusal, said
    changes = refusal[1].split(" or ")
    assert [change.partition("=")[0] for change in changes] == [
        "--gin.architecture.Architecture.remat", "--gin.MICROBATCHES", "--gin.BATCH_SIZE", "--topology",
    ]  # fmt: skip
    assert changes[-1].startswith("--topology=v5e:")
    for change in changes:
        status, said = dry_run(capsys, *shlex.split(change))
        assert status == 0 and "\nfits: 15.75 GiB of a device are usable" in said, change


@pytest.mark.parametrize("remat", REMATS)
def test_a_policy_that_keeps_less_is_proposed_alone(remat, capsys):
    status, said = dry_run(capsys, f"--gin.architecture.Architecture.remat={remat}", "--gin.BATCH_SIZE=16384")
    proposed = re.findall(r"(?:with|or) --gin\.architecture\.Architecture\.remat=(\w+)", said)
    assert status == 1 and "It would fit with --gin." in said
    assert all(REMATS.index(policy) > REMATS.index(remat) for policy in proposed)


def test_parameters_that_do_not_fit_are_cut(capsys):
    flags = ["--gin_file=models/t5_1_1_xxl.gin", "--gin_file=partition/data.gin", "--gin.BATCH_SIZE=16"]
    status, said = dry_run(capsys, *flags)
    assert status == 1
    change = re.search("It would fit with (.*)\\.$", said, re.MULTILINE)[1]
    assert "--gin_file=partition/hsdp.gin --gin.partition.Partition.mesh=" in change
    assert dry_run(capsys, *flags, *shlex.split(change))[0] == 0


def test_a_job_that_nothing_helps_is_told_so(capsys):
    flags = ["--gin_file=models/ul2_20b.gin", "--gin_file=partition/data.gin", "--gin.BATCH_SIZE=1"]
    status, said = dry_run(capsys, *flags, "--topology=v5e:1x1", "--gin.DATA_SHARDS=1")
    assert status == 1
    assert "No remat, smaller batch, wider cut of parameters or larger slice of the kind would do alone." in said


@pytest.mark.parametrize("part, status, words", [
    (0.5, 0, "\nfits: 15.75 GiB of a device are usable\n"),
    (0.9, 0, "\nfits: 15.75 GiB of a device are usable; the estimate may be 15% off, precompile asks the compiler\n"),
    (1.1, 0, "\nwarning: the job may not fit: 15.75 GiB of a device are usable, and a step needs an estimated 17.3"),
    (1.2, 1, "error: the job does not fit on 1 x v5litepod-16"),
])  # fmt: skip
def test_a_job_near_the_limit_is_left_to_the_compiler(part, status, words, capsys, monkeypatch):
    usable = chips.CHIPS["v5e"].usable_bytes
    found = memory.Estimate(int(part * usable), 0, 0, 0, 0, 0, "the loss")
    monkeypatch.setattr(memory, "estimate", lambda *_: found)
    assert (found := dry_run(capsys))[0] == status
    assert words in found[1]
