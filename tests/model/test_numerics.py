"""The network against an independent numpy T5, and the facts of the T5 papers about its parameters."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_t5
import pytest
from flax import nnx

from t5x_lite import config
from t5x_lite.model import loss, network
from t5x_lite.model.architecture import Architecture
from t5x_lite.model.attention import relative_bucket
from t5x_lite.parallel.partition import Rules, single_device

# Every size differs from every other, so that no two axes can be confused.
SMALL = Architecture(
    vocab_size=50,
    embed_dim=12,
    num_heads=3,
    head_dim=5,
    mlp_dim=14,
    encoder_layers=2,
    decoder_layers=4,
    relative_buckets=8,
    relative_max_distance=20,
    norm_epsilon=1e-2,
    dtype="float32",
)
VERSIONS = {
    "1.0": dataclasses.replace(SMALL, mlp_activations=("relu",), tied_head=True),
    "1.1": SMALL,
}
PACKED = {
    "encoder_input_tokens": [[7, 8, 9, 1, 20, 21, 1, 0, 0], [3, 4, 5, 6, 7, 8, 9, 2, 1]],
    "encoder_segment_ids": [[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9],
    "decoder_input_tokens": [[0, 30, 31, 0, 32, 33, 34, 0], [0, 11, 12, 13, 0, 14, 0, 0]],
    "decoder_segment_ids": [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0, 0]],
}


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(single_device()):
        yield


def drawn(arch, seed=0):
    """Parameters with norms and biases that are not at their trivial start."""
    params = jax.tree.map(np.asarray, network.init(arch, Rules(), jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 * rng.standard_normal(x.shape, np.float32) if path[-1].key == "scale" else x, params
    )


def apply(arch, params, batch):
    graphdef, _, _ = network.split(arch, Rules())
    batch = {name: jnp.asarray(rows, jnp.int32) for name, rows in batch.items()}
    return np.asarray(jax.jit(lambda p, b: nnx.merge(graphdef, p)(b))(params, batch))


def unpacked(batch_size=2, inputs=30, targets=26, seed=1):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, SMALL.vocab_size, (batch_size, inputs))
    tokens[0, inputs // 2 :] = 0
    decoder = rng.integers(1, SMALL.vocab_size, (batch_size, targets))
    decoder[:, 0] = 0
    return {"encoder_input_tokens": tokens, "decoder_input_tokens": decoder}


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "unrolled"])
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_those_of_a_numpy_t5(version, scan):
    arch = dataclasses.replace(VERSIONS[version], scan_layers=scan)
    params = drawn(arch)
    batch = unpacked()
    expected = numpy_t5.logits(arch, params, batch)
    np.testing.assert_allclose(apply(arch, params, batch), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    if scan:
        expected = numpy_t5.logits(arch, params, PACKED)
        actual = apply(arch, params, PACKED)
        for row, segments in enumerate(PACKED["decoder_segment_ids"]):
            count = np.count_nonzero(segments)
            np.testing.assert_allclose(
                actual[row, :count], expected[row, :count], rtol=2e-5, atol=2e-5 * np.abs(expected).max()
            )


def test_default_buckets_in_a_long_sequence():
    arch = dataclasses.replace(
        SMALL, encoder_layers=1, decoder_layers=1, relative_buckets=32, relative_max_distance=128
    )
    params, batch = drawn(arch), unpacked(batch_size=1, inputs=150, targets=150)
    expected = numpy_t5.logits(arch, params, batch)
    np.testing.assert_allclose(apply(arch, params, batch), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("version", VERSIONS)
def test_packed_examples_have_the_logits_that_they_have_apart(version):
    arch = VERSIONS[version]
    params = drawn(arch)
    together = apply(arch, params, PACKED)[0]
    apart = {
        "encoder_input_tokens": [[7, 8, 9, 1], [20, 21, 1, 0]],
        "decoder_input_tokens": [[0, 30, 31, 0], [0, 32, 33, 34]],
    }
    apart = apply(arch, params, apart)
    np.testing.assert_allclose(together[:3], apart[0, :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together[3:7], apart[1], rtol=1e-5, atol=1e-5)


def test_a_logit_depends_on_no_later_target_and_on_every_input():
    params, batch = drawn(SMALL), unpacked()
    before = apply(SMALL, params, batch)
    changed = batch["decoder_input_tokens"].copy()
    changed[:, 10] = changed[:, 10] % (SMALL.vocab_size - 1) + 1
    after = apply(SMALL, params, batch | {"decoder_input_tokens": changed})
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert np.all(np.any(before[:, 10:] != after[:, 10:], axis=-1))
    changed = batch["encoder_input_tokens"].copy()
    changed[:, 14] = changed[:, 14] % (SMALL.vocab_size - 1) + 1
    after = apply(SMALL, params, batch | {"encoder_input_tokens": changed})
    assert np.all(np.any(before != after, axis=-1))


def test_padding_changes_nothing():
    params, batch = drawn(SMALL), unpacked()
    longer = {name: np.pad(rows, ((0, 0), (0, 7))) for name, rows in batch.items()}
    short, long = apply(SMALL, params, batch), apply(SMALL, params, longer)
    np.testing.assert_allclose(long[:, : short.shape[1]], short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (8, 20)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_follow_the_definition(buckets, max_distance, bidirectional):
    relative = np.arange(-300, 301)
    expected = [numpy_t5.bucket(0, int(r), bidirectional, buckets, max_distance) for r in relative]
    np.testing.assert_array_equal(relative_bucket(relative, bidirectional, buckets, max_distance), expected)


def test_relative_buckets_of_the_paper():
    """32 buckets up to 128: one a distance below 8 (encoder, either side) and 16 (decoder), then logarithmic."""
    encoder = relative_bucket(np.array([0, -1, -7, -8, -15, -16, -127, -128, 1, 7, 8, 128]), True, 32, 128)
    assert encoder.tolist() == [0, 1, 7, 8, 9, 10, 15, 15, 17, 23, 24, 31]
    decoder = relative_bucket(np.array([5, 0, -1, -15, -16, -18, -19, -112, -113, -500]), False, 32, 128)
    assert decoder.tolist() == [0, 0, 1, 15, 16, 16, 17, 30, 31, 31]


# Raffel et al. 2020, section 3.7, and the T5 1.1 release, with a table of 32,128 rows (mT5: 250,112; ByT5: 384).
SIZES = {
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
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
}

# Rows of the table, activations, and whether the head is tied, in each release.
RELU = 32128, ("relu",), True
GATED = 32128, ("gelu", "linear"), False
MT5 = 250112, ("gelu", "linear"), False
UMT5 = 256384, ("gelu", "linear"), False
BYT5 = 384, ("gelu", "linear"), False
# Layers of the encoder and of the decoder, d_model, d_ff, heads, d_kv, and the above.
# Sources: Raffel et al. 2020, tables 2 and 13 and section 3.7; Mesh TensorFlow's t5.1.1.*; t5x's mt5 and byt5; the
# config.json of google/umt5-* and google/ul2. t5_1_0_tiny is ours, after t5.1.1.tiny.
PUBLISHED = {
    "t5_1_0_tiny": (2, 2, 32, 64, 2, 64, *RELU),
    "t5_1_0_small": (6, 6, 512, 2048, 8, 64, *RELU),
    "t5_1_0_base": (12, 12, 768, 3072, 12, 64, *RELU),
    "t5_1_0_base_2x": (16, 16, 1024, 4096, 16, 64, *RELU),
    "t5_1_0_base_4x": (32, 32, 1024, 4096, 16, 64, *RELU),
    "t5_1_0_base_6_layers": (6, 6, 768, 3072, 12, 64, *RELU),
    "t5_1_0_base_shared": (12, 12, 768, 3072, 12, 64, *RELU),
    "t5_1_0_base_lm": (0, 12, 768, 3072, 12, 64, *RELU),
    "t5_1_0_base_prefix_lm": (0, 12, 768, 3072, 12, 64, *RELU),
    "t5_1_0_large": (24, 24, 1024, 4096, 16, 64, *RELU),
    "t5_1_0_3b": (24, 24, 1024, 16384, 32, 128, *RELU),
    "t5_1_0_11b": (24, 24, 1024, 65536, 128, 128, *RELU),
    "t5_1_1_tiny": (2, 2, 32, 64, 2, 64, *GATED),
    "t5_1_1_small": (8, 8, 512, 1024, 6, 64, *GATED),
    "t5_1_1_base": (12, 12, 768, 2048, 12, 64, *GATED),
    "t5_1_1_large": (24, 24, 1024, 2816, 16, 64, *GATED),
    "t5_1_1_xl": (24, 24, 2048, 5120, 32, 64, *GATED),
    "t5_1_1_xxl": (24, 24, 4096, 10240, 64, 64, *GATED),
    "mt5_small": (8, 8, 512, 1024, 6, 64, *MT5),
    "mt5_base": (12, 12, 768, 2048, 12, 64, *MT5),
    "mt5_large": (24, 24, 1024, 2816, 16, 64, *MT5),
    "mt5_xl": (24, 24, 2048, 5120, 32, 64, *MT5),
    "mt5_xxl": (24, 24, 4096, 10240, 64, 64, *MT5),
    "umt5_small": (8, 8, 512, 1024, 6, 64, *UMT5),
    "umt5_base": (12, 12, 768, 2048, 12, 64, *UMT5),
    "umt5_xl": (24, 24, 2048, 5120, 32, 64, *UMT5),
    "umt5_xxl": (24, 24, 4096, 10240, 64, 64, *UMT5),
    "byt5_small": (12, 4, 1472, 3584, 6, 64, *BYT5),
    "byt5_base": (18, 6, 1536, 3968, 12, 64, *BYT5),
    "byt5_large": (36, 12, 1536, 3840, 16, 64, *BYT5),
    "byt5_xl": (36, 12, 2560, 6720, 32, 64, *BYT5),
    "byt5_xxl": (36, 12, 4672, 12352, 64, 64, *BYT5),
    "ul2_20b": (32, 32, 4096, 16384, 16, 256, 32128, ("silu", "linear"), False),
}
STRUCTURES = {
    "t5_1_0_base_shared": "shared",
    "t5_1_0_base_lm": "language_model",
    "t5_1_0_base_prefix_lm": "prefix_lm",
}
MODELS = sorted(path.stem for path in (config.root() / "models").glob("*.gin"))


def from_gin(name, tmp_path):
    """The architecture of a shipped model file, and the text of the file."""
    job = tmp_path / "job.gin"
    job.write_text("from __gin__ import dynamic_registration\nfrom t5x_lite import job\njob.Job.model = %MODEL\n")
    files = [f"models/{name}.gin", str(job)]
    arch = config.load(files, configured="t5x_lite.model.architecture.Architecture")()
    return arch, (config.root() / "models" / f"{name}.gin").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_has_the_published_sizes_and_number_of_parameters(name, tmp_path):
    arch, text = from_gin(name, tmp_path)
    layers, sizes = (arch.encoder_layers, arch.decoder_layers), (arch.embed_dim, arch.mlp_dim)
    heads, rest = (arch.num_heads, arch.head_dim), (arch.vocab_size, arch.mlp_activations, arch.tied_head)
    assert (*layers, *sizes, *heads, *rest) == PUBLISHED[name]
    assert arch.structure == STRUCTURES.get(name, "encoder_decoder")
    assert arch.relative_bias_per_layer == name.startswith("umt5")
    count = network.count(network.split(arch, Rules())[1])
    if name in SIZES:
        assert count == SIZES[name]
    said = re.search(r"(\S+) parameters", text)
    assert said, f"gin/models/{name}.gin does not say how many parameters it has"
    assert said[1] == f"{count:,}"


def test_every_model_file_is_published():
    assert set(MODELS) == PUBLISHED.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_parameters_start_at_the_scale_of_the_releases(version):
    """Standard deviations of Mesh TensorFlow and t5x; the feed-forward ones are cut at two deviations."""
    d, heads, kv, f = 48, 4, 32, 96
    arch = dataclasses.replace(
        VERSIONS[version], vocab_size=600, embed_dim=d, num_heads=heads, head_dim=kv, mlp_dim=f, decoder_layers=2
    )
    params = network.init(arch, Rules(), jax.random.key(0))
    normal, cut = {"embedding": 1.0}, {}
    stds = {"query": (d * kv) ** -0.5, "key": d**-0.5, "value": d**-0.5, "out": (heads * kv) ** -0.5}
    for stack in (
        "encoder/layers/attention",
        "decoder/layers/self_attention",
        "decoder/layers/encoder_decoder_attention",
    ):
        normal |= {f"{stack}/{kernel}": std for kernel, std in stds.items()}
    for stack in ("encoder", "decoder"):
        inward = ["wi"] if version == "1.0" else ["wi_0", "wi_1"]
        cut |= {f"{stack}/layers/mlp/{kernel}": d**-0.5 for kernel in inward} | {f"{stack}/layers/mlp/wo": f**-0.5}
    if version == "1.1":
        cut["decoder/logits_dense"] = d**-0.5

    def at(path):
        leaf = params["token_embedder"] if path == "embedding" else params
        for key in path.split("/"):
            leaf = leaf[key]
        return np.asarray(leaf if path == "embedding" else leaf["kernel"])

    for path, std in (normal | cut).items():
        array = at(path)
        assert array.std() == pytest.approx(std, rel=0.04), path
        assert abs(array.mean()) < 0.05 * std, path
        # The deviation of a unit normal cut at 2 is 0.88, so the cut lies at 2.27 deviations.
        assert (np.abs(array).max() < 2.28 * std) == (path in cut), path
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "scale":
            np.testing.assert_array_equal(leaf, 1.0)


def test_bfloat16_computes_with_float32_parameters_and_logits():
    arch = dataclasses.replace(SMALL, dtype="bfloat16")
    params, batch = drawn(arch), unpacked()
    assert {leaf.dtype for leaf in jax.tree.leaves(network.split(arch, Rules())[1])} == {np.dtype("float32")}
    logits = apply(arch, params, batch)
    assert logits.dtype == np.float32
    exact = apply(SMALL, params, batch)
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


LOSSES = [(0.0, 0.0), (1e-4, 0.0), (0.0, 0.1), (1e-4, 0.1)]


@pytest.mark.parametrize(("z_loss", "label_smoothing"), LOSSES)
def test_loss_and_its_gradient_follow_the_definition(z_loss, label_smoothing):
    rng = np.random.default_rng(0)
    scores = 3 * rng.standard_normal((2, 3, 7), np.float32) + 5
    targets = np.array([[0, 3, 6], [1, 1, 5]])
    expected = [
        [numpy_t5.token_loss(s, t, z_loss, label_smoothing) for s, t in zip(*row)] for row in zip(scores, targets)
    ]
    actual, z = loss.cross_entropy(jnp.asarray(scores), jnp.asarray(targets), z_loss, label_smoothing)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
    without = [[numpy_t5.token_loss(s, t, 0, label_smoothing) for s, t in zip(*row)] for row in zip(scores, targets)]
    np.testing.assert_allclose(z, np.subtract(expected, without), rtol=1e-4, atol=1e-6)

    def total(scores):
        return jnp.sum(loss.cross_entropy(scores, jnp.asarray(targets), z_loss, label_smoothing)[0])

    gradient = jax.grad(total)(jnp.asarray(scores))
    step = 1e-5
    for b, t, v in np.ndindex(scores.shape):
        moved = np.zeros(scores.shape[-1])
        moved[v] = step
        up, down = (
            numpy_t5.token_loss(scores[b, t] + sign * moved, targets[b, t], z_loss, label_smoothing) for sign in (1, -1)
        )
        assert gradient[b, t, v] == pytest.approx((up - down) / (2 * step), abs=2e-6)


def test_a_perfect_prediction_has_no_loss():
    """The entropy of the smoothed target is subtracted, so that label smoothing has the same floor."""
    smooth = np.log(np.array([[[0.9, 0.025, 0.025, 0.025, 0.025]]], np.float32))
    value, _ = loss.cross_entropy(jnp.asarray(smooth), jnp.array([[0]]), 0.0, 0.1)
    assert float(value[0, 0]) == pytest.approx(0.0, abs=1e-6)
