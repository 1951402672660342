"""Requests to a trained model: the records of a file, checked in one pass and then read as they are needed."""

import dataclasses
import functools
import gzip
import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from t5x_lite.errors import UserError


class Request:
    """A record and the ids of its texts, which are made when they are first asked for.

    Args:
      record: has text in `inputs`, and in `targets` where those are asked for.
      encode: text -> ids, end token included.
    """

    def __init__(self, record: dict, encode: Callable[[str], Sequence[int]]):
        self.record, self._encode = record, encode

    @functools.cached_property
    def inputs(self) -> Sequence[int]:
        return self._encode(self.record["inputs"])

    @functools.cached_property
    def targets(self) -> Sequence[int]:
        return self._encode(self.record["targets"])


@dataclasses.dataclass(frozen=True)
class Source:
    """Requests of any origin.

    Args:
      requests: all of them, to be gone through once.
      count: how many, or at most; None: not known before.
      identity: what tells them from others, in words.
      decode: ids -> text of what is made of them.
      eos: the id that ends that.
      is_cut: inputs that are longer than those of training have been cut to as many tokens.
    """

    requests: Iterable[Request]
    count: int | None
    identity: str
    decode: Callable[[Iterable[int]], str]
    eos: int
    is_cut: bool = False


@dataclasses.dataclass(frozen=True)
class Requests:
    """The records of a file, read anew each time they are iterated over; memory holds one at a time.

    Args:
      path: of the file, as the user named it.
      required: the fields that every record has, with text in them.
      count: how many records there are.
      names: every field that a record has.
      digest: of all lines: files of the same content have the same.
      copy: of what could be read once only, such as a pipe.
    """

    path: str
    required: tuple[str, ...]
    count: int
    names: frozenset[str]
    digest: str
    copy: object = None

    def __iter__(self) -> Iterator[dict]:
        return (record for record, _ in _records(self.path, self.copy, self.required))

    def __str__(self) -> str:
        return f"{self.count:,} records of digest {self.digest}"


def survey(path: str, required: tuple[str, ...]) -> Requests:
    """Reads a file to its end and keeps none of it.

    What a line is follows from the name, .gz aside: `.jsonl` (or `.json`) an object, of which every field is kept;
    `.tsv` inputs and, behind a tab, targets; any other an input.

    Args:
      path: of a file or pipe of this machine.
      required: fields that must be there.

    Raises:
      UserError: it cannot be read, is empty, or has a line that is no such record; the line is named.
    """
    copy = _copied(path)
    digest, names, count = hashlib.blake2b(digest_size=16), set(), 0
    for record, line in _records(path, copy, required):
        digest.update(line)
        names |= record.keys()
        count += 1
    if not count:
        raise UserError(f"--input={path} is empty", "it holds no record", f"give a file with {_wanted(required)}")
    return Requests(path, required, count, frozenset(names), digest.hexdigest(), copy)


def _wanted(required: tuple[str, ...]) -> str:
    return " and ".join(required)


def _copied(path: str):
    """A copy of what can be read once only, read to its end; None for a file."""
    if "://" in path:
        raise UserError(
            f"--input={path} is not on this machine",
            "requests are read from a local file",
            "copy it, as with gcloud storage cp, and name the copy with --input",
        )
    if os.path.isfile(path) or not os.path.exists(path) or os.path.isdir(path):
        return None  # a file, or an error when it is opened
    copy = tempfile.NamedTemporaryFile()  # noqa: SIM115 (it lives as long as the requests)
    with open(path, "rb") as pipe:
        shutil.copyfileobj(pipe, copy)
    copy.flush()
    return copy


def _records(path: str, copy, required: tuple[str, ...]) -> Iterator[tuple[dict, bytes]]:
    """Each record and its line."""
    name = path.removesuffix(".gz")
    parse = _of_json if name.endswith((".jsonl", ".json")) else _of_columns if name.endswith(".tsv") else _of_text
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(copy.name if copy else path, "rb") as file:
            # A line ends at \n alone: a text may hold other line separators of Unicode.
            for number, line in enumerate(file, start=1):
                text = _text(path, number, line)
                if parse is _of_json and not text.strip():
                    continue
                record = parse(path, number, text)
                if missing := [f for f in required if not isinstance(record.get(f), str)]:
                    raise _no_record(path, number, text, required, missing[0], parse)
                yield record, line
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"--input={path} cannot be read", why, "correct --input") from error


def _text(path: str, number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"line {number} of {path} is no UTF-8", str(error), "correct that line") from None
    return text.removeprefix("\ufeff") if number == 1 else text


def _of_text(path: str, number: int, text: str) -> dict:
    return {"inputs": text}


def _of_columns(path: str, number: int, text: str) -> dict:
    columns = text.split("\t")
    if len(columns) > 2:
        raise UserError(
            f"line {number} of {path} has {len(columns)} columns",
            "they are inputs, and targets where there are any",
            "take the others out, or write .jsonl, whose other fields are copied through",
        )
    return dict(zip(("inputs", "targets"), columns))


def _of_json(path: str, number: int, text: str) -> dict:
    try:
        record = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number} of {path} is not JSON", str(error), "correct that line") from None
    if not isinstance(record, dict):
        return {}
    if "\\u" in text:
        for name, value in record.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"line {number} of {path} has half a character in {name}",
                    "an escape of its JSON is one of a pair (\\ud800 to \\udfff) without the other",
                    "correct that line",
                ) from None
    return record


def _refuse_constant(name: str):
    # Python reads it, but no other reader of what is written from it would.
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def _no_record(path: str, number: int, text: str, required: tuple[str, ...], missing: str, parse) -> UserError:
    if parse is _of_json:
        must, fix = f"it must be an object with text in {_wanted(required)}", "correct that line"
    elif parse is _of_columns:
        must, fix = f"it has no {missing}: a line is inputs, a tab, targets", "correct that line"
    else:
        must, fix = f"a line of text has no {missing}", "give .tsv (inputs, a tab, targets) or .jsonl with these fields"
    return UserError(f"line {number} of {path} is {text[:80]}", must, fix)
