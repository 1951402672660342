"""Writes tests/references/hf_*: tiny random T5 models of transformers, and the logits that it computes with them.

    pip install 't5x_lite[hf]'
    python tests/references/make_hf_logits.py

Each folder holds config.json, model.safetensors and logits.npz with `encoder_input_tokens`
[2, 21], `decoder_input_tokens` [2, 19] (0 is padding) and float32 `logits` [2, 19, V].
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SHAPE = {
    "vocab_size": 128,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 2,
    "num_layers": 2,
    "num_decoder_layers": 3,
}
VERSIONS = {
    "hf_t5_1_0": {"feed_forward_proj": "relu"},
    "hf_t5_1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def random_model(seed: int, own_head: bool, kind: str = "T5", **config) -> transformers.PreTrainedModel:
    """A model of the family T5, MT5 or UMT5 whose norms and position biases are not at their trivial start.

    transformers 5 always ties the head: an own one is put in afterwards.
    """
    torch.manual_seed(seed)
    configuration = getattr(transformers, f"{kind}Config")(**config)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(configuration).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * config["d_model"] ** -0.5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
            if "relative_attention_bias" in name:
                tensor.copy_(torch.randn_like(tensor))
    return model


def tokens(vocab_size: int, inputs: int = 21, targets: int = 19) -> dict[str, np.ndarray]:
    """Two examples, the second shorter in both features, and the target shifted right."""
    rng = np.random.default_rng(0)
    encoder = rng.integers(2, vocab_size, (2, inputs))
    decoder = rng.integers(2, vocab_size, (2, targets))
    encoder[1, inputs - 6 :], decoder[1, targets - 5 :] = 0, 0
    decoder[:, 0] = 0
    return {"encoder_input_tokens": encoder, "decoder_input_tokens": decoder}


def logits(model: transformers.PreTrainedModel, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[B, T, V] of transformers, with the padding of the input hidden."""
    inputs = torch.as_tensor(batch["encoder_input_tokens"])
    with torch.no_grad():
        out = model(
            input_ids=inputs,
            attention_mask=(inputs != 0).long(),
            decoder_input_ids=torch.as_tensor(batch["decoder_input_tokens"]),
        )
    return out.logits.float().numpy()


def main():
    for seed, (name, version) in enumerate(VERSIONS.items()):
        model = random_model(seed, own_head="tie_word_embeddings" in version, **SHAPE, **version)
        model.save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink()
        batch = tokens(SHAPE["vocab_size"])
        np.savez_compressed(HERE / name / "logits.npz", **batch, logits=logits(model, batch))


if __name__ == "__main__":
    main()
