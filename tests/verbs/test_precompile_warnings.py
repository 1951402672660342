"""Signs of a bad job or program: each is told where it is there, and where it is not, or small, nothing is said."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x_lite import program
from t5x_lite.model import network
from t5x_lite.parallel import collectives, hlo
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.train import optimizer
from t5x_lite.verbs import precompile_warnings
from tests.train import tiny

# What there is nothing to say about.
TRACED = jax.make_jaxpr(lambda x: x)(0.0)
NOTHING = hlo.parse("ENTRY %main (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n")


def job(layout="data", model=None, **changed):
    partition = tiny.shipped(layout)
    return tiny.job(partition, model=dataclasses.replace(tiny.ARCHITECTURE, **model or {}), **changed)


def lay_out(job, devices=2):
    mesh = job.partition.build(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return program.lay_out(job, mesh)


def before(job, devices=2, usable=2.0**20):
    """What is said before compiling, for a chip of `usable` bytes (by default of more than any job fills)."""
    chip = dataclasses.replace(CHIPS["v5e"], usable_hbm_gib=usable / 2**30)
    return precompile_warnings.of_job(job, lay_out(job, devices), TRACED, chip)


# ----------------------------------------------------------------------------------------------------------------------
# Parameters and optimizer state


def whole(said):
    return [line for line in said if line.startswith("unsharded parameters: ")]


def test_parameters_that_are_whole_everywhere_and_fill_a_twentieth_of_the_memory():
    held = 4 * network.count(lay_out(job()).params)
    assert not whole(before(job(), usable=20 * held))
    [said] = whole(before(job(), usable=20 * held - 1))
    assert f"every device holds {held / 2**20:.1f} MiB of them whole; partition/fsdp.gin" in said
    assert not whole(before(job(), devices=1, usable=1))


def test_parameters_that_are_cut_are_not_counted_as_whole():
    cut = job("fsdp", model={"embed_dim": 4096})
    params = jax.tree_util.tree_leaves_with_path(lay_out(cut).params)
    # Norms and position biases have no side to cut.
    held = 4 * sum(leaf.size for path, leaf in params if re.search("norm|bias", jax.tree_util.keystr(path)))
    assert 0 < held < 4 * sum(leaf.size for _, leaf in params) / 10
    assert not whole(before(cut, usable=20 * held))
    assert f" {held / 2**20:.1f} MiB of them" in whole(before(cut, usable=20 * held - 1))[0]


def unfactored(said):
    """(name, shape, MiB a device) of each whole second moment that is told of."""
    pattern = (
        r"unfactored optimizer state: (\S+) of shape (\(.*\)) keeps a whole second moment, (\S+) MiB a device: one"
    )
    return {found.groups() for line in said if (found := re.match(pattern, line))}


KERNELS = {
    (f"{stack}.layers.mlp.{name}.kernel", shape)
    for stack in ("encoder", "decoder")
    for name, shape in {"wi_0": "(2, 64, 8193)", "wi_1": "(2, 64, 8193)", "wo": "(2, 8193, 64)"}.items()
}


def test_second_moments_that_are_large_and_not_factored():
    wide = {"embed_dim": 64, "mlp_dim": 8193}
    from_128, from_64 = (optimizer.adafactor(min_dim_size_to_factor=least) for least in (128, 64))
    found = unfactored(before(job(model=wide, optimizer=from_128)))
    assert found == {(name, shape, "4.0") for name, shape in KERNELS}
    assert not unfactored(before(job(model=wide, optimizer=from_64)))
    # 4 MiB a device are not worth a word, and each of two devices has half.
    assert not unfactored(before(job(model=wide | {"mlp_dim": 8192}, optimizer=from_128)))
    assert not unfactored(before(job("fsdp", model=wide, optimizer=from_128)))
    twice = unfactored(before(job("fsdp", model=wide | {"mlp_dim": 2 * 8193}, optimizer=from_128)))
    assert {mib for *_, mib in twice} == {"4.0"} and len(twice) == len(KERNELS)


def test_the_second_moment_of_a_table_is_one_of_no_stack():
    long = job(model={"embed_dim": 32, "vocab_size": 2**16}, optimizer=optimizer.adafactor(min_dim_size_to_factor=128))
    assert unfactored(before(long)) == {
        ("token_embedder.embedding", "(65536, 32)", "8.0"), ("decoder.logits_dense.kernel", "(32, 65536)", "8.0")
    }  # fmt: skip


def test_the_second_moment_of_a_vector_has_nothing_to_factor():
    """Norms of 2**20 numbers in each of two layers, 8 MiB."""
    assert not unfactored(before(job(model={"embed_dim": 2**20})))


def test_moments_as_large_as_the_parameters():
    def moments(said):
        return [line for line in said if "whole moments take" in line]

    adam = {"optimizer": optimizer.adamw_rms()}
    large = {"vocab_size": 2**17}
    count = network.count(lay_out(job(model=large, **adam)).params)
    [said] = moments(before(job(model=large, **adam)))
    assert f"whole moments take {2 * 4 * count / 2**20:.1f} MiB a device; optim/adafactor.gin" in said
    assert not unfactored(before(job(model=large, **adam)))  # there is one line for all
    assert not moments(before(job(model=large)))  # Adafactor
    # Half of them on each of two devices, below 64 MiB.
    assert 2**26 < 2 * 4 * count < 2**27
    assert not moments(before(job("fsdp", model=large, **adam)))


# ----------------------------------------------------------------------------------------------------------------------
# Compiled programs


@pytest.mark.parametrize("kind, op_name, told", [
    ("all-reduce", "jit(step)/jvp(encoder)/while/body/checkpoint/convert_element_type", True),
    ("all-reduce", "jit(step)/jvp(encoder)/while/body/checkpoint/transpose", True),
    ("all-reduce", "jit(step)/jvp(encoder)/while/body/checkpoint/reshard", True),
    ("all-reduce", "jit(step)/transpose(jvp(encoder))/while/body/checkpoint/rematted_computation/layer/reshard", True),
    ("all-gather", "jit(step)/jvp(encoder)/while/body/checkpoint/convert_element_type", False),
    ("all-reduce", "jit(step)/transpose(jvp(encoder))/while/body/convert_element_type", False),
    ("all-reduce", "jit(step)/jvp(encoder)/while/body/dot_general", False),
])  # fmt: skip
def test_gathers_that_became_all_reduces(kind, op_name, told):
    """Of a kernel of 256 x 1024 in bfloat16, in each of twelve layers, over 16 devices."""
    module = hlo.parse(
        f"""HloModule jit_step

%body (arg: (s32[], bf16[256,1024])) -> (s32[], bf16[256,1024]) {{
  %arg = (s32[], bf16[256,1024]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %kernel = bf16[256,1024]{{1,0}} get-tuple-element(%arg), index=1
  %whole = bf16[256,1024]{{1,0}} {kind}(%kernel), channel_id=1, replica_groups=[1,16]<=[16], metadata={{op_name="{op_name}"}}
  ROOT %out = (s32[], bf16[256,1024]{{1,0}}) tuple(%i, %whole)
}}

%condition (arg: (s32[], bf16[256,1024])) -> pred[] {{
  %arg.1 = (s32[], bf16[256,1024]{{1,0}}) parameter(0)
  %turns = s32[] constant(12)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[] compare(%i.1, %turns), direction=LT
}}

ENTRY %main (a: s32[], b: bf16[256,1024]) -> (s32[], bf16[256,1024]) {{
  %a = s32[] parameter(0)
  %b = bf16[256,1024]{{1,0}} parameter(1)
  %tuple = (s32[], bf16[256,1024]{{1,0}}) tuple(%a, %b)
  ROOT %loop = (s32[], bf16[256,1024]{{1,0}}) while(%tuple), condition=%condition, body=%body
}}
"""  # noqa: E501
    )
    places = np.stack(np.unravel_index(np.arange(16), (4, 4)), axis=1)
    mesh = {"slice": 1, "data": 1, "fsdp": 16, "model": 1}
    torus = collectives.Torus(mesh, places, (4, 4), (False, False), CHIPS["v5e"])
    found = collectives.found(module, torus)
    assert [(one.kind, one.times) for one in found] == [(kind, 12)]
    reasons = {
        128: "the shards of 128 over 16 devices are too thin; let fsdp be at most 8 and data take the rest",
        8: "the shards of 8 over 16 devices are too thin; let fsdp be at most 1 and data take the rest",
        256: "the compiler does not gather 256 over 16 devices; set others with --gin.partition.Partition.mesh",
    }
    for embed, reason in reasons.items():
        of = job("fsdp", model={"embed_dim": embed})
        said = precompile_warnings.of_program(of, lay_out(of), NOTHING, found)
        # A ring of 16 sends each of 15 parts twice.
        sent = 12 * 2 * 15 / 16 * 256 * 1024 * 2 / 2**20
        assert said == ([
            f"gathers turned into all-reduces: 12 a step send {sent:.1f} MiB a device, twice what a gather would: "
            + reason
        ] if told else [])  # fmt: skip
    # Copies of the weight, and what is not cut at all, have nothing to gather: they add up gradients.
    copies = [dataclasses.replace(one, axes=("data",)) for one in found]
    assert not precompile_warnings.of_program(of, lay_out(of), NOTHING, copies)
    whole = job("data")
    assert not precompile_warnings.of_program(whole, lay_out(whole), NOTHING, found + copies)


def compiled(of, whole, width, devices=2):
    """A program that makes an array of 16 rows x 16 tokens x `width`, whole on each device or cut as its rows are."""
    laid = lay_out(of, devices)
    rows = jax.ShapeDtypeStruct((16, 16, 1), jnp.float32, sharding=laid.batch_sharding)

    def step(x):
        wide = jnp.tanh(jnp.broadcast_to(x, (16, 16, width)))
        return jnp.exp(jax.sharding.reshard(wide, P())) if whole else jnp.exp(wide)

    with jax.set_mesh(laid.mesh):
        text = jax.jit(step).lower(rows).compile().as_text()
    return precompile_warnings.of_program(of, laid, hlo.parse(text), [])


def test_large_arrays_that_hold_the_rows_of_all_devices():
    lengths = {"feature_lengths": {"inputs": 16, "targets": 10}}
    width = 2**26 // (16 * 16 * 4) + 1  # 64 MiB are not large yet
    [said] = compiled(job(**lengths), whole=True, width=width)
    assert re.fullmatch(
        rf"unsharded large array: every device holds all 16 rows of \[16, 16, {width}\], made by jit\(step\)/\w+", said
    )
    # Of half as many rows at a time all are 16, too.
    assert compiled(job(batch_size=32, microbatches=2, **lengths), whole=True, width=width) == [said]
    assert compiled(job(**lengths), whole=False, width=2 * width) == []
    assert compiled(job(**lengths), whole=True, width=width - 1) == []
    assert compiled(job(**lengths), whole=True, width=width, devices=1) == []
    # Neither rows nor lengths of this job.
    assert compiled(job(batch_size=8, **lengths), whole=True, width=width) == []
    assert compiled(job(), whole=True, width=width) == []
