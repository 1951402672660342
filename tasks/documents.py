"""Documents in files: which files a glob names, their format, and their text in plain Python.

A format follows from the name of a file:

  .json .jsonl     one JSON object a line, its field "text" is the document (the public C4 files)
  .tfrecord        tf.train.Example with a bytes feature "text", also TFDS shards (x.tfrecord-00000-of-00008)
  .parquet         a column "text"
  .txt             plain UTF-8, documents separated by blank lines

All but Parquet may end in .gz, and any may carry a shard number before that.
TensorFlow is loaded only to read TFRecord files and remote paths.
"""

import functools
import glob as globbing
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator

from t5x_lite.errors import UserError

_SUFFIX = re.compile(r"\.(json|jsonl|parquet|txt)(-\d+-of-\d+)?(\.gz)?$|\.(tfrecord)")
_KNOWN = ".json, .jsonl, .tfrecord and .txt, each with or without .gz, and .parquet"

# A plain text file without blank lines would otherwise be held in memory whole.
LONGEST_TEXT = 1 << 24


def expand(globs: str | None, name: str) -> list[str]:
    """The files that a glob names, sorted.

    Args:
      globs: a glob, or several separated by commas, local or remote (gs://).
      name: the flag or gin name that holds it, for error messages.

    Raises:
      UserError: the glob is not set, or one of them matches nothing.
    """
    if not globs:
        raise UserError(
            f"{name} is not set", "it names the files to read", f"Give it a glob: {_flag(name)}='/path/to/*.json.gz'"
        )
    found: set[str] = set()
    for pattern in filter(None, (part.strip() for part in globs.split(","))):
        matches = _matches(pattern)
        if not matches:
            where = "" if "://" in pattern else f" (the working directory is {os.getcwd()})"
            raise UserError(f"{name}={pattern} matches no file", f"nothing is there{where}", f"Correct {_flag(name)}")
        found.update(matches)
    return sorted(found)


def _flag(name: str) -> str:
    return name if name.startswith("--") else f"--gin.{name}"


def _matches(pattern: str) -> list[str]:
    if "://" in pattern:
        import tensorflow as tf

        return tf.io.gfile.glob(pattern)
    return globbing.glob(os.path.expanduser(pattern), recursive=True)


def file_format(path: str) -> tuple[str, bool]:
    """The format of a file, "json", "tfrecord", "parquet" or "txt", and whether it is compressed with gzip.

    Raises:
      UserError: the suffix is unknown.
    """
    found = _SUFFIX.search(os.path.basename(path))
    zipped = path.endswith(".gz")
    if found is None or (zipped and found[1] == "parquet"):
        raise UserError(
            f"{path} has no known suffix",
            "the format of a file is told by its name",
            f"Name files that end in {_KNOWN}, with --gin.DATA_GLOB, --gin.VALIDATION_GLOB or --input",
        )
    return {"jsonl": "json"}.get(found[1], found[1]) or found[4], zipped


def bad_record(path: str, number: int, reason: str) -> tuple[str, str, str]:
    """The three parts of the UserError about record `number` (from 1) of a file."""
    return (
        f"Record {number} of {path} cannot be read",
        reason,
        "Repair the file, or leave it out of --gin.DATA_GLOB, --gin.VALIDATION_GLOB or --input",
    )


def bad_file(path: str, reason: str) -> tuple[str, str, str]:
    """The three parts of the UserError about a whole file."""
    return (
        f"{path} cannot be read",
        reason,
        "Replace the file, or leave it out of --gin.DATA_GLOB, --gin.VALIDATION_GLOB or --input",
    )


def from_json(record: bytes) -> bytes | None:
    """The document in a line of JSON, None for a blank line. Raises ValueError with the reason why there is none."""
    if not record.strip():
        return None
    try:
        value = json.loads(record)
    except ValueError as error:
        raise ValueError(f"it is not one JSON object a line ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f'it is JSON of type {type(value).__name__}, not an object with the field "text"')
    if not isinstance(value.get("text"), str):
        raise ValueError(f'it has no string in the field "text", its fields are {", ".join(value) or "none"}')
    return value["text"].encode("utf-8")


def from_example(record: bytes) -> bytes:
    """The document in a serialised tf.train.Example. Raises ValueError with the reason why there is none."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"it is no tf.train.Example ({error})") from None
    values = features["text"].bytes_list.value if "text" in features else ()
    if len(values) != 1:
        raise ValueError(
            f'it has no bytes in the feature "text", its features are {", ".join(sorted(features)) or "none"}'
        )
    return from_text(values[0])


def from_text(record: bytes) -> bytes:
    """The document itself. Raises ValueError where it is not UTF-8."""
    record.decode("utf-8")
    return record


# How a record of each format becomes a document.
DECODERS = {"json": from_json, "tfrecord": from_example, "parquet": from_text, "txt": from_text}


def split_text(lines: Iterable[bytes], pending: bytes = b"") -> tuple[list[bytes], bytes]:
    """Documents that blank lines close, and the text after the last blank line.

    Args:
      lines: lines without their line ends.
      pending: text left over from the lines before.

    Raises:
      ValueError: a document is longer than `LONGEST_TEXT` bytes.
    """
    documents, open_lines = [], [pending] if pending else []
    for line in lines:
        if line.strip():
            open_lines.append(line)
        elif open_lines:
            documents.append(b"\n".join(open_lines))
            open_lines = []
    pending = b"\n".join(open_lines)
    if len(pending) > LONGEST_TEXT:
        raise ValueError(f"documents are separated by blank lines, and it has none in {LONGEST_TEXT >> 20} MiB")
    return documents, pending


def plain(message: str) -> str:
    """The message of a tf.errors exception without the names of graph nodes."""
    return re.sub(r"\{\{.*?\}\}|\[Op:.*|\[\[.*", "", message).strip()


@functools.cache
def check_gzip(path: str) -> None:
    """Raises ValueError where a compressed file is damaged or breaks off. A file that passed is not read again."""
    with open_file(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
        try:
            while unpacked.read(1 << 20):
                pass
            if not file.tell():
                raise EOFError("it has no bytes at all, not even those of an empty compressed file")
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(str(error)) from None


def parquet_groups(path: str) -> int:
    """The number of row groups. Raises ValueError where the file is not Parquet or has no column "text"."""
    import pyarrow
    import pyarrow.parquet

    with open_file(path) as file:
        try:
            parquet = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowException as error:
            raise ValueError(f"it is no Parquet file ({error})") from None
        names = parquet.schema_arrow.names
        if "text" not in names:
            raise ValueError(f'it has no column "text", its columns are {", ".join(names) or "none"}')
        kind = parquet.schema_arrow.field("text").type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise ValueError(f'its column "text" holds {kind}, not strings')
        return parquet.num_row_groups


def parquet_group(path: str, group: int) -> list[bytes]:
    """The documents of one row group. Raises ValueError where one is null or the data is damaged."""
    import pyarrow
    import pyarrow.parquet

    with open_file(path) as file:
        try:
            column = pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=["text"]).column(0)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"row group {group} is damaged ({error})") from None
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(f'row {row + 1} of row group {group} has null in the column "text"')
    return column.cast(pyarrow.large_binary()).to_pylist()


def records(path: str) -> Iterator[bytes]:
    """The raw records of one file: lines, serialised Examples, rows or paragraphs.

    Raises:
      UserError: the suffix is unknown or the file is damaged.
    """
    kind, zipped = file_format(path)
    try:
        if kind == "tfrecord":
            import tensorflow as tf

            try:
                yield from tf.data.TFRecordDataset(path, "GZIP" if zipped else "").as_numpy_iterator()
            except tf.errors.DataLossError as error:
                raise ValueError(plain(error.message)) from None
            if zipped:
                check_gzip(path)
        elif kind == "parquet":
            for group in range(parquet_groups(path)):
                yield from parquet_group(path, group)
        else:
            with open_file(path) as file:
                lines = gzip.GzipFile(fileobj=file) if zipped else file
                lines = (line.rstrip(b"\r\n") for line in lines)
                yield from _paragraphs(lines) if kind == "txt" else lines
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(*bad_file(path, str(error))) from error


def _paragraphs(lines: Iterator[bytes]) -> Iterator[bytes]:
    pending = b""
    while batch := list(itertools.islice(lines, 512)):
        documents, pending = split_text(batch, pending)
        yield from documents
    if pending:
        yield pending


def open_file(path: str):
    """A file opened for reading bytes, local or remote."""
    if "://" in path:
        import tensorflow as tf

        return tf.io.gfile.GFile(path, "rb")
    return open(path, "rb")


def texts(files: Iterable[str]) -> Iterator[str]:
    """Every document of the files, one file after the other.

    Raises:
      UserError: a suffix is unknown, a file is damaged, or a record holds no document.
    """
    for path in files:
        decode = DECODERS[file_format(path)[0]]
        for number, record in enumerate(records(path), start=1):
            try:
                text = decode(record)
            except ValueError as error:
                raise UserError(*bad_record(path, number, str(error))) from None
            if text is not None:
                yield text.decode("utf-8")
