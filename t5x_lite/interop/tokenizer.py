"""The files by which transformers makes the tokenizer of our vocabularies."""

import json
from pathlib import Path

import sentencepiece
from etils import epath

SENTINELS = 100


def write(directory: Path, vocabulary: str) -> None:
    """Writes what `AutoTokenizer.from_pretrained` reads.

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
    special = {
        "eos_token": model.id_to_piece(model.eos_id()),
        "pad_token": model.id_to_piece(max(model.pad_id(), 0)),
        "unk_token": model.id_to_piece(model.unk_id()),
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(SENTINELS)],
    }
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": SENTINELS, "legacy": True}
    _write_json(directory / "special_tokens_map.json", special)
    _write_json(directory / "tokenizer_config.json", config | special)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
