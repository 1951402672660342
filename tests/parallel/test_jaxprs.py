"""What a traced program computes and keeps, against formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from t5x_lite.model import flops as formula
from t5x_lite.model import loss, network
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel import jaxprs
from t5x_lite.parallel.partition import Rules, single_device


def traced(function, *arguments):
    return jax.jit(function).trace(*arguments).jaxpr


def test_a_product_in_a_scan_counts_each_time():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))
    once = 2 * 4 * 8 * 8
    assert jaxprs.flops(traced(jnp.dot, x, w)) == once

    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=11)[0]

    assert jaxprs.flops(traced(scanned, x, w)) == 11 * once
    # Backward: with respect to the input and to the weight.
    assert jaxprs.flops(traced(jax.grad(lambda x, w: scanned(x, w).sum(), (0, 1)), x, w)) == 3 * 11 * once


def test_loops_that_may_end_early_count_in_full_and_branches_as_the_longest():
    x = jnp.ones((8, 8))
    once = 2 * 8**3

    def decode(x):
        return jax.lax.while_loop(lambda c: (c[1] < 9) & jnp.any(c[0] < 0), lambda c: (c[0] @ c[0], c[1] + 1), (x, 0))[
            0
        ]

    assert jaxprs.flops(traced(decode, x)) == 9 * once
    branch = jax.lax.cond
    assert jaxprs.flops(traced(lambda x: branch(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), x)) == 2 * once


def test_a_manual_region_counts_for_each_device():
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    f = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("x", None), P()), out_specs=P("x", None))
    assert jaxprs.flops(traced(f, jnp.ones((4, 8)), jnp.ones((8, 8)))) == 2 * 4 * 8 * 8


SMALL = Architecture(
    vocab_size=128, embed_dim=32, num_heads=2, head_dim=16, mlp_dim=64, encoder_layers=3, decoder_layers=3
)


def gradient(arch, rows=4, inputs=24, targets=16):
    """The traced gradient of a batch, on one device."""
    with jax.set_mesh(single_device()):
        graphdef, params, _ = network.split(arch, Rules())
        batch = {
            "encoder_input_tokens": jax.ShapeDtypeStruct((rows, inputs), jnp.int32),
            "decoder_input_tokens": jax.ShapeDtypeStruct((rows, targets), jnp.int32),
            "decoder_target_tokens": jax.ShapeDtypeStruct((rows, targets), jnp.int32),
            "decoder_loss_weights": jax.ShapeDtypeStruct((rows, targets), jnp.int32),
        }

        def f(params, batch):
            return jax.grad(lambda p: loss.batch_loss(graphdef, p, batch, None)[0])(params)

        return traced(f, params, batch)


@pytest.mark.parametrize("structure", ["encoder_decoder", "shared"])
def test_a_gradient_costs_what_the_formula_says(structure):
    arch = dataclasses.replace(SMALL, structure=structure)
    counted = jaxprs.flops(gradient(arch))
    # Attention's gradient computes the scores, queries times keys, a second time, which the formula does not count.
    scores = 24 * 24 * arch.encoder_layers + (16 * 16 + 16 * 24) * arch.decoder_layers
    again = 2 * 4 * scores * arch.num_heads * arch.head_dim
    assert counted == pytest.approx(formula.train_step(arch, 4, 24, 16) + again, rel=0.01)


def test_unrolled_layers_cost_as_much_as_a_loop_over_them():
    unrolled = dataclasses.replace(SMALL, scan_layers=False)
    assert jaxprs.flops(gradient(unrolled)) == pytest.approx(jaxprs.flops(gradient(SMALL)), rel=0.01)


def test_remat_computes_more_and_keeps_less():
    found = {remat: gradient(dataclasses.replace(SMALL, remat=remat)) for remat in ("none", "dots", "inner", "full")}
    work = {remat: jaxprs.flops(jaxpr) for remat, jaxpr in found.items()}
    kept = {remat: jaxprs.kept_for_backward(jaxpr) for remat, jaxpr in found.items()}
    assert work["none"] < work["dots"] < work["inner"] < work["full"]
    assert kept["none"] > kept["dots"] > kept["inner"] > kept["full"]
    # Of each layer its input in bfloat16 at least.
    assert kept["full"] > 2 * 3 * 4 * (24 + 16) * 32


def test_a_bias_for_every_row_is_seen_in_its_gradient():
    def attention(bias, x, per_row):
        def layer(c, _):
            whole = jnp.broadcast_to(bias, (5, 2, 6, 6)) if per_row else bias
            return c * jnp.exp(whole), None

        if per_row:
            whole = jnp.broadcast_to(bias, (5, 2, 6, 6))
            return jax.lax.scan(lambda c, _: (c * jnp.exp(whole), None), x, None, length=3)[0].sum()
        return jax.lax.scan(layer, x.sum(0, keepdims=True), None, length=3)[0].sum()

    bias, x = jnp.ones((1, 2, 6, 6)), jnp.ones((5, 2, 6, 6))
    per_row = traced(jax.grad(lambda b: attention(b, x, True)), bias)
    shared = traced(jax.grad(lambda b: attention(b, x, False)), bias)
    assert (5, 2, 6, 6) in jaxprs.summed_over_rows(per_row, 5, 2)
    assert jaxprs.summed_over_rows(shared, 5, 2) == []
    assert jaxprs.summed_over_rows(gradient(SMALL), 4, 2) == []
