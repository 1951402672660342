"""Trees of arrays that Orbax keeps, read and written array by array.

A tree is a folder with `_METADATA`, which lists the arrays by their keys, and the arrays in zarr, each in a folder or
all in one OCDBT database. Source: orbax-checkpoint 0.12, _src/serialization and _src/metadata.
"""

import asyncio
import json
import logging
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.interop import zarr
from t5x_lite.interop.lazy import Lazy, boxes, chunk_shape

METADATA = "_METADATA"


def read(folder: str | os.PathLike) -> dict[tuple[str, ...], Lazy]:
    """The arrays of a tree by their keys, none of them read yet.

    Args:
      folder: which holds `_METADATA`, local or gs://.

    Raises:
      UserError: what is there is no such tree, or damaged.
    """
    folder = epath.Path(folder)
    try:
        metadata = json.loads((folder / METADATA).read_text())
        entries = metadata["tree_metadata"].values()
        leaves = [
            tuple(str(part["key"]) for part in entry["key_metadata"])
            for entry in entries
            if entry["value_metadata"]["value_type"] in ("jax.Array", "np.ndarray", "scalar")
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / METADATA} cannot be read",
            f"it is missing, cut off or damaged: {error}",
            "fetch the checkpoint again, or give another one with --input",
        ) from error
    in_one = (folder / "manifest.ocdbt").exists()
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"

    def spec(name: str) -> dict:
        if in_one:
            return {"driver": driver, "kvstore": {"driver": "ocdbt", "base": zarr.place(folder), "path": f"{name}/"}}
        return {"driver": driver, "kvstore": zarr.place(folder / name)}

    return {keys: zarr.array(spec(".".join(keys)), "/".join(keys), folder) for keys in leaves}


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes arrays one after the other and chunk by chunk; to whoever reads them they are numpy's."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self._turn, self._failed = asyncio.Lock(), False

    async def _open_and_write(self, value: Lazy, tspec: dict, ts_context: ts.Context) -> None:
        async with self._turn:
            # Those that wait would go on writing while what is there is taken away.
            if self._failed:
                return
            self._failed = True
            await self._write(value, tspec, ts_context)
            self._failed = False

    async def _write(self, value: Lazy, tspec: dict, ts_context: ts.Context) -> None:
        chunk = chunk_shape(value.shape, value.dtype.itemsize)
        tspec["metadata"]["chunks"] = list(chunk)
        try:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        except (ValueError, OSError) as error:
            raise zarr.not_written(error) from error
        for box in boxes(value.shape, chunk):
            part = value.read(box)
            try:
                await store[box].write(part)
            except (ValueError, OSError) as error:
                raise zarr.not_written(error) from error


def write(folder: str | os.PathLike, item: str, tree) -> None:
    """Writes a tree of `Lazy` as one item of a composite checkpoint, as `train` writes and reads it.

    Args:
      folder: of the checkpoint, which is made.
      item: its name in there.
      tree: nested dicts and tuples with a Lazy at each leaf.

    Raises:
      OSError: it cannot be written.
    """
    logging.getLogger("absl").addFilter(_without_array_metadata)
    registry = ocp.type_handlers.create_type_handler_registry((Lazy, _LazyHandler()))
    handler = ocp.CompositeCheckpointHandler(**{item: ocp.PyTreeCheckpointHandler(type_handler_registry=registry)})
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(epath.Path(folder).absolute(), args=ocp.args.Composite(**{item: ocp.args.PyTreeSave(tree)}))


def _without_array_metadata(record: logging.LogRecord) -> bool:
    # Orbax warns that it keeps the chunks' shapes of jax.Arrays only; zarr has them too.
    return "ArrayMetadata persistence is disabled" not in record.getMessage()


def scalar(value: int) -> Lazy:
    """A number as an int32 array without axes."""
    array = np.asarray(value, np.int32)
    return Lazy((), array.dtype, lambda box: array)


def names(tree) -> dict[tuple[str, ...], object]:
    """The leaves of a tree by the keys that Orbax lists them under."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(str(_key(part)) for part in path): leaf for path, leaf in leaves}


def _key(part):
    return getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))
