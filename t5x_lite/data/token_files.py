"""Tokenised examples in the TFRecord files of seqio's offline cache, read without TensorFlow.

A record of a TFRecord file is: its length (8 bytes), a checksum of those, the bytes of a tf.train.Example, a checksum
of them. The lengths are walked over once, which gives every record its place.
"""

import functools
import hashlib
import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from t5x_lite.data import crc32c
from t5x_lite.errors import UserError

_LENGTH, _CHECKSUM = 8, 4  # bytes
_AROUND = _LENGTH + 2 * _CHECKSUM


def files(folder: str, split: str) -> list[str]:
    """The record files of a split of a cached task, in order.

    Raises:
      UserError: the folder holds no complete cache with that split.
    """
    directory = epath.Path(folder)
    name = f"info.{split}.json"
    missing = [file for file in (name, "COMPLETED") if not (directory / file).exists()]
    if missing:
        raise UserError(
            f"TOKENS_DIR={folder} holds no tokenised split {split}",
            f"there is no {missing[0]} in it",
            "Set --gin.TOKENS_DIR to the folder of one task that `t5x_lite tasks cache` or seqio_cache_tasks finished",
        )
    count = _read_json(directory / name).get("num_shards")
    if not count:
        raise UserError(f"TOKENS_DIR={folder} has no examples of the split {split}", f"{name} says so", _AGAIN)
    wanted = [f"{split}.tfrecord-{k:05}-of-{count:05}" for k in range(count)]
    there = {path.name for path in directory.iterdir()}
    if missing := [file for file in wanted if file not in there]:
        raise UserError(
            f"TOKENS_DIR={folder} lacks {len(missing)} of {count} files of the split {split}",
            f"the first is {missing[0]}",
            _AGAIN,
        )
    return [str(directory / file) for file in wanted]


# What mends a damaged cache.
_AGAIN = "Copy the files there again, or make the cache anew with `t5x_lite tasks cache`"


def splits(folder: str) -> list[str]:
    """The splits of a cached task."""
    return sorted(path.name.split(".")[1] for path in epath.Path(folder).glob("info.*.json"))


def features(folder: str) -> set[str]:
    """The features of all records of a cached task that are lists of whole numbers.

    Raises:
      UserError: the folder holds no cached task.
    """
    infos = sorted(epath.Path(folder).glob("info.*.json"))
    if not infos:
        raise UserError(
            f"TOKENS_DIR={folder} holds no tokenised task",
            "there is no info.train.json in it",
            "Set --gin.TOKENS_DIR to the folder of one task that `t5x_lite tasks cache` or seqio_cache_tasks finished",
        )
    found = [_read_json(path).get("features", {}) for path in infos]
    return set.intersection(*({name for name, about in by_name.items() if _is_tokens(about)} for by_name in found))


def _is_tokens(about: dict) -> bool:
    return about.get("dtype") in ("int32", "int64") and len(about.get("shape", ())) == 1


def identity(folder: str, split: str) -> str:
    """What shows whether a split is still the same: its numbers of examples and tokens, and the sizes of its files."""
    paths = files(folder, split)
    stats = epath.Path(folder) / f"stats.{split}.json"
    known = _read_json(stats) if stats.exists() else {}
    with ThreadPoolExecutor(16) as pool:  # a remote file system answers in tens of milliseconds
        sizes = list(pool.map(lambda path: epath.Path(path).stat().length, paths))
    digest = hashlib.md5(json.dumps([known, sizes], sort_keys=True).encode()).hexdigest()[:12]
    return f"{known.get('examples', '?')} examples in {len(paths)} files of {sum(sizes)} bytes, {digest}"


def _read_json(path: epath.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON", str(error), _AGAIN) from None


class TokenFile:
    """The records of one file, by number.

    Args:
      path: local, or of a remote file system, from where it is read whole.

    Attributes:
      sizes: bytes of each record, int64.

    Raises:
      UserError: it is no TFRecord file, or breaks off.
    """

    def __init__(self, path: str):
        self._path = path
        if "://" in path:
            held = epath.Path(path).read_bytes()
        else:
            with open(path, "rb") as file:
                empty = not file.seek(0, 2)
                held = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._data = np.frombuffer(held, np.uint8)
        self._starts, self.sizes = self._walk(held)

    def __len__(self) -> int:
        return len(self._starts)

    def _walk(self, held: bytes | mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
        heads, at, end = [], 0, len(held)
        while at + _AROUND <= end:
            heads.append(at)
            at += _AROUND + int.from_bytes(held[at : at + _LENGTH], "little")
        starts = np.array(heads, np.int64)
        wrong = self._wrong(starts, np.full(len(starts), _LENGTH))
        if len(wrong):
            raise self._bad(int(wrong[0]), "the checksum of its length is wrong")
        if at != end:
            # Either the last record goes on past the end, or the beginning of one more is there.
            raise self._bad(len(starts) - (at > end), "the file breaks off")
        lengths = self._data[starts[:, None] + np.arange(_LENGTH)].view("<i8")[:, 0]
        return starts + _LENGTH + _CHECKSUM, lengths.astype(np.int64)

    def _wrong(self, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Which pieces have another checksum than the one behind them."""
        stored = self._data[(starts + sizes)[:, None] + np.arange(_CHECKSUM)].view("<u4")[:, 0]
        return np.flatnonzero(stored != crc32c.masked(self._data, starts, sizes))

    def records(
        self, numbers: np.ndarray, features: Sequence[str], vocabulary_size: int
    ) -> list[dict[str, np.ndarray]]:
        """The tokens of some features of the records of these numbers, int32 [n] each.

        Raises:
          UserError: a record is damaged, lacks a feature, or holds ids that the vocabulary does not have.
        """
        starts, sizes = self._starts[numbers], self.sizes[numbers]
        wrong = self._wrong(starts, sizes)
        if len(wrong):
            raise self._bad(int(numbers[wrong[0]]), "the checksum of its data is wrong")
        return [
            self._tokens(number, self._data[start : start + size].tobytes(), features, vocabulary_size)
            for number, start, size in zip(numbers.tolist(), starts.tolist(), sizes.tolist())
        ]

    def _tokens(
        self, number: int, record: bytes, features: Sequence[str], vocabulary_size: int
    ) -> dict[str, np.ndarray]:
        try:
            found = _example().FromString(record).features.feature
        except DecodeError as error:
            raise self._bad(number, f"it is no tf.train.Example ({error})") from None
        tokens = {}
        for name in features:
            if name not in found:
                known = ", ".join(sorted(found)) or "none"
                raise self._bad(number, f"it has no feature {name}, its features are {known}")
            if (kind := found[name].WhichOneof("kind")) not in ("int64_list", None):
                raise self._bad(number, f"its {name} are a {kind}, not tokens")
            values = np.array(found[name].int64_list.value, np.int64)
            if values.size and not 0 <= values.min() <= values.max() < vocabulary_size:
                worst = values.max() if values.max() >= vocabulary_size else values.min()
                raise self._bad(number, f"its {name} have the id {worst}, and the vocabulary has {vocabulary_size} ids")
            tokens[name] = values.astype(np.int32)
        return tokens

    def _bad(self, number: int, reason: str) -> UserError:
        return UserError(f"Record {number + 1} of {self._path} cannot be read", reason, _AGAIN)


@functools.cache
def _example():
    """The message type tf.train.Example, in a pool of its own: TensorFlow, where it is loaded, has another."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="t5x_lite/example.proto", package="t5x_lite", syntax="proto3")

    def message(name: str, *fields: tuple, within=file.message_type):
        added = within.add(name=name)
        for number, (field, kind, type_name, repeated) in enumerate(fields, start=1):
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added.field.add(name=field, number=number, type=kind, type_name=type_name, label=label)
        return added

    message("BytesList", ("value", kinds.TYPE_BYTES, None, True))
    message("FloatList", ("value", kinds.TYPE_FLOAT, None, True))
    message("Int64List", ("value", kinds.TYPE_INT64, None, True))
    feature = message(
        "Feature",
        ("bytes_list", kinds.TYPE_MESSAGE, ".t5x_lite.BytesList", False),
        ("float_list", kinds.TYPE_MESSAGE, ".t5x_lite.FloatList", False),
        ("int64_list", kinds.TYPE_MESSAGE, ".t5x_lite.Int64List", False),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", kinds.TYPE_MESSAGE, ".t5x_lite.Features.FeatureEntry", True))
    entry = message(
        "FeatureEntry",
        ("key", kinds.TYPE_STRING, None, False),
        ("value", kinds.TYPE_MESSAGE, ".t5x_lite.Feature", False),
        within=features.nested_type,
    )
    entry.options.map_entry = True
    message("Example", ("features", kinds.TYPE_MESSAGE, ".t5x_lite.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t5x_lite.Example"))
