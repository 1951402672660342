"""The files by which transformers makes the tokenizer of our vocabularies."""

import json
from pathlib import Path

import sentencepiece
from etils import epath

SENTINELS = 100


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
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    names = {"eos_token": model.eos_id(), "pad_token": model.pad_id(), "unk_token": model.unk_id()}
    special: dict = {name: model.id_to_piece(number) for name, number in names.items() if number >= 0}
    added = 0 if _holds_sentinels(model) else SENTINELS
    if added:
        special["additional_special_tokens"] = [f"<extra_id_{i}>" for i in range(added)]
    _write_json(directory / "special_tokens_map.json", special)
    # Its tokenizer of the slow kind asks for `legacy`; T5's ids were always those.
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": added, "legacy": True}
    _write_json(directory / "tokenizer_config.json", config | special)


def _holds_sentinels(model: sentencepiece.SentencePieceProcessor) -> bool:
    return any(model.piece_to_id(piece) != model.unk_id() for piece in ("<extra_id_0>", "▁<extra_id_0>"))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
