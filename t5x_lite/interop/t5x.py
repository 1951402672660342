"""Checkpoints of t5x: `checkpoint_<step>` in its own layout of msgpack and zarr, and in that of Orbax.

The legacy folder holds one msgpack file, `checkpoint`, with a tree under `optimizer`: `target` are the parameters,
`state` is the step and Adafactor's statistics. A leaf is an array, or the TensorStore spec of a zarr folder beside
the file. A single file may also hold it all. The newer layout has a folder `state` that Orbax wrote. Sources: t5x's
checkpoints.py, and flax's serialization.py for the arrays inside msgpack.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import ml_dtypes
import msgpack
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from t5x_lite.errors import UserError
from t5x_lite.interop import lazy, orbax, zarr
from t5x_lite.interop.lazy import Lazy
from t5x_lite.interop.names import Path

FILE, PREFIX = "checkpoint", "checkpoint_"
# Since 2021-06-10. Before, bfloat16 was written as uint16.
VERSION = 3
_ARRAY, _SCALAR = 1, 3  # flax's types of extension in msgpack
# Of a scanned array, each layer is a part of every chunk.
_CACHED_BYTES = 4 * 1024**3


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a checkpoint holds, not yet read.

    Args:
      place: where it lies.
      target: the parameters by their path.
      slots: Adafactor's statistics: path of a parameter -> `m`, `v`, `v_row`, `v_col`.
      step: of training.
    """

    place: epath.Path
    target: Mapping[Path, Lazy]
    slots: Mapping[Path, Mapping[str, Lazy]]
    step: int


def find(reference: str) -> epath.Path:
    """The checkpoint that `DIR`, `DIR@STEP`, `DIR/checkpoint_STEP` or a single file means; the newest of a DIR.

    Raises:
      UserError: there is none.
    """
    name, at, which = reference.rpartition("@")
    place = epath.Path(name if at and which.isdecimal() else reference)
    if place.is_file():
        return place
    if _is_checkpoint(place):
        return place
    steps = {}
    for folder in place.iterdir() if place.is_dir() else ():
        number = folder.name.removeprefix(PREFIX)
        if folder.name.startswith(PREFIX) and number.isdecimal() and _is_checkpoint(folder):
            steps[int(number)] = folder
    if not steps:
        raise UserError(
            f"--input={reference} holds no checkpoint of t5x",
            f"one is a folder {PREFIX}STEP with the file {FILE}, or with the folder state in it",
            "give such a folder, or the one around it, with --input",
        )
    if at and which.isdecimal():
        if int(which) not in steps:
            raise UserError(
                f"--input={reference} names no checkpoint",
                f"{place} has the steps {', '.join(map(str, sorted(steps)))}",
                f"write {place}@{max(steps)}",
            )
        return steps[int(which)]
    return steps[max(steps)]


def _is_checkpoint(folder: epath.Path) -> bool:
    return (folder / FILE).is_file() or (folder / "state" / orbax.METADATA).is_file()


def read(place: epath.Path) -> Stored:
    """What the checkpoint at a place holds; parameters of it are read when they are asked for.

    Raises:
      UserError: it is damaged, or no training state of t5x.
    """
    tree = place / "state"
    if (tree / orbax.METADATA).is_file():
        leaves = orbax.read(tree)
        if leaves and all(keys[0] in ("optimizer", "version") for keys in leaves):
            leaves = {keys[1:]: leaf for keys, leaf in leaves.items() if keys[0] == "optimizer"}
    else:
        leaves = _legacy(place)
    target = {keys[1:]: leaf for keys, leaf in leaves.items() if keys[0] == "target"}
    if not target:
        raise UserError(
            f"{place} holds no parameters",
            "a training state of t5x has them under target",
            "give a checkpoint that t5x trained or converted with --input",
        )
    slots: dict[Path, dict[str, Lazy]] = {}
    for keys, leaf in leaves.items():
        if keys[:2] == ("state", "param_states"):
            slots.setdefault(keys[2:-1], {})[keys[-1]] = leaf
    step = leaves.get(("state", "step"))
    return Stored(place, target, slots, 0 if step is None else int(step.whole()))


def _legacy(place: epath.Path) -> dict[Path, Lazy]:
    """The leaves of a msgpack file and of the zarr folders beside it."""
    file = place if place.is_file() else place / FILE
    try:
        content = msgpack.unpackb(file.read_bytes(), ext_hook=_extension, strict_map_key=False, raw=False)
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise _damaged(file, "it is not a tree of parameters")
    version, tree = content.get("version", 0), content.get("optimizer", content)
    if not isinstance(version, int) or not isinstance(tree, dict):
        raise _damaged(file, "it is not a training state of t5x")
    flat = flatten_dict(tree, is_leaf=lambda _, value: _is_spec(value) or "__msgpack_chunked_array__" in value)
    return {
        tuple(map(str, keys)): _leaf(file, keys, value, version)
        for keys, value in flat.items()
        if keys[0] in ("target", "state") and value is not None
    }


def _damaged(file, error) -> UserError:
    return UserError(
        f"{file} cannot be read", f"it is cut off or damaged: {error}", "fetch it again, or correct --input"
    )


def _is_spec(value) -> bool:
    return isinstance(value, dict) and "driver" in value and isinstance(value.get("kvstore"), dict)


def _leaf(file: epath.Path, keys: Path, value, version: int) -> Lazy:
    name = "/".join(map(str, keys))
    if isinstance(value, np.ndarray):
        return lazy.of_array(value)
    if isinstance(value, (int, float)):
        return lazy.of_array(np.asarray(value))
    if not isinstance(value, dict):
        raise _damaged(file, f"{name} is neither an array nor the place of one")
    if not _is_spec(value):
        try:
            parts = [value["chunks"][key] for key in sorted(value["chunks"], key=int)]
            shape = [value["shape"][key] for key in sorted(value["shape"], key=int)]
            return lazy.of_array(np.concatenate(parts).reshape(shape))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(file, f"the parts of {name} do not make an array, {error}") from error
    # The folder's name alone: where the checkpoint was written is not where it lies now.
    folder = PurePosixPath(value["kvstore"].get("path") or value.get("path", "")).name
    if not folder or value["driver"] != "zarr":
        raise _damaged(file, f"{name} is kept by the driver {value['driver']} at no known place")
    scanned = _CACHED_BYTES if keys[1:3] in _SCANNED else None
    spec = {"driver": "zarr", "kvstore": zarr.place(file.parent / folder)}
    array = zarr.array(spec, name, file.parent, scanned)
    if version < VERSION and array.dtype == np.uint16:
        return lazy.viewed(array, ml_dtypes.bfloat16)
    return array


_SCANNED = tuple((stack, inner) for stack in ("encoder", "decoder") for inner in (stack, "layers"))


def _extension(kind: int, data: bytes):
    """flax's arrays and numpy's scalars; nothing else is made of what a file says."""
    if kind not in (_ARRAY, _SCALAR):
        raise ValueError(f"it holds an extension of the type {kind}")
    shape, name, values = msgpack.unpackb(data, raw=True)
    dtype = np.dtype(ml_dtypes.bfloat16 if name == b"bfloat16" else name.decode())
    if dtype.hasobject:
        raise ValueError(f"it holds an array of {dtype}")
    return np.frombuffer(values, dtype).reshape(shape)


# ------------------------------------------------------------------------------------ writing


def write(folder: epath.Path, target: Mapping[Path, Lazy], slots: Mapping[Path, Mapping[str, Lazy]], step: int) -> None:
    """Writes a checkpoint in the legacy layout, which every version of t5x reads.

    As t5x does, arrays of parameters and of whole statistics lie in zarr, the others in the msgpack file.

    Args:
      folder: in which `checkpoint_<step>` is made.
      target: the parameters by their path in t5x, in the type to store.
      slots: Adafactor's statistics of each, or none.
      step: of training.

    Raises:
      OSError: it cannot be written.
    """
    place = folder / f"{PREFIX}{step}"
    place.mkdir(parents=True)
    states = {}
    for path, statistics in slots.items():
        states[path] = {
            slot: _packed(array.whole())
            if slot != "v" or array.shape == (1,)
            else _zarr(place, ("state", "param_states", *path, slot), array)
            for slot, array in statistics.items()
        }
    content = {
        "version": VERSION,
        "optimizer": {
            "target": _nested({path: _zarr(place, ("target", *path), array) for path, array in target.items()}),
            "state": {"step": _packed(np.asarray(step, np.int32)), "param_states": _nested(states)},
        },
    }
    # Last: without it the folder is no checkpoint.
    (place / FILE).write_bytes(msgpack.packb(content))


def _zarr(place: epath.Path, keys: Path, array: Lazy) -> dict:
    """Writes an array and gives the spec that stands for it in the msgpack file."""
    name = ".".join(keys)
    # Of a scanned array a chunk holds whole layers, as it is read and as others write it.
    first = (1, 0) if keys[1:3] in _SCANNED or keys[2:4] in _SCANNED else (0, 1)
    chunk = lazy.chunk_shape(array.shape, array.dtype.itemsize, first=first)
    spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": {"compressor": {"id": "gzip", "level": 1}}}
    zarr.create({**spec, "kvstore": zarr.place(place / name), "store_data_equal_to_fill_value": True}, chunk, array)
    metadata = {**spec["metadata"], "chunks": list(chunk), "shape": list(array.shape)}
    return {**spec, "kvstore": {"driver": "file", "path": f"{name}/"}, "metadata": metadata}


def _packed(array: np.ndarray) -> msgpack.ExtType:
    """An array as flax packs it."""
    return msgpack.ExtType(_ARRAY, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def _nested(flat: Mapping[Path, object]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = value
    return tree


def layer_number(key: str) -> int | None:
    """Of `layers_3`."""
    found = re.fullmatch(r"layers_(\d+)", key)
    return int(found[1]) if found else None
