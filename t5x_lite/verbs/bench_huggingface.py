"""The peer of `bench train` and `bench decode`: T5 of Hugging Face transformers on PyTorch, eager, with its Adafactor.

The optimizer has T5's settings (relative scale, no relative step); the loss is cross-entropy over the same
target tokens, without the z-loss and accuracy that ours has.
"""

from t5x_lite.model.architecture import Architecture


def configuration(arch: Architecture) -> dict:
    """Arguments of `transformers.T5Config` for the same network, without dropout and without a cache.

    Raises:
      UserError: transformers has no such feed-forward layer.
    """
    # Not at the top: the peer's process imports this module, and is measured without what that one needs.
    from t5x_lite.interop import huggingface

    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return huggingface.configuration(arch) | special | {"dropout_rate": 0.0, "use_cache": False}


def step(argument):
    """(about, step) for a `bench_train.Contestant`; `argument` is (configuration, Workload)."""
    settings, work = argument
    import torch
    import transformers
    from transformers.optimization import Adafactor

    from t5x_lite.verbs import bench_train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings))
    if not settings["tie_word_embeddings"] and model.lm_head.weight is model.shared.weight:
        # transformers 5 ties T5's head whatever the configuration says.
        drawn = torch.randn_like(model.shared.weight) * settings["d_model"] ** -0.5
        model.lm_head.weight = torch.nn.Parameter(drawn)
    model.to(device).train()
    optimizer = Adafactor(model.parameters(), lr=1e-2, scale_parameter=True, relative_step=False, warmup_init=False)
    inputs, targets = (
        torch.tensor(x.astype("int64"), device=device) for x in bench_train.random_tokens(work, settings["vocab_size"])
    )
    visible = torch.ones_like(inputs)

    def take() -> dict:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=work.dtype == "bfloat16"):
            loss = model(input_ids=inputs, attention_mask=visible, labels=targets).loss
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return {"loss": loss.item()}

    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": device,
        "threads": torch.get_num_threads(),
        "attention": model.config._attn_implementation,
    }
    return about, take


def generation(argument):
    """(about, step) for a `bench_train.Contestant`; `argument` is (Workload, width of the beam, directory)."""
    work, width, directory = argument
    from pathlib import Path

    import torch
    import transformers
    from safetensors import safe_open

    from t5x_lite.verbs import bench_train

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32)
    with safe_open(Path(directory, "model.safetensors"), "pt") as stored:
        if "lm_head.weight" in stored.keys():
            # transformers 5 ties T5's head whatever the configuration says, and umT5's logits are then scaled.
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(stored.get_tensor("lm_head.weight"))
    model.to(device, getattr(torch, work.dtype)).eval()
    # Without an end token every sequence has the full length.
    model.generation_config.eos_token_id = None
    inputs, _ = bench_train.random_tokens(work, model.config.vocab_size)
    inputs = torch.tensor(inputs.astype("int64"), device=device)
    settings = {"max_new_tokens": work.targets, "num_beams": width, "do_sample": False}

    def decode() -> dict:
        with torch.inference_mode():
            ids = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)
        return {"ids": ids[:, 1:].tolist()}

    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": device,
        "threads": torch.get_num_threads(),
        "attention": model.config._attn_implementation,
    }
    return about, decode
