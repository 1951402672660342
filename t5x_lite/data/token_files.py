"""Tokenised examples in the TFRecord files of seqio's offline cache, read without TensorFlow.

A record of a TFRecord file is: its length (8 bytes), a checksum of those, the bytes of a tf.train.Example, a checksum
of them. The lengths are walked over once, which gives every record its place; their checksums tell a file that is none.
"""

import functools
import json
import mmap
import struct

import numpy as np
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from t5x_lite.errors import UserError

_HEADER = struct.Struct("<QI")
_FOOTER = 4


def files(folder: str, split: str) -> list[str]:
    """The record files of a split of a cached task, in order.

    Raises:
      UserError: the folder holds no complete cache with that split.
    """
    directory = epath.Path(folder)
    info = directory / f"info.{split}.json"
    if not info.exists() or not (directory / "COMPLETED").exists():
        raise UserError(
            f"TOKENS_DIR={folder} holds no tokenised split {split}",
            f"there is no {'COMPLETED' if info.exists() else info.name} in it",
            "set --gin.TOKENS_DIR to the folder of one task that `t5x_lite tasks cache` or seqio_cache_tasks finished",
        )
    count = json.loads(info.read_text())["num_shards"]
    paths = [directory / f"{split}.tfrecord-{k:05}-of-{count:05}" for k in range(count)]
    if missing := [path.name for path in paths if not path.exists()]:
        raise UserError(
            f"TOKENS_DIR={folder} lacks {len(missing)} of {count} files of the split {split}",
            f"the first is {missing[0]}",
            "copy them there, or make the cache again",
        )
    return [str(path) for path in paths]


def splits(folder: str) -> list[str]:
    """The splits of a cached task."""
    return sorted(path.name.split(".")[1] for path in epath.Path(folder).glob("info.*.json"))


def stats(folder: str, split: str) -> dict:
    """Numbers of examples and tokens, as seqio counted them."""
    path = epath.Path(folder) / f"stats.{split}.json"
    return json.loads(path.read_text()) if path.exists() else {}


class TokenFile:
    """The records of one file, by number.

    Args:
      path: local, or of a remote file system, from where it is read whole.

    Raises:
      UserError: it is no TFRecord file, or breaks off.
    """

    def __init__(self, path: str):
        self._path = path
        if "://" in path:
            self._data = epath.Path(path).read_bytes()
        else:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._starts, self._sizes = self._walk()

    def __len__(self) -> int:
        return len(self._starts)

    def _walk(self) -> tuple[np.ndarray, np.ndarray]:
        starts, sizes, at, end = [], [], 0, len(self._data)
        while at < end:
            if at + _HEADER.size > end:
                raise self._bad(len(starts), "the file breaks off")
            size, checksum = _HEADER.unpack_from(self._data, at)
            if checksum != _masked_crc32c(self._data[at : at + 8]):
                raise self._bad(len(starts), "the checksum of its length is wrong")
            starts.append(at + _HEADER.size)
            sizes.append(size)
            at += _HEADER.size + size + _FOOTER
        if at > end:
            raise self._bad(len(starts) - 1, "the file breaks off")
        return np.array(starts, np.int64), np.array(sizes, np.int64)

    def record(self, number: int, features: tuple[str, ...], vocabulary_size: int) -> dict[str, np.ndarray]:
        """The tokens of some features of a record, int32 [n] each.

        Raises:
          UserError: the record is damaged, lacks a feature, or holds ids that the vocabulary does not have.
        """
        start, size = int(self._starts[number]), int(self._sizes[number])
        try:
            found = _example().FromString(self._data[start : start + size]).features.feature
        except DecodeError as error:
            raise self._bad(number, f"it is no tf.train.Example ({error})") from None
        tokens = {}
        for name in features:
            if name not in found:
                raise self._bad(number, f"it has no feature {name}, its features are {', '.join(sorted(found))}")
            values = np.array(found[name].int64_list.value, np.int64)
            if values.size and not 0 <= values.min() <= values.max() < vocabulary_size:
                worst = values.max() if values.max() >= vocabulary_size else values.min()
                raise self._bad(number, f"its {name} have the id {worst}, and the vocabulary has {vocabulary_size}")
            tokens[name] = values.astype(np.int32)
        return tokens

    def _bad(self, number: int, reason: str) -> UserError:
        return UserError(
            f"record {number + 1} of {self._path} cannot be read", reason, "copy the file again, or make the cache anew"
        )


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


def _masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord's length: CRC-32C, rotated and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _table()
