"""The tokenizer that transformers makes of what is written gives our ids.

What is in tokenizer.json is read by a plain tokenizer here, and by transformers where it can be imported.
"""

import base64
import gzip
import io
import json
import re
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.interop import tokenizer
from t5x_lite.tasks import codec

DATA = Path(__file__).parents[2].parent / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the vocabulary and the books are not at {DATA}")

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
    assert (out / "spiece.model").exists() == (out / "tokenizer.json").exists() == (vocabulary != "bytes")
    if vocabulary != "bytes":
        names = [config[name] for name in ("pad_token", "eos_token", "unk_token")]
        assert names == ["<pad>", "</s>", "<unk>"]
        assert config["extra_ids"] == (0 if vocabulary.endswith("with.model") else 100)


# ---------------------------------------------------------------------------- tokenizer.json


def trained(corpus, **settings):
    """A model of the corpus, with another setting than `vocab train` takes."""
    texts = [json.loads(line)["text"] for line in (corpus / "validation.jsonl").read_text().splitlines()]
    # The characters of what looks like a byte or a control token; where they are unknown, it is taken for that.
    texts += ["< 0 x A 4 1 s >"]
    out = io.BytesIO()
    default = {"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    default |= {"character_coverage": 1.0, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, **default | settings)
    return out.getvalue()


SETTINGS = {
    "as T5's": {},
    "bytes": {"byte_fallback": True, "vocab_size": 320},
    "no normalization": {"normalization_rule_name": "identity"},
    "spaces kept": {"remove_extra_whitespaces": False},
    "no mark in front": {"add_dummy_prefix": False},
    "pieces of several words": {"split_by_whitespace": False},
    "pieces of the user": {"user_defined_symbols": ["[x]", "▁<y>"]},
    "another start token": {"bos_id": 3},
}
# The first ones have plain characters only, so that normalizing them is all in the steps behind the table.
PLAIN = [
    "Bado kemi lo. Ka lo kadu!",
    "",
    "   ",
    "  Ba  da   ba. ",
    "Qu & Q[x] <y>, a<y> Ba~~da",
    "<0x41><0x0A> <s> ba",
]
OTHER = ["ﬁne “quotes” ½ 日本 Ba\tba\nba", "Ｂａ ba\u3000ba \u2581ba", "🙂ba🙂"]


def encoded(content, text):
    """The ids that the content of tokenizer.json tells, but for its table of characters and its added tokens."""
    for step in content["normalizer"]["normalizers"]:
        if step["type"] == "Replace":
            text = re.sub(step["pattern"]["Regex"].replace(r"\z", r"\Z"), step["content"], text)
        if step["type"] == "Prepend" and text:
            text = step["prepend"] + text
    assert content["pre_tokenizer"]["prepend_scheme"] == "never"
    text, vocab = text.replace(" ", "▁"), content["model"]["vocab"]
    chunks = re.findall("▁?[^▁]+|▁", text) if content["pre_tokenizer"]["split"] else [text]
    ids = {piece: number for number, (piece, _) in enumerate(vocab)}
    unknown = min(score for _, score in vocab) - 10
    found = []
    for chunk in chunks:
        # Of each end the best score, with the pieces of its path.
        best = [(0.0, [])]
        for end in range(1, len(chunk) + 1):
            ways = [(best[end - 1][0] + unknown, best[end - 1][1] + [chunk[end - 1]])]
            for start in range(end):
                if (piece := chunk[start:end]) in ids:
                    ways.append((best[start][0] + vocab[ids[piece]][1], best[start][1] + [piece]))
            best.append(max(ways, key=lambda way: way[0]))
        last = None
        for piece in best[-1][1]:
            if piece in ids:
                found.append(ids[piece])
            elif content["model"]["byte_fallback"]:
                found += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
            elif last is None or last in ids:
                found.append(content["model"]["unk_id"])
            last = piece
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_told_gives_the_ids_of_sentencepiece(corpus, setting):
    data = trained(corpus, **SETTINGS[setting])
    proto, model = tokenizer._Model.FromString(data), sentencepiece.SentencePieceProcessor(model_proto=data)
    content = tokenizer.tokenizer_json(proto)
    for text in PLAIN:
        assert encoded(content, text) == model.encode(text), text
    tables = [s for s in content["normalizer"]["normalizers"] if s["type"] == "Precompiled"]
    held = proto.normalizer_spec.precompiled_charsmap
    assert [base64.b64decode(table["precompiled_charsmap"]) for table in tables] == [held] * bool(held)


def test_sentinels_fall_behind_the_pieces_and_are_added_tokens(corpus):
    proto = tokenizer._Model.FromString((corpus / "vocabulary.model").read_bytes())
    content, size = tokenizer.tokenizer_json(proto), len(proto.pieces)
    vocab = content["model"]["vocab"]
    assert vocab[:size] == [[piece.piece, piece.score] for piece in proto.pieces]
    assert [piece for piece, _ in vocab[size:]] == [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    added = {token["content"]: token for token in content["added_tokens"]}
    assert list(added) == ["<pad>", "</s>", "<unk>", *(piece for piece, _ in vocab[size:])]
    for name, token in added.items():
        assert vocab[token["id"]][0] == name and token["special"] and not token["normalized"]
    assert content["model"]["unk_id"] == 2
    assert content["post_processor"]["special_tokens"] == {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}


def test_sentinels_among_the_pieces_stay_there(corpus, tmp_path):
    path = with_sentinels(corpus / "vocabulary.model", tmp_path / "with.model")
    content = tokenizer.tokenizer_json(tokenizer._Model.FromString(path.read_bytes()))
    assert [token["content"] for token in content["added_tokens"]] == ["<pad>", "</s>", "<unk>"]
    assert content["model"]["vocab"][-1][0] == "▁<extra_id_0>"
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in ("Bado <extra_id_0> lo <extra_id_12>, <extra_id_1>", "<extra_id_3>."):
        assert encoded(content, text) == model.encode(text)


@pytest.mark.parametrize(
    "setting", [{"model_type": "bpe"}, {"model_type": "char"}, {"treat_whitespace_as_suffix": True}], ids=str
)
def test_no_tokenizer_json_that_would_give_other_ids(corpus, tmp_path, setting):
    (tmp_path / "a.model").write_bytes(trained(corpus, **setting))
    tokenizer.write(tmp_path, str(tmp_path / "a.model"))
    assert not (tmp_path / "tokenizer.json").exists() and (tmp_path / "spiece.model").exists()


# ------------------------------------------------------------------------------------------ live


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")


def written(directory, vocabulary, kind):
    directory.mkdir()
    tokenizer.write(directory, str(vocabulary))
    (directory / "config.json").write_text(json.dumps({"model_type": kind}))
    return directory


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_live_ids(transformers, vocabulary, tmp_path, kind):
    if vocabulary == "bytes" and kind == "umt5":
        pytest.skip("there is no umT5 of bytes")
    out = written(tmp_path / "out", vocabulary, kind)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(out), codec.load(vocabulary)
    for text in TEXTS:
        # ByT5Tokenizer has sentinels behind the bytes, ByT5's pretraining the last bytes themselves.
        if vocabulary != "bytes" or "<extra" not in text:
            assert theirs(text).input_ids == [*ours.encode(text), ours.eos_id], text
            assert theirs.decode(theirs(text).input_ids, skip_special_tokens=False).endswith("</s>")


@pytest.mark.parametrize("setting", SETTINGS)
def test_live_ids_of_other_models(transformers, corpus, tmp_path, setting):
    """Read as umT5's, for T5Tokenizer of transformers 5 takes the pieces alone from the file."""
    data = trained(corpus, **SETTINGS[setting])
    (tmp_path / "a.model").write_bytes(data)
    out = written(tmp_path / "out", tmp_path / "a.model", "umt5")
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    ours = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in PLAIN + OTHER:
        assert theirs(text).input_ids == [*ours.encode(text), 1], text
    if setting == "bytes":
        assert theirs.decode(theirs("日本 ba").input_ids, skip_special_tokens=True) == "日本 ba"


@needs_data
@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_live_ids_of_much_text(transformers, tmp_path, kind):
    vocabulary = DATA / "vocab/t5_cc_all.32000/spiece.model"
    with gzip.open(DATA / "corpus/classic_books_c4json/dev-train.00000-of-00002.json.gz", "rt") as file:
        lines = [line for row in file for line in json.loads(row)["text"].splitlines()][:4000]
    theirs = transformers.AutoTokenizer.from_pretrained(written(tmp_path / "out", vocabulary, kind))
    ours = codec.load(str(vocabulary))
    assert theirs(lines).input_ids == [[*ours.encode(line), ours.eos_id] for line in lines]
