"""Cached greedy decoding against the full forward pass run again at each length."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from t5x_lite import program
from t5x_lite.model import network
from tests.train import tiny

LENGTH, EOS = 9, 1
VERSIONS = {
    "1.0": dataclasses.replace(tiny.ARCHITECTURE, mlp_activations=("relu",), tied_head=True),
    "1.1": tiny.ARCHITECTURE,
}


def inputs(rows=8, length=12):
    """Rows of 1 to `length` tokens, padded."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(2, 96, (rows, length)).astype(np.int32)
    tokens[np.arange(length) >= np.linspace(1, length, rows).astype(int)[:, None]] = 0
    return tokens


@pytest.fixture(scope="module", params=VERSIONS)
def setting(request):
    """A model that ends some sequences early and others not, and its decoding by the full forward pass."""
    arch = VERSIONS[request.param]
    job = tiny.job(model=arch)
    with jax.set_mesh(job.partition.build(jax.devices()[:1])):
        laid = program.lay_out(job, jax.sharding.get_mesh())
        params = jax.device_get(network.init(arch, laid.rules, jax.random.key(5)))
        score = program.score_step(laid)
        forward = jax.jit(lambda p, b: nnx.merge(laid.graphdef, p)(b))

        def reference(eos):
            tokens = inputs()
            output = np.zeros((len(tokens), LENGTH), np.int32)
            for at in range(LENGTH):
                shifted = np.pad(output[:, :-1], ((0, 0), (1, 0)))
                logits = forward(params, {"encoder_input_tokens": tokens, "decoder_input_tokens": shifted})
                ended = (output[:, :at] == eos).any(axis=1)
                output[:, at] = np.where(ended, 0, np.argmax(np.asarray(logits)[:, at], axis=-1))
            return output

        def teacher_forced(output, eos):
            ends = np.cumsum(output == eos, axis=1) - (output == eos)
            batch = {
                "encoder_input_tokens": inputs(),
                "decoder_input_tokens": np.pad(output[:, :-1], ((0, 0), (1, 0))),
                "decoder_target_tokens": output,
                "decoder_loss_weights": (ends == 0).astype(np.float32),
            }
            return np.asarray(score(params, batch)[0]).sum(axis=1)

        # An end token that an untrained model does produce: the one found at the third place of some row.
        eos = int(reference(-1)[4, 3])
        yield job, params, eos, reference(eos), teacher_forced


def decoded(job, params, eos, devices, length=LENGTH):
    with jax.set_mesh(job.partition.build(jax.devices()[:devices])):
        laid = program.lay_out(job, jax.sharding.get_mesh())
        params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, laid.params)
        tokens = jax.device_put(inputs(), laid.batch_sharding)
        return jax.device_get(program.greedy_step(laid, length, eos)(params, tokens))


@pytest.mark.parametrize("layout", ["one device", "2d", "unrolled"])
def test_cached_decoding_equals_the_full_forward_pass(setting, layout):
    job, params, eos, expected, teacher_forced = setting
    ended = (expected == eos).any(axis=1)
    assert ended.any() and not ended.all()  # both kinds are tried
    devices = 1
    if layout == "2d":
        job, devices = dataclasses.replace(job, partition=tiny.shipped("2d")), 8
    elif layout == "unrolled":
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, scan_layers=False))
    output, scores = decoded(job, params, eos, devices)
    np.testing.assert_array_equal(output, expected)
    # The scores are those of the same tokens when they are given.
    np.testing.assert_allclose(scores, teacher_forced(expected, eos), rtol=1e-4, atol=1e-4)


def test_nothing_follows_the_end_and_shorter_is_a_prefix(setting):
    job, params, eos, expected, _ = setting
    output, scores = decoded(job, params, eos, 1, length=4)
    np.testing.assert_array_equal(output, expected[:, :4])
    for row in expected:
        ends = np.flatnonzero(row == eos)
        assert len(ends) <= 1
        if len(ends):
            assert not row[ends[0] + 1 :].any()
    assert (scores < 0).all()
