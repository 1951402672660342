"""What others call our parameters, and how they cut them.

A path is that of `network`: ("encoder", "layers", "attention", "query", "kernel") is one array of all layers.
"""

from collections.abc import Iterable, Mapping

from t5x_lite.interop import lazy
from t5x_lite.interop.lazy import Lazy
from t5x_lite.model.architecture import Architecture

Path = tuple[str, ...]

TABLE: Path = ("token_embedder", "embedding")
HEAD: Path = ("decoder", "logits_dense", "kernel")
BIAS: Path = ("relpos_bias", "rel_embedding")
HF_TABLE, HF_HEAD = "shared.weight", "lm_head.weight"

_HF_KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}


# ------------------------------------------------------------------------------- Hugging Face


def huggingface(arch: Architecture) -> dict[Path, list[str]]:
    """Path of each parameter -> its tensors in transformers, one for each layer where layers are stacked."""
    head = {} if arch.tied_head else {HEAD: [HF_HEAD]}
    return {TABLE: [HF_TABLE], **_hf_stack("encoder", arch), **_hf_stack("decoder", arch), **head}


def _hf_stack(stack: str, arch: Architecture) -> dict[Path, list[str]]:
    layers = getattr(arch, f"{stack}_layers")

    def blocks(sublayer: int, tensor: str) -> list[str]:
        return [f"{stack}.block.{i}.layer.{sublayer}.{tensor}.weight" for i in range(layers)]

    # The norm before, ours and theirs for each attention.
    attentions = [("pre_attention_layer_norm", "attention", "SelfAttention")]
    if stack == "decoder":
        attentions = [
            ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
            ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ]
    names = {
        (stack, f"{stack}_norm", "scale"): [f"{stack}.final_layer_norm.weight"],
        (stack, "layers", "pre_mlp_layer_norm", "scale"): blocks(len(attentions), "layer_norm"),
    }
    bias = blocks(0, "SelfAttention.relative_attention_bias")
    if arch.relative_bias_per_layer:
        names[stack, "layers", *BIAS] = bias
    else:
        # Only the first block of a stack has the table that all its blocks share.
        names[stack, *BIAS] = bias[:1]
    for sublayer, (norm, ours, theirs) in enumerate(attentions):
        names[stack, "layers", norm, "scale"] = blocks(sublayer, "layer_norm")
        for kernel, letter in _HF_KERNELS.items():
            names[stack, "layers", ours, kernel, "kernel"] = blocks(sublayer, f"{theirs}.{letter}")
    count = len(arch.mlp_activations)
    inward = ["wi"] if count == 1 else [f"wi_{i}" for i in range(count)]
    for kernel in (*inward, "wo"):
        names[stack, "layers", "mlp", kernel, "kernel"] = blocks(len(attentions), f"DenseReluDense.{kernel}")
    return names


def hf_turned(name: str, array: Lazy) -> Lazy:
    """From one layout to the other: all but the embedding table is transposed."""
    return array if name == HF_TABLE else lazy.transposed(array)


# ---------------------------------------------------------------------------------------- t5x


def t5x(path: Path, layers: int, decoder_only: bool) -> list[Path]:
    """The arrays that a parameter is in t5x where its layers are not scanned, one for each layer."""
    if decoder_only and path == TABLE:
        return [("decoder", *TABLE)]
    if "layers" not in path:
        return [path]
    stack, _, *rest = path
    return [(stack, f"layers_{i}", *rest) for i in range(layers)]


def t5x_scanned(path: Path, decoder_only: bool) -> Path:
    """The array that a parameter is in t5x where its layers are scanned."""
    if decoder_only and path == TABLE:
        return ("decoder", *TABLE)
    if "layers" in path:
        return (path[0], path[0], *path[2:])
    if path[1:] == BIAS:
        # There every layer has a bias of its own.
        return (path[0], path[0], *BIAS)
    return path


def is_attention(path: Path) -> bool:
    """Whether heads are joined with their width in a parameter: the kernels of an attention."""
    return len(path) > 2 and path[-3].endswith("attention")


def from_scanned(path: Path, array: Lazy) -> Lazy:
    """[D, layers, H, K] of the kernels of an attention, [x, layers, ...] of others, in our layout."""
    if "layers" not in path:
        return array
    array = _first_two_swapped(array)
    if not is_attention(path):
        return array
    # The output's kernel is [H, layers, K, D] there.
    return lazy.joined(array, 1 if path[-2] == "out" else 2)


def to_scanned(path: Path, array: Lazy, arch: Architecture) -> Lazy:
    """The other way; a position bias that is one for a stack is repeated for its layers."""
    if path[1:] == BIAS:
        array = lazy.stacked([array] * getattr(arch, f"{path[0]}_layers"))
    elif "layers" not in path:
        return array
    if is_attention(path):
        array = lazy.parted(array, 1 if path[-2] == "out" else 2, arch.head_dim)
    return _first_two_swapped(array)


def _first_two_swapped(array: Lazy) -> Lazy:
    return lazy.transposed(array, (1, 0, *range(2, len(array.shape))))


# -------------------------------------------------------------------------------------- ours


def unshared(params: Mapping[Path, Lazy]) -> dict[Path, Lazy]:
    """The parameters of two stacks that were the same layers: the encoder is a copy of the decoder."""
    copied = {}
    for path, array in params.items():
        if path[0] != "decoder" or path == HEAD or _is_cross(path):
            continue
        copied[tuple(_ENCODER.get(name, name) for name in path)] = array
    return {**params, **copied}


_ENCODER = {
    "decoder": "encoder",
    "decoder_norm": "encoder_norm",
    "self_attention": "attention",
    "pre_self_attention_layer_norm": "pre_attention_layer_norm",
}


def _is_cross(path: Iterable[str]) -> bool:
    return "encoder_decoder_attention" in path or "pre_cross_attention_layer_norm" in path
