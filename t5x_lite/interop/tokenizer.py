"""The files by which transformers makes the tokenizer of our vocabularies.

Sources: T5Converter and SpmConverter of transformers 4.57.6 and 5.23, the layout of tokenizer.json as the library
tokenizers 0.23 reads it, and unigram_model.cc and normalizer.cc of SentencePiece. None of them is needed to write.
"""

import base64
import json
from pathlib import Path

from etils import epath
from sentencepiece import sentencepiece_model_pb2

SENTINELS = 100
_MARK = "▁"
_Model = sentencepiece_model_pb2.ModelProto
_Piece = _Model.SentencePiece


def write(directory: Path, vocabulary: str) -> None:
    """Writes what `AutoTokenizer.from_pretrained` reads.

    A file without sentinels, as T5's own, gets the 100 that seqio adds behind its pieces; mT5's holds them.

    Args:
      directory: of the model.
      vocabulary: SentencePiece model file, local or gs://, or "bytes".
    """
    if vocabulary == "bytes":
        _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125})
        return
    data = epath.Path(vocabulary).read_bytes()
    (directory / "spiece.model").write_bytes(data)
    model = _Model.FromString(data)
    special: dict = {name: model.pieces[number].piece for name, number in _special(model).items()}
    added = 0 if _holds_sentinels(model) else SENTINELS
    if added:
        special["additional_special_tokens"] = [f"<extra_id_{i}>" for i in range(added)]
    _write_json(directory / "special_tokens_map.json", special)
    # Its tokenizer of the slow kind asks for `legacy`; T5's ids were always those.
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": added, "legacy": True}
    _write_json(directory / "tokenizer_config.json", config | special)
    content = tokenizer_json(model)
    if content is not None:
        (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_json(model: _Model) -> dict | None:
    """The content of tokenizer.json, by which the library tokenizers computes the ids of a SentencePiece model.

    Without this file transformers 5 has no tokenizer for umT5; elsewhere it converts spiece.model at each start.

    Args:
      model: what a SentencePiece model file holds.

    Returns:
      None for a model whose ids would be others: one that is no unigram model, or marks words at their end.
    """
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if (
        trainer.model_type != sentencepiece_model_pb2.TrainerSpec.UNIGRAM
        or trainer.treat_whitespace_as_suffix
        or not normalizer.escape_whitespaces
    ):
        return None
    vocab = [[piece.piece, score] for piece, score in zip(model.pieces, _scores(model), strict=True)]
    roles = _special(model)
    special = list(roles.values())
    if not _holds_sentinels(model):
        special += range(len(vocab), len(vocab) + SENTINELS)
        vocab += [[f"<extra_id_{i}>", 0.0] for i in reversed(range(SENTINELS))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, vocab[number][0]) for number in sorted(special)],
        "normalizer": _normalizer(normalizer),
        # In a chunk of its own a piece with marks inside would not be found.
        "pre_tokenizer": _metaspace("never", split=not any(_MARK in piece.piece[1:] for piece in model.pieces)),
        "post_processor": _end(model, roles["eos_token"]) if "eos_token" in roles else None,
        "decoder": _decoder(model),
        "model": {
            "type": "Unigram",
            "unk_id": roles["unk_token"],
            "vocab": vocab,
            "byte_fallback": trainer.byte_fallback,
        },
    }


def _special(model: _Model) -> dict[str, int]:
    """The ids of the tokens that transformers knows by a role."""
    trainer = model.trainer_spec
    names = {"eos_token": trainer.eos_piece, "pad_token": trainer.pad_piece, "unk_token": trainer.unk_piece}
    kinds = (_Piece.CONTROL, _Piece.UNKNOWN)
    ids = {piece.piece: number for number, piece in enumerate(model.pieces) if piece.type in kinds}
    return {role: ids[name] for role, name in names.items() if name in ids}


def _holds_sentinels(model: _Model) -> bool:
    return any(piece.piece in ("<extra_id_0>", f"{_MARK}<extra_id_0>") for piece in model.pieces)


def _scores(model: _Model) -> list[float]:
    """Of each piece, so that the best path through a text is that of SentencePiece.

    That one always takes a piece of the user's, and never finds the name of a byte or of a control token in a text,
    which here holds where the characters of the name are pieces. Tokens with a role are cut out of a text before.
    """
    normal = [piece.score for piece in model.pieces if piece.type == _Piece.NORMAL]
    # Worse than the characters of any name one by one.
    longest = max(len(piece.piece) for piece in model.pieces)
    never, special = longest * (min(normal) - 1), set(_special(model).values())

    def score(number: int, piece: _Piece) -> float:
        if piece.type == _Piece.USER_DEFINED:
            return len(piece.piece) * max(normal) - 0.1
        return piece.score if piece.type == _Piece.NORMAL or number in special else never

    return [score(number, piece) for number, piece in enumerate(model.pieces)]


def _normalizer(spec: sentencepiece_model_pb2.NormalizerSpec) -> dict:
    steps: list[dict] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps += [
            {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _MARK})
    return {"type": "Sequence", "normalizers": steps}


def _metaspace(scheme: str, split: bool) -> dict:
    return {"type": "Metaspace", "replacement": _MARK, "prepend_scheme": scheme, "split": split}


def _end(model: _Model, number: int) -> dict:
    """Appends the end token to a text, and to each of two."""
    name = model.pieces[number].piece
    end = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, end, second, end],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }


def _decoder(model: _Model) -> dict:
    words = _metaspace("always" if model.normalizer_spec.add_dummy_prefix else "never", split=True)
    if not model.trainer_spec.byte_fallback:
        return words
    return {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, words]}


def _added(number: int, content: str) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
