"""Directories of transformers that are refused: what is said of each, and of models that transformers lacks."""

import dataclasses
import json
import re

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface
from t5x_lite.model.architecture import Architecture
from tests.interop import models


def refused(directory, text, arch=None):
    """Reading `directory` is refused in these words; {} stands for its path."""
    with pytest.raises(UserError) as caught:
        models.read_parameters(directory, arch or huggingface.architecture(directory))
    assert str(caught.value) == text.replace("{}", str(directory))


def test_no_directory(tmp_path):
    refused(tmp_path / "none", "--input={} is not a directory. A model of transformers is one. Correct --input.")


def test_no_configuration(tmp_path):
    refused(
        tmp_path, "{}/config.json is not there. Every model of transformers has one. Complete {}, or correct --input."
    )


def test_a_damaged_configuration(copy):
    directory = copy()
    (directory / "config.json").write_text('{"model_type": "t5", ')
    refused(
        directory,
        "{}/config.json cannot be read. It is cut off or damaged: Expecting property name enclosed in double quotes: "
        "line 1 column 22 (char 21). Fetch this file again.",
    )
    (directory / "config.json").write_text("[]")
    refused(
        directory,
        "{}/config.json cannot be read. It is cut off or damaged: it is not an object. Fetch this file again.",
    )


@pytest.mark.parametrize(("kind", "shown"), [("bert", '"bert"'), (None, "null")])
def test_another_model(copy, kind, shown):
    refused(
        copy(config={"model_type": kind}),
        f"{{}}/config.json has model_type = {shown}. The networks known here are t5, mt5, umt5. Give a T5, mT5, umT5, "
        "ByT5, Flan-T5 or UL2 model with --input.",
    )


@pytest.mark.parametrize(
    ("key", "value", "shown", "expected"),
    [
        ("d_model", None, "null", "whole number"),
        ("num_heads", "2", '"2"', "whole number"),
        ("num_layers", True, "true", "whole number"),
        ("d_ff", 24.0, "24.0", "whole number"),
        ("dropout_rate", "low", '"low"', "number"),
    ],
)
def test_a_wrong_number_in_the_configuration(copy, key, value, shown, expected):
    refused(
        copy(config={key: value}),
        f"{{}}/config.json has {key} = {shown}. It must be a {expected}. Correct {key} there, or take the original "
        "config.json.",
    )


def test_another_activation(copy):
    refused(
        copy(config={"feed_forward_proj": "gelu", "dense_act_fn": None}),
        "{}/config.json has the activation gelu. Known are relu, gelu_new, gelu_pytorch_tanh, silu, swish; gelu by "
        "itself is the exact function, not T5's tanh one. Give with --input a model whose feed_forward_proj is relu or "
        "gated-gelu.",
    )


def test_no_weights(copy):
    directory = copy()
    (directory / "model.safetensors").unlink()
    refused(directory, "{} holds no model.safetensors. There are no weights to read. Fetch it, or correct --input.")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_never_opened(copy, name):
    directory = copy()
    (directory / "model.safetensors").rename(directory / name)
    refused(
        directory,
        f"{{}} has its weights in {name} only. It is a pickle, which can run code when it is read. Save it as "
        "safetensors in Python, with torch and transformers: T5ForConditionalGeneration.from_pretrained('{}')"
        ".save_pretrained(OTHER), and give --input=OTHER.",
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-5], "shared.weight ends at byte 80856, the file at 80851"),
        (lambda data: data[:4], "it is 4 bytes long"),
        (lambda data: data[:2000], "Expecting "),
        (lambda data: b"<html>not found</html>", "its header would be 8029423821061908540 bytes long"),
        (lambda data: data.replace(b"[0,", b"[9,"), " has "),
        (lambda data: (8).to_bytes(8, "little") + b'{"a": 3}', "'int' object is not subscriptable"),
    ],
    ids=["truncated", "short", "header", "other", "offsets", "entry"],
)
def test_a_damaged_file(copy, damage, reason):
    directory = copy()
    file = directory / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError) as caught:
        huggingface.architecture(directory)
    text = re.fullmatch(
        re.escape(f"{file} cannot be read. It is cut off or damaged: ") + "(.*)[.] Fetch this file again[.]",
        str(caught.value),
    )
    assert reason in text[1], text[1]


def test_a_missing_shard(copy):
    directory = models.sharded(copy())
    (directory / "model-00002-of-00002.safetensors").unlink()
    refused(
        directory,
        "{}/model-00002-of-00002.safetensors is not there. The index in model.safetensors.index.json names it as "
        "a part of the model. Fetch this file into {}.",
    )


@pytest.mark.parametrize("weight_map", [None, {"shared.weight": 3}, {"shared.weight": "../../model.safetensors"}])
def test_a_wrong_index(copy, weight_map):
    directory = models.sharded(copy())
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(
        directory,
        "{}/model.safetensors.index.json cannot be read. It is cut off or damaged: weight_map does not name files of "
        "this directory. Fetch this file again.",
    )


def test_a_missing_tensor(copy):
    names = ["decoder.block.2.layer.1.EncDecAttention.q.weight", "decoder.final_layer_norm.weight"]
    refused(
        copy(remove=names),
        f"{{}} stores no {names[1]}. 2 of 66 tensors are missing. Give with --input the directory of a whole "
        "T5ForConditionalGeneration.",
    )


def test_a_missing_head(copy):
    refused(
        copy(config={"tie_word_embeddings": False, "scale_decoder_outputs": None}, remove=["lm_head.weight"]),
        "{} stores no lm_head.weight. By config.json the head is not tied to the embedding table. Give with --input "
        "the directory of a whole T5ForConditionalGeneration.",
    )


def test_an_unknown_tensor(copy):
    refused(
        copy(tensors={"encoder.block.0.layer.0.SelfAttention.q.bias": np.zeros(16, np.float32)}),
        "{} stores encoder.block.0.layer.0.SelfAttention.q.bias. 1 of its tensors have no place in the T5 that "
        "config.json describes. Merge adapters into the model and correct config.json, then give the directory with "
        "--input.",
    )


@pytest.mark.parametrize(
    ("config", "name", "has", "should"),
    [
        ({"d_ff": 25}, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", [24, 16], [25, 16]),
        ({"vocab_size": 130}, "shared.weight", [128, 16], [130, 16]),
    ],
)
def test_another_shape(copy, config, name, has, should):
    refused(
        copy(config=config),
        f"{name} in {{}} has shape {has}. By config.json it should be {should}. The two files do not belong "
        "together: take both from the same model with --input.",
    )


def test_a_quantised_tensor(copy):
    name = "encoder.block.1.layer.0.SelfAttention.o.weight"
    refused(
        copy(tensors={name: np.zeros((16, 16), np.int8)}),
        f"{name} in {{}} is stored as I8. Parameters are read from F32, BF16, F16; quantised ones have lost what "
        "training needs. Give the original model with --input.",
    )


def test_different_tables(copy):
    name = "encoder.embed_tokens.weight"
    refused(
        copy(tensors={name: np.zeros((128, 16), np.float32)}),
        f"{name} in {{}} differs from shared.weight. The encoder and the decoder of T5 share one embedding table. "
        "Give with --input a model with shared embeddings.",
    )


def test_an_architecture_with_another_head(references):
    directory = references / "hf_t5_1_0"
    refused(
        directory,
        "Architecture.tied_head is False. The model in {} has a tied head. Set "
        "--gin.architecture.Architecture.tied_head=True.",
        arch=dataclasses.replace(huggingface.architecture(directory), tied_head=False),
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"mlp_activations": ("linear",)}, "Architecture.mlp_activations is ('linear',). Transformers computes"),
        ({"structure": "prefix_lm", "encoder_layers": 0}, "Architecture.structure is prefix_lm. Transformers has T5"),
        ({"adapter_dim": 4}, "Architecture.adapter_dim is 4. Transformers has no adapters in its T5, and no layer"),
    ],
)
def test_what_transformers_lacks(tmp_path, changes, what):
    arch = Architecture(**models.SIZES | changes)
    with pytest.raises(UserError, match=re.escape(what)):
        models.write_huggingface(tmp_path / "out", arch, models.random(arch))
