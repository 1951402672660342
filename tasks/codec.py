"""Text to ids and back without TensorFlow, as seqio's vocabularies do it, for verbs that read no seqio task."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from t5x_lite.tasks import vocabulary
from t5x_lite.tasks.objectives.ragged import Ragged, ragged


@dataclasses.dataclass(frozen=True)
class Codec:
    """A vocabulary's two directions.

    Args:
      encode: text -> ids, without an end token; sentinels are written <extra_id_0>, ...
      encode_all: the same for many UTF-8 texts at once, on all cores.
      decode: ids -> text, sentinels as <extra_id_0>, ...; padding is dropped.
      eos_id: the end token.
    """

    encode: Callable[[str], list[int]]
    encode_all: Callable[[Sequence[bytes]], Ragged]
    decode: Callable[[Iterable[int]], str]
    eos_id: int


@functools.cache
def load(name: str | None) -> Codec:
    """The codec of a vocabulary name (see vocabulary.py).

    Raises:
      UserError: as `vocabulary.load`.
    """
    return _byte_codec() if name == "bytes" else _sentencepiece_codec(name)


def _byte_codec() -> Codec:
    """Bytes with the sentinels of span corruption, which are the last bytes: <extra_id_k> is the byte 255 - k.

    The first 11 occur in no UTF-8. The bytes of the others do, so that they are told by their place: they begin no
    whole character, and come next after the sentinel before. Other bytes that are no UTF-8 are dropped.
    """
    special = 3  # padding, end and unknown come before the 256 bytes (ByT5)

    def encode(text: str) -> list[int]:
        # Text and numbers of sentinels in turn.
        parts = _SENTINEL.split(text)
        coded = [part.encode("utf-8") if k % 2 == 0 else [255 - int(part)] for k, part in enumerate(parts)]
        return [byte + special for part in coded for byte in part]

    def decode(ids: Iterable[int]) -> str:
        last = -1

        def named(stray: re.Match) -> str:
            nonlocal last
            number = _STRAY_255 - ord(stray[0])
            if number >= _FIRST_IN_TEXT and number != last + 1:
                return ""
            last = number
            return f"<extra_id_{number}>"

        data = bytes(i - special for i in ids if special <= i < special + 256)
        return re.sub("[\udc80-\udcff]", named, data.decode("utf-8", errors="surrogateescape"))

    def encode_all(texts: Sequence[bytes]) -> Ragged:
        # As seqio's: what looks like a sentinel in a document is its letters.
        values = np.frombuffer(b"".join(texts), np.uint8).astype(np.int32) + special
        return Ragged(values, np.array([len(text) for text in texts], np.int64))

    return Codec(encode, encode_all, decode, eos_id=1)


_SENTINEL = re.compile(r"<extra_id_(0|[1-9]\d?)>")

# Python decodes the byte 255 to this, and those below to what is below, where they are no UTF-8.
_STRAY_255 = 0xDCFF

# Sentinels from here on are bytes that may be part of a text: UTF-8 goes up to the byte 244.
_FIRST_IN_TEXT = 11


def _sentencepiece_codec(name: str | None) -> Codec:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    base = vocabulary.model(name)
    proto = sentencepiece_model_pb2.ModelProto.FromString(base.serialized_model_proto())
    if not vocabulary.holds_sentinels(base):
        for number in reversed(range(vocabulary.SENTINELS)):
            proto.pieces.add(
                # With the word mark in front, as seqio has it: a sentinel in a text stands like a word.
                piece=f"▁<extra_id_{number}>",
                score=0.0,
                type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
            )
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(proto.SerializeToString())
    pieces = model.get_piece_size()

    def decode(ids: Iterable[int]) -> str:
        # Rows of the model's table past the vocabulary have no piece.
        return model.decode([i if i < pieces else model.unk_id() for i in map(int, ids) if i != model.pad_id()])

    def encode_all(texts: Sequence[bytes]) -> Ragged:
        return ragged(model.encode(list(texts), num_threads=os.cpu_count()))

    return Codec(model.encode, encode_all, decode, model.eos_id())


def model_file(name: str | None) -> str | None:
    """Path of the SentencePiece model behind a vocabulary name; None where there is none (bytes)."""
    if name == "demo":
        from t5x_lite.tasks import corpus

        return str(corpus.vocabulary_path())
    return None if name == "bytes" else name
