"""The train step: the same on every mesh and in any number of parts, skipped when not finite, reproducible."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite import config, program
from t5x_lite.errors import UserError
from t5x_lite.parallel.partition import Partition
from tests.train import tiny

pytestmark = pytest.mark.sharded

BATCHES = [tiny.rows(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def run():
    """The job without changes on one device."""
    return tiny.runner(tiny.job())


@pytest.fixture(scope="module")
def plain(run):
    """Three steps of it, to compare with."""
    return run(BATCHES)


def assert_close(one, other, rtol=2e-4, atol=2e-5):
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree_util.tree_leaves_with_path(other), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * max(1.0, np.abs(a).max()), err_msg=str(path))


def assert_identical(one, other):
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree_util.tree_leaves_with_path(other), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def assert_same_run(one, other):
    """Within float32 reductions in another order: parameters to 2e-5 of their largest, sums to 1e-4."""
    (state, metrics), (state2, metrics2) = one, other
    for a, b in zip(metrics, metrics2, strict=True):
        for name in ("loss", "z_loss", "grad_norm", "update_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
        assert a["weight"] == b["weight"]
        assert a["learning_rate"] == b["learning_rate"]
    assert_close(state, state2)


def test_every_shipped_layout_is_compared():
    assert set(tiny.MESHES) == {path.stem for path in (config.root() / "partition").glob("*.gin")}


@functools.cache
def three_steps(mesh: tuple, rules: tuple, devices: int):
    return tiny.runner(tiny.job(Partition(dict(mesh), dict(rules))), devices)(BATCHES)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("name", tiny.MESHES)
def test_sharded_equals_unsharded(name, devices, plain):
    mesh = {axis: min(size, devices) for axis, size in tiny.MESHES[name].items()}
    layout = dataclasses.replace(tiny.shipped(name), mesh=mesh)
    # On few devices several layouts are one and the same, which is compiled once.
    sizes = tuple((axis, size) for axis, size in layout.sizes(devices).items() if size > 1)
    rules = layout.table().over(layout.abstract(devices)).table
    assert_same_run(plain, three_steps(sizes, rules, devices))


def test_sharded_equals_unsharded_with_dropout():
    changed = {"model": dataclasses.replace(tiny.ARCHITECTURE, dropout_rate=0.2)}
    alone = tiny.runner(tiny.job(**changed))(BATCHES[:2])
    assert_same_run(alone, tiny.runner(tiny.job(tiny.shipped("2d"), **changed), devices=8)(BATCHES[:2]))


@pytest.mark.parametrize(
    ("name", "parts"), [("data", 2), ("fsdp", 2), ("hsdp", 2), ("2d", 4), ("tensor", 4), ("multi_slice", 2), (None, 4)]
)
def test_microbatches_equal_one_batch(name, parts, plain):
    partition, devices = (tiny.on_mesh(name), 8) if name else (tiny.ONE, 1)
    assert_same_run(plain, tiny.runner(tiny.job(partition, microbatches=parts), devices)(BATCHES))


@pytest.mark.parametrize(
    ("changed", "trainable"),
    [
        ({"tied_head": True}, None),
        ({"relative_bias_per_layer": True}, None),
        ({"structure": "language_model", "encoder_layers": 0}, None),
        ({"adapter_dim": 16}, ["adapter", "norm"]),
    ],
)
def test_microbatches_equal_one_batch_in_every_structure(changed, trainable):
    job = tiny.job(model=dataclasses.replace(tiny.ARCHITECTURE, **changed), trainable=trainable)
    parts = dataclasses.replace(job, partition=tiny.on_mesh("hsdp"), microbatches=2)
    assert_same_run(tiny.runner(job)(BATCHES[:2]), tiny.runner(parts, devices=8)(BATCHES[:2]))


def test_copies_of_weights_add_up_their_gradients_once_a_step():
    """Not once a microbatch: between slices that is what crosses the data-centre network."""
    partition = dataclasses.replace(tiny.shipped("multi_slice"), mesh={"slice": 2, "data": 2, "fsdp": 2})
    mesh = partition.build(jax.devices()[:8])
    job = tiny.job(partition, microbatches=4, batch_size=32)
    with jax.set_mesh(mesh):
        laid = program.lay_out(job, jax.sharding.get_mesh())
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=laid.batch_sharding)
            for name, x in tiny.rows(0, 32).items()
        }
        compiled = program.train_step(job, laid).lower(laid.state, batch).compile()
    between = [c for c in tiny.collectives_of(compiled, dict(mesh.shape)) if c.axes == ("slice", "data")]
    weights = [p for p in jax.tree.leaves(laid.params) if "fsdp" in p.sharding.spec]
    assert {c.kind for c in between} == {"all-reduce"}
    assert sum(c.times * c.bytes for c in between) == sum(4 * p.size for p in weights) // 2


@pytest.mark.parametrize(
    "changed",
    [
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "inner"},
        {"scan_layers": False},
        {"scan_layers": False, "remat": "full"},
    ],
)
def test_remat_and_scan_compute_the_same(changed, plain):
    job = tiny.job(model=dataclasses.replace(tiny.ARCHITECTURE, **changed))
    assert_same_run(plain, tiny.runner(job)(BATCHES))


def test_a_batch_that_is_not_finite_is_skipped_and_counted(run):
    weights = np.where(BATCHES[1]["decoder_loss_weights"] > 0, np.float32("inf"), np.float32(0))
    bad = BATCHES[1] | {"decoder_loss_weights": weights}
    before, _ = run(BATCHES[:1])
    after, metrics = run([BATCHES[0], bad, bad])
    assert_identical(before["params"], after["params"])
    assert_identical(before["opt_state"], after["opt_state"])
    assert (after["step"], after["nonfinite_steps"], after["nonfinite_in_a_row"]) == (3, 2, 2)
    assert [bool(m["finite"]) for m in metrics] == [True, False, False]
    # The schedule counts the skipped steps.
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], [0.05, 0.05, 0.05 / 2**0.5], rtol=1e-6)
    recovered, _ = run([BATCHES[0], bad, BATCHES[1], BATCHES[2]])
    assert (recovered["step"], recovered["nonfinite_steps"], recovered["nonfinite_in_a_row"]) == (4, 1, 0)


@pytest.mark.parametrize("kind", ["rate", "update"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(kind):
    """Loss and gradient are finite here: only the rate, or what the optimizer makes of the gradient, is not."""
    from_step = 1

    def rate(step):
        return jnp.where((kind == "rate") & (step >= from_step), jnp.inf, 0.01)

    def scale(updates, state, params=None):
        factor = jnp.where((kind == "update") & (state >= from_step), jnp.nan, 1.0)
        return jax.tree.map(lambda u: factor * u, updates), state + 1

    broken = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), scale)
    run = tiny.runner(tiny.job(learning_rate=rate, optimizer=broken))
    before, _ = run(BATCHES[:1])
    after, metrics = run(BATCHES)
    assert_identical(before["params"], after["params"])
    assert_identical(before["opt_state"], after["opt_state"])
    assert [bool(m["finite"]) for m in metrics] == [True, False, False]
    assert (after["step"], after["nonfinite_steps"], after["nonfinite_in_a_row"]) == (3, 2, 2)
    assert all(np.isfinite(m["grad_norm"]) and np.isfinite(m["update_norm"]) for m in metrics)


def test_gradients_are_those_of_the_mean_over_target_tokens():
    """Against the definition: a small step of plain gradient descent lowers the mean loss by rate * |gradient|^2."""
    changed = {"z_loss": 0.01, "label_smoothing": 0.1, "optimizer": optax.identity()}

    def mean(metrics):
        return (metrics["loss"] + metrics["z_loss"]) / metrics["weight"]

    _, (first, second) = tiny.runner(tiny.job(learning_rate=lambda step: 1e-4, **changed))([BATCHES[0]] * 2)
    assert mean(first) - mean(second) == pytest.approx(1e-4 * first["grad_norm"] ** 2, rel=0.05)


def test_the_loss_normaliser_divides_the_gradient_alone(plain):
    one = plain[1][0]
    _, (other,) = tiny.runner(tiny.job(loss_normalizing_factor=500.0))(BATCHES[:1])
    assert other["grad_norm"] == pytest.approx(one["grad_norm"] * one["weight"] / 500.0, rel=1e-5)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_z_loss_and_label_smoothing_enter(plain):
    small = plain[1][0]
    _, (large,) = tiny.runner(tiny.job(z_loss=1e-2))(BATCHES[:1])
    assert large["z_loss"] == pytest.approx(100 * small["z_loss"], rel=1e-5) and small["z_loss"] > 0
    assert large["loss"] == pytest.approx(small["loss"], rel=1e-5)  # reported without it
    assert large["grad_norm"] != pytest.approx(small["grad_norm"], rel=1e-4)
    _, (smooth,) = tiny.runner(tiny.job(z_loss=0.0, label_smoothing=0.1))(BATCHES[:1])
    assert smooth["z_loss"] == 0
    assert smooth["loss"] != pytest.approx(small["loss"], rel=1e-3)


def test_dropout_follows_seed_and_step():
    model = dataclasses.replace(tiny.ARCHITECTURE, dropout_rate=0.3)
    # Nothing moves, so that steps differ in their dropout alone.
    still = {"model": model, "optimizer": optax.set_to_zero()}
    run = tiny.runner(tiny.job(**still))
    losses = [float(m["loss"]) for m in run([BATCHES[0]] * 3)[1]]
    assert len(set(losses)) == 3
    assert [float(m["loss"]) for m in run([BATCHES[0]] * 3)[1]] == losses
    other = tiny.runner(tiny.job(seed=1, **still))([BATCHES[0]])[1][0]["loss"]
    assert float(other) not in losses


def test_the_optimizer_state_is_cut_as_its_parameters():
    partition = tiny.shipped("fsdp")
    with jax.set_mesh(partition.build(jax.devices())):
        laid = program.lay_out(tiny.job(partition), jax.sharding.get_mesh())
    kernel = laid.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 8, 48)
    # The row means of [embed, mlp] keep embed.
    held = [leaf for leaf in jax.tree.leaves(laid.state["opt_state"]) if leaf.shape == (2, 32)]
    assert any(leaf.sharding.shard_shape(leaf.shape) == (2, 32 // 8) for leaf in held)


def test_frozen_parameters_stay_bit_for_bit_and_cost_no_optimizer_state(plain):
    """The paper's adapters are trained with the norms: `TRAINABLE` is a list of patterns."""
    job = tiny.job(trainable=["norm", "decoder/layers/mlp"])
    state, metrics = tiny.runner(job)(BATCHES)
    moved = set()
    for (path, before), (_, after) in zip(
        jax.tree_util.tree_leaves_with_path(tiny.params()), jax.tree_util.tree_leaves_with_path(state["params"])
    ):
        name = "/".join(key.key for key in path)
        if np.array_equal(before, after):
            assert "norm" not in name and "decoder/layers/mlp" not in name, name
            assert before.tobytes() == after.tobytes()
        else:
            moved.add(name)
    assert moved and all("norm" in name or name.startswith("decoder/layers/mlp/") for name in moved)
    # The same loss as ever at the first step, and the norm of the gradient is of what is trained.
    assert metrics[0]["loss"] == pytest.approx(plain[1][0]["loss"], rel=1e-6)
    assert metrics[0]["grad_norm"] < plain[1][0]["grad_norm"]

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    # Three matrices of the decoder's feed-forward layer in row and column means, norms whole.
    assert size(state["opt_state"]) < size(plain[0]["opt_state"]) / 3


@pytest.mark.parametrize(
    ("trainable", "text"),
    [
        (
            ["adaptor"],
            "TRAINABLE has 'adaptor'. It is found in none of the 29 parameters, such as token_embedder/embed",
        ),
        ("norm", "TRAINABLE is 'norm'. It must be a list of regular expressions, or None for all parameters. Write"),
        ([], r"TRAINABLE is []. It must be a list"),
        (["(norm"], "TRAINABLE has '(norm'. It is no regular expression: missing ), unterminated subpattern"),
    ],
)
def test_what_cannot_be_trained_is_refused(trainable, text):
    with jax.set_mesh(tiny.ONE.build(jax.devices()[:1])), pytest.raises(UserError) as raised:
        program.lay_out(tiny.job(trainable=trainable), jax.sharding.get_mesh())
    assert text in str(raised.value)
