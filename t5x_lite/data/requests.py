"""Requests to a trained model: read from a file, and as padded batches of few different shapes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from t5x_lite.data.packing import encoder_decoder, fill
from t5x_lite.errors import UserError


def read_inputs(path: str) -> list[str]:
    """The inputs of a file: the field `inputs` of .jsonl lines, else lines of text.

    Raises:
      UserError: the file is missing or empty, or a line has no `inputs`.
    """
    if path.endswith(".jsonl"):
        return [record["inputs"] for record in read_records(path, ("inputs",))]
    lines = _lines(path)
    if not lines:
        raise UserError(f"--input={path} is empty", "there is nothing to complete", "give a file with a line an input")
    return lines


def read_records(path: str, fields: tuple[str, ...]) -> list[dict]:
    """The records of a JSONL file, each with text in all `fields`.

    Raises:
      UserError: naming the line that is none.
    """
    records = []
    wanted = " and ".join(fields)
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            raise UserError(f"line {number} of {path} is not JSON", str(error), "correct that line") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(f), str) for f in fields):
            raise UserError(
                f"line {number} of {path} is {line[:80]}",
                f"it must be an object with text in {wanted}",
                "correct that line",
            )
        for field in fields:
            if any("\ud800" <= character <= "\udfff" for character in record[field]):
                raise UserError(
                    f"line {number} of {path} has half a character in {field}",
                    "an escape of its JSON is one of a pair (\\ud800 to \\udfff) without the other",
                    "correct that line",
                )
        records.append(record)
    if not records:
        raise UserError(f"--input={path} is empty", "it holds no record", f"give a JSONL file with {wanted}")
    return records


def _refuse_constant(name: str):
    # Python reads it, but no other reader of what is written from it would.
    raise ValueError(f"{name} is no JSON")


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_bytes().decode("utf-8")
        # Not splitlines: a text may hold other line separators of Unicode.
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input={path} cannot be read", str(error), "correct --input") from error


def bucket(length: int, least: int = 16) -> int:
    """The padded length of a sequence: the next power of two, so that few programs are compiled."""
    return max(least, 1 << (length - 1).bit_length())


def grouped(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items in order, the last one shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def inputs_batch(sequences: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """int32 [rows, L] of input ids, padded with 0 to a bucketed length and with empty rows."""
    length = bucket(max(map(len, sequences)))
    batch = np.zeros((rows, length), np.int32)
    for row, sequence in enumerate(sequences):
        batch[row, : len(sequence)] = sequence
    return batch


def pairs_batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int) -> dict[str, np.ndarray]:
    """The model's features for (input ids, target ids), a pair a row, padded as `inputs_batch`."""
    lengths = {
        "inputs": bucket(max(len(inputs) for inputs, _ in pairs)),
        "targets": bucket(max(len(targets) for _, targets in pairs)),
    }
    examples = [[{"inputs": np.asarray(i, np.int32), "targets": np.asarray(t, np.int32)}] for i, t in pairs]
    return encoder_decoder(fill(examples + [[]] * (rows - len(examples)), lengths), packed=False)


def until_end(ids: np.ndarray, eos: int) -> list[int]:
    """Decoded ids up to the end token, without it."""
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0] if len(ends) else None].tolist()
