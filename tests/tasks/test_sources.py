"""Sources: the same documents in every format and under any sharding, exact resumption, errors with their file."""

import gzip
import zlib

import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks import documents
from tests.tasks.test_documents import NAMES, write

sources = pytest.importorskip("t5x_lite.tasks.sources")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

FORMATS = ["a.jsonl", "a.json.gz", "a.tfrecord", "a.tfrecord.gz", "a.parquet", "a.txt", "a.txt.gz"]


def texts_of(dataset):
    return [example["text"].decode() for example in dataset.as_numpy_iterator()]


def several(folder, name, files, count=11):
    """Files that hold "document 0", "document 1", ..., and the source over them."""
    (folder / "data").mkdir(exist_ok=True)
    paths = [
        write(folder / "data" / f"{k}{name}", [f"document {k * count + i}\nmore" for i in range(count)])
        for k in range(files)
    ]
    return [f"document {i}\nmore" for i in range(files * count)], sources.Documents(lambda split: paths)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_documents(tmp_path, name):
    expected, source = several(tmp_path, name, files=2)
    assert sorted(texts_of(source.get_dataset("train", shuffle=False))) == sorted(expected)
    assert sorted(texts_of(source.get_dataset("train", shuffle=True, seed=1))) == sorted(expected)


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 7, 16])
def test_shards_partition_the_documents(tmp_path, shards):
    expected, source = several(tmp_path, "a.jsonl", files=5, count=16)
    parts = [
        texts_of(source.get_dataset("train", shuffle=False, shard_info=seqio.ShardInfo(index, shards)))
        for index in range(shards)
    ]
    assert sorted(sum(parts, [])) == sorted(expected)
    assert max(map(len, parts)) - min(map(len, parts)) <= 5


def test_order_follows_the_seed_and_changes_from_epoch_to_epoch(tmp_path):
    _, source = several(tmp_path, "a.jsonl", files=3)

    def epochs(seed):
        both = texts_of(source.get_dataset("train", seed=seed).repeat(2))
        return both[: len(both) // 2], both[len(both) // 2 :]

    first, second = epochs(1)
    assert (first, second) == epochs(1)
    assert first != second and sorted(first) == sorted(second)
    assert epochs(2)[0] != first


@pytest.mark.parametrize("name", FORMATS)
def test_a_saved_position_resumes_exactly(tmp_path, name):
    _, source = several(tmp_path, name, files=3)

    def dataset():
        # A new one each time: a second iterator of the same dataset is shuffled differently.
        return source.get_dataset("train", seed=3).repeat(3)

    whole = texts_of(dataset())
    for taken in (1, 20, 33 + 5):
        iterator = iter(dataset())
        for _ in range(taken):
            next(iterator)
        path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / f"position{taken}"))
        resumed = iter(dataset())
        tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
        assert [example["text"].numpy().decode() for example in resumed] == whole[taken:]


def explained(source):
    with pytest.raises(tf.errors.OpError) as caught:
        texts_of(source.get_dataset("train", shuffle=False))
    return sources.explain(caught.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', r"Record 2 of .*a.jsonl cannot be read. It is not one JSON object"),
        ("a.jsonl.gz", gzip.compress(b'{"txt": 1}\n', mtime=0), r"Record 1 of .*a.jsonl.gz .* its fields are txt"),
        ("a.txt", b"\xff", r"Record 1 of .*a.txt .* can't decode byte"),
        ("a.txt.gz", gzip.compress(b"line\n" * 5000, mtime=0)[:-20], r"a.txt.gz cannot be read. Compressed file ended"),
        ("a.parquet", b"none", r"a.parquet cannot be read. It is no Parquet file"),
        ("a.tfrecord", b"no records at all", r"a.tfrecord cannot be read. Corrupted record at 0"),
        ("a.json.gz", b"not compressed", r"a.json.gz cannot be read. Not a gzipped file"),
        ("a.json.gz", b"", r"a.json.gz cannot be read. It has no bytes at all"),
    ],
)
def test_errors_inside_the_pipeline_name_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    sources.bind(str(tmp_path / name), None, None)
    error = explained(sources.Documents(sources.bound_files))
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=message):
        raise error


def broken_off(path):
    """A compressed file of 100 documents that breaks off exactly where one of them ends."""
    whole = gzip.open(write(path, [f"document {i}" for i in range(100)])).read()
    packer = zlib.compressobj(wbits=31)
    path.write_bytes(packer.compress(whole) + packer.flush(zlib.Z_FULL_FLUSH))
    return str(path)


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz", "a.txt.gz", "a.tfrecord.gz"])
def test_a_compressed_file_that_breaks_off_between_records_is_not_taken_for_whole(tmp_path, name):
    source = sources.Documents(lambda split: [broken_off(tmp_path / name)])
    for shard in (None, seqio.ShardInfo(0, 7), seqio.ShardInfo(6, 7)):
        with pytest.raises(tf.errors.OpError) as caught:
            texts_of(source.get_dataset("train", shuffle=False, shard_info=shard))
        assert f"{name} cannot be read. Compressed file ended before" in str(sources.explain(caught.value))


def test_a_compressed_file_is_checked_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(documents, "open_file", lambda path: opened.append(path) or open(path, "rb"))
    for name in ("a.json.gz", "a.txt.gz", "a.tfrecord.gz", "a.jsonl", "a.txt"):
        _, source = several(tmp_path, name, files=2)
        for index in range(3):
            texts_of(source.get_dataset("train", shard_info=seqio.ShardInfo(index, 3)).repeat(2))
    assert len(opened) == len(set(opened)) == 6 and all(path.endswith(".gz") for path in opened)


def test_an_example_without_text(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as file:
        file.write(tf.train.Example().SerializeToString())
    error = explained(sources.Documents(lambda split: [str(path)]))
    assert "Record 1 of" in str(error) and 'no bytes in the feature "text", its features are none' in str(error)


def test_a_text_file_without_blank_lines_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("t5x_lite.tasks.documents.LONGEST_TEXT", 1 << 20)
    (tmp_path / "a.txt").write_bytes(b"line of text\n" * 200_000)
    error = explained(sources.Documents(lambda split: [str(tmp_path / "a.txt")]))
    assert "separated by blank lines, and it has none in 1 MiB" in str(error)


def test_other_errors_are_not_explained():
    assert sources.explain(tf.errors.ResourceExhaustedError(None, None, "no memory")) is None


def test_globs_are_bound_late_and_checked(tmp_path):
    source = sources.Documents(sources.bound_files)
    sources.bind(None, None, None)
    with pytest.raises(UserError, match="DATA_GLOB is not set"):
        source.get_dataset("train")
    sources.bind(write(tmp_path / "a.txt", ["a"]), write(tmp_path / "b.jsonl", ["b"]), None)
    assert texts_of(source.get_dataset("train")) == ["a"] and texts_of(source.get_dataset("validation")) == ["b"]
    sources.bind(str(tmp_path / "*"), str(tmp_path / "*.gz"), None)
    with pytest.raises(UserError, match=r"2 formats \(json, txt\).*a.txt and .*b.jsonl"):
        source.get_dataset("train")
    with pytest.raises(UserError, match=r"VALIDATION_GLOB=.*\*.gz matches no file"):
        source.get_dataset("validation")
