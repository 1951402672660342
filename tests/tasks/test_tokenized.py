"""What cached records become without seqio, beside what seqio makes of them, and whose they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks import tokenized
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.named import OBJECTIVES

LENGTHS = {"inputs": 64, "targets": 64}
IDS = Ids(600, 100, 1, lambda text: [7, 8] if text else [])
DOCUMENTS, PAIRS = {"targets"}, {"inputs", "targets"}


@pytest.fixture
def folder(caches, tmp_path) -> Path:
    """A copy of a cache that may be spoilt."""
    return Path(shutil.copytree(caches / "text_span_corruption", tmp_path / "text_span_corruption"))


def become(folder, task, what):
    (folder / tokenized.RECORDS).write_text(json.dumps({"task": task, "become": what}))


def made(folder, name, found=DOCUMENTS, ids=IDS, lengths=LENGTHS):
    features, maker = tokenized.maker(str(folder), name, found, ids)
    rng = np.random.default_rng(0)
    records = [{f: rng.integers(3, 500, n).astype(np.int32) for f in features} for n in (300, 0, 5, 80)]
    return maker(lengths)(records, rng), records


@pytest.mark.parametrize("name", OBJECTIVES)
def test_documents_serve_every_objective(folder, name):
    lengths = {"inputs": 200, "targets": 250}
    found, _ = made(folder, f"text_{name}", lengths=lengths)
    assert found
    for example in found:
        for feature, length in lengths.items():
            assert example[feature].dtype == np.int32 and 0 < len(example[feature]) <= length
    ended = sum(example["targets"][-1] == 1 for example in found)
    assert ended == len(found) or name == "full_lm" and ended > 0


def test_the_longest_ending_tells_the_objective():
    assert tokenized.objective_of("c4_v220_span_corruption") == "span_corruption"
    assert tokenized.objective_of("c4_v220_span_corruption_mean_10") == "span_corruption_mean_10"
    assert tokenized.objective_of("c4_v220_unsupervised") is None


def test_lengths_that_do_not_fit_are_refused(folder):
    _, maker = tokenized.maker(str(folder), "text_span_corruption", DOCUMENTS, IDS)
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS gives the targets 5 tokens"):
        maker({"inputs": 64, "targets": 5})


def test_a_task_may_be_called_otherwise_than_its_objective(folder):
    become(folder, "c4_v020_unsupervised", "span_corruption")
    by_name = made(folder, "x_span_corruption")[0]
    own = made(folder, "c4_v020_unsupervised")[0]
    assert all(np.array_equal(a[f], b[f]) for a, b in zip(by_name, own, strict=True) for f in LENGTHS)
    with pytest.raises(
        UserError, match=r"cannot be read as MIXTURE_OR_TASK_NAME=c4\. Its records hold the tokens targ"
    ):
        made(folder, "c4")


def test_examples_are_cut_and_closed(folder):
    become(folder, "pairs", tokenized.EXAMPLES)
    found, records = made(folder, "pairs", PAIRS)
    for example, record in zip(found, records, strict=True):
        for feature in LENGTHS:
            assert example[feature].tolist() == [*record[feature][:63], 1]
    with pytest.raises(UserError, match="=other is not in TOKENS_DIR=.*It holds the examples of pairs"):
        made(folder, "other", PAIRS)


def test_a_record_that_was_cached_with_its_end_has_one_end(folder):
    (folder / tokenized.RECORDS).unlink()
    _, maker = tokenized.maker(str(folder), "pairs", PAIRS, IDS)
    make = maker({"inputs": 4, "targets": 4})
    for tokens, expected in ([3, 1], [3, 1]), ([3, 4, 5, 1], [3, 4, 5, 1]), ([3, 4, 5, 6, 1], [3, 4, 5, 1]), ([], [1]):
        array = np.array(tokens, np.int32)
        (example,) = make([{"inputs": array, "targets": array}], np.random.default_rng(0))
        assert example["inputs"].tolist() == expected and example["inputs"].dtype == np.int32


@pytest.mark.parametrize("found", [PAIRS, {"inputs"}, set()])
def test_an_objective_takes_documents_alone(folder, found):
    become(folder, "pairs", None)
    with pytest.raises(UserError, match="an objective takes those of targets alone"):
        made(folder, "text_span_corruption", found)


def test_a_task_that_does_more_is_refused(folder):
    become(folder, "mine_span_corruption", None)
    message = "cannot be read without seqio. mine_span_corruption does more .*--gin.USE_CACHED_TASKS=True"
    with pytest.raises(UserError, match=message):
        made(folder, "mine_span_corruption")
    made(folder, "text_span_corruption")  # its documents serve the shipped ones


def test_the_vocabulary_is_that_of_the_tokens(folder, corpus, tmp_path):
    vocabulary = str(corpus / "vocabulary.model")
    by_name, by_copy = tokenized.ids(str(folder), vocabulary), tokenized.ids(str(folder), None)
    assert by_name[:3] == by_copy[:3] == (500, 100, 1)
    assert (
        by_copy.encode("") == []
        and by_copy.encode("[S]") == json.loads((folder / "vocabulary.json").read_text())["modes"]["[S]"]
    )
    assert tokenized.vocabulary_of(str(folder)) == str(folder / "vocabulary.model")
    assert (folder / "vocabulary.model").read_bytes() == (corpus / "vocabulary.model").read_bytes()

    with pytest.raises(UserError, match="VOCABULARY=bytes is not what the tokens in .* One of them is bytes"):
        tokenized.ids(str(folder), "bytes")
    other = tmp_path / "other.model"
    other.write_bytes((corpus / "vocabulary.model").read_bytes() + b"\n")
    with pytest.raises(
        UserError, match=r"other\.model is not what .* Its md5 is \w{32}, and that of the tokens \w{32}"
    ):
        tokenized.ids(str(folder), str(other))
    with pytest.raises(UserError, match=rf"gone\.model cannot be read.*VOCABULARY={folder}/vocabulary\.model"):
        tokenized.ids(str(folder), str(tmp_path / "gone.model"))


def test_a_cache_of_seqios_own_tool_asks_for_the_vocabulary(folder, corpus):
    described = tokenized.ids(str(folder), None)
    for name in (tokenized.VOCABULARY, tokenized.MODEL, tokenized.RECORDS):
        (folder / name).unlink()
    asked = tokenized.ids(str(folder), str(corpus / "vocabulary.model"))
    assert asked[:3] == described[:3] and asked.encode("[X]") == described.encode("[X]")
    with pytest.raises(UserError, match="VOCABULARY is not set. TOKENS_DIR=.* has no copy of it"):
        tokenized.vocabulary_of(str(folder))
    assert made(folder, "text_prefix_lm", ids=asked)


def test_bytes_and_vocabularies_without_a_name(folder):
    (folder / tokenized.MODEL).unlink()
    known = tokenized.describe_vocabulary("bytes")
    assert known["size"] == 259 and known["md5"] is None
    assert known["modes"]["[S]"] == [byte + 3 for byte in b"[S]"]
    (folder / tokenized.VOCABULARY).write_text(json.dumps(known))
    assert tokenized.vocabulary_of(str(folder)) == "bytes"
    assert tokenized.ids(str(folder), "bytes").size == 259
    (folder / tokenized.VOCABULARY).unlink()
    with pytest.raises(
        UserError, match="cannot be read without seqio. Its vocabulary is none that VOCABULARY can name"
    ):
        tokenized.ids(str(folder), "bytes")


def test_a_description_that_cannot_be_read(folder):
    (folder / tokenized.VOCABULARY).write_text("{")
    with pytest.raises(UserError, match=r"vocabulary\.json is no JSON"):
        tokenized.ids(str(folder), None)
