"""The same logits as transformers itself, from its directories and from ours; where it is installed."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.interop import huggingface, tensor_files
from tests.interop.models import logits
from tests.interop.models import read_huggingface as read
from tests.interop.models import write_huggingface as write

REFERENCES = Path(__file__).parents[1] / "references"


@pytest.fixture
def live(monkeypatch):
    """The script that made the references, where torch and transformers are installed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch", reason="torch is not installed (extra hf)")
    pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
    sys.path.insert(0, str(REFERENCES))
    try:
        import make_hf_logits
    finally:
        sys.path.remove(str(REFERENCES))
    return make_hf_logits


UNEQUAL = {"vocab_size": 90, "d_model": 20, "d_kv": 6, "d_ff": 11, "num_heads": 5}
FAMILIES = {
    "1.0": ("T5", {"num_layers": 3, "feed_forward_proj": "relu"}),
    "1.1": (
        "T5",
        {
            "num_layers": 1,
            "num_decoder_layers": 2,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 50,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    # Gated with a tied head: what transformers 5 makes of a new T5 1.1.
    "gated-tied": ("T5", {"num_layers": 2, "feed_forward_proj": "gated-gelu"}),
    "ul2": ("T5", {"num_layers": 2, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
    "byt5": (
        "T5",
        {
            "num_layers": 3,
            "num_decoder_layers": 1,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "tokenizer_class": "ByT5Tokenizer",
        },
    ),
    "mt5": ("MT5", {"num_layers": 2, "num_decoder_layers": 1, "tie_word_embeddings": False}),
    # As transformers 5 makes a new one: tied but not scaled.
    "mt5-tied": ("MT5", {"num_layers": 2}),
    "umt5-tied": ("UMT5", {"num_layers": 2, "num_decoder_layers": 3}),
    "umt5": ("UMT5", {"num_layers": 2, "num_decoder_layers": 3, "tie_word_embeddings": False}),
}


def close_to(expected):
    return {"desired": expected, "rtol": 1e-4, "atol": 1e-4 * np.abs(expected).max()}


@pytest.mark.parametrize("family", FAMILIES)
def test_live_logits_and_the_way_back(live, tmp_path, family):
    import transformers

    kind, config = FAMILIES[family]
    own_head = "tie_word_embeddings" in config
    model = live.random_model(3, own_head, kind, **UNEQUAL, **config)
    # Long enough for distances beyond the last bucket.
    batch = live.tokens(UNEQUAL["vocab_size"], inputs=180, targets=160)
    expected = live.logits(model, batch)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs/model.safetensors.index.json").exists()
    arch, params = read(tmp_path / "theirs")
    np.testing.assert_allclose(logits(arch, params, batch), **close_to(expected))
    assert huggingface.vocabulary(tmp_path / "theirs") == ("bytes" if family == "byt5" else None)

    write(tmp_path / "ours", arch, params)
    before, after = (tensor_files.read_all(tmp_path / name) for name in ("theirs", "ours"))
    # A head that is tied and not scaled is written as one of its own.
    assert after.keys() == before.keys() | (set() if arch.tied_head else {"lm_head.weight"})
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor.whole(), after[name].whole(), err_msg=name)
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    back, report = load(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_allclose(live.logits(back.eval(), batch), **close_to(expected))
    assert back.generation_config.decoder_start_token_id == 0
    half = tmp_path / "half"
    write(half, arch, params, dtype="bfloat16", largest=4000)
    assert not any(load(half, output_loading_info=True)[1].values())


def test_live_umt5_whose_own_head_is_not_scaled(live, tmp_path):
    """As Google's release and what is trained here: transformers 4 computes it at once, 5 after one assignment."""
    import transformers

    live.random_model(3, True, "UMT5", **UNEQUAL, **FAMILIES["umt5"][1]).save_pretrained(tmp_path / "theirs")
    arch, params = read(tmp_path / "theirs")
    arch = dataclasses.replace(arch, scaled_head=False)
    write(tmp_path / "out", arch, params)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    batch = live.tokens(arch.vocab_size)
    if transformers.__version__ >= "5":
        scaled = dataclasses.replace(arch, scaled_head=True)
        np.testing.assert_allclose(logits(scaled, params, batch), **close_to(live.logits(model, batch)))
        model.config.tie_word_embeddings = False
    np.testing.assert_allclose(logits(arch, params, batch), **close_to(live.logits(model, batch)))


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "not-scaled"])
@pytest.mark.parametrize("own_head", [True, False], ids=["own", "tied"])
def test_live_heads(live, tmp_path, own_head, scaled):
    import transformers

    config = {**live.SHAPE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": scaled}
    live.random_model(4, own_head, **config).save_pretrained(tmp_path)
    batch = live.tokens(128)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    if own_head == scaled and transformers.__version__ < "5":
        # It has tied what was not, or drawn a new head for what was.
        return
    np.testing.assert_allclose(logits(*read(tmp_path), batch), **close_to(live.logits(loaded, batch)))
