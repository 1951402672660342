"""The vocabulary: which one the shipped tasks use, loading it, its size, and training one.

A vocabulary is named by the path of a SentencePiece model, by "bytes" (UTF-8
bytes, as ByT5 has it), or by "demo" (trained on first use, see corpus.py). Ids 0,
1 and 2 are padding, end of sequence and unknown. T5's 100 sentinels are the last
ids, <extra_id_0> the very last: a public T5 model file holds 32,000 pieces, so its
sentinels are 32099 down to 32000.
"""

import functools
import io
import itertools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.tasks import documents

SENTINELS = 100

_PUBLIC = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"

_bound: str | None = None


def bind(path: str | None) -> None:
    """Sets the vocabulary that `chosen()` stands for (VOCABULARY)."""
    global _bound
    _bound = path


def bound() -> str | None:
    """The name of the vocabulary that `chosen()` stands for."""
    return _bound


@functools.cache
def chosen():
    """The one seqio.Vocabulary of the shipped tasks. It becomes what is bound when it is used, not before."""
    import seqio

    def of_bound(name):
        return property(lambda self: getattr(load(_bound), name))

    class Chosen(seqio.Vocabulary):
        """Passes everything on to the bound vocabulary."""

        bos_id, eos_id, unk_id, pad_id = map(of_bound, ("bos_id", "eos_id", "unk_id", "pad_id"))
        extra_ids, vocab_size, _base_vocab_size = map(of_bound, ("extra_ids", "vocab_size", "_base_vocab_size"))
        encode, decode, encode_tf, decode_tf = map(of_bound, ("encode", "decode", "encode_tf", "decode_tf"))
        _encode, _decode, _encode_tf, _decode_tf = map(of_bound, ("_encode", "_decode", "_encode_tf", "_decode_tf"))

        def __eq__(self, other):
            return other is self or load(_bound) == other

        def __str__(self):
            return f"VOCABULARY={_bound}"

        # By name: Beam's way to pickle a class that is made here would leave all of them bound to what is bound now.
        def __reduce__(self):
            return _unpickled, (_bound,)

    return Chosen()


def _unpickled(name: str | None):
    """What `chosen()` is in the process that reads a pickle, which may have bound nothing yet."""
    if _bound is None:
        bind(name)
    return chosen()


@functools.cache
def load(path: str | None):
    """The seqio.Vocabulary that `path` names. Loads TensorFlow.

    Raises:
      UserError: none is bound, the file is missing, is no SentencePiece model, or has other special ids.
    """
    import seqio

    if path == "bytes":
        return seqio.ByteVocabulary()
    found = model(path)
    path = str(_demo()) if path == "demo" else path
    return seqio.SentencePieceVocabulary(path, extra_ids=0 if holds_sentinels(found) else SENTINELS)


def size(path: str | None) -> int:
    """The number of ids, sentinels included. Loads neither TensorFlow nor seqio, nor builds the demo vocabulary.

    Raises:
      UserError: as `load`.
    """
    if path == "bytes":
        return 3 + 256
    if path == "demo":
        from t5x_lite.tasks import corpus

        return corpus.VOCABULARY_SIZE + SENTINELS
    found = model(path)
    return found.get_piece_size() + (0 if holds_sentinels(found) else SENTINELS)


def holds_sentinels(model) -> bool:
    """Whether a SentencePiece model has the sentinels itself, as T5's cc_all.32000.100extra and mT5's file do."""
    return any(model.piece_to_id(piece) != model.unk_id() for piece in ("<extra_id_0>", "▁<extra_id_0>"))


def _demo() -> Path:
    from t5x_lite.tasks import corpus

    return corpus.vocabulary_path()


def model(path: str | None):
    """The sentencepiece.SentencePieceProcessor of a model file or of "demo", as it is in the file, checked.

    Loads neither TensorFlow nor seqio.

    Raises:
      UserError: as `load`.
    """
    import sentencepiece

    if not path:
        raise UserError(
            "VOCABULARY is not set",
            "text cannot become tokens without one",
            "Give --gin.VOCABULARY the path of a SentencePiece model: the public one of T5 is "
            f"{_PUBLIC}, or train one with `t5x_lite vocab train`",
        )
    path = str(_demo()) if path == "demo" else path
    try:
        with documents.open_file(path) as file:
            data = file.read()
    except Exception as error:
        # A remote file system has exceptions of its own.
        raise UserError(
            f"VOCABULARY={path} cannot be read",
            str(error),
            f"Set --gin.VOCABULARY to a SentencePiece model, such as {_PUBLIC}",
        ) from error
    found = sentencepiece.SentencePieceProcessor()
    try:
        found.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise UserError(
            f"VOCABULARY={path} is no SentencePiece model",
            f"{len(data)} bytes were read and refused",
            "Set --gin.VOCABULARY to a file that SentencePiece wrote (usually *.model)",
        ) from error
    ids = {"pad": (found.pad_id(), 0), "eos": (found.eos_id(), 1), "unk": (found.unk_id(), 2)}
    wrong = [f"{name} is {has}, not {wanted}" for name, (has, wanted) in ids.items() if has != wanted]
    if wrong:
        raise UserError(
            f"VOCABULARY={path} has other special ids: {', '.join(wrong)}",
            "T5 has padding 0, end of sequence 1 and unknown 2",
            "Set --gin.VOCABULARY to a model trained with pad_id=0, eos_id=1, unk_id=2, as `t5x_lite vocab train` does",
        )
    return found


def train(files: Sequence[str], size: int, output: Path, max_characters: int = 50_000_000) -> Path:
    """Trains a SentencePiece unigram model with pad 0, eos 1, unk 2 and no bos. Deterministic.

    Of a large corpus a sample is read: documents are taken in turn from up to 64
    files, evenly spaced in the order of their names, until `max_characters` are
    reached, so the same files always give the same sample.

    Args:
      files: files in any format of documents.py.
      size: pieces of the model, special ones included. The 100 sentinels come on top when it is loaded.
      output: the file to write if it ends in .model, else the folder that gets sentencepiece.model.
      max_characters: bound of the sample.

    Returns:
      The file written; it appears complete or not at all.

    Raises:
      UserError: there are no files or no text, or the text cannot give that many pieces.
    """
    import sentencepiece

    if not files:
        raise UserError("--input matches no file", "a vocabulary is trained on text", "Correct --input")
    if size < 4:
        raise UserError(
            f"--size={size} is too small", "the three special pieces alone need 3", "Raise --size, usually to 32000"
        )
    # A list, because an exception inside an iterator does not pass through SentencePiece.
    lines = list(_lines(_sample(files, max_characters)))
    if not lines:
        raise UserError(
            f"--input names {len(files)} file(s) without text", "a vocabulary is trained on text", "Correct --input"
        )
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="unigram",
            vocab_size=size,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            # The partial sums of the threads decide the last digits of a score, so their number is part of the result.
            num_threads=8,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, size, len(lines)) from error
    path = output if output.suffix == ".model" else output / "sentencepiece.model"
    write(path, written.getvalue())
    return path


def _explained(error: RuntimeError, size: int, lines: int) -> UserError:
    text = " ".join(str(error).split())
    if found := re.search(r"too high \(\d+\).*<= (\d+)", text):
        return UserError(
            f"--size={size} is too large for this text",
            f"its {lines} lines give at most {found[1]} pieces",
            f"Set --size={found[1]} or less, or give more text with --input",
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        return UserError(
            f"--size={size} is too small for this text",
            f"its characters alone need {found[1]} pieces",
            f"Set --size to more than {found[1]}",
        )
    return UserError(
        f"No vocabulary of --size={size} could be trained", text, "Give more text with --input or change --size"
    )


def _sample(files: Sequence[str], max_characters: int) -> Iterator[str]:
    """Documents in turn from evenly spaced files, up to a number of characters."""
    files = sorted(files)
    count = min(len(files), 64)
    streams = [documents.texts([files[k * len(files) // count]]) for k in range(count)]
    left = max_characters
    while streams and left > 0:
        for stream in list(streams):
            text = next(stream, None)
            if text is None:
                streams.remove(stream)
            elif left > 0:
                yield text[:left]
                left -= len(text)


def _lines(texts: Iterator[str], longest: int = 1000) -> Iterator[str]:
    """Lines short enough for SentencePiece, which passes over those of more than 4,192 bytes."""
    for line in itertools.chain.from_iterable(text.splitlines() for text in texts):
        while len(line) > longest:
            cut = line.rfind(" ", 1, longest)
            cut = cut if cut > 0 else longest
            yield line[:cut]
            line = line[cut:]
        if line.strip():
            yield line


def write(path: Path, data: bytes) -> None:
    """Writes a file that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
