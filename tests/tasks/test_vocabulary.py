"""Vocabularies: ids, sizes, late binding, training, and what is said about a wrong one."""

import pickle
from pathlib import Path

import pytest
import sentencepiece

from t5x_lite.errors import UserError
from t5x_lite.tasks import vocabulary

DATA = Path(__file__).resolve().parents[3] / "shared/data"
PUBLIC = DATA / "vocab/t5_cc_all.32000/spiece.model"

WORDS = (
    "the quick brown foxes jumped over lazy dogs while some other animals kept sleeping under old green trees and "
    "nobody wondered about those curious visitors from distant mountains who brought strange objects with them"
).split()


def text_file(folder, documents=200):
    path = folder / "text.txt"
    path.write_text("\n\n".join(" ".join(WORDS[(i * j) % 31] for j in range(1, 30)) for i in range(documents)))
    return str(path)


def raw_model(path, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_writer=path.open("wb"),
        vocab_size=60,
        minloglevel=2,
        **options,
    )
    return str(path)


T5_IDS = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def test_a_trained_vocabulary(tmp_path):
    first = vocabulary.train([text_file(tmp_path)], 55, tmp_path / "first")
    again = vocabulary.train([text_file(tmp_path)], 55, tmp_path / "again.model")
    assert first == tmp_path / "first/sentencepiece.model" and again == tmp_path / "again.model"
    assert first.read_bytes() == again.read_bytes()
    assert [p.name for p in (tmp_path / "first").iterdir()] == ["sentencepiece.model"]
    assert vocabulary.size(str(first)) == 55 + 100
    loaded = vocabulary.load(str(first))
    assert loaded.vocab_size == 155
    assert (loaded.pad_id, loaded.eos_id, loaded.unk_id) == (0, 1, 2)
    assert loaded.decode(loaded.encode("the lazy fox jumps")) == "the lazy fox jumps"


def test_the_sample_of_a_large_corpus_is_bounded_and_takes_from_all_files(tmp_path):
    files = []
    for k in range(100):
        files.append(tmp_path / f"{k:03}.txt")
        files[-1].write_text("\n\n".join(f"file{k} " * 10 for _ in range(50)))
    sample = list(vocabulary._sample([str(f) for f in files], 20_000))
    assert sum(map(len, sample)) == 20_000
    assert len({text.split()[0] for text in sample if text.startswith("file")}) == 64


def test_no_text_is_lost_in_long_lines():
    text = "word " * 2000 + "x" * 3000
    lines = list(vocabulary._lines(iter([text])))
    assert "".join(lines) == text and max(map(len, lines)) <= 1000


@pytest.mark.parametrize(
    "size, message",
    [
        (5000, r"--size=5000 is too large for this text. .* at most \d+ pieces. Set --size=\d+ or less"),
        (10, r"--size=10 is too small for this text. Its characters alone need \d+ pieces"),
        (2, r"--size=2 is too small"),
    ],
)
def test_sizes_that_the_text_cannot_give(tmp_path, size, message):
    with pytest.raises(UserError, match=message):
        vocabulary.train([text_file(tmp_path)], size, tmp_path / "out.model")
    assert not (tmp_path / "out.model").exists()


def test_training_without_text(tmp_path):
    with pytest.raises(UserError, match="--input matches no file"):
        vocabulary.train([], 100, tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="without text"):
        vocabulary.train([str(tmp_path / "empty.txt")], 100, tmp_path)


def test_sentinels_inside_the_file_are_not_added_again(tmp_path):
    pieces = [f"▁<extra_id_{k}>" for k in reversed(range(20))]
    path = raw_model(tmp_path / "a.model", user_defined_symbols=pieces, **T5_IDS)
    assert vocabulary.size(path) == vocabulary.load(path).vocab_size == 60


def test_bytes():
    assert vocabulary.load("bytes").vocab_size == vocabulary.size("bytes") == 259


def test_wrong_vocabularies(tmp_path):
    (tmp_path / "no.model").write_text("not a model")
    cases = [
        (None, r"VOCABULARY is not set. .*--gin.VOCABULARY.*gs://t5-data/vocabs/cc_all.32000.*vocab train"),
        (str(tmp_path / "gone.model"), r"gone.model cannot be read. .*No such file.*--gin.VOCABULARY"),
        (str(tmp_path / "no.model"), r"no.model is no SentencePiece model"),
        (raw_model(tmp_path / "bos.model"), r"bos.model has other special ids: pad is -1, not 0, eos is 2, not 1"),
    ]
    for path, message in cases:
        for function in (vocabulary.size, vocabulary.load):
            with pytest.raises(UserError, match=message):
                function(path)


def test_the_chosen_vocabulary_follows_what_is_bound(tmp_path):
    import seqio

    chosen = vocabulary.chosen()
    assert isinstance(chosen, seqio.Vocabulary) and chosen is vocabulary.chosen()
    feature = seqio.Feature(vocabulary=chosen)
    vocabulary.bind("bytes")
    assert (
        feature.vocabulary.vocab_size == 259 and chosen.encode("a") == [100] == chosen.encode_tf("a").numpy().tolist()
    )
    assert chosen == seqio.ByteVocabulary() and chosen.decode([100, 1]) == "a"
    vocabulary.bind(str(vocabulary.train([text_file(tmp_path)], 55, tmp_path)))
    assert chosen.vocab_size == 155 and chosen.eos_id == 1 and chosen.extra_ids == 100
    vocabulary.bind(None)
    with pytest.raises(UserError, match="VOCABULARY is not set"):
        chosen.encode("a")


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public T5 vocabulary is not on this machine")
def test_the_public_vocabulary():
    loaded = vocabulary.load(str(PUBLIC))
    assert vocabulary.size(str(PUBLIC)) == loaded.vocab_size == 32100
    assert loaded.encode("Hello world, this is a test.") == [8774, 296, 6, 48, 19, 3, 9, 794, 5]
    assert [loaded.tokenizer.id_to_piece(32099 - k) for k in (0, 1, 99)] == [f"▁<extra_id_{k}>" for k in (0, 1, 99)]


def test_the_chosen_vocabulary_is_the_bound_one_after_pickling():
    """Beam pickles the features of a task."""
    cloudpickle = pytest.importorskip("cloudpickle")
    vocabulary.bind("bytes")
    pickled = cloudpickle.dumps(vocabulary.chosen())
    vocabulary.bind(None)
    assert pickle.loads(pickled) is vocabulary.chosen() and vocabulary.bound() == "bytes"
    vocabulary.bind("demo")
    assert pickle.loads(pickled) is vocabulary.chosen() and vocabulary.bound() == "demo"
