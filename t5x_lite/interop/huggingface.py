"""Directories of Hugging Face transformers: T5 1.0, T5 1.1 and mT5, read and written without torch.

Such a directory holds `config.json` and `model.safetensors`, or shards listed in
`model.safetensors.index.json`, and perhaps `spiece.model`. Each layer has tensors of
its own, and kernels are transposed. Sources: configuration_t5.py and modeling_t5.py of
transformers 4.57 and 5.23. Nothing is unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from t5x_lite.errors import RunError, UserError
from t5x_lite.model import network
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel.partition import Rules

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
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_TABLE, _HEAD = "shared.weight", "lm_head.weight"
_TABLE_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first T5 releases store it, though no version of the model reads it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_FLOATS = ("F32", "BF16", "F16")


def architecture(directory: str | Path) -> Architecture:
    """The architecture that a directory describes, with the default compute type and layer loop.

    Raises:
      UserError: `directory` holds no readable T5, or one that `Architecture` cannot express.
    """
    directory = Path(directory)
    config, tensors = _config(directory), _tensors(directory)

    def number(key, default=None, kind=int):
        value = default if config.get(key) is None else config[key]
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UserError(
                f"{directory / 'config.json'} has {key} = {json.dumps(value)}",
                f"it must be a {'whole ' * (kind is int)}number",
                f"correct {key} there, or take the original config.json",
            )
        return kind(value)

    head, _ = _head(directory, config, tensors)
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
        relative_buckets=number("relative_attention_num_buckets", 32),
        relative_max_distance=number("relative_attention_max_distance", 128),
        dropout_rate=number("dropout_rate", 0.1, float),
        norm_epsilon=number("layer_norm_epsilon", 1e-6, float),
    )


def parameters(directory: str | Path, arch: Architecture) -> dict:
    """The parameters of a directory as a nested dict of float32 numpy arrays, in the layout of `network`.

    Types of 16 bits are widened, which is exact.

    Args:
      directory: where config.json lies.
      arch: from `architecture(directory)`, perhaps with another compute type or layer loop.

    Raises:
      UserError: a file is missing or damaged; a tensor is missing, unknown, quantised or of another
        shape than `arch` says.
    """
    directory = Path(directory)
    config, tensors = _config(directory), _tensors(directory)
    head, scaled = _head(directory, config, tensors)
    if arch.tied_head != (head is None):
        raise UserError(
            f"Architecture.tied_head is {arch.tied_head}",
            f"the model in {directory} has {'a tied head' if head is None else 'a head of its own'}",
            f"set --gin.architecture.Architecture.tied_head={head is None}",
        )
    tensors.pop(_HEAD, None)
    if head is not None:
        tensors[_HEAD] = head
    names = _names(arch)
    _check_names(directory, [name for group in names.values() for name in group], tensors)
    shapes = flatten_dict(network.split(arch, Rules())[1])
    params = {}
    for path, group in names.items():
        params[path] = np.empty(shapes[path].shape, np.float32)
        for part, name in zip(_layers(path, params[path]), group):
            part[...] = _read(directory, name, tensors[name], part.shape)
    if head is not None and scaled:
        params["decoder", "logits_dense", "kernel"] *= np.float32(arch.embed_dim**-0.5)
    return unflatten_dict(params)


def vocabulary_file(directory: str | Path) -> Path | None:
    """The SentencePiece model of a directory, if there is one (ByT5 has none)."""
    path = Path(directory) / "spiece.model"
    return path if path.is_file() else None


def write(
    directory: str | Path, arch: Architecture, params: Mapping, vocabulary: str | epath.Path | None = None
) -> None:
    """Writes a directory that `T5ForConditionalGeneration.from_pretrained` of transformers loads.

    Args:
      directory: new or empty. config.json is written last: without it the directory is not complete.
      arch: the architecture of `params`.
      params: nested dict of arrays in the layout of `network`; stored as float32.
      vocabulary: SentencePiece model to copy along, local or gs://, or None.

    Raises:
      UserError: `directory` is taken, or transformers cannot express `arch`.
      RunError: writing failed.
    """
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(
            f"--output={directory} is already there",
            "a model is never written over other files",
            "name a new or empty directory with --output",
        )
    config = configuration(arch) | {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
    arrays = flatten_dict(params)
    tensors = {
        name: np.ascontiguousarray(_turned(name, part))
        for path, group in _names(arch).items()
        for name, part in zip(group, _layers(path, np.asarray(arrays[path], np.float32)))
    }
    ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # transformers refuses a file that does not name the framework it is laid out for.
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        if vocabulary is not None:
            (directory / "spiece.model").write_bytes(epath.Path(vocabulary).read_bytes())
        for name, content in (("generation_config.json", ids), ("config.json", config | ids)):
            (directory / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{directory} could not be written: {error}",
            "the checkpoint that was read is unchanged",
            f"make room or choose another --output, remove {directory} and run the same command again",
        ) from error


def configuration(arch: Architecture) -> dict:
    """What `transformers.T5Config` says of the network, by its names.

    Raises:
      UserError: transformers has no such feed-forward layer.
    """
    if arch.mlp_activations not in _FEED_FORWARD:
        raise UserError(
            f"Architecture.mlp_activations is {arch.mlp_activations}",
            "transformers computes T5 only with " + ", ".join(map(str, _FEED_FORWARD)),
            "take a model with one of these: --gin.architecture.Architecture.mlp_activations",
        )
    return {
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
        "scale_decoder_outputs": arch.tied_head,
    }


def _names(arch: Architecture) -> dict[tuple[str, ...], list[str]]:
    """Path of each of our parameters -> its tensors, one for each layer where layers are stacked."""
    own, cross = "SelfAttention", "EncDecAttention"
    head = {} if arch.tied_head else {("decoder", "logits_dense", "kernel"): [_HEAD]}
    encoder = [("pre_attention_layer_norm", "attention", own)]
    decoder = [
        ("pre_self_attention_layer_norm", "self_attention", own),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", cross),
    ]
    return {
        ("token_embedder", "embedding"): [_TABLE],
        **_stack_names("encoder", arch.encoder_layers, encoder, len(arch.mlp_activations)),
        **_stack_names("decoder", arch.decoder_layers, decoder, len(arch.mlp_activations)),
        **head,
    }


def _stack_names(stack: str, layers: int, attentions: list, projections: int) -> dict[tuple[str, ...], list[str]]:
    """`_names` of one stack; `attentions` holds the name of the norm, ours and theirs for each sublayer."""

    def blocks(sublayer: int, tensor: str) -> list[str]:
        return [f"{stack}.block.{i}.layer.{sublayer}.{tensor}.weight" for i in range(layers)]

    names = {
        (stack, f"{stack}_norm", "scale"): [f"{stack}.final_layer_norm.weight"],
        # Only the first block of a stack has the table that all its blocks share.
        (stack, "relpos_bias", "rel_embedding"): blocks(0, "SelfAttention.relative_attention_bias")[:1],
        (stack, "layers", "pre_mlp_layer_norm", "scale"): blocks(len(attentions), "layer_norm"),
    }
    for sublayer, (norm, ours, theirs) in enumerate(attentions):
        names[stack, "layers", norm, "scale"] = blocks(sublayer, "layer_norm")
        for kernel, letter in _ATTENTION.items():
            names[stack, "layers", ours, kernel, "kernel"] = blocks(sublayer, f"{theirs}.{letter}")
    inward = ["wi"] if projections == 1 else [f"wi_{i}" for i in range(projections)]
    for kernel in (*inward, "wo"):
        names[stack, "layers", "mlp", kernel, "kernel"] = blocks(len(attentions), f"DenseReluDense.{kernel}")
    return names


def _layers(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The parts of a parameter that are tensors of their own, along axis 0."""
    return array if "layers" in path else array[None]


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    """From one layout to the other: all but the embedding table is transposed."""
    return array if name == _TABLE else array.T


def _read(directory: Path, name: str, tensor, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in our orientation; `shape` is the one expected of it there."""
    stored, expected = tuple(tensor.get_shape()), shape if name == _TABLE else shape[::-1]
    if stored != expected:
        raise UserError(
            f"{name} in {directory} has shape {list(stored)}",
            f"by config.json it should be {list(expected)}",
            "the two files do not belong together: take both from the same model with --input",
        )
    if tensor.get_dtype() not in _FLOATS:
        raise UserError(
            f"{name} in {directory} is stored as {tensor.get_dtype()}",
            f"parameters are read from {', '.join(_FLOATS)}; quantised ones have lost what training needs",
            "give the original model with --input",
        )
    return _turned(name, tensor[:])


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


def _head(directory: Path, config: Mapping, tensors: Mapping) -> tuple[object | None, bool]:
    """The tensor of an own head (None: tied to the table), and whether its input is scaled by d_model ** -0.5.

    transformers 5 says in `scale_decoder_outputs` whether the input is scaled, and writes `tie_word_embeddings`
    true even where an own head is stored; before, `tie_word_embeddings` meant both. mT5 always has an own head.
    """
    multilingual = config["model_type"] == "mt5"
    scaled = None if multilingual else config.get("scale_decoder_outputs")
    tied = not multilingual and config.get("tie_word_embeddings", True)
    own, table = tensors.get(_HEAD), tensors.get(_TABLE)
    if (tied if scaled is None else scaled) and (own is None or _same(own, table)):
        return None, True
    if own is not None:
        return own, bool(scaled)
    if scaled is None:
        raise _missing(directory, _HEAD, "by config.json the head is not tied to the embedding table")
    # Tied but not scaled: an own head that starts as a copy computes the same.
    return table, False


def _same(one, other) -> bool:
    return other is not None and one.get_shape() == other.get_shape() and np.array_equal(one[:], other[:])


def _mlp_activations(directory: Path, config: Mapping) -> tuple[str, ...]:
    projection = str(config.get("feed_forward_proj") or ("gated-gelu" if config["model_type"] == "mt5" else "relu"))
    derived = "gelu_new" if projection == "gated-gelu" else projection.split("-")[-1]
    activation = str(config.get("dense_act_fn") or derived)
    gated = config.get("is_gated_act", projection.startswith("gated-"))
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{directory / 'config.json'} has the activation {activation}",
            "known are " + ", ".join(_ACTIVATIONS) + "; gelu by itself is the exact function, not T5's tanh one",
            "give with --input a model whose feed_forward_proj is relu or gated-gelu",
        )
    return (_ACTIVATIONS[activation], "linear") if gated else (_ACTIVATIONS[activation],)


def _config(directory: Path) -> dict:
    """The content of config.json, of a model type that is ours."""
    if not directory.is_dir():
        raise UserError(f"--input={directory} is not a directory", "a model of transformers is one", "correct --input")
    config = _json(directory / "config.json", "every model of transformers has one")
    kind = config.get("model_type")
    if kind not in ("t5", "mt5"):
        raise UserError(
            f"{directory / 'config.json'} has model_type = {json.dumps(kind)}",
            "UMT5 has a position bias in every layer" if kind == "umt5" else "this is the network of t5 and mt5 only",
            "give a T5 1.0, T5 1.1, mT5 or ByT5 model with --input",
        )
    return config


def _json(path: Path, why: str) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there", why, f"complete {path.parent}, or correct --input") from None
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not an object")
    return content


def _damaged(path: Path, error) -> UserError:
    return UserError(f"{path} cannot be read", f"it is cut off or damaged: {error}", "fetch this file again")


def _tensors(directory: Path) -> dict:
    """Each stored tensor by name, not yet read; names of the same table are one, and unused ones left out."""
    tensors = {}
    for file in _files(directory):
        try:
            opened = safe_open(file, framework="numpy")
        except FileNotFoundError:
            raise UserError(
                f"{file} is not there",
                "the index in model.safetensors.index.json names it as a part of the model",
                f"fetch this file into {directory}",
            ) from None
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    tensors.pop(_UNUSED, None)
    for name in _TABLE_COPIES:
        copy = tensors.pop(name, None)
        if copy is not None and not _same(tensors.setdefault(_TABLE, copy), copy):
            raise UserError(
                f"{name} in {directory} differs from {_TABLE}",
                "the encoder and the decoder of T5 share one embedding table",
                "give with --input a model with shared embeddings",
            )
    return tensors


def _files(directory: Path) -> list[Path]:
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = _json(index, "").get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise _damaged(index, "weight_map does not name files of this directory")
        return [directory / name for name in sorted(set(shards.values()))]
    pickled = sorted(directory.glob("pytorch_model*.bin"))
    if pickled:
        raise UserError(
            f"{directory} has its weights in {pickled[0].name} only",
            "it is a pickle, which can run code when it is read",
            "save it as safetensors in Python, with torch and transformers: T5ForConditionalGeneration"
            f".from_pretrained({str(directory)!r}).save_pretrained(OTHER), and give --input=OTHER",
        )
    raise UserError(
        f"{directory} holds no model.safetensors", "there are no weights to read", "fetch it, or correct --input"
    )
