"""Checkpoints of t5x: what t5x wrote gives its logits, and what is written is what t5x reads.

Small ones are made here as t5x makes them, by flax's own msgpack and TensorStore.
"""

import dataclasses
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from etils import epath
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from t5x_lite.errors import UserError
from t5x_lite.interop import lazy, t5x, t5x_model
from t5x_lite.interop.names import HEAD, TABLE
from t5x_lite.model.architecture import Architecture
from tests.interop import models

DATA = Path(__file__).parents[2].parent / "shared/data/checkpoints/t5x"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the checkpoints that t5x wrote are not at {DATA}")
DECODER = Architecture(**models.SIZES | {"encoder_layers": 0}, structure="language_model")


def read(place, arch=None, slots=False):
    stored = t5x.read(t5x.find(str(place)))
    arch = arch or t5x_model.architecture(stored)
    return t5x_model.read(stored, arch, models.shapes(arch), slots)


def write(folder, model, dtype="float32", scanned=False):
    t5x_model.write(epath.Path(folder), model, dtype, scanned)


# ------------------------------------------------------------------------- made by t5x's means


def unscanned(params, decoder_only=False):
    """Our parameters as the tree of t5x's networks that do not scan, by hand."""
    tree = {}
    for path, array in params.items():
        if path == TABLE and decoder_only:
            tree["decoder", *path] = array
        elif "layers" in path:
            tree |= {(path[0], f"layers_{i}", *path[2:]): layer for i, layer in enumerate(array)}
        else:
            tree[path] = array
    return tree


def scanned(params, arch):
    """The same of its scanned network: layers on axis 1, heads apart from their width."""
    tree, heads = {}, (arch.num_heads, arch.head_dim)
    for path, array in params.items():
        if "layers" not in path:
            tree[path] = array
            continue
        if path[2].endswith("attention"):
            out = path[3] == "out"
            parted = (len(array), *heads, arch.embed_dim) if out else (len(array), arch.embed_dim, *heads)
            array = array.reshape(parted)
        tree[path[0], path[0], *path[2:]] = np.moveaxis(array, 0, 1)
    return tree


def make(folder, target, slots=(), version=3, step=7, outside=True):
    """A checkpoint of t5x in its legacy layout: arrays in zarr folders beside a msgpack file, or all in the file."""
    place = Path(folder) / f"checkpoint_{step}"
    place.mkdir(parents=True)

    def leaf(keys, array):
        if not outside:
            return array
        stored = array.view(np.uint16) if version < 3 and array.dtype == ml_dtypes.bfloat16 else array
        name = ".".join(keys)
        spec = {
            "driver": "zarr",
            "dtype": stored.dtype.name,
            "kvstore": {"driver": "file", "path": f"{place}/{name}/"},
            "metadata": {
                "compressor": {"id": "gzip"},
                "shape": list(stored.shape),
                "chunks": [-(-s // 2) for s in stored.shape],
            },
        }
        ts.open(spec, create=True).result().write(stored).result()
        return spec | {"dtype": array.dtype.name, "kvstore": {"driver": "file", "path": f"{name}/"}}

    states = {path + (slot,): array for path, held in dict(slots).items() for slot, array in held.items()}
    tree = {
        "target": unflatten_dict({path: leaf(("target", *path), array) for path, array in target.items()}),
        "state": {"step": np.int32(step), "param_states": unflatten_dict(states)},
    }
    content = {"version": version, "optimizer": tree} if version else tree
    (place / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return place


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("outside", [True, False], ids=["zarr", "msgpack"])
def test_unscanned_layers(tmp_path, name, outside):
    arch = models.ARCHITECTURES[name]
    params = models.random(arch)
    make(tmp_path, unscanned(params), outside=outside)
    model = read(tmp_path)
    assert model.arch == arch and model.step == 7
    models.assert_same(models.whole(model.params), params)


def test_a_decoder_alone(tmp_path):
    params = models.random(DECODER)
    make(tmp_path, unscanned(params, decoder_only=True))
    model = read(tmp_path)
    assert model.arch == DECODER
    models.assert_same(models.whole(model.params), params)


@pytest.mark.parametrize("old_names", [False, True])
def test_scanned_layers(tmp_path, old_names):
    arch = models.ARCHITECTURES["umt5"]
    params = models.random(arch)
    tree = scanned(params, arch)
    if old_names:
        names = {"relpos_bias": "relative_posemb"}
        tree = {
            tuple("layers" if i == 1 and key == path[0] else names.get(key, key) for i, key in enumerate(path)): array
            for path, array in tree.items()
        }
    make(tmp_path, tree)
    model = read(tmp_path)
    assert model.arch == arch
    models.assert_same(models.whole(model.params), params)


@pytest.mark.parametrize("version", [0, 2, 3])
def test_types_of_16_bits_are_widened_in_every_version(tmp_path, version):
    arch = models.ARCHITECTURES["t5_1_1"]
    params = {path: array.astype(ml_dtypes.bfloat16) for path, array in models.random(arch).items()}
    make(tmp_path, unscanned(params), version=version)
    found = models.whole(read(tmp_path).params)
    models.assert_same(found, {path: array.astype(np.float32) for path, array in params.items()})


def test_a_place_elsewhere_is_not_followed(tmp_path):
    """Where a checkpoint was written says nothing of where it lies."""
    arch = models.ARCHITECTURES["t5_1_0"]
    params = models.random(arch)
    place = make(tmp_path / "a", unscanned(params))
    content = serialization.msgpack_restore((place / "checkpoint").read_bytes())
    for spec in flatten_dict(content, is_leaf=lambda _, x: "driver" in x).values():
        if isinstance(spec, dict):
            spec["kvstore"] = {"driver": "gfile", "path": f"/cns/elsewhere/{spec['kvstore']['path']}"}
    (place / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    models.assert_same(models.whole(read(place).params), params)


def test_the_newest_step_or_the_one_that_is_named(tmp_path):
    arch = models.ARCHITECTURES["t5_1_0"]
    for step in (3, 20):
        make(tmp_path, unscanned(models.random(arch, seed=step)), step=step)
    (tmp_path / "checkpoint_100.tmp-1").mkdir()
    assert t5x.find(str(tmp_path)).name == "checkpoint_20"
    for reference in (f"{tmp_path}@3", f"{tmp_path}/checkpoint_3", f"{tmp_path}/checkpoint_3/checkpoint"):
        assert read(reference).step == 3
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}@4 names no checkpoint. {tmp_path} has the steps 3, 20")):
        t5x.find(f"{tmp_path}@4")


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


# ------------------------------------------------------------------------------------ written


def as_t5x_reads(place):
    """The arrays of a checkpoint, by flax and TensorStore alone."""
    content = serialization.msgpack_restore((place / "checkpoint").read_bytes())
    assert content["version"] == 3

    def array(spec):
        if not isinstance(spec, dict):
            return spec
        spec["kvstore"]["path"] = f"{place}/{spec['kvstore']['path']}"
        found = ts.open(ts.Spec(spec), open=True).result().read().result()
        assert found.dtype.name == spec["dtype"]
        return found

    flat = flatten_dict(content["optimizer"], is_leaf=lambda _, x: "driver" in x)
    return {keys: array(spec) for keys, spec in flat.items()}


@pytest.mark.parametrize(
    "arch",
    [models.ARCHITECTURES["t5_1_0"], models.ARCHITECTURES["t5_1_1"], DECODER],
    ids=lambda arch: arch.structure + str(arch.tied_head),
)
def test_unscanned_layers_are_written_as_t5x_has_them(tmp_path, arch):
    params = models.random(arch)
    write(tmp_path, models.model(arch, params, step=11))
    held = as_t5x_reads(tmp_path / "checkpoint_11")
    assert int(held.pop(("state", "step"))) == 11
    expected = {("target", *path): array for path, array in unscanned(params, arch.decoder_only).items()}
    models.assert_same(held, expected)
    back = read(tmp_path)
    assert back.arch == arch
    models.assert_same(models.whole(back.params), params)


def test_scanned_layers_are_written_as_t5x_has_them(tmp_path):
    arch = models.ARCHITECTURES["umt5"]
    params = models.random(arch)
    write(tmp_path, models.model(arch, params), scanned=True)
    held = as_t5x_reads(tmp_path / "checkpoint_0")
    del held["state", "step"]
    models.assert_same(held, {("target", *path): array for path, array in scanned(params, arch).items()})
    models.assert_same(models.whole(read(tmp_path).params), params)


@pytest.mark.parametrize("arch", [models.ARCHITECTURES["t5_1_1"], Architecture(
    **models.SIZES | {"encoder_layers": 3}, structure="shared")], ids=["two", "shared"])  # fmt: skip
def test_a_bias_of_a_stack_computes_the_same_in_every_layer(tmp_path, arch):
    params = models.random(arch)
    write(tmp_path, models.model(arch, params), scanned=True)
    back = read(tmp_path)
    assert back.arch.relative_bias_per_layer and back.arch.structure == "encoder_decoder"
    rng = np.random.default_rng(0)
    batch = {f"{stack}_input_tokens": rng.integers(1, 90, (2, 7)) for stack in ("encoder", "decoder")}
    found = models.logits(back.arch, models.whole(back.params), batch)
    np.testing.assert_allclose(found, models.logits(arch, params, batch), rtol=1e-5, atol=1e-5)


def test_the_factor_of_a_scaled_head_becomes_a_part_of_it(tmp_path):
    arch = Architecture(**models.SIZES, scaled_head=True)
    params = models.random(arch)
    none = {path: np.zeros((len(array), 1) if "layers" in path else 1, np.float32) for path, array in params.items()}
    slots = {path: {"v": array**2, "v_row": none[path], "v_col": none[path]} for path, array in params.items()}
    held = {path: {name: lazy.of_array(array) for name, array in group.items()} for path, group in slots.items()}
    write(tmp_path, models.model(arch, params, slots=held))
    back = read(tmp_path, slots=True)
    assert back.arch == models.ARCHITECTURES["t5_1_1"]
    found, factor = models.whole(back.params), arch.embed_dim**-0.5
    np.testing.assert_array_equal(found[HEAD], params[HEAD] * np.float32(factor))
    models.assert_same({**found, HEAD: params[HEAD]}, params)
    # A gradient is larger by as much as its parameter is smaller.
    np.testing.assert_allclose(back.slots[HEAD]["v"].whole(), slots[HEAD]["v"] / factor**2, rtol=1e-6)
    np.testing.assert_array_equal(back.slots[TABLE]["v"].whole(), slots[TABLE]["v"])
    batch = {f"{stack}_input_tokens": np.arange(1, 15).reshape(2, 7) for stack in ("encoder", "decoder")}
    np.testing.assert_allclose(
        models.logits(back.arch, found, batch), models.logits(arch, params, batch), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_is_written_as_its_own_type(tmp_path):
    arch = models.ARCHITECTURES["t5_1_1"]
    params = models.random(arch)
    write(tmp_path, models.model(arch, params), dtype="bfloat16")
    held = as_t5x_reads(tmp_path / "checkpoint_0")
    np.testing.assert_array_equal(held["target", *HEAD], params[HEAD].astype(ml_dtypes.bfloat16))


@needs_data
@pytest.mark.parametrize("name", ["t5x_zarr_v11", "t5x_zarr_scan"])
def test_what_t5x_wrote_is_written_again_alike(tmp_path, name):
    slots = name == "t5x_zarr_v11"
    write(tmp_path, read(DATA / name, slots=slots), scanned=not slots)
    before, after = as_t5x_reads(DATA / name / "checkpoint_0"), as_t5x_reads(tmp_path / "checkpoint_0")
    assert after.keys() == {keys for keys in before if slots or keys[:2] != ("state", "param_states")}
    for keys, array in after.items():
        np.testing.assert_array_equal(array, before[keys], err_msg="/".join(keys))
        assert array.dtype == before[keys].dtype
    kept = {path.name for path in (tmp_path / "checkpoint_0").iterdir()}
    assert kept == {p.name for p in (DATA / name / "checkpoint_0").iterdir() if slots or "state." not in p.name}


# ---------------------------------------------------------------------------- optimizer state


def statistics(shape, seed=0):
    """As Adafactor keeps them of a small parameter."""
    rng, nothing = np.random.default_rng(seed), np.zeros(1, np.float32)
    return {"v": rng.random(shape, np.float32), "v_row": nothing, "v_col": nothing, "m": nothing}


def test_statistics_of_layers_are_stacked(tmp_path):
    arch = models.ARCHITECTURES["t5_1_1"]
    target = unscanned(models.random(arch))
    slots = {path: statistics(array.shape, seed) for seed, (path, array) in enumerate(target.items())}
    factored = ("decoder", "layers_1", "mlp", "wo", "kernel")
    make(tmp_path / "in", target, slots)
    model = read(tmp_path / "in", slots=True)
    kernel = model.slots["decoder", "layers", "mlp", "wo", "kernel"]
    np.testing.assert_array_equal(kernel["v"].whole()[1], slots[factored]["v"])
    assert kernel["v_row"].shape == (3, 1)
    write(tmp_path / "out", model)
    held = as_t5x_reads(tmp_path / "out/checkpoint_7")
    for path, expected in slots.items():
        for slot, array in expected.items():
            np.testing.assert_array_equal(held["state", "param_states", *path, slot], array)


def refused(text, *args, **flags):
    with pytest.raises(UserError) as caught:
        read(*args, **flags)
    assert re.search(text, str(caught.value)), caught.value


def test_statistics_that_mean_something_else_are_refused(tmp_path):
    arch = models.ARCHITECTURES["umt5"]
    tree = scanned(models.random(arch), arch)
    make(tmp_path / "scanned", tree, {path: statistics(array.shape) for path, array in tree.items()})
    refused(r"is that of scanned layers\. There Adafactor factors .* leave out --optimizer_state", tmp_path / "scanned",
            slots=True)  # fmt: skip
    tree = unscanned(models.random(models.ARCHITECTURES["t5_1_1"]))
    make(tmp_path / "none", tree)
    refused(r"holds no optimizer state\. .* leave out --optimizer_state", tmp_path / "none", slots=True)
    slots = {path: statistics(array.shape) for path, array in tree.items()}
    slots[TABLE] = slots[TABLE] | {"m": slots[TABLE]["v"]}
    make(tmp_path / "momentum", tree, slots)
    refused(r"token_embedder/embedding/m in .* was trained with momentum", tmp_path / "momentum", slots=True)
    make(tmp_path / "adam", tree, {path: {"mu": array, "nu": array} for path, array in tree.items()})
    refused(r"with v, v_row, v_col\. Another optimizer than Adafactor", tmp_path / "adam", slots=True)


# ------------------------------------------------------------------------------------- errors


@pytest.fixture
def stored(tmp_path):
    """A checkpoint of a small T5 1.1, to be spoilt."""
    return make(tmp_path / "stored", unscanned(models.random(models.ARCHITECTURES["t5_1_1"])))


ARRAY = "target.decoder.layers_1.mlp.wo.kernel"


def whole(place):
    return models.whole(read(place).params)


def test_a_chunk_that_is_cut_off_or_gone(stored):
    chunk = stored / ARRAY / "0.1"
    data = chunk.read_bytes()
    for spoilt in (data[:-9], data[:3], b""):
        chunk.write_bytes(spoilt)
        with pytest.raises(UserError) as caught:
            whole(stored)
        text = (
            rf"target/decoder/layers_1/mlp/wo/kernel in {stored} cannot be read\. It is missing, cut off or damaged: "
        )
        assert re.match(
            text + r".*\. Fetch the checkpoint again, or give another one with --input\.$", str(caught.value)
        )
    chunk.unlink()
    with pytest.raises(UserError, match="layers_1/mlp/wo/kernel in .* cannot be read"):
        whole(stored)
    shutil.rmtree(stored / ARRAY)
    with pytest.raises(UserError, match="layers_1/mlp/wo/kernel in .* cannot be read"):
        whole(stored)


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"model_checkpoint_path",
                                    lambda d: d + b"x", lambda d: b"\xc7\x01\x05x"])  # fmt: skip
def test_a_damaged_file(stored, damage):
    file = stored / "checkpoint"
    file.write_bytes(damage(file.read_bytes()))
    refused(rf"^{file} cannot be read\. It is cut off or damaged: .+\. Fetch it again, or correct --input\.$", stored)


def test_a_file_whose_parts_do_not_fit(tmp_path):
    """It is whole msgpack; what it says makes no arrays."""
    halves = [serialization.msgpack_serialize({"a": np.zeros(4, np.float32)}) for _ in range(2)]
    parts = {str(i): serialization.msgpack_restore(half)["a"] for i, half in enumerate(halves)}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 4, "1": 2}, "chunks": parts}
    file = epath.Path(tmp_path) / "checkpoint"

    def store(tree):
        file.write_bytes(serialization.msgpack_serialize(tree))
        return file

    def of(leaf):
        return {"optimizer": {"target": {"wo": leaf}}}

    assert t5x.read(store(of(chunked))).target[("wo",)].shape == (4, 2)
    wrong = [
        of(chunked | {"chunks": {"0": parts["0"]}}),
        of(chunked | {"chunks": {}}),
        of({"__msgpack_chunked_array__": True}),
        of({"driver": "zarr", "kvstore": "file:///x"}),
        {"optimizer": [1, 2]},
        of(np.zeros(2, np.float32)) | {"version": "x"},
    ]
    for tree in wrong:
        refused(
            rf"^{file} cannot be read\. It is cut off or damaged: .+\. Fetch it again, or correct --input\.$",
            store(tree),
        )


def test_a_missing_or_unknown_parameter(tmp_path):
    tree = unscanned(models.random(models.ARCHITECTURES["t5_1_1"]))
    del tree["decoder", "layers_1", "mlp", "wo", "kernel"]
    place = make(tmp_path / "missing", tree)
    refused(rf"^{place} stores no target/decoder/layers_1/mlp/wo/kernel\. ", place)
    tree["decoder", "layers_1", "mlp", "wo", "kernel"] = tree["decoder", "layers_0", "mlp", "wo", "kernel"]
    tree["encoder", "layers_0", "adapter", "kernel"] = np.zeros(3, np.float32)
    place = make(tmp_path / "unknown", tree)
    refused(rf"^{place} stores target/encoder/layers_0/adapter/kernel\. 1 of its parameters", place)
    del tree["encoder", "relpos_bias", "rel_embedding"], tree["encoder", "layers_0", "adapter", "kernel"]
    del tree["decoder", "relpos_bias", "rel_embedding"]
    place = make(tmp_path / "no_bias", tree)
    refused("stores no target/decoder/relpos_bias/rel_embedding", place)


def test_another_architecture(stored):
    right = models.ARCHITECTURES["t5_1_1"]
    for changes, text in (
        ({"mlp_dim": 15}, r"target/.*coder/layers_0/mlp/wi_0/kernel in .* has shape \[20, 14\]\. By .* be \[20, 15\]"),
        ({"num_heads": 5, "head_dim": 3}, r"relpos_bias/rel_embedding in .* has shape \[3, 32\]\. By .* be \[5, 32\]"),
        ({"encoder_layers": 3}, "stores no target/encoder/layers_2/"),
        ({"decoder_layers": 2}, "stores target/decoder/layers_2/"),
        ({"tied_head": True}, "stores target/decoder/logits_dense/kernel"),
        ({"mlp_activations": ("relu",)}, "stores no target/.*coder/layers_0/mlp/wi/kernel"),
        ({"relative_bias_per_layer": True}, "stores no target/.*coder/layers_0/relpos_bias"),
    ):
        refused(text, stored, dataclasses.replace(right, **changes))


def test_numbers_that_are_quantised(tmp_path):
    tree = unscanned(models.random(models.ARCHITECTURES["t5_1_1"]))
    tree[TABLE] = tree[TABLE].astype(np.int8)
    place = make(tmp_path, tree)
    refused(rf"^target/token_embedder/embedding in {place} is stored as int8\. ", place)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize({"other": {"a": np.zeros(2)}}))
    refused("file holds no parameters", tmp_path / "file")
    refused("--input=.* holds no checkpoint of t5x", tmp_path)
    refused("--input=.* holds no checkpoint of t5x", tmp_path / "gone")


@pytest.mark.parametrize(
    ("changes", "scan", "text"),
    [
        ({"structure": "prefix_lm", "encoder_layers": 0}, False, "structure is prefix_lm. T5x gives its prefix LM"),
        (
            {"structure": "language_model", "encoder_layers": 0},
            True,
            "--scan_layers is given and Architecture.structure",
        ),
        ({"relative_bias_per_layer": True}, False, "relative_bias_per_layer is True. .* Give --scan_layers"),
        ({"adapter_dim": 3}, False, "adapter_dim is 3. T5x has no adapters"),
    ],
)
def test_what_t5x_lacks(tmp_path, changes, scan, text):
    arch = Architecture(**models.SIZES | changes)
    with pytest.raises(UserError, match=text):
        write(tmp_path, models.model(arch, models.random(arch)), scanned=scan)
    assert not any(tmp_path.iterdir())
