"""Arrays in chunks, as t5x and Orbax keep them, read and written through TensorStore part by part."""

import functools
import json
import os
import re
from collections.abc import Callable

import numpy as np
import tensorstore as ts

from t5x_lite.errors import UserError
from t5x_lite.interop.lazy import Box, Lazy, boxes


def place(folder: str | os.PathLike) -> dict:
    """Where TensorStore finds a folder, local or gs://."""
    path = os.fspath(folder).rstrip("/") + "/"
    if remote := re.fullmatch(r"gs://([^/]+)/(.*)", path):
        return {"driver": "gcs", "bucket": remote[1], "path": remote[2]}
    return {"driver": "file", "path": path}


def array(spec: dict, name: str, where, cached: int | None = None) -> Lazy:
    """An array that is there.

    Args:
      spec: TensorStore's, of driver zarr or zarr3.
      name: of the array, for errors.
      where: it lies, for errors.
      cached: bytes of decoded chunks to keep between reads of this array; None: those of one chunk.

    Raises:
      UserError: it is missing or damaged; also when a part of it is read.
    """
    store = _told(lambda: _open(spec, 0), name, where)
    chunk = int(np.prod(store.chunk_layout.read_chunk.shape or (1,), dtype=np.int64)) * store.dtype.numpy_dtype.itemsize
    # The cache counts a little more than the elements.
    text, limit = json.dumps(spec), chunk + chunk // 8 + 2**20 if cached is None else cached

    def read(box: Box) -> np.ndarray:
        return _told(lambda: np.asarray(_last_opened(text, limit)[box].read().result()), name, where)

    return Lazy(tuple(store.shape), store.dtype.numpy_dtype, read)


@functools.lru_cache(maxsize=1)
def _last_opened(text: str, cached: int) -> ts.TensorStore:
    """Arrays are read one after the other: the decoded chunks of the last one alone stay in memory."""
    return _open(json.loads(text), cached)


def _open(spec: dict, cached: int) -> ts.TensorStore:
    # A chunk that is missing would otherwise be read as zeros.
    spec = {**spec, "fill_missing_data_reads": False, "recheck_cached_data": "open"}
    context = ts.Context({"cache_pool": {"total_bytes_limit": cached}})
    return ts.open(spec, open=True, read=True, context=context).result()


def _told(action: Callable, name: str, where):
    """What `action` gives; TensorStore's errors in our words."""
    try:
        return action()
    # TensorStore itself raises NotImplementedError, of a format that this build of it cannot decode.
    except (ValueError, OSError, NotImplementedError) as error:
        raise UserError(
            f"{name} in {where} cannot be read",
            f"it is missing, cut off or damaged: {_reason(error)}",
            "fetch the checkpoint again, or give another one with --input",
        ) from error


def _reason(error: Exception) -> str:
    """The first part of TensorStore's message, without the list of where in its source it passed."""
    return re.sub(r"\s+", " ", re.split(r" \[(?:source locations|tensorstore_spec|.*?=)", str(error))[0]).strip()[:300]


def create(spec: dict, chunk: tuple[int, ...], contents: Lazy) -> None:
    """Writes an array in chunks of a shape.

    Args:
      spec: TensorStore's, with the metadata that the driver takes besides shape and chunks.
      chunk: its shape.
      contents: read chunk by chunk.

    Raises:
      OSError: it cannot be written.
    """
    try:
        metadata = {**spec["metadata"], "shape": list(contents.shape), "chunks": list(chunk)}
        store = ts.open({**spec, "metadata": metadata}, create=True).result()
    except (ValueError, OSError) as error:
        raise not_written(error) from error
    for box in boxes(contents.shape, chunk):
        part = contents.read(box)
        try:
            store[box].write(part).result()
        except (ValueError, OSError) as error:
            raise not_written(error) from error


def not_written(error: Exception) -> OSError:
    """TensorStore's error as that of a file, which it does not always raise."""
    system = re.search(r": ([^:\[]+) \[os_error_code=", str(error))
    return OSError(system[1] if system else _reason(error))
