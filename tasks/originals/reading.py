"""How original files are read: units of a file one after the other, and the records in a unit.

A unit is what can be counted without being understood: a line, a pair of lines, an
article. A position in a file is a number of units, so reading can go on at any of
them, and a shard skips what is not its own at little cost. Lines end at a line
feed only, as TensorFlow Datasets has it: parallel texts hold carriage returns inside
sentences.
"""

import gzip
import itertools
import json
import os
import re
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any

from t5x_lite.tasks import documents

Record = dict[str, Any]

# The type of a feature: the name of a dtype; in a list, any number of them; in a pair with a count, so many of them;
# or features by name.
Feature = str | list[str] | tuple[str, int] | Mapping[str, "Feature"]

TEXT, TEXTS, LABEL, NUMBER = "string", ["string"], "int64", "int32"

# The least number of TFDS's int32.
_LEAST = -(1 << 31)
LINE_END = b"\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Format:
    """How files become records.

    Args:
      units: paths -> units, opened and read as they are asked for. What it raises, and its reason, is about the file.
      parse: unit, its number from 0 -> records. A ValueError says what is wrong with the unit.
      unit: what a unit is called in messages.
      first: the number that messages give to the first unit.
    """

    units: Callable[..., Iterator[Any]]
    parse: Callable[[Any, int], list[Record]]
    unit: str = "line"
    first: int = 1


@dataclass(frozen=True)
class Files:
    """Files that are read together, most often one alone.

    Args:
      names: as published, without .gz. One alone may have * in it and then means any number of files.
      format: of the files; its `units` takes as many paths as there are names.
    """

    names: tuple[str, ...]
    format: Format


@dataclass(frozen=True)
class DataSet:
    """What is published under the name of a data set.

    Args:
      features: of a record, with TFDS's names and types.
      splits: for each split the alternatives, each of them complete in itself; the first one is what is published.
      folders: under DATA_DIR, in which the files are looked for; the first one is where messages say to put them.
      download: what to download from where, for messages.
      shuffled: records that are shuffled among each other; published files are in no random order.
      in_tfds: whether TFDS has a data set of the name.
    """

    features: Mapping[str, Feature]
    splits: Mapping[str, tuple[tuple[Files, ...], ...]]
    folders: tuple[str, ...]
    download: str
    shuffled: int = 1 << 14
    in_tfds: bool = True


def numbered(format: Format, paths: tuple[str, ...], start: int = 0) -> Iterator[tuple[int, Any]]:
    """(number from 0, unit) of the files, from unit `start` on.

    Raises:
      ValueError, OSError: the files cannot be read, or hold nothing.
    """
    empty = True
    try:
        for number, unit in enumerate(format.units(*paths)):
            empty = False
            if number >= start:
                yield number, unit
    except (EOFError, zlib.error) as error:  # from a compressed file
        raise ValueError(str(error)) from None
    if empty:
        raise ValueError("it holds no records")


def lines(path: str) -> Iterator[bytes]:
    """The lines of a file, which may be compressed with gzip, without their line feeds. None has a NUL byte."""
    for number, line in enumerate(_raw_lines(path), start=1):
        if b"\0" in line:
            raise ValueError(f"line {number} of {os.path.basename(path)} has a NUL byte, so it is no text")
        yield line


def _raw_lines(path: str) -> Iterator[bytes]:
    with documents.open_file(path) as file:
        for number, line in enumerate(gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file):
            yield (line if number else line.removeprefix(_BYTE_ORDER_MARK)).removesuffix(b"\n")


def side_by_side(left: str, right: str) -> Iterator[tuple[bytes | None, bytes | None]]:
    """The lines of two files in pairs, with None where one of them is at its end."""
    return itertools.zip_longest(_lines_of_one(left), _lines_of_one(right))


def _lines_of_one(path: str) -> Iterator[bytes]:
    """The lines of a file that is read beside another, so that a reason has to say which it is about.

    Crawled text may have a NUL byte in one line of millions, which TFDS keeps too. It may also have a carriage return
    at the end of some lines, which belongs to them; where it ends the first line, it is a part of line ends.
    """
    try:
        rows = _raw_lines(path)
        first = next(rows, None)
        if first is None:
            return
        end = b"\r" if first.endswith(b"\r") else b""
        for line in itertools.chain([first], rows):
            yield line.removesuffix(end)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the file {os.path.basename(path)} is damaged ({error})") from None


def text(path: str) -> str:
    """A whole file, which may be compressed with gzip."""
    return utf8(b"\n".join(lines(path)))


def utf8(data: bytes, first_line: int = 1) -> str:
    """Bytes as text; of several lines, the first of which has a number in its file, the bad one is named."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = f"in line {first_line + before.count(LINE_END)} " if LINE_END in data else ""
        place = error.start - before.rfind(LINE_END)
        raise ValueError(f"{line}it is not UTF-8: {error.reason}, 0x{data[error.start]:02x}, at byte {place}") from None


def from_json(source: bytes | str, what: str) -> Any:
    """The value that JSON stands for; `what` it is meant to be is for messages."""
    source = utf8(source) if isinstance(source, bytes) else source
    if not source.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(source)
    except RecursionError:
        raise ValueError(f"it is not {what}: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in source else ""
        raise ValueError(f"it is not {what}: {error.msg} at {line}column {error.colno}") from None
    except ValueError as error:  # a number with too many digits
        raise ValueError(f"it is not {what}: {error}") from None


def json_object(line: bytes) -> Record | None:
    """The JSON object in a line, None in a blank one."""
    if not line.strip():
        return None
    value = from_json(line, "one JSON object a line")
    if not isinstance(value, dict):
        raise ValueError(f"it is JSON of type {type(value).__name__}, not an object: there is to be one in each line")
    return value


def field(record: Any, name: str, kind: type | UnionType) -> Any:
    """A field of a JSON object, which must be there and of a type. Texts are UTF-8 and whole numbers have 32 bits."""
    if not isinstance(record, dict):
        raise ValueError(f"there is {json.dumps(record)[:60]} where an object with the field {name!r} is meant to be")
    if name not in record:
        raise ValueError(f"it has no field {name!r}, its fields are {_shown(record) or 'none'}")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        *kinds, last = (one.__name__ for one in typing.get_args(kind) or (kind,))
        kinds = f"{', '.join(kinds)} or {last}" if kinds else last
        raise ValueError(f"its field {name!r} is {json.dumps(value)[:60]}, not of type {kinds}")
    if isinstance(value, int) and not _LEAST <= value <= -_LEAST - 1:
        raise ValueError(f"its field {name!r} is {value}, which has more than 32 bits"[:300])
    return _valid(value, name) if isinstance(value, str) else value


def strings(record: Any, name: str) -> list[str]:
    """A field of a JSON object that is a list of strings."""
    values = field(record, name, list)
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"its field {name!r} has {json.dumps(value)[:60]} in it, which is no string")
        _valid(value, name)
    return values


def _valid(value: str, name: str) -> str:
    """A string of a field that can be written as UTF-8: JSON lets halves of surrogate pairs stand alone."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = json.dumps(value[error.start])
        raise ValueError(f"its field {name!r} has {half} in it, half of a surrogate pair and no character") from None
    return value


def _shown(names: Iterable[str]) -> str:
    return ", ".join(names).encode("utf-8", "backslashreplace").decode("utf-8")


def texts_of_json(line: bytes, number: int, *, names: tuple[str, ...]) -> list[Record]:
    """The record of a line of JSON whose fields of interest are all strings."""
    del number
    row = json_object(line)
    return [] if row is None else [{name: field(row, name, str) for name in names}]


def label_id(label: str | int, names: tuple[str, ...], secret: bool) -> int:
    """The id of a label that is one of `names` or already an id (or false or true).

    -1 stands for a secret label, which only files that may have such ones hold.
    """
    if label in names:
        return names.index(label)
    # Python's int would take underscores, and digits of other scripts, too.
    written = label.strip(" ") if isinstance(label, str) else str(int(label))
    value = int(written) if re.fullmatch("-?[0-9]{1,9}", written) else None
    if value == -1 and not secret:
        raise ValueError("its label is -1, which stands for a secret one: only files of a test split have it")
    if value is None or not -1 <= value < len(names):
        raise ValueError(f"its label {label!r} is neither one of {', '.join(names)} nor an id below {len(names)}")
    return value
