"""Floating-point operations of one training step, counted from shapes.

Counted: matrix products of encoder and decoder, attention over the full square of positions (causal
products are not halved), and the logits; a multiply-add is two. The backward pass costs twice the
forward. Not counted: norms, softmax, embedding lookup, optimizer, and what remat computes again. This
is the numerator of "model FLOPs utilisation" (PaLM, appendix B), with each stack's own length.
"""

from t5x_lite.model.architecture import Architecture


def forward(arch: Architecture, inputs: int, targets: int) -> int:
    """Operations of one row of `inputs` input and `targets` target tokens, forward only."""
    width = arch.num_heads * arch.head_dim
    projection = arch.embed_dim * width
    mlp = arch.embed_dim * arch.mlp_dim * (len(arch.mlp_activations) + 1)
    adapter = 2 * arch.embed_dim * arch.adapter_dim
    own = 4 * projection + mlp + adapter  # of a token in a layer

    def attention(queries: int, keys: int) -> int:
        return 2 * queries * keys * width

    if arch.decoder_only:
        length = inputs + targets
        layer = length * own + attention(length, length)
        return 2 * (arch.decoder_layers * layer + length * arch.embed_dim * arch.vocab_size)
    encoder = inputs * own + attention(inputs, inputs)
    decoder = (
        targets * (own + 2 * projection)
        + inputs * 2 * projection
        + attention(targets, targets)
        + attention(targets, inputs)
    )
    head = targets * arch.embed_dim * arch.vocab_size
    return 2 * (arch.encoder_layers * encoder + arch.decoder_layers * decoder + head)


def train_step(arch: Architecture, batch: int, inputs: int, targets: int) -> int:
    """Operations of one optimizer step on `batch` rows."""
    return 3 * batch * forward(arch, inputs, targets)
