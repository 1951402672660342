"""Directories of transformers: the same logits and exact round trips.

The stored models and logits come from tests/references/make_hf_logits.py. Compared with transformers itself:
test_transformers.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from t5x_lite.interop import huggingface
from t5x_lite.interop.names import HEAD, TABLE
from t5x_lite.model.architecture import Architecture
from tests.interop import models

REFERENCES = Path(__file__).parents[1] / "references"
VERSIONS = ("hf_t5_1_0", "hf_t5_1_1")


logits, assert_same = models.logits, models.assert_same
parameters, read, write = models.read_parameters, models.read_huggingface, models.write_huggingface


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def stored(version):
    return load_file(REFERENCES / version / "model.safetensors")


def test_logits_are_those_of_transformers(version):
    arch, params = read(REFERENCES / version)
    reference = np.load(REFERENCES / version / "logits.npz")
    expected = reference["logits"]
    np.testing.assert_allclose(logits(arch, params, reference), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_architecture():
    shape = {
        "vocab_size": 128,
        "embed_dim": 16,
        "num_heads": 2,
        "head_dim": 8,
        "mlp_dim": 24,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "dropout_rate": 0.1,
    }
    assert huggingface.architecture(REFERENCES / "hf_t5_1_0") == Architecture(
        **shape, mlp_activations=("relu",), tied_head=True
    )
    assert huggingface.architecture(str(REFERENCES / "hf_t5_1_1")) == Architecture(**shape)


def test_the_oldest_configurations_have_fewer_keys(copy):
    later = (
        "num_decoder_layers relative_attention_max_distance feed_forward_proj dense_act_fn is_gated_act "
        "scale_decoder_outputs tie_word_embeddings"
    )
    arch = huggingface.architecture(copy("hf_t5_1_0", config=dict.fromkeys(later.split())))
    assert (arch.decoder_layers, arch.relative_max_distance, arch.mlp_activations) == (2, 128, ("relu",))
    assert arch.tied_head


@pytest.mark.parametrize(
    ("config", "activations"),
    [
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": None, "is_gated_act": None}, ("gelu", "linear")),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}, ("gelu", "linear")),
        ({"feed_forward_proj": None, "dense_act_fn": "gelu_new", "is_gated_act": True}, ("gelu", "linear")),
        ({"feed_forward_proj": "gated-silu", "dense_act_fn": None, "is_gated_act": None}, ("silu", "linear")),
        ({"feed_forward_proj": "relu", "dense_act_fn": None, "is_gated_act": None}, ("relu",)),
        ({"feed_forward_proj": None, "dense_act_fn": None, "is_gated_act": None}, ("relu",)),
        (
            {"feed_forward_proj": None, "dense_act_fn": None, "is_gated_act": None, "model_type": "mt5"},
            ("gelu", "linear"),
        ),
    ],
)
def test_activations(copy, config, activations):
    assert huggingface.architecture(copy(config=config)).mlp_activations == activations


SIZES = models.SIZES


@pytest.mark.parametrize(
    "arch",
    [
        Architecture(**SIZES, mlp_activations=("relu",), tied_head=True, relative_buckets=8, relative_max_distance=20),
        Architecture(**SIZES, dropout_rate=0.25, norm_epsilon=1e-5),
        Architecture(**SIZES, mlp_activations=("silu", "linear"), tied_head=True),
        Architecture(**SIZES, mlp_activations=("gelu",)),
        Architecture(**SIZES, relative_bias_per_layer=True),
        Architecture(**SIZES, relative_bias_per_layer=True, tied_head=True),
        Architecture(**SIZES, relative_bias_per_layer=True, scaled_head=True),
        Architecture(**SIZES, scaled_head=True),
    ],
)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, arch):
    params = models.random(arch)
    write(tmp_path / "a", arch, params)
    assert huggingface.architecture(tmp_path / "a") == arch
    assert_same(parameters(tmp_path / "a", arch), params)
    ids = json.loads((tmp_path / "a/generation_config.json").read_text())
    assert ids == {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def test_what_transformers_wrote_is_written_again_bit_for_bit(tmp_path, version):
    arch, params = read(REFERENCES / version)
    write(tmp_path / "out", arch, params)
    before, after = stored(version), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    ours, theirs = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", REFERENCES / version))
    # transformers 5 writes tie_word_embeddings true for every model.
    differing = {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}
    assert differing <= {"tie_word_embeddings"}
    assert huggingface.vocabulary(tmp_path / "out") is None


def test_a_large_model_is_written_in_shards(tmp_path):
    arch = models.ARCHITECTURES["t5_1_1"]
    params = models.random(arch)
    write(tmp_path / "whole", arch, params)
    write(tmp_path / "cut", arch, params, largest=3000)
    index = json.loads((tmp_path / "cut/model.safetensors.index.json").read_text())
    tensors = load_file(tmp_path / "whole/model.safetensors")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    files = sorted({path.name for path in (tmp_path / "cut").glob("*.safetensors")})
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    for file in files:
        held = load_file(tmp_path / "cut" / file)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= 3000
        for name, array in held.items():
            assert index["weight_map"][name] == file
            np.testing.assert_array_equal(array, tensors[name])
    assert_same(parameters(tmp_path / "cut", arch), params)


def test_files_half_the_size_hold_the_rounded_numbers(tmp_path):
    arch = models.ARCHITECTURES["umt5"]
    params = models.random(arch)
    write(tmp_path / "out", arch, params, dtype="bfloat16")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = {path: array.astype(ml_dtypes.bfloat16).astype(np.float32) for path, array in params.items()}
    assert_same(parameters(tmp_path / "out", arch), rounded)


def test_layers_of_both_stacks_are_written_twice(tmp_path):
    arch = Architecture(**SIZES | {"encoder_layers": 3}, structure="shared")
    params = models.random(arch)
    write(tmp_path / "out", arch, params)
    two = huggingface.architecture(tmp_path / "out")
    assert two == dataclasses.replace(arch, structure="encoder_decoder")
    rng = np.random.default_rng(0)
    batch = {f"{stack}_input_tokens": rng.integers(1, 90, (2, 7)) for stack in ("encoder", "decoder")}
    found = logits(two, parameters(tmp_path / "out", two), batch)
    np.testing.assert_allclose(found, logits(arch, params, batch), rtol=1e-5, atol=1e-5)


def test_shards_are_read_as_one_file(copy, version):
    arch, params = read(models.sharded(copy(version)))
    assert arch == read(REFERENCES / version)[0]
    assert_same(params, read(REFERENCES / version)[1])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_16_bit_files_are_widened(copy, version, dtype):
    narrow = {name: array.astype(dtype) for name, array in stored(version).items()}
    arch, params = read(copy(version, tensors=narrow))
    _, exact = read(REFERENCES / version)
    assert_same(params, {path: x.astype(dtype).astype(np.float32) for path, x in exact.items()})
    assert arch == read(REFERENCES / version)[0]


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def test_a_tied_table_may_be_stored_several_times_or_under_another_name(copy):
    table = stored("hf_t5_1_0")["shared.weight"]
    expected = read(REFERENCES / "hf_t5_1_0")[1]
    directory = copy("hf_t5_1_0", tensors=dict.fromkeys((*COPIES, "lm_head.weight"), table))
    assert read(directory)[0].tied_head
    assert_same(read(directory)[1], expected)
    shutil.rmtree(directory)
    assert_same(read(copy("hf_t5_1_0", tensors={COPIES[1]: table}, remove=["shared.weight"]))[1], expected)


def test_the_bias_that_the_first_releases_store_for_nothing_is_left_out(copy):
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    _, params = read(copy("hf_t5_1_0", tensors={name: np.ones((32, 2), np.float32)}))
    assert_same(params, read(REFERENCES / "hf_t5_1_0")[1])


@pytest.mark.parametrize(
    ("config", "scaled"),
    [
        # transformers 4, then 5.0, then 5.23: the stored head decides, and nothing scales it.
        ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": None}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"model_type": "mt5", "tie_word_embeddings": True, "scale_decoder_outputs": None}, False),
        # Said in so many words.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ],
)
def test_a_stored_head_is_an_own_head(copy, config, scaled):
    arch, params = read(copy("hf_t5_1_1", config=config))
    assert not arch.tied_head and arch.scaled_head == scaled
    np.testing.assert_array_equal(params[HEAD], stored("hf_t5_1_1")["lm_head.weight"].T)


@pytest.mark.parametrize(
    ("tied", "version", "scaled"),
    [
        # Google's release, which transformers 4 computes as it was trained.
        (False, "4.31.0.dev0", False),
        (False, "4.57.6", False),
        (False, None, False),
        # transformers 5 scales every umT5, and writes that it is tied.
        (True, "5.0.0", True),
        (True, "5.23.0", True),
        (False, "5.23.0", True),
    ],
)
def test_what_wrote_an_umt5_says_whether_its_own_head_is_scaled(tmp_path, tied, version, scaled):
    arch = models.ARCHITECTURES["umt5"]
    params = models.random(arch)
    write(tmp_path / "out", arch, params)
    path = tmp_path / "out/config.json"
    changes = {"tie_word_embeddings": tied, "transformers_version": version}
    content = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(content))
    found = huggingface.architecture(tmp_path / "out")
    assert found == dataclasses.replace(arch, scaled_head=scaled)
    assert_same(parameters(tmp_path / "out", found), params)
    # Who knows better says so.
    assert_same(parameters(tmp_path / "out", dataclasses.replace(arch, scaled_head=not scaled)), params)


def test_a_tied_head_without_scale_becomes_a_copy_of_the_table(copy):
    """transformers 5 computes this for a new model with tie_word_embeddings=False."""
    arch, params = read(copy("hf_t5_1_1", config={"scale_decoder_outputs": False}, remove=["lm_head.weight"]))
    assert not arch.tied_head
    np.testing.assert_array_equal(params[HEAD], params[TABLE].T)
