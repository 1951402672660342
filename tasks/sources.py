"""seqio data sources over files of documents, and what the shipped tasks read.

A source yields {"text": scalar string}, a document at a time. Its tf.data iterator
can be saved with tf.train.Checkpoint and resumes exactly: positions are byte
offsets or counts, and the Python that decodes JSON, Examples and Parquet keeps no
state of its own. A record that cannot be read stops the run with its file and
number; `explain` makes the UserError of what tf.data raises then.
"""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks import documents

# Documents that are shuffled among each other. They are part of a saved position, about 3 kB each.
SHUFFLED = 1024

_FILES_AT_ONCE = 16
_RECORDS_DECODED_AT_ONCE = 64

_NAMES = {"train": "DATA_GLOB", "validation": "VALIDATION_GLOB"}
_globs: dict[str, str | None] = {"train": None, "validation": None}

# For functions that build a dataset: AutoGraph would rewrite the source of each small function that they map, to let
# it branch on tensors. None does, and that is a third of the time that a pipeline takes to be built.
as_written = tf.autograph.experimental.do_not_convert

# Starts the JSON of a UserError's three parts inside the message of a tf.errors exception.
MARK = "t5x_lite.UserError "


def bind(data_glob: str | None, validation_glob: str | None, data_dir: str | None) -> None:
    """Sets the files of the `text_*` tasks (DATA_GLOB, VALIDATION_GLOB) and the TFDS folder (DATA_DIR)."""
    _globs.update(train=data_glob, validation=validation_glob)
    seqio.set_tfds_data_dir_override(data_dir)


def bound_files(split: str) -> list[str]:
    """The files of a split of the `text_*` tasks.

    Raises:
      UserError: the glob of the split is not set or matches nothing.
    """
    return documents.expand(_globs[split], _NAMES[split])


class Documents(seqio.DataSource):
    """Documents in files, with the splits train and validation.

    Args:
      files: split -> paths. Called whenever a dataset is made, so tasks can be registered before it is known.

    All files of a split have one format, of those in documents.py. Any number of
    shards partitions the documents: each shard has whole files as long as there is
    one for every shard, and every so many-th record of the rest.
    """

    def __init__(self, files: Callable[[str], list[str]]):
        super().__init__(splits=("train", "validation"))
        self._files = files

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return self._files(split)

    @as_written
    def get_dataset(
        self,
        split="train",
        shuffle=True,
        seed=None,
        shard_info=None,
        *,
        sequence_length=None,
        use_cached=False,
        num_epochs=1,
    ) -> tf.data.Dataset:
        paths = self.list_shards(split)
        kind = _one_format(paths)
        remember(tuple(paths), functools.partial(_places, paths))
        shards, index = (shard_info.num_shards, shard_info.index) if shard_info else (1, 0)
        dataset = tf.data.Dataset.from_tensor_slices(_shares(paths, shards, index))
        if shuffle:
            dataset = dataset.shuffle(len(paths), seed=seed)
        dataset = dataset.interleave(
            lambda *share: _numbered(kind, *share), cycle_length=_FILES_AT_ONCE, num_parallel_calls=tf.data.AUTOTUNE
        )
        dataset = dataset.batch(_RECORDS_DECODED_AT_ONCE).map(lambda *rows: _decoded(kind, *rows)).unbatch()
        if shuffle:
            dataset = dataset.shuffle(SHUFFLED, seed=seed)
        return dataset.map(lambda text: {"text": text})


def _places(paths: list[str]) -> Iterator[tuple[str, Mapping]]:
    """(place, record) of every document."""
    for path in paths:
        decode = documents.DECODERS[documents.file_format(path)[0]]
        for number, record in enumerate(documents.records(path), start=1):
            text = decode(record)
            if text is not None:
                yield f"record {number} of {path}", {"text": text.decode("utf-8")}


def _one_format(paths: list[str]) -> str:
    formats = {documents.file_format(path)[0]: path for path in paths}
    if len(formats) > 1:
        examples = " and ".join(sorted(formats.values())[:2])
        raise UserError(
            f"The files have {len(formats)} formats ({', '.join(sorted(formats))})",
            f"one glob names files of one format, and this one matches {examples}",
            "Narrow --gin.DATA_GLOB or --gin.VALIDATION_GLOB",
        )
    return next(iter(formats))


def _shares(paths: list[str], shards: int, index: int) -> tuple:
    """Columns (path, compression, stride, offset): of which files this shard reads which records."""
    whole = len(paths) // shards * shards
    rows = [(path, 1, 0) for path in paths[index:whole:shards]]
    rows += [(path, shards, (index + k) % shards) for k, path in enumerate(paths[whole:])]
    compression = ["GZIP" if documents.file_format(path)[1] else "" for path, _, _ in rows]
    paths, strides, offsets = zip(*rows)
    return np.array(paths), np.array(compression), np.array(strides, np.int64), np.array(offsets, np.int64)


def _numbered(kind: str, path, compression, stride, offset) -> tf.data.Dataset:
    """(path, number from 1, raw record) of the records of one file that belong to this shard."""
    records = _whole(_READERS[kind](path, compression), path, compression).enumerate(1).shard(stride, offset)
    return tf.data.Dataset.zip(tf.data.Dataset.from_tensors(path).repeat(), records).map(lambda p, nr: (p, *nr))


def _whole(records: tf.data.Dataset, path, compression) -> tf.data.Dataset:
    """The records of a file, which is checked where they end: TensorFlow takes one that breaks off for one that ends.

    Every shard that reads some of the records reads up to their end, and the first one there checks.
    """

    def check(name, compression):
        if compression:
            with blamed(documents.bad_file, name):
                documents.check_gzip(name.decode())
        return np.array([], object)

    def nothing(_):
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(python_op(check, [path, compression]), [None]))

    return records.concatenate(tf.data.Dataset.range(1).flat_map(nothing))


def python_op(function: Callable, arguments: list, dtypes=tf.string):
    """A Python function without state as an op.

    Declared stateless, it can be saved with an iterator. (The other way, to let tf.data ignore external state,
    drops the seeds of reshuffling too: a resumed pipeline then differs from its next epoch on.)
    """
    return tf.numpy_function(as_written(function), arguments, dtypes, stateful=False)


def _text_records(path, compression) -> tf.data.Dataset:
    """Documents separated by blank lines: the text after the last one is carried from batch to batch of lines."""

    def split(name, pending, lines):
        with blamed(documents.bad_file, name):
            found, pending = documents.split_text(lines, pending)
        return pending, np.array(found, object)

    def step(pending, lines):
        pending, found = python_op(split, [path, pending, lines], [tf.string, tf.string])
        return tf.ensure_shape(pending, []), tf.ensure_shape(found, [None])

    lines = tf.data.TextLineDataset(path, compression).batch(512)
    closing = tf.data.Dataset.from_tensors([""])
    return lines.concatenate(closing).scan("", step).flat_map(tf.data.Dataset.from_tensor_slices)


def _parquet_records(path, compression) -> tf.data.Dataset:
    """Rows, a row group at a time. What is saved of a position is the row group and the row."""
    del compression  # Parquet compresses inside.

    def groups(name):
        with blamed(documents.bad_file, name):
            return np.int64(documents.parquet_groups(name.decode()))

    def rows(name, group):
        with blamed(documents.bad_file, name):
            return np.array(documents.parquet_group(name.decode(), int(group)), object)

    def read(group):
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(python_op(rows, [path, group]), [None]))

    return tf.data.Dataset.range(tf.ensure_shape(python_op(groups, [path], tf.int64), [])).flat_map(read)


_READERS = {
    "json": lambda path, compression: tf.data.TextLineDataset(path, compression),
    "tfrecord": lambda path, compression: tf.data.TFRecordDataset(path, compression),
    "txt": _text_records,
    "parquet": _parquet_records,
}


def _decoded(kind: str, paths, numbers, records) -> tf.Tensor:
    """The documents in a batch of records."""
    decode = documents.DECODERS[kind]

    def all_decoded(paths, numbers, records):
        texts = []
        for path, number, record in zip(paths, numbers, records):
            with blamed(documents.bad_record, path, int(number)):
                text = decode(record)
            if text is not None:
                texts.append(text)
        return np.array(texts, object)

    return tf.ensure_shape(python_op(all_decoded, [paths, numbers, records]), [None])


@contextlib.contextmanager
def blamed(parts: Callable, path: bytes, *where: int):
    """Lets the reason of a ValueError leave tf.data together with the file, in a form that `explain` reads."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(MARK + json.dumps(parts(path.decode(), *where, str(error)))) from None


def explain(error: Exception) -> UserError | None:
    """The UserError behind an exception that came out of a tf.data iterator, None where the files are not to blame.

    tf.data says of a damaged compressed file or TFRecord that there is one, not
    which; the bound files are then read until it is found, for at most a minute.
    """
    text = str(error)
    if MARK in text:
        parts, _ = json.JSONDecoder().raw_decode(text[text.index(MARK) + len(MARK) :])
        return UserError(*parts) if len(parts) == 3 else _refused(*parts)
    if isinstance(error, tf.errors.DataLossError):
        return _damaged(documents.plain(error.message))
    return None


def _refused(shown: str, why: str, fix: str, told: str) -> UserError:
    """About a record that was read without fault, and that a task's format refuses."""
    place = _place(told)
    what = f"{place} gives no example: {shown}" if place else f"The record {shown} gives no example"
    return UserError(what, why, fix)


# For the files that were opened: what reads them once more as (place of a record, record).
_opened: dict[tuple[str, ...], Callable[[], Iterator[tuple[str, Mapping]]]] = {}


def remember(files: tuple[str, ...], reread: Callable[[], Iterator[tuple[str, Mapping]]]) -> None:
    """Notes how records can be read again, so that `explain` can say where one of them stands.

    A record in tf.data has no place: it would be a feature that tasks do not expect, and it is needed once.
    """
    _opened.pop(files, None)
    _opened[files] = reread


def told_by(record: Mapping) -> str:
    """What tells a record from others, before and after it went through tf.data, which rounds its numbers."""
    plain = json.dumps(_rounded(record), sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()


def _rounded(value):
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def _place(told: str, seconds: float = 60.0) -> str | None:
    """Where the record is that `told_by` tells; None where it is in none of the files, or not found in time."""
    deadline = time.monotonic() + seconds
    for reread in reversed(_opened.values()):
        with contextlib.suppress(OSError, ValueError, UserError):
            for place, record in reread():
                if told_by(record) == told:
                    return place[:1].upper() + place[1:]
                if time.monotonic() > deadline:
                    return None
    return None


def _damaged(reason: str, seconds: float = 60.0) -> UserError:
    deadline = time.monotonic() + seconds
    for split, globs in _globs.items():
        for path in documents.expand(globs, _NAMES[split]) if globs else ():
            try:
                for _ in documents.records(path):
                    if time.monotonic() > deadline:
                        break
            except UserError as found:
                return found
    return UserError(
        "A data file is damaged", reason, "Find it (gzip -t reads compressed ones) and leave it out of --gin.DATA_GLOB"
    )
