"""The tokenizer that transformers makes of what is written gives our ids."""

import json

import pytest
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.interop import tokenizer
from t5x_lite.tasks import codec

TEXTS = [
    "Bado kemi lo. Ka lo kadu!",
    "  spaces   here and\nthere\t",
    "ﬁne naïve “quotes” — ½ 日本語",
    "Thank you <extra_id_0> me to your party <extra_id_1> week.",
    "<extra_id_0> for inviting <extra_id_1> last <extra_id_99>",
]


def with_sentinels(path, out):
    """A file such as mT5's, which has the sentinels among its pieces."""
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    for number in reversed(range(100)):
        kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=kind)
    out.write_bytes(model.SerializeToString())
    return out


@pytest.fixture(params=["without", "with", "bytes"])
def vocabulary(request, corpus, tmp_path):
    path = corpus / "vocabulary.model"
    names = {"bytes": "bytes", "without": str(path)}
    return names.get(request.param) or str(with_sentinels(path, tmp_path / "with.model"))


def test_what_is_written(vocabulary, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    tokenizer.write(out, vocabulary)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == ("ByT5Tokenizer" if vocabulary == "bytes" else "T5Tokenizer")
    assert (out / "spiece.model").exists() == (vocabulary != "bytes")
    if vocabulary != "bytes":
        names = [config[name] for name in ("pad_token", "eos_token", "unk_token")]
        assert names == ["<pad>", "</s>", "<unk>"]
        assert config["extra_ids"] == (0 if vocabulary.endswith("with.model") else 100)


def test_live_ids(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
    out = tmp_path / "out"
    out.mkdir()
    tokenizer.write(out, vocabulary)
    (out / "config.json").write_text('{"model_type": "t5"}')
    theirs, ours = transformers.AutoTokenizer.from_pretrained(out), codec.load(vocabulary)
    for text in TEXTS:
        # ByT5Tokenizer has sentinels behind the bytes, ByT5's pretraining the last bytes themselves.
        if vocabulary != "bytes" or "<extra" not in text:
            assert theirs(text).input_ids == [*ours.encode(text), ours.eos_id], text
            assert theirs.decode(theirs(text).input_ids, skip_special_tokens=False).endswith("</s>")
