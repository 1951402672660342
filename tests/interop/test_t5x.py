"""Checkpoints of t5x: what t5x wrote gives its logits, and what is written is what t5x reads."""

import dataclasses
import itertools
import re
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
import tensorstore as ts
from etils import epath
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.interop import models
from t5x_lite.errors import UserError
from t5x_lite.interop import lazy, t5x, t5x_model
from t5x_lite.model.architecture import Architecture

DATA = Path(__file__).parents[2].parent / "shared/data/checkpoints/t5x"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the checkpoints that t5x wrote are not at {DATA}")


def read(place, arch=None, slots=False):
    stored = t5x.read(t5x.find(str(place)))
    arch = arch or t5x_model.architecture(stored)
    return t5x_model.read(stored, arch, models.shapes(arch), slots)


@needs_data
@pytest.mark.parametrize("name", ["t5x_zarr_v11", "t5x_zarr_scan", "t5x_orbax_v10"])
def test_what_t5x_wrote_gives_its_logits(name):
    model = read(DATA / name)
    reference = np.load(DATA / f"{name}_logits.npz")
    found = models.logits(model.arch, models.whole(model.params), reference)
    np.testing.assert_allclose(found, reference["logits"], rtol=1e-5, atol=1e-5 * np.abs(reference["logits"]).max())
    assert model.step == 0


@needs_data
def test_the_architecture_of_what_t5x_wrote():
    shape = {"vocab_size": 256, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
    layers = {"encoder_layers": 2, "decoder_layers": 3}
    assert read(DATA / "t5x_zarr_v11").arch == Architecture(**shape, **layers)
    assert read(DATA / "t5x_zarr_scan").arch == Architecture(**shape, **layers, relative_bias_per_layer=True)
    assert read(DATA / "t5x_orbax_v10").arch == Architecture(
        **shape, **layers, mlp_activations=("relu",), tied_head=True
    )
    tiny = read(DATA / "test_t5_tiny.checkpoint_0", slots=True)
    shape = {"vocab_size": 32128, "embed_dim": 8, "num_heads": 4, "head_dim": 3, "mlp_dim": 16}
    assert tiny.arch == Architecture(**shape, encoder_layers=2, decoder_layers=2)
    assert tiny.slots["encoder", "layers", "mlp", "wo", "kernel"]["v"].shape == (2, 16, 8)
