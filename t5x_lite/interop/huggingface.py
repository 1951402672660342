"""Directories of Hugging Face transformers, read and written without torch: T5, mT5, ByT5, Flan-T5, UL2 and umT5.

Such a directory holds `config.json` and `model.safetensors`, or shards listed in
`model.safetensors.index.json`, and the files of a tokenizer. Each layer has tensors of
its own, and kernels are transposed. Sources: configuration_*.py and modeling_*.py of t5, mt5
and umt5 in transformers 4.57.6 and 5.23. Nothing is unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop import checkpoint, lazy, names, tensor_files
from t5x_lite.interop.checkpoint import Model
from t5x_lite.interop.lazy import Lazy
from t5x_lite.interop.names import HF_HEAD, HF_TABLE
from t5x_lite.model.architecture import Architecture

# `gelu` of transformers is the exact one, with erf; T5 1.1 is trained with the tanh approximation.
_ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu"}
_FEED_FORWARD = {
    ("relu",): "relu",
    ("gelu",): "gelu_new",
    ("silu",): "silu",
    ("relu", "linear"): "gated-relu",
    ("gelu", "linear"): "gated-gelu",
    ("silu", "linear"): "gated-silu",
}
_CLASSES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
_TABLE_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first T5 releases store it, though no version of the model reads it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

CONFIG = "config.json"
# Versions of transformers that compute what is written: the last one tried, and the one of Google's umT5.
_LAST, _UNSCALED_UMT5 = "5.23.0", "4.31.0"


# ------------------------------------------------------------------------------------ reading


def architecture(directory: str | Path) -> Architecture:
    """The architecture that a directory describes, with the default compute type and layer loop.

    Raises:
      UserError: `directory` holds no readable T5, or one that `Architecture` cannot express.
    """
    directory = Path(directory)
    config = _config(directory)
    head, is_scaled = _head(directory, config, _tensors(directory))

    def number(key, default=None, kind=int):
        value = default if config.get(key) is None else config[key]
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UserError(
                f"{directory / CONFIG} has {key} = {json.dumps(value)}",
                f"it must be a {'whole ' * (kind is int)}number",
                f"correct {key} there, or take the original config.json",
            )
        return kind(value)

    return Architecture(
        vocab_size=number("vocab_size"),
        embed_dim=number("d_model"),
        num_heads=number("num_heads"),
        head_dim=number("d_kv"),
        mlp_dim=number("d_ff"),
        encoder_layers=number("num_layers"),
        decoder_layers=number("num_decoder_layers", config.get("num_layers")),
        mlp_activations=_mlp_activations(directory, config),
        tied_head=head is None,
        scaled_head=head is not None and is_scaled,
        relative_buckets=number("relative_attention_num_buckets", 32),
        relative_max_distance=number("relative_attention_max_distance", 128),
        relative_bias_per_layer=config["model_type"] == "umt5",
        dropout_rate=number("dropout_rate", 0.1, float),
        norm_epsilon=number("layer_norm_epsilon", 1e-6, float),
    )


def read(directory: str | Path, arch: Architecture, shapes: Mapping[names.Path, tuple[int, ...]]) -> Model:
    """The model of a directory. Types of 16 bits are widened, which is exact.

    Args:
      directory: where config.json lies.
      arch: from `architecture(directory)`, perhaps with another compute type or layer loop.
      shapes: those of the parameters of `arch`.

    Raises:
      UserError: a file is missing or damaged; a tensor is missing, unknown, quantised or of another
        shape than `arch` says.
    """
    directory = Path(directory)
    config, tensors = _config(directory), _tensors(directory)
    head, _ = _head(directory, config, tensors)
    if arch.tied_head != (head is None):
        raise UserError(
            f"Architecture.tied_head is {arch.tied_head}",
            f"the model in {directory} has {'a tied head' if head is None else 'a head of its own'}",
            f"set --gin.architecture.Architecture.tied_head={head is None}",
        )
    tensors.pop(HF_HEAD, None)
    if head is not None:
        tensors[HF_HEAD] = head
    groups = names.huggingface(arch)
    _check_names(directory, [name for group in groups.values() for name in group], tensors)
    params = {}
    for path, group in groups.items():
        shape = shapes[path][1:] if "layers" in path else shapes[path]
        layers = [_checked(directory, name, tensors[name], shape) for name in group]
        params[path] = lazy.stacked(layers) if "layers" in path else layers[0]
    return Model(arch, params)


def vocabulary(directory: str | Path) -> str | None:
    """The vocabulary of a directory: its SentencePiece model, "bytes" for a ByT5, or None where neither is there."""
    directory = Path(directory)
    model = directory / "spiece.model"
    if model.is_file():
        return str(model)
    for name in ("tokenizer_config.json", CONFIG):
        path = directory / name
        if path.is_file() and tensor_files.read_json(path, "").get("tokenizer_class") == "ByT5Tokenizer":
            return "bytes"
    return None


def _checked(directory: Path, name: str, tensor: Lazy, shape: tuple[int, ...]) -> Lazy:
    """A tensor in our orientation, in which `shape` is expected of it."""
    turned = names.hf_turned(name, tensor)
    if turned.shape != shape:
        expected = shape if name == HF_TABLE else shape[::-1]
        raise UserError(
            f"{name} in {directory} has shape {list(tensor.shape)}",
            f"by config.json it should be {list(expected)}",
            "the two files do not belong together: take both from the same model with --input",
        )
    return checkpoint.widened(turned, name, directory)


def _check_names(directory: Path, expected: list[str], stored: Mapping) -> None:
    missing = [name for name in expected if name not in stored]
    if missing:
        raise _missing(directory, missing[0], f"{len(missing)} of {len(expected)} tensors are missing")
    unknown = sorted(set(stored) - set(expected))
    if unknown:
        raise UserError(
            f"{directory} stores {unknown[0]}",
            f"{len(unknown)} of its tensors have no place in the T5 that config.json describes",
            "merge adapters into the model and correct config.json, then give the directory with --input",
        )


def _missing(directory: Path, name: str, why: str) -> UserError:
    return UserError(
        f"{directory} stores no {name}", why, "give with --input the directory of a whole T5ForConditionalGeneration"
    )


def _head(directory: Path, config: Mapping, tensors: Mapping[str, Lazy]) -> tuple[Lazy | None, bool]:
    """The tensor of an own head (None: tied to the table), and whether its input is scaled by d_model ** -0.5.

    In transformers 4, `tie_word_embeddings` ties the head and scales its input. transformers 5 writes it true
    whatever it stores, ties where no other head is stored, and scales T5 by `scale_decoder_outputs`, mT5 never and
    umT5 always: of an umT5 the version that wrote it says what its head is for.
    """
    kind, own, table = config["model_type"], tensors.get(HF_HEAD), tensors.get(HF_TABLE)
    tied = config.get("tie_word_embeddings", kind != "mt5")
    if kind == "mt5":
        if own is None and tied and _major_version(config) < 5:
            return None, True
        if own is None and not _major_version(config) >= 5:
            raise _no_head(directory)
        return own or table, False
    scaled = config.get("scale_decoder_outputs") if kind == "t5" else tied or _major_version(config) >= 5
    if (tied if scaled is None else scaled) and (own is None or _same(own, table)):
        return None, True
    if own is not None:
        return own, bool(scaled)
    if scaled is None or kind == "umt5":
        raise _no_head(directory)
    # Tied but not scaled: an own head that starts as a copy computes the same.
    return table, False


def _no_head(directory: Path) -> UserError:
    return _missing(directory, HF_HEAD, "by config.json the head is not tied to the embedding table")


def _major_version(config: Mapping) -> int:
    """Of the transformers that wrote a configuration; 4 where it does not say."""
    major = str(config.get("transformers_version", "")).partition(".")[0]
    return int(major) if major.isdecimal() else 4


def _same(one: Lazy, other: Lazy | None) -> bool:
    """Whether two tensors are equal, read block by block."""
    if other is None or one.shape != other.shape:
        return False
    chunk = lazy.chunk_shape(one.shape, one.dtype.itemsize)
    return all(np.array_equal(one.read(box), other.read(box)) for box in lazy.boxes(one.shape, chunk))


def _mlp_activations(directory: Path, config: Mapping) -> tuple[str, ...]:
    projection = str(config.get("feed_forward_proj") or ("relu" if config["model_type"] == "t5" else "gated-gelu"))
    derived = "gelu_new" if projection == "gated-gelu" else projection.split("-")[-1]
    activation = str(config.get("dense_act_fn") or derived)
    gated = config.get("is_gated_act", projection.startswith("gated-"))
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{directory / CONFIG} has the activation {activation}",
            "known are " + ", ".join(_ACTIVATIONS) + "; gelu by itself is the exact function, not T5's tanh one",
            "give with --input a model whose feed_forward_proj is relu or gated-gelu",
        )
    return (_ACTIVATIONS[activation], "linear") if gated else (_ACTIVATIONS[activation],)


def _config(directory: Path) -> dict:
    """The content of config.json, of a model type that is ours."""
    if not directory.is_dir():
        raise UserError(f"--input={directory} is not a directory", "a model of transformers is one", "correct --input")
    config = tensor_files.read_json(directory / CONFIG, "every model of transformers has one")
    kind = config.get("model_type")
    if kind not in _CLASSES:
        raise UserError(
            f"{directory / CONFIG} has model_type = {json.dumps(kind)}",
            f"the networks known here are {', '.join(_CLASSES)}",
            "give a T5, mT5, umT5, ByT5, Flan-T5 or UL2 model with --input",
        )
    return config


def _tensors(directory: Path) -> dict[str, Lazy]:
    """Each stored tensor by name, not yet read; names of the same table are one, and unused ones left out."""
    tensors = tensor_files.read_all(directory)
    tensors.pop(_UNUSED, None)
    for name in _TABLE_COPIES:
        copy = tensors.pop(name, None)
        if copy is not None and not _same(tensors.setdefault(HF_TABLE, copy), copy):
            raise UserError(
                f"{name} in {directory} differs from {HF_TABLE}",
                "the encoder and the decoder of T5 share one embedding table",
                "give with --input a model with shared embeddings",
            )
    return tensors


# ------------------------------------------------------------------------------------ writing


def write(directory: str | Path, model: Model, dtype: str = "float32", largest: int = 5 * 10**9) -> None:
    """Writes the configuration and the tensors of a directory that transformers loads.

    Args:
      directory: new and empty. config.json is written last: without it the directory is not complete.
      model: layers that serve both stacks are written twice.
      dtype: of the stored tensors.
      largest: bytes of a file; a larger model is cut into shards.

    Raises:
      UserError: transformers cannot express the model.
    """
    directory = Path(directory)
    config = configuration(model.arch)
    model = checkpoint.two_stacks(model, "transformers")
    tensors = {
        name: lazy.cast(names.hf_turned(name, part), dtype)
        for path, group in names.huggingface(model.arch).items()
        for name, part in zip(group, _layers(path, model.params[path]))
    }
    tensor_files.write_all(directory, tensors, largest)
    _write_json(directory / "generation_config.json", _IDS)
    _write_json(directory / CONFIG, config | {"dtype": dtype, "torch_dtype": dtype})


_IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def _layers(path: names.Path, array: Lazy) -> list[Lazy]:
    """The parts of a parameter that are tensors of their own."""
    return [lazy.layer(array, i) for i in range(array.shape[0])] if "layers" in path else [array]


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def configuration(arch: Architecture) -> dict:
    """What the config.json of transformers says of the network.

    Raises:
      UserError: transformers has no such network.
    """
    if arch.mlp_activations not in _FEED_FORWARD:
        raise UserError(
            f"Architecture.mlp_activations is {arch.mlp_activations}",
            "transformers computes T5 only with " + ", ".join(map(str, _FEED_FORWARD)),
            "take a model with one of these: --gin.architecture.Architecture.mlp_activations",
        )
    if arch.decoder_only:
        raise UserError(
            f"Architecture.structure is {arch.structure}",
            "transformers has T5 with an encoder and a decoder only",
            "keep this model in the native format, or write a language_model with --to=t5x",
        )
    kind, scaled = "umt5" if arch.relative_bias_per_layer else "t5", arch.tied_head or arch.scaled_head
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "is_encoder_decoder": True,
        "vocab_size": arch.vocab_size,
        "d_model": arch.embed_dim,
        "d_kv": arch.head_dim,
        "d_ff": arch.mlp_dim,
        "num_heads": arch.num_heads,
        "num_layers": arch.encoder_layers,
        "num_decoder_layers": arch.decoder_layers,
        "feed_forward_proj": _FEED_FORWARD[arch.mlp_activations],
        "relative_attention_num_buckets": arch.relative_buckets,
        "relative_attention_max_distance": arch.relative_max_distance,
        "dropout_rate": arch.dropout_rate,
        "layer_norm_epsilon": arch.norm_epsilon,
        "tie_word_embeddings": arch.tied_head,
        # Of an umT5 this alone tells what is scaled. Who saves the model again puts in the own version.
        "transformers_version": _UNSCALED_UMT5 if kind == "umt5" and not scaled else _LAST,
        **({"scale_decoder_outputs": scaled} if kind == "t5" else {}),
        **_IDS,
    }
