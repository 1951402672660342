"""Records of TFRecord files as TensorFlow reads and writes them, and what is said of each kind of damage."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data import token_files
from t5x_lite.data.token_files import TokenFile
from t5x_lite.errors import UserError

SIZE = 500
SEQIO = Path(__file__).resolve().parents[3] / "shared/data/seqio_cached/cached_task"


def example(**features) -> bytes:
    import tensorflow as tf

    made = {}
    for name, values in features.items():
        if isinstance(values, str):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[values.encode()]))
        elif any(isinstance(v, float) for v in values):
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def written(path: Path, records: list[bytes]) -> Path:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)
    return path


def read(path, features=("targets",), size=SIZE) -> list[dict[str, list[int]]]:
    file = TokenFile(str(path))
    return [
        {name: tokens.tolist() for name, tokens in record.items()}
        for record in file.records(np.arange(len(file)), features, size)
    ]


def test_records_are_those_that_tensorflow_wrote(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.integers(SIZE, size=n).tolist() for n in [0, 1, 2, 700, 30, 0, 5]]
    records = [example(targets=row, inputs=row[::-1], idx=[2**40], text="a word", weight=[0.5]) for row in rows]
    path = written(tmp_path / "file", records)
    assert read(path, ("inputs", "targets")) == [{"inputs": row[::-1], "targets": row} for row in rows]
    file = TokenFile(str(path))
    assert len(file) == len(rows) and file.sizes.tolist() == [len(record) for record in records]
    some = file.records(np.array([6, 3, 3]), ("targets",), SIZE)
    assert [record["targets"].tolist() for record in some] == [rows[6], rows[3], rows[3]]
    assert all(record["targets"].dtype == np.int32 for record in some)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_cache_gives_what_tensorflow_reads_of_it(caches, split):
    import tensorflow as tf

    paths = token_files.files(str(caches / "text_span_corruption"), split)
    assert len(paths) == 4
    feature = {"targets": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)}
    for path in paths:
        expected = [
            {"targets": tf.io.parse_single_example(record, feature)["targets"].numpy().tolist()}
            for record in tf.data.TFRecordDataset(path)
        ]
        assert read(path) == expected and expected


def test_a_file_without_records(tmp_path):
    (tmp_path / "file").touch()
    assert read(tmp_path / "file") == [] and len(TokenFile(str(tmp_path / "file"))) == 0


def damaged(path: Path, change) -> Path:
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)
    return path


@pytest.fixture
def three(tmp_path) -> tuple[Path, int]:
    """A file of three equal records, and the bytes of each with what is around it."""
    record = example(targets=[3, 4, 5])
    return written(tmp_path / "three", [record] * 3), 16 + len(record)


def flipped(at):
    def change(data):
        data[at] ^= 1

    return change


@pytest.mark.parametrize("kept", [1, 5, 11, 12, 15, 16, 20])
def test_a_file_that_breaks_off(three, kept):
    path, size = three
    damaged(path, lambda data: data[: 2 * size + kept])
    with pytest.raises(UserError, match=rf"^Record 3 of {path} cannot be read\. The file breaks off\. Copy the files"):
        TokenFile(str(path))


@pytest.mark.parametrize("byte", [0, 1, 4, 7, 8, 11])
def test_a_wrong_length_or_its_checksum(three, byte):
    path, size = three
    damaged(path, flipped(size + byte))
    with pytest.raises(UserError, match=rf"^Record 2 of {path} cannot be read\. The checksum of its length is wrong\."):
        TokenFile(str(path))


def test_what_is_no_record_file(tmp_path):
    (tmp_path / "file").write_bytes(b"some text that is long enough to hold the head of a record\n")
    with pytest.raises(UserError, match="Record 1 of .* The checksum of its length is wrong"):
        TokenFile(str(tmp_path / "file"))


@pytest.mark.parametrize("byte", [12, 15, -1, -4])
def test_wrong_data_or_its_checksum(three, byte):
    path, size = three
    damaged(path, flipped((byte if byte >= 0 else size + byte) + size))
    with pytest.raises(UserError, match=rf"^Record 2 of {path} cannot be read\. The checksum of its data is wrong\."):
        read(path)
    file = TokenFile(str(path))  # the others can be read
    assert len(file.records(np.array([0, 2]), ("targets",), SIZE)) == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\xff\xff\xff\xff", "it is no tf.train.Example (Error parsing message"),
        ({"inputs": [3]}, "it has no feature targets, its features are inputs"),
        ({}, "it has no feature targets, its features are none"),
        ({"targets": "text"}, "its targets are a bytes_list, not tokens"),
        ({"targets": [0.5]}, "its targets are a float_list, not tokens"),
        ({"targets": [3, SIZE]}, "its targets have the id 500, and the vocabulary has 500 ids"),
        ({"targets": [-1]}, "its targets have the id -1, and the vocabulary has 500 ids"),
        ({"targets": [3, 2**40]}, f"its targets have the id {2**40}, and the vocabulary has 500 ids"),
    ],
)
def test_records_that_hold_no_tokens(tmp_path, record, reason):
    record = record if isinstance(record, bytes) else example(**record)
    path = written(tmp_path / "file", [example(targets=[3]), record])
    with pytest.raises(UserError) as raised:
        read(path)
    assert str(raised.value).startswith(f"Record 2 of {path} cannot be read. {reason[0].upper()}{reason[1:]}")


@pytest.fixture
def folder(caches, tmp_path) -> Path:
    """A copy of a cache that may be spoilt."""
    return Path(shutil.copytree(caches / "text_span_corruption", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (
            "COMPLETED",
            "holds no tokenised split train. There is no COMPLETED in it. Set --gin.TOKENS_DIR to the folder",
        ),
        ("info.train.json", "holds no tokenised split train. There is no info.train.json in it."),
        ("train.tfrecord-00002-of-00004", "lacks 1 of 4 files of the split train. The first is train.tfrecord-00002-"),
    ],
)
def test_a_file_of_the_set_that_is_missing(folder, missing, text):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"^TOKENS_DIR={folder} {re.escape(text)}"):
        token_files.files(str(folder), "train")


def test_an_information_file_that_cannot_be_read(folder):
    (folder / "info.train.json").write_text('{"num_shards": ')
    with pytest.raises(UserError, match=rf"^{folder}/info\.train\.json is no JSON\. Expecting value"):
        token_files.files(str(folder), "train")
    (folder / "info.train.json").write_text("{}")
    with pytest.raises(UserError, match="has no examples of the split train"):
        token_files.files(str(folder), "train")


def test_what_a_folder_holds(folder):
    assert token_files.splits(str(folder)) == ["train", "validation"]
    assert token_files.features(str(folder)) == {"targets"}
    with pytest.raises(UserError, match=f"TOKENS_DIR={folder.parent} holds no tokenised task"):
        token_files.features(str(folder.parent))


@pytest.mark.skipif(not SEQIO.exists(), reason="no cache that seqio wrote is on this machine")
def test_what_seqio_says_of_its_own_cache():
    assert token_files.splits(str(SEQIO)) == ["train", "validation"]
    # `ids` are texts, `idx` is a number, `idxs` are in one split alone.
    assert token_files.features(str(SEQIO)) == {"inputs", "targets"}
    with pytest.raises(
        UserError, match=r"lacks 2 of 2 files of the split train. The first is train\.tfrecord-00000-of"
    ):
        token_files.files(str(SEQIO), "train")


def test_the_identity_is_that_of_the_files_wherever_they_lie(caches, folder):
    first = token_files.identity(str(caches / "text_span_corruption"), "train")
    assert first == token_files.identity(str(folder), "train")
    assert first.startswith("200 examples in 4 files of ")
    names = sorted(folder.glob("train.tfrecord-*"))
    names[0].write_bytes(names[0].read_bytes() + names[1].read_bytes())
    assert token_files.identity(str(folder), "train") != first
    stats = json.loads((folder / "stats.train.json").read_text())
    shutil.copy(caches / "text_span_corruption" / names[0].name, names[0])
    (folder / "stats.train.json").write_text(json.dumps(stats | {"targets_tokens": 1}))
    assert token_files.identity(str(folder), "train") != first
