"""The formats of documents: each gives the same text, and each says what is wrong with it."""

import gzip
import json
import subprocess
import sys
import zlib

import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks import documents

TEXTS = ["One line.", "Two lines:\nthe second.", "Ünïcode — 文字.", "x" * 3000]


def write(path, texts):
    """Writes documents in the format that the name of the file tells."""
    kind, zipped = documents.file_format(str(path))
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=3)
    elif kind == "tfrecord":
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(path), "GZIP" if zipped else "") as file:
            for text in texts:
                values = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                file.write(tf.train.Example(features=tf.train.Features(feature={"text": values})).SerializeToString())
    else:
        lines = "\n\n".join(texts) + "\n" if kind == "txt" else "".join(json.dumps({"text": t}) + "\n" for t in texts)
        (gzip.open if zipped else open)(path, "wb").write(lines.encode())
    return str(path)


NAMES = [
    "a.json", "a.jsonl", "a.00000-of-00001.json.gz", "a.jsonl.gz", "a.txt", "a.txt.gz", "a.parquet",
    "a.tfrecord", "a-train.tfrecord-00000-of-00008", "a.tfrecord.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_documents_back(tmp_path, name):
    assert list(documents.texts([write(tmp_path / name, TEXTS)])) == TEXTS


def test_blank_lines_alone_separate_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\n a\r\nb\n  \t\n\nc\n\n\n")
    assert list(documents.texts([str(path)])) == [" a\nb", "c"]


def test_splitting_text_does_not_depend_on_where_the_lines_are_cut():
    lines = [b"a", b"b", b"", b"c", b"", b"", b"d", b"e", b"f", b"", b"g"]
    whole, rest = documents.split_text(lines)
    for cut in range(len(lines) + 1):
        first, pending = documents.split_text(lines[:cut])
        second, pending = documents.split_text(lines[cut:], pending)
        assert (first + second, pending) == (whole, rest)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n\nnot json\n',
            r"Record 3 of .*a\.jsonl cannot be read. It is not one JSON object",
        ),
        (
            "a.jsonl",
            b'{"title": "x", "url": "y"}\n',
            r'Record 1 .* no string in the field "text", its fields are title, url',
        ),
        ("a.jsonl", b'["text"]\n', r"Record 1 .* JSON of type list, not an object"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"Record 1 .* surrogates not allowed"),
        ("a.txt", b"fine\n\n\xff\xfe\n", r"Record 2 .* can't decode byte 0xff"),
        ("a.parquet", b"no parquet", r"a\.parquet cannot be read. It is no Parquet file"),
        ("a.tfrecord", b"no records at all", r"a\.tfrecord cannot be read\. Corrupted record at 0 "),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:40], r"Compressed file ended before"),
        ("a.csv", b"", r"a\.csv has no known suffix. .*\.jsonl, \.tfrecord and \.txt"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(documents.texts([str(tmp_path / name)]))


def test_compressed_examples_that_break_off_between_records(tmp_path):
    path = tmp_path / "a.tfrecord.gz"
    whole = gzip.open(write(path, TEXTS)).read()
    packer = zlib.compressobj(wbits=31)
    path.write_bytes(packer.compress(whole) + packer.flush(zlib.Z_FULL_FLUSH))
    with pytest.raises(UserError, match=r"a\.tfrecord\.gz cannot be read\. Compressed file ended before"):
        list(documents.texts([str(path)]))


def test_parquet_without_the_column_or_with_null(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = str(tmp_path / "a.parquet")
    for table, message in (
        ({"body": ["x"]}, r'It has no column "text", its columns are body'),
        ({"text": [1]}, r'Its column "text" holds int64, not'),
        ({"text": ["x", None]}, r'Row 2 of row group 0 has null in the column "text"'),
    ):
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        with pytest.raises(UserError, match=message):
            list(documents.texts([path]))


def test_globs(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "c.json"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    assert documents.expand("*.txt, *.json,a*", "DATA_GLOB") == ["a.txt", "b.txt", "c.json"]
    with pytest.raises(UserError, match=rf"DATA_GLOB=\*\.gz matches no file. .*{tmp_path}.* Correct --gin.DATA_GLOB"):
        documents.expand("*.txt,*.gz", "DATA_GLOB")
    with pytest.raises(UserError, match=r"VALIDATION_GLOB is not set. .*--gin.VALIDATION_GLOB="):
        documents.expand(None, "VALIDATION_GLOB")
    with pytest.raises(UserError, match=r"--input=y\* matches no file.* Correct --input\."):
        documents.expand("y*", "--input")


def test_reading_text_and_sizes_loads_no_tensorflow(tmp_path):
    path = write(tmp_path / "a.jsonl", TEXTS)
    code = (
        "import sys; from t5x_lite.tasks import corpus, documents, vocabulary; "
        f"list(documents.texts([{path!r}])); assert vocabulary.size('demo') > vocabulary.size('bytes') == 259; "
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_refuses_a_second_name(tmp_path):
    code = "import sys, t5x_lite; sys.path.insert(0, t5x_lite.__path__[-1]); import tasks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "its name is t5x_lite.tasks" in done.stderr
