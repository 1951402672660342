"""What the tests of this folder share: random parameters, formats read as arrays, logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from t5x_lite.interop import huggingface, lazy
from t5x_lite.interop.checkpoint import Model
from t5x_lite.model import network
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel.partition import Rules, single_device

# Sizes unequal in every axis.
SIZES = {
    "vocab_size": 90,
    "embed_dim": 20,
    "num_heads": 3,
    "head_dim": 5,
    "mlp_dim": 14,
    "encoder_layers": 2,
    "decoder_layers": 3,
}
ARCHITECTURES = {
    "t5_1_0": Architecture(**SIZES, mlp_activations=("relu",), tied_head=True),
    "t5_1_1": Architecture(**SIZES),
    "umt5": Architecture(**SIZES, relative_bias_per_layer=True),
}


def shapes(arch):
    return {path: leaf.shape for path, leaf in flatten_dict(network.split(arch, Rules())[1]).items()}


def random(arch, seed=0):
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(shape, np.float32) for path, shape in shapes(arch).items()}


def model(arch, params, **more):
    return Model(arch, {path: lazy.of_array(array) for path, array in params.items()}, **more)


def whole(params):
    return {path: array.whole() for path, array in params.items()}


def read_parameters(directory, arch):
    return whole(huggingface.read(directory, arch, shapes(arch)).params)


def read_huggingface(directory):
    arch = huggingface.architecture(directory)
    return arch, read_parameters(directory, arch)


def write_huggingface(directory, arch, params, **more):
    directory.mkdir(parents=True)
    huggingface.write(directory, model(arch, params), **more)


def logits(arch, params, batch):
    arch = dataclasses.replace(arch, dtype="float32")
    graphdef, _, _ = network.split(arch, Rules())
    tokens = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items() if name.endswith("_input_tokens")}
    with jax.set_mesh(single_device()):
        run = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b))
        return np.asarray(run(unflatten_dict(params), tokens))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype == np.float32, path
        np.testing.assert_array_equal(array, other[path], err_msg="/".join(path))


def sharded(directory):
    """Cuts model.safetensors into two shards with an index, as transformers does for large models."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, group in files.items():
        save_file({name: tensors[name] for name in group}, directory / file)
    index = {
        "metadata": {"total_size": 0},
        "weight_map": {name: file for file, group in files.items() for name in group},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
