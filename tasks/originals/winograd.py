"""Definite Pronoun Resolution (Rahman and Ng 2012) as published: five lines a record, the last one blank."""

import itertools
from collections.abc import Iterator

from t5x_lite.tasks.originals.reading import LABEL, TEXT, DataSet, Files, Format, Record, lines, utf8

Unit = tuple[bytes, ...]


def _blocks(path: str) -> Iterator[Unit]:
    rows = lines(path)
    while block := tuple(itertools.islice(rows, 5)):
        yield block


def _record(block: Unit, number: int) -> list[Record]:
    """Sentence, pronoun, two candidates and the right one of them. Names and types are those of TFDS."""
    parts = [utf8(line).strip() for line in block]
    if not any(parts):
        return []
    if len(parts) < 4 or any(parts[4:]):
        start = 5 * number + 1
        raise ValueError(
            f"its lines {start} to {start + len(parts) - 1} are not a sentence, a pronoun, two candidates, the answer "
            "and a blank line"
        )
    sentence, pronoun, both, answer = parts[:4]
    candidates = [candidate.strip() for candidate in both.split(",")]
    if len(candidates) != 2:
        raise ValueError(f"its third line {both!r} has {len(candidates)} candidates, not two with a comma between them")
    if answer not in candidates:
        raise ValueError(f"its answer {answer!r} is neither of the candidates {both!r}")
    return [
        {"sentence": sentence, "pronoun": pronoun, "candidates": candidates, "label": candidates.index(answer)}
    ]  # fmt: skip


_FORMAT = Format(_blocks, _record, unit="block")

DATA_SETS = {
    "definite_pronoun_resolution": DataSet(
        features={"sentence": TEXT, "pronoun": TEXT, "candidates": (TEXT, 2), "label": LABEL},
        splits={split: ((Files((f"{split}.c.txt",), _FORMAT),),) for split in ("train", "test")},
        folders=("definite_pronoun_resolution", "dpr", ""),
        download="https://s3.amazonaws.com/datasets.huggingface.co/definite_pronoun_resolution/train.c.txt and "
        "https://s3.amazonaws.com/datasets.huggingface.co/definite_pronoun_resolution/test.c.txt",
    )
}
