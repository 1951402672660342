"""Text to ids and back without TensorFlow, as seqio's vocabularies do it, for verbs that read no seqio task."""

import dataclasses
from collections.abc import Callable, Iterable

from t5x_lite.tasks import vocabulary


@dataclasses.dataclass(frozen=True)
class Codec:
    """A vocabulary's two directions.

    Args:
      encode: text -> ids, without an end token; sentinels are written <extra_id_0>, ...
      decode: ids -> text; padding is dropped.
      eos_id: the end token.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    eos_id: int


def load(name: str | None) -> Codec:
    """The codec of a vocabulary name (see vocabulary.py).

    Raises:
      UserError: as `vocabulary.load`.
    """
    return _byte_codec() if name == "bytes" else _sentencepiece_codec(name)


def _byte_codec() -> Codec:
    special = 3  # padding, end and unknown come before the 256 bytes (ByT5)

    def decode(ids: Iterable[int]) -> str:
        data = bytes(i - special for i in ids if special <= i < special + 256)
        return data.decode("utf-8", errors="ignore")

    return Codec(lambda text: [byte + special for byte in text.encode("utf-8")], decode, eos_id=1)


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

    return Codec(model.encode, decode, model.eos_id())


def model_file(name: str | None) -> str | None:
    """Path of the SentencePiece model behind a vocabulary name; None where there is none (bytes)."""
    if name == "demo":
        from t5x_lite.tasks import corpus

        return str(corpus.vocabulary_path())
    return None if name == "bytes" else name
