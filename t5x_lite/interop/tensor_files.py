"""Files of safetensors, read and written part by part: an 8-byte length, a header of JSON, the tensors' bytes.

Source: the format's description in the readme of huggingface/safetensors. Nothing in it can run code.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop.lazy import Lazy, boxes, chunk_shape

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# A header is at most this long, as for the library safetensors.
_LONGEST_HEADER = 100_000_000


def read(file: Path) -> dict[str, Lazy]:
    """Each tensor of a file by name, not yet read.

    Raises:
      UserError: the file is cut off or damaged, or a tensor is of no type of floating point.
    """
    try:
        with file.open("rb") as opened:
            length = opened.read(8)
            size = int.from_bytes(length, "little")
            if len(length) < 8:
                raise ValueError(f"it is {len(length)} bytes long")
            if not 1 < size <= _LONGEST_HEADER:
                raise ValueError(f"its header would be {size} bytes long")
            header = json.loads(opened.read(size).decode("utf-8"))
            header.pop("__metadata__", None)
            room, begin = file.stat().st_size, 8 + size
            return {name: _tensor(file, name, entry, begin, room) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, error) from error


def _tensor(file: Path, name: str, entry: dict, begin: int, room: int) -> Lazy:
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{name} in {file.parent} is stored as {entry['dtype']}",
            f"parameters are read from {', '.join(DTYPES)}; quantised ones have lost what training needs",
            "give the original model with --input",
        )
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if stop - start != math.prod(shape) * dtype.itemsize or start < 0:
        raise ValueError(f"{name} has {stop - start} bytes for the shape {list(shape)}")
    if begin + stop > room:
        raise ValueError(f"{name} ends at byte {begin + stop}, the file at {room}")

    def part(box) -> np.ndarray:
        # Mapped anew each time, so that pages that were read do not stay in memory.
        mapped = np.memmap(file, dtype, "r", begin + start, shape) if math.prod(shape) else np.empty(shape, dtype)
        return np.array(mapped[box])

    return Lazy(shape, dtype, part)


def read_all(directory: Path) -> dict[str, Lazy]:
    """The tensors of a model's directory, in one file or in those that its index names.

    Raises:
      UserError: there are none, one is missing or damaged, or they are pickled.
    """
    if (directory / WHOLE).is_file():
        return read(directory / WHOLE)
    index = directory / INDEX
    if not index.is_file():
        raise _none(directory)
    shards = read_json(index, "").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
        raise damaged(index, "weight_map does not name files of this directory")
    tensors = {}
    for name in sorted(set(shards.values())):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory / name} is not there",
                f"the index in {INDEX} names it as a part of the model",
                f"fetch this file into {directory}",
            )
        tensors |= read(directory / name)
    return tensors


def _none(directory: Path) -> UserError:
    pickled = sorted(directory.glob("pytorch_model*.bin"))
    if not pickled:
        return UserError(
            f"{directory} holds no {WHOLE}", "there are no weights to read", "fetch it, or correct --input"
        )
    return UserError(
        f"{directory} has its weights in {pickled[0].name} only",
        "it is a pickle, which can run code when it is read",
        "save it as safetensors in Python, with torch and transformers: T5ForConditionalGeneration"
        f".from_pretrained({str(directory)!r}).save_pretrained(OTHER), and give --input=OTHER",
    )


def read_json(path: Path, why: str) -> dict:
    """The object in a file of JSON; `why` it has to be there.

    Raises:
      UserError: it is not there or not whole.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there", why, f"complete {path.parent}, or correct --input") from None
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, "it is not an object")
    return content


def damaged(path: Path, error) -> UserError:
    """What is said of a file that is not whole."""
    return UserError(f"{path} cannot be read", f"it is cut off or damaged: {error}", "fetch this file again")


def write_all(directory: Path, tensors: Mapping[str, Lazy], largest: int) -> None:
    """Writes tensors into one file, or into several of at most `largest` bytes with an index, as transformers does.

    A tensor that is larger has a file of its own.
    """
    shards = list(_shards(tensors, largest))
    if len(shards) == 1:
        _write(directory / WHOLE, tensors)
        return
    files = {f"model-{n:05d}-of-{len(shards):05d}.safetensors": group for n, group in enumerate(shards, 1)}
    for name, group in files.items():
        _write(directory / name, {tensor: tensors[tensor] for tensor in group})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {tensor: name for name, group in files.items() for tensor in group},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Lazy], largest: int) -> Iterator[list[str]]:
    group, size = [], 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > largest:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    yield group


def _write(file: Path, tensors: Mapping[str, Lazy]) -> None:
    # transformers refuses a file that does not name the framework it is laid out for.
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            chunk = chunk_shape(tensor.shape, tensor.dtype.itemsize)
            for box in boxes(tensor.shape, chunk):
                out.write(np.ascontiguousarray(tensor.read(box)).view(np.uint8).data)
