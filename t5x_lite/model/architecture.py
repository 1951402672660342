"""The shape of a T5 model and how it is computed: everything the network needs to know."""

import dataclasses
from typing import Literal

from t5x_lite.errors import UserError

STRUCTURES = ("encoder_decoder", "shared", "language_model", "prefix_lm")
_REMAT = ("none", "dots", "inner", "full")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A T5, bound in gin/models/*.gin.

    Sizes and defaults are those of the T5 paper and of the public T5 1.1 configurations.

    Args:
      structure: the architectures of the T5 paper, section 3.2. "encoder_decoder"; "shared", an encoder-decoder whose
        two stacks are the same layers, position bias and final norm; "language_model", a decoder alone that sees
        nothing behind a position; "prefix_lm", a decoder alone that sees all of its inputs at once.
      vocab_size: rows of the embedding table; at least the vocabulary's size.
      embed_dim: width of the residual stream (d_model).
      num_heads: attention heads.
      head_dim: width of a head (d_kv).
      mlp_dim: hidden width of the feed-forward layers (d_ff).
      encoder_layers: layers of the encoder; 0 where there is none.
      decoder_layers: layers of the decoder.
      mlp_activations: ("relu",) in T5 1.0, ("gelu", "linear") in T5 1.1: their product gates.
      tied_head: the logits use the embedding table, scaled by embed_dim ** -0.5 (T5 1.0).
      scaled_head: the input of a head of its own is scaled likewise, as transformers 5 computes umT5. None of Google's
        releases was trained so.
      relative_buckets: buckets of the relative-position bias.
      relative_max_distance: distance from which all positions share the last bucket.
      relative_bias_per_layer: every layer has a position bias of its own (umT5), not one a stack.
      adapter_dim: hidden width of an adapter behind each feed-forward layer (T5 paper, section 3.5.1); 0: none.
      dropout_rate: rate at the stack inputs and outputs, residual branches, hidden units and attention weights.
      norm_epsilon: added to the mean square in RMSNorm.
      dtype: type of activations and of weights at their point of use. Parameters are float32.
      scan_layers: compile one layer and loop over it; otherwise the layers are unrolled. Same parameters.
      remat: "none" keeps all activations for the backward pass, "dots" keeps the outputs of matrix
        products with weights, "inner" those before the activations of the feed-forward layer and what
        attention gives, "full" keeps only the input of each layer. What is not kept is computed again.

    Raises:
      UserError: a value is out of range.
    """

    structure: Literal["encoder_decoder", "shared", "language_model", "prefix_lm"] = "encoder_decoder"
    vocab_size: int = 32128
    embed_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    encoder_layers: int = 8
    decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    tied_head: bool = False
    scaled_head: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_bias_per_layer: bool = False
    adapter_dim: int = 0
    dropout_rate: float = 0.0
    norm_epsilon: float = 1e-6
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    scan_layers: bool = True
    remat: Literal["none", "dots", "inner", "full"] = "none"

    def __post_init__(self):
        if isinstance(self.mlp_activations, (list, tuple)):
            object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for name, least in (
            ("vocab_size", 1), ("embed_dim", 1), ("num_heads", 1), ("head_dim", 1), ("mlp_dim", 1),
            ("encoder_layers", 0), ("decoder_layers", 1), ("relative_buckets", 4), ("relative_max_distance", 1),
            ("adapter_dim", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise _wrong(name, value, f"a whole number of at least {least}")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise _wrong("relative_max_distance", self.relative_max_distance, "more than half of relative_buckets")
        for name in ("tied_head", "scaled_head", "scan_layers", "relative_bias_per_layer"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False")
        for name, choices in (("structure", STRUCTURES), ("dtype", ("bfloat16", "float32")), ("remat", _REMAT)):
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), " or ".join(choices))
        if self.tied_head and self.scaled_head:
            raise _wrong("scaled_head", True, "False where tied_head is True: there the input is always scaled")
        self._check_layers()
        if not isinstance(self.norm_epsilon, (int, float)) or not 0 < self.norm_epsilon < 1:
            raise _wrong("norm_epsilon", self.norm_epsilon, "above 0 and below 1")
        if not isinstance(self.dropout_rate, (int, float)) or not 0 <= self.dropout_rate < 1:
            raise _wrong("dropout_rate", self.dropout_rate, "at least 0 and below 1", "DROPOUT_RATE")
        activations = self.mlp_activations
        if (
            not isinstance(activations, tuple)
            or not activations
            or set(activations) - {"relu", "gelu", "linear", "silu"}
        ):
            raise _wrong("mlp_activations", activations, "a tuple made of relu, gelu, silu and linear")

    def _check_layers(self) -> None:
        encoder, decoder = self.encoder_layers, self.decoder_layers
        if self.decoder_only and encoder:
            raise _wrong("encoder_layers", encoder, f"0, for a {self.structure} has no encoder")
        if not self.decoder_only and not encoder:
            raise _wrong("encoder_layers", encoder, f"at least 1 in the structure {self.structure}")
        if self.structure == "shared" and encoder != decoder:
            raise _wrong("encoder_layers", encoder, f"equal to decoder_layers, {decoder}: both are the same layers")

    @property
    def decoder_only(self) -> bool:
        """Whether inputs and targets are one sequence of one stack."""
        return self.structure in ("language_model", "prefix_lm")


def _wrong(name: str, value, expected: str, macro: str | None = None) -> UserError:
    return UserError(
        f"Architecture.{name} is {value!r}",
        f"it must be {expected}",
        f"Set --gin.{macro or 'architecture.Architecture.' + name}",
    )
