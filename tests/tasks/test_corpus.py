"""The demo corpus: a function of what is installed, prose only, split by document, complete or not there."""

import gzip
import json

import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks import corpus, documents, vocabulary


@pytest.fixture
def few(monkeypatch):
    """The corpus of two small packages and a vocabulary to match."""
    monkeypatch.setattr(corpus, "_PACKAGES", {"absl": "absl-py", "optax": "optax"})
    modules = corpus._modules
    monkeypatch.setattr(corpus, "_modules", lambda name, folder: () if name == "python" else modules(name, folder))
    monkeypatch.setattr(corpus, "VOCABULARY_SIZE", 600)


def test_prose():
    text = """Return the sum.

    Computes the sum of all the elements of an array, see :func:`~numpy.sum` or ``sum``,
    along a given axis.

    >>> sum([1, 2])
    3

    Args:
      x: An array of any shape that is summed.

    - A list is no running text at all, though it ends so.

    The code is given in the following example::

        x = sum(1)
    """
    assert corpus.prose(text) == [
        "Computes the sum of all the elements of an array, see numpy.sum or sum, along a given axis."
    ]


def test_the_files_are_the_same_when_built_again(tmp_path, few):
    contents = []
    for name in ("a", "b"):
        corpus.build(tmp_path / name)
        contents.append([(p.name, p.read_bytes()) for p in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1] and [n for n, _ in contents[0]] == ["train.jsonl.gz", "validation.jsonl.gz"]
    split = {
        s: [json.loads(line) for line in gzip.open(tmp_path / "a" / f"{s}.jsonl.gz")] for s in ("train", "validation")
    }
    train, validation = ({d["name"] for d in split[s]} for s in ("train", "validation"))
    assert train and validation and not train & validation and len(train) > 5 * len(validation)
    paragraphs = [p for s in split.values() for d in s for p in d["text"].splitlines()]
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(p.isascii() and p[0].isupper() and p[-1] in ".!?" for p in paragraphs)
    assert sum(map(len, paragraphs)) > 100_000


def test_it_is_built_once_on_first_use(tmp_path, few, monkeypatch, capsys):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path))
    path = corpus.vocabulary_path()
    assert path.parent.parent == tmp_path and "once" in capsys.readouterr().err
    times = {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    assert vocabulary.load.__wrapped__("demo").vocab_size == vocabulary.size("demo") == 700
    assert list(documents.texts(corpus.files("validation")))
    assert {p: p.stat().st_mtime_ns for p in path.parent.iterdir()} == times and not capsys.readouterr().err


def test_a_cache_that_cannot_be_written(tmp_path, few, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"demo corpus cannot be written to .*T5X_LITE_CACHE"):
        corpus.ensure()
