"""tasks cache: what seqio and training without it read is what the task makes, and nothing half-written stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t5x_lite import cli, output
from t5x_lite.data import examples, token_files
from t5x_lite.data.tokens import Tokens
from t5x_lite.errors import UserError
from t5x_lite.tasks import tokenized

ROOT = Path(__file__).parents[2]
LENGTHS = {"inputs": 12, "targets": 4}

MODULE = """
import functools

import seqio
import tensorflow as tf

from t5x_lite.tasks import sources, vocabulary
from t5x_lite.tasks.in_python import one_to_one
from t5x_lite.tasks.objectives import denoising
from t5x_lite.tasks.objectives.named import OBJECTIVES
from t5x_lite.tasks.objectives.preprocess import preprocess
from t5x_lite.tasks.tokenization import tokenize

TEXT = tf.TensorSpec([], tf.string)
EOS = seqio.preprocessors.append_eos_after_trim
HERE = seqio.CacheDatasetPlaceholder


def pair(record):
    words = record["text"].split()
    if words[0] == "bad":
        raise ValueError("its first word is bad")
    return {"inputs": " ".join(words[1:]), "targets": words[0], "length": len(words)}


def only_long(dataset):
    return dataset.filter(lambda example: example["length"] > 1000)


def failing(dataset):
    return dataset.map(lambda example: {"targets": tf.strings.to_number(example["text"], tf.int32)[None]})


PAIR = one_to_one(pair, {"inputs": TEXT, "targets": TEXT, "length": tf.TensorSpec([], tf.int64)})
PAIRS = [PAIR, seqio.preprocessors.tokenize]


def register(name, preprocessors, vocabulary=vocabulary.chosen(), source=sources.Documents(sources.bound_files)):
    features = {k: seqio.Feature(vocabulary, add_eos=True) for k in ("inputs", "targets")}
    seqio.TaskRegistry.add(name, source=source, preprocessors=preprocessors, output_features=features)


register("cached_pairs", [*PAIRS, HERE(required=True), EOS])
register("cached_bytes", [*PAIRS, HERE(), EOS], vocabulary=seqio.ByteVocabulary())
register("cached_numbers", [*PAIRS, HERE(), EOS], vocabulary=seqio.PassThroughVocabulary(500, eos_id=1))
register("cached_and_more", [*PAIRS, HERE(), only_long, EOS])
register("cached_own", [tokenize, HERE(), functools.partial(preprocess, objective=denoising.deshuffling)])
register("cached_otherwise", [
    tokenize, HERE(), functools.partial(preprocess, objective=functools.partial(denoising.prefix_lm, mode="x"))])
register("cached_nothing", [*PAIRS, only_long, HERE(), EOS])
register("cached_failing", [failing, HERE()])
register("cached_train", [*PAIRS, HERE(), EOS], source=seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"text": "a b"}), splits=["train"]))
register("never_cached", [*PAIRS, EOS])
seqio.MixtureRegistry.add("cached_by_split", ["cached_pairs", "cached_train"], default_rate=1.0)
seqio.MixtureRegistry.add("cached_mixture", ["cached_pairs", "never_cached", "cached_bytes"], default_rate=1.0)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    (folder / "tasks_to_cache.py").write_text(MODULE)
    sys.path.append(str(folder))
    yield "--module=tasks_to_cache"
    sys.path.remove(str(folder))


@pytest.fixture
def no_caches():
    """No folder of caches and no cache found, as in a new process; and so for the next test."""
    import seqio

    def forget():
        seqio.set_global_cache_dirs([])
        for name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.get(name)._cache_dir = None

    forget()
    yield
    forget()


@pytest.fixture
def cache(corpus, module, tmp_path, no_caches):
    """A function: task, flags -> exit status; it writes to tmp_path/caches."""

    def run(name, *flags, train=corpus / "train-0.json.gz"):
        data = f"--gin.DATA_GLOB={train}", f"--gin.VALIDATION_GLOB={corpus}/validation.jsonl"
        words = ["tasks", "cache", name, module, f"--output={tmp_path}/caches", *data]
        return cli.run([*words, f"--gin.VOCABULARY={corpus}/vocabulary.model", "--shards=3", *flags])

    return run


def opened(corpus, folder, name):
    """The task as seqio has it, and as it is without."""
    from t5x_lite.tasks import registry

    vocabulary, module = str(corpus / "vocabulary.model"), "tasks_to_cache"
    task = registry.prepare(name, module, vocabulary, use_cached=True, cache_dir=str(folder))
    own = str(folder / name)
    ids = tokenized.ids(own, tokenized.vocabulary_of(own))
    features, maker = tokenized.maker(own, name, token_files.features(own), ids)
    return task, Tokens(name, own, features, ids.size, maker)


def sorted_examples(task, split) -> list:
    ((_, stream),) = examples.evaluation_streams(task, split, LENGTHS, False, 0, True, lambda error: None)
    return sorted([example[name].tolist() for name in LENGTHS] for (example,) in stream.take(10_000))


def test_seqio_reads_the_documents_of_the_task(caches, corpus, no_caches):
    from t5x_lite.tasks import codec, documents, registry

    vocabulary = str(corpus / "vocabulary.model")
    task = registry.prepare("text_span_corruption", None, vocabulary, use_cached=True, cache_dir=str(caches))
    codec = codec.load(vocabulary)
    for split, files in ("train", sorted(corpus.glob("train-*"))), ("validation", [corpus / "validation.jsonl"]):
        expected = sorted(codec.encode(text) for text in documents.texts(map(str, files)))
        source = task._get_cached_source(split)
        assert sorted(r["targets"].numpy().tolist() for r in source.get_dataset(split, shuffle=False)) == expected
        # Not by the task, which remembers the first cache that it was asked about.
        stats = json.loads((caches / f"text_span_corruption/stats.{split}.json").read_text())
        assert (stats["examples"], stats["targets_tokens"]) == (len(expected), sum(map(len, expected)))
    rows = list(task.get_dataset({"inputs": 40, "targets": 16}, use_cached=True, seed=0).take(20))
    assert len(rows) == 20 and sum(row["inputs"].shape == (40,) for row in rows) > 15


@pytest.mark.parametrize(("name", "vocabulary"), [("cached_pairs", 500), ("cached_bytes", 259)])
def test_pairs_are_the_same_with_seqio_and_without(cache, corpus, tmp_path, name, vocabulary, capfd):
    assert cache(name) == 0
    folder = tmp_path / "caches" / name
    assert sorted(path.name for path in folder.parent.iterdir()) == [name]
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"{name}: 90 records of ") and said.endswith(f": {folder}") and " tokens in 6 files" in said
    task, tokens = opened(corpus, folder.parent, name)
    assert tokens.vocabulary_size == vocabulary
    for split, count in ("train", 50), ("validation", 40):
        found = sorted_examples(tokens, split)
        assert found == sorted_examples(task, split) and len(found) == count
        assert all(len(inputs) <= 12 and inputs[-1] == targets[-1] == 1 for inputs, targets in found)
        assert any(len(inputs) == 12 for inputs, _ in found) and any(len(targets) < 4 for _, targets in found)


def test_a_split_that_was_not_cached_is_said_before_training(cache, corpus, tmp_path):
    assert cache("cached_pairs", "--split=train") == 0
    task, tokens = opened(corpus, tmp_path / "caches", "cached_pairs")
    examples.check_split(task, "train", True)
    with pytest.raises(UserError, match="the cache of cached_pairs has no split validation.*--gin.EVAL_PERIOD=0"):
        examples.check_split(task, "validation", True)
    assert examples.members(tokens, "validation") == []


@pytest.mark.parametrize(
    ("name", "becomes", "described"),
    [
        ("cached_own", "deshuffling", True),
        ("cached_otherwise", None, True),
        ("cached_and_more", None, True),
        ("cached_numbers", None, False),
    ],
)
def test_what_a_task_makes_of_its_records_is_written(cache, tmp_path, name, becomes, described):
    assert cache(name, "--split=validation") == 0
    folder = tmp_path / "caches" / name
    assert json.loads((folder / tokenized.RECORDS).read_text()) == {"task": name, "become": becomes}
    assert (folder / tokenized.VOCABULARY).exists() == (folder / tokenized.MODEL).exists() == described
    assert token_files.splits(str(folder)) == ["validation"]


def test_the_tasks_of_a_mixture_that_can_be_cached_and_are_not(cache, tmp_path, capfd):
    assert cache("cached_pairs") == 0
    assert cache("cached_mixture") == 0
    said = capfd.readouterr().err
    assert f"cached_pairs: is in {tmp_path}/caches/cached_pairs already" in said
    assert "never_cached: left out, its source is read instead of a cache" in said
    assert "cached_bytes: 90 records of " in said
    assert sorted(path.name for path in (tmp_path / "caches").iterdir()) == ["cached_bytes", "cached_pairs"]
    assert cache("cached_mixture") == 2
    assert "Its files are in" in capfd.readouterr().err
    assert cache("cached_mixture", "--gin.VOCABULARY=bytes") == 2
    assert "VOCABULARY=bytes is not what the tokens in" in capfd.readouterr().err


def test_what_a_killed_run_left_is_removed(cache, tmp_path):
    left = tmp_path / "caches/.cached_bytes.new/beam-temp"
    left.mkdir(parents=True)
    (left.parent / "train.tfrecord-00000-of-00009").touch()
    assert cache("cached_bytes", "--split=train") == 0
    assert os.listdir(tmp_path / "caches") == ["cached_bytes"]
    assert len(list((tmp_path / "caches/cached_bytes").glob("train.tfrecord-*"))) == 3


def test_options_go_to_beam(cache, tmp_path):
    options = ["--direct_running_mode=multi_threading", "--direct_num_workers=2"]
    assert cache("cached_bytes", "--split=train", "--", *options) == 0
    assert json.loads((tmp_path / "caches/cached_bytes/stats.train.json").read_text())["examples"] == 50


@pytest.mark.parametrize(
    ("name", "flags", "status", "text"),
    [
        ("cached_pear", [], 2, "cached_pear is no task or mixture. Nearest: cached_pairs"),
        (
            "never_cached",
            [],
            2,
            "never_cached cannot be cached. There is no place for a cache among its preprocessors.",
        ),
        ("cached_pairs", ["--split=test"], 2, "--split=test is no split of cached_pairs. There are train, validation."),
        ("cached_pairs", ["--gin.VALIDATION_GLOB=None"], 2, "To cache other splits alone, give --split."),
        ("cached_pairs", ["--gin.DATA_GLOB=gone*.jsonl"], 2, "gone*.jsonl matches no file"),
        ("cached_pairs", ["--gin.VOCABULARY=gone.model"], 2, "gone.model cannot be read."),
        ("cached_nothing", [], 2, "the split train of cached_nothing has no records."),
        ("cached_failing", [], 1, "cached_failing could not be cached. "),
        ("cached_pairs", ["--shards=0"], 2, "--shards does not fit. It is '0', not a whole number of at least 1."),
    ],
)
def test_what_cannot_be_cached_leaves_nothing(cache, tmp_path, name, flags, status, text, capfd):
    assert cache(name, *flags) == status
    said = capfd.readouterr().err
    assert text in said and "Traceback" not in said
    assert not (tmp_path / "caches").exists() or not os.listdir(tmp_path / "caches")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            '{"text": "bad word"}',
            'Record 2 of {path} gives no example: {"text": "bad word"}. Its first word is bad (pair).',
        ),
        ('{"txt": "a b"}', 'Record 2 of {path} cannot be read. It has no string in the field "text"'),
    ],
)
def test_a_record_that_cannot_be_read_is_named(cache, tmp_path, line, text, capfd):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b"}\n' + line + "\n")
    assert cache("cached_pairs", train=path) == 2
    assert text.replace("{path}", str(path)) in capfd.readouterr().err
    assert not os.listdir(tmp_path / "caches")


def test_a_folder_without_its_mark_is_in_the_way(cache, tmp_path, capfd):
    (tmp_path / "caches/cached_pairs").mkdir(parents=True)
    assert cache("cached_pairs") == 2
    assert (
        "caches/cached_pairs is in the way. It holds no complete cache: COMPLETED is missing." in capfd.readouterr().err
    )


def test_two_do_not_write_to_one_folder(cache, tmp_path, capfd):
    scratch = tmp_path / "caches/.cached_pairs.new"
    scratch.mkdir(parents=True)
    (scratch / "of the other").touch()
    with output.held(scratch, "--output"):
        assert cache("cached_pairs") == 2
    assert f"--output={scratch} is in use." in capfd.readouterr().err
    assert (scratch / "of the other").exists()


def test_a_task_of_a_mixture_without_the_split_is_left_out(cache, tmp_path, capfd):
    assert cache("cached_by_split", "--split=validation") == 0
    assert "cached_train: left out, it has train" in capfd.readouterr().err
    assert os.listdir(tmp_path / "caches") == ["cached_pairs"]


def test_without_beam(cache, monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cache("cached_pairs") == 2
    assert "apache_beam is not installed. It runs seqio's pipeline. Install it: pip install 't5x_lite[cache]'." in (
        capfd.readouterr().err
    )


def test_other_verbs_pass_nothing_on(capfd):
    assert cli.run(["tasks", "list", "--", "--runner=x"]) == 2
    assert "-- is given. The verb tasks passes nothing on. Leave out what follows it." in capfd.readouterr().err


def test_the_terminal_shows_our_own_lines_alone(corpus, tmp_path):
    """In a new process, where TensorFlow and Beam remark on what is not installed."""
    words = ["tasks", "cache", "text_prefix_lm", "--split=train", "--output=caches", "--gin.VOCABULARY=bytes"]
    done = subprocess.run(
        [sys.executable, "-m", "t5x_lite", *words, f"--gin.DATA_GLOB={corpus}/train-0.json.gz"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stdout
    lines = [line for line in done.stderr.splitlines() if "records read" not in line]
    assert len(lines) == 1 and lines[0].startswith("text_prefix_lm: 50 records of "), done.stderr
    assert len(list((tmp_path / "caches/text_prefix_lm").glob("train.tfrecord-*-of-00016"))) == 16
    assert np.sum([len(token_files.TokenFile(str(p))) for p in (tmp_path / "caches").rglob("train.tf*")]) == 50
