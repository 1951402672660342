"""The architectures of the T5 paper's section 3.2 and later ones: against a numpy T5, and by their properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_t5
import pytest
from flax import nnx

from t5x_lite.data import packing
from t5x_lite.errors import UserError
from t5x_lite.model import flops, network
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel.partition import Rules, single_device

SMALL = Architecture(
    vocab_size=50,
    embed_dim=12,
    num_heads=3,
    head_dim=5,
    mlp_dim=14,
    encoder_layers=3,
    decoder_layers=3,
    relative_buckets=8,
    relative_max_distance=20,
    norm_epsilon=1e-2,
    dtype="float32",
)
ALONE = {"encoder_layers": 0}
STRUCTURES = {
    "shared": dataclasses.replace(SMALL, structure="shared", mlp_activations=("relu",), tied_head=True),
    "language_model": dataclasses.replace(SMALL, structure="language_model", **ALONE),
    "prefix_lm": dataclasses.replace(SMALL, structure="prefix_lm", mlp_activations=("relu",), tied_head=True, **ALONE),
    "scaled head": dataclasses.replace(SMALL, scaled_head=True),
    "bias per layer": dataclasses.replace(SMALL, relative_bias_per_layer=True),
    "prefix_lm, bias per layer": dataclasses.replace(
        SMALL, structure="prefix_lm", relative_bias_per_layer=True, scan_layers=False, **ALONE
    ),
    "ul2": dataclasses.replace(SMALL, mlp_activations=("silu", "linear")),
    "adapters": dataclasses.replace(SMALL, adapter_dim=4),
    "shared, adapters": dataclasses.replace(SMALL, structure="shared", adapter_dim=4, scan_layers=False),
}
LENGTHS = {"inputs": 12, "targets": 9}


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(single_device()):
        yield


def drawn(arch, seed=0):
    """Parameters of which none is at its trivial start."""
    params = jax.tree.map(np.asarray, network.init(arch, Rules(), jax.random.key(seed)))
    rng = np.random.default_rng(seed)

    def moved(path, x):
        trivial = path[-1].key == "scale" or {"adapter", "wo"} <= {k.key for k in path}
        return x + 0.3 * rng.standard_normal(x.shape, np.float32) if trivial else x

    return jax.tree_util.tree_map_with_path(moved, params)


def convert(arch):
    if arch.decoder_only:
        return lambda arrays, packed: packing.decoder_only(arrays, packed, arch.structure == "prefix_lm")
    return packing.encoder_decoder


def examples(sizes, seed=1):
    rng = np.random.default_rng(seed)
    return [
        {name: rng.integers(2, 50, n).astype(np.int32) for name, n in zip(("inputs", "targets"), size)}
        for size in sizes
    ]


def batch_of(arch, rows, packed):
    return convert(arch)(packing.fill(rows, LENGTHS), packed)


def apply(arch, params, batch):
    graphdef, _, _ = network.split(arch, Rules())
    return np.asarray(jax.jit(lambda p, b: nnx.merge(graphdef, p)(b))(params, jax.tree.map(jnp.asarray, batch)))


@pytest.mark.parametrize("name", STRUCTURES)
def test_logits_equal_those_of_a_numpy_t5_and_packing_changes_none(name):
    arch = STRUCTURES[name]
    params = drawn(arch)
    first, second, third = examples([(5, 4), (6, 3), (11, 8)])
    packed = batch_of(arch, [[first, second], [third]], packed=True)
    apart = batch_of(arch, [[first], [second]], packed=False)
    expected = numpy_t5.logits(arch, params, packed)
    together = apply(arch, params, packed)
    scale = np.abs(expected).max()
    segments = packed["decoder_segment_ids"]
    np.testing.assert_allclose(together[segments > 0], expected[segments > 0], rtol=2e-5, atol=2e-5 * scale)
    alone = apply(arch, params, apart)
    for row in range(2):
        mine = together[0][segments[0] == row + 1]
        np.testing.assert_allclose(mine, alone[row, : len(mine)], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["language_model", "prefix_lm"])
def test_what_a_position_of_a_decoder_alone_depends_on(name):
    """Nothing behind it; in the prefix of a prefix LM, on all of that."""
    arch = STRUCTURES[name]
    params = drawn(arch)
    [example] = examples([(7, 5)])
    batch = batch_of(arch, [[example]] * 12, packed=False)
    tokens = batch["decoder_input_tokens"]
    for row in range(1, 12):  # the first row stays as it is
        tokens[row, row] = tokens[row, row] % 49 + 1
    logits = apply(arch, params, batch)
    for changed in range(1, 12):
        differs = np.any(logits[changed, :12] != logits[0, :12], axis=-1)
        # Position 7 reads the last of 7 inputs, for position 0 reads the start.
        seen_from = 0 if name == "prefix_lm" and changed <= 7 else changed
        assert differs.tolist() == [place >= seen_from for place in range(12)], changed


def test_shared_layers_are_one_array_and_their_gradients_add():
    arch = STRUCTURES["shared"]
    params = drawn(arch)
    assert set(params) == {"token_embedder", "decoder"}
    batch = jax.tree.map(jnp.asarray, batch_of(arch, [examples([(8, 6)])], packed=False))
    graphdef, _, _ = network.split(arch, Rules())
    twice = dataclasses.replace(arch, structure="encoder_decoder")
    graphdef_twice, _, _ = network.split(twice, Rules())
    apart = {
        "token_embedder": params["token_embedder"],
        "decoder": params["decoder"],
        "encoder": {
            "relpos_bias": params["decoder"]["relpos_bias"],
            "encoder_norm": params["decoder"]["decoder_norm"],
            "layers": {
                "pre_attention_layer_norm": params["decoder"]["layers"]["pre_self_attention_layer_norm"],
                "attention": params["decoder"]["layers"]["self_attention"],
                "pre_mlp_layer_norm": params["decoder"]["layers"]["pre_mlp_layer_norm"],
                "mlp": params["decoder"]["layers"]["mlp"],
            },
        },
    }

    def loss(graphdef):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(batch)))))

    shared, separate = loss(graphdef)(params), loss(graphdef_twice)(apart)
    encoder, decoder = separate["encoder"], separate["decoder"]
    for mine, of_encoder, of_decoder in [
        (shared["decoder"]["relpos_bias"], encoder["relpos_bias"], decoder["relpos_bias"]),
        (shared["decoder"]["decoder_norm"], encoder["encoder_norm"], decoder["decoder_norm"]),
        (
            shared["decoder"]["layers"]["self_attention"],
            encoder["layers"]["attention"],
            decoder["layers"]["self_attention"],
        ),
        (shared["decoder"]["layers"]["mlp"], encoder["layers"]["mlp"], decoder["layers"]["mlp"]),
    ]:
        jax.tree.map(
            lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-4, atol=1e-4), mine, of_encoder, of_decoder
        )


@pytest.mark.parametrize("head", [{}, {"scaled_head": True}, {"tied_head": True}], ids=str)
def test_logits_of_every_head_start_with_a_variance_of_one(head):
    arch = dataclasses.replace(SMALL, embed_dim=128, **head)
    params = network.init(arch, Rules(), jax.random.key(2))
    found = apply(arch, params, batch_of(arch, [examples([(8, 6)])] * 4, packed=False))
    assert np.std(found) == pytest.approx(1, rel=0.15)


def test_new_adapters_change_nothing_and_have_the_size_of_the_paper():
    """2 d_model d a block; d = 32 makes 1,179,648 parameters of T5 1.0 base, and each adapter has a norm."""
    plain = dataclasses.replace(SMALL, adapter_dim=0)
    with_new = dataclasses.replace(SMALL, adapter_dim=4)
    params = drawn(plain)
    _, adapters = network.split_adapters(network.init(with_new, Rules(), jax.random.key(1)))
    batch = batch_of(plain, [examples([(8, 6)])], packed=False)
    both = network.with_adapters(params, adapters)
    np.testing.assert_array_equal(apply(with_new, both, batch), apply(plain, params, batch))
    others, again = network.split_adapters(both)
    assert jax.tree.structure(others) == jax.tree.structure(params)
    assert jax.tree.structure(again) == jax.tree.structure(adapters)

    base = Architecture(
        embed_dim=768, num_heads=12, mlp_dim=3072, encoder_layers=12, decoder_layers=12, mlp_activations=("relu",),
        tied_head=True,
    )  # fmt: skip
    counts = [network.count(network.split(dataclasses.replace(base, adapter_dim=d), Rules())[1]) for d in (0, 32, 2048)]
    assert counts[1] - counts[0] == 1_179_648 + 24 * 768
    assert counts[2] - counts[0] == 24 * (2 * 768 * 2048 + 768)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"structure": "prefix_ml"}, "Architecture.structure is 'prefix_ml'. It must be encoder_decoder or shared or"),
        ({"structure": "prefix_lm"}, "encoder_layers is 3. It must be 0, for a prefix_lm has no encoder. Set --gin."),
        ({"encoder_layers": 0}, "encoder_layers is 0. It must be at least 1 in the structure encoder_decoder"),
        ({"structure": "shared", "decoder_layers": 2}, "It must be equal to decoder_layers, 2: both are the same"),
        ({"adapter_dim": -1}, "Architecture.adapter_dim is -1. It must be a whole number of at least 0"),
        ({"scaled_head": 1}, "Architecture.scaled_head is 1. It must be True or False"),
        ({"tied_head": True, "scaled_head": True}, "scaled_head is True. It must be False where tied_head is True"),
        ({"relative_bias_per_layer": 1}, "Architecture.relative_bias_per_layer is 1. It must be True or False"),
    ],
)
def test_structures_that_cannot_be(changed, text):
    with pytest.raises(UserError) as raised:
        dataclasses.replace(SMALL, **changed)
    assert text in str(raised.value)


@pytest.mark.parametrize("name", ["shared", "language_model", "adapters"])
def test_counted_operations_are_those_of_the_program(name):
    """XLA counts more than matrix products, which are nearly all of a wide model."""
    arch = dataclasses.replace(
        STRUCTURES[name], embed_dim=256, num_heads=4, head_dim=64, mlp_dim=512, vocab_size=512, scan_layers=False,
        adapter_dim=STRUCTURES[name].adapter_dim * 16,
    )  # fmt: skip
    graphdef, shapes, _ = network.split(arch, Rules())
    rows = convert(arch)(packing.fill([[]] * 2, {"inputs": 64, "targets": 32}), False)
    cost = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b)).lower(shapes, rows).cost_analysis()
    assert flops.forward(arch, 64, 32) * 2 == pytest.approx(cost["flops"], rel=0.04)
