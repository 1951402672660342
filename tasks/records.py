"""The source of downstream tasks: records of TFDS, or the same from the original public files.

Which of the two is decided when data is read. Both give the features that the tables
of originals/ name, with the same types. Nothing is ever downloaded.

Original files are read in Python, a few units at a time (see originals/reading.py),
for TensorFlow's reader of lines drops the carriage returns inside them and so glues
words together. The op that reads takes a position and keeps no state that its output
depends on; an iterator is saved as the positions in its files.
"""

import contextlib
import functools
import glob
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import cache
from t5x_lite.errors import UserError
from t5x_lite.tasks import originals
from t5x_lite.tasks.originals import Part
from t5x_lite.tasks.originals.reading import DataSet, Feature, Format, numbered
from t5x_lite.tasks.sources import blamed, python_op, remember

_FILES_AT_ONCE = 16
_UNITS_AT_ONCE = 64
_EMPTY = "it holds no records"

_data_dir: str | None = None


def bind(data_dir: str | None) -> None:
    """Sets the folder of TFDS data and of original files (DATA_DIR)."""
    global _data_dir
    _data_dir = os.path.expanduser(data_dir) if data_dir else None


def where(tfds_name: str, split: str) -> str | None:
    """Where a split of a data set would be read from, None where it is not there.

    Args:
      tfds_name: as for `Records`.
      split: of TFDS, such as "validation_matched".

    Raises:
      UserError: the data set is unknown.
    """
    data = originals.look_up(tfds_name)
    root = _tfds_root(tfds_name)
    if root:
        return f"TFDS {tfds_name} in {root}"
    parts = _files(data, split)
    if not parts:
        return None
    first = parts[0].paths[0]
    return f"{first} and others" if len(parts) > 1 or len(parts[0].paths) > 1 else first


class Records(seqio.DataSource):
    """Records of a data set of TFDS, read from TFDS data or from the original files in DATA_DIR.

    Args:
      tfds_name: with version, such as "glue/cola:1.0.0".
      splits: names of splits, or name -> TFDS's name of it; None for all that the data set has.

    Raises:
      UserError: the data set or a split is unknown.

    TFDS data in DATA_DIR comes first, then TFDS's own folder, then original files. Any
    number of shards partitions the records: each has whole files as long as there is one
    for every shard, and every so many-th line of the rest.
    """

    def __init__(self, tfds_name: str, splits: Sequence[str] | Mapping[str, str] | None = None):
        self._data = originals.look_up(tfds_name)
        self._name = tfds_name
        splits = list(self._data.splits) if splits is None else splits
        self._split_map = dict(splits) if isinstance(splits, Mapping) else {split: split for split in splits}
        for split in self._split_map.values():
            if split not in self._data.splits:
                known = ", ".join(list(self._data.splits)[:8])
                raise UserError(f"{tfds_name} has no split {split}", f"it has {known}", "correct the splits of Records")
        super().__init__(splits=self._split_map)

    @property
    def tfds_name(self) -> str:
        return self._name

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def place(self, split: str) -> str | None:
        """Where a split would be read from, None where it is not there."""
        return where(self._name, self._split_map[split])

    def tfds(self) -> seqio.TfdsDataSource | None:
        """The source of TFDS data, which never downloads; None where there is none."""
        root = _tfds_root(self._name)
        if root is None:
            return None
        source = seqio.TfdsDataSource(self._name, splits=self._split_map, read_only=True)
        source.tfds_dataset.override_data_dir(root)
        return source

    def check(self) -> None:
        """Refuses a source that has no data of any of its splits, with what to download where.

        Raises:
          UserError: that.
        """
        if not any(where(self._name, split) for split in self._split_map.values()):
            self._parts(next(iter(self._split_map)))

    def list_shards(self, split: str) -> list[str]:
        source = self.tfds()
        return source.list_shards(split) if source else [path for part in self._parts(split) for path in part.paths]

    def num_input_examples(self, split: str) -> int:
        source = self.tfds()
        return source.num_input_examples(split) if source else _count(self._name, split, self._parts(split))

    def get_dataset(
        self,
        split="train",
        shuffle=True,
        seed=None,
        shard_info=None,
        *,
        sequence_length=None,
        use_cached=False,
        num_epochs=1,
    ) -> tf.data.Dataset:
        source = self.tfds()
        if source:
            return _from_tfds(source, self._data, split, shuffle, seed, shard_info)
        shards, index = (shard_info.num_shards, shard_info.index) if shard_info else (1, 0)
        parts = self._parts(split)
        paths = tuple(path for part in parts for path in part.paths)
        remember(paths, functools.partial(_places, parts, self._data.features))
        return _from_files(parts, self._data, shuffle, seed, shards, index)

    def _parts(self, split: str) -> list[Part]:
        parts = _files(self._data, self._split_map[split])
        if not parts:
            raise UserError(*_absent(self._name, self._data, self._split_map[split]))
        return parts


def _files(data: DataSet, split: str) -> list[Part]:
    return originals.find(data, split, _data_dir) if _data_dir else []


def _absent(tfds_name: str, data: DataSet, split: str) -> tuple[str, str, str]:
    """The three parts of the UserError about data that is not there."""
    root = _data_dir or "/path/to/data"
    folder = os.path.join(root, data.folders[0])
    looked = " and ".join(os.path.join(root, _tfds_folder(tfds_name)) for root in _tfds_roots())
    why = f"missing is {originals.wanted(data, split, root)}"
    fix = f"download {data.download}, so that the files lie in {folder}"
    if data.in_tfds:
        why = f"TFDS data is looked for in {looked}, and of the original files {why}"
        load = f"tfds.load('{tfds_name}', data_dir='{root}')"
        fix = f'{fix}, or have TFDS make it: python -c "import tensorflow_datasets as tfds; {load}"'
    return (
        f"The data of {tfds_name}, split {split}, is not there",
        f"{wrong}. {why[:1].upper()}{why[1:]}" if (wrong := _no_folder()) else why,
        f"Set --gin.DATA_DIR to the folder that holds it; {fix}",
    )


def _no_folder() -> str:
    """Why DATA_DIR is no folder that data could be in; empty where it is one."""
    if not _data_dir:
        return "DATA_DIR is not set"
    if not tf.io.gfile.exists(_data_dir):
        return f"DATA_DIR={_data_dir} does not exist"
    return "" if tf.io.gfile.isdir(_data_dir) else f"DATA_DIR={_data_dir} is a file, not a folder"


# ----------------------------------------------------------------------------------------------------------------------
# TFDS data


def _tfds_roots() -> list[str]:
    """DATA_DIR and TFDS's own folder."""
    own = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return [*([_data_dir] if _data_dir else []), os.path.expanduser(own)]


def _tfds_folder(tfds_name: str) -> str:
    """Where below a root TFDS puts data; * stands for any version."""
    name, _, version = tfds_name.partition(":")
    return os.path.join(name, version or "*")


def _tfds_root(tfds_name: str) -> str | None:
    """The first folder that holds prepared data of this name."""
    info = os.path.join(_tfds_folder(tfds_name), "dataset_info.json")
    for root in _tfds_roots():
        if tf.io.gfile.glob(os.path.join(root, info)) if "://" in root else glob.glob(info, root_dir=root):
            return root
    return None


def _from_tfds(source, data: DataSet, split, shuffle, seed, shard_info) -> tf.data.Dataset:
    whole_files = shard_info is None or shard_info.num_shards <= len(source.list_shards(split))
    dataset = source.get_dataset(split, shuffle=shuffle, seed=seed, shard_info=shard_info if whole_files else None)
    if not whole_files:
        dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset.map(functools.partial(_chosen, features=data.features))


def _chosen(record, features: Mapping[str, Feature]):
    """The features that original files have too."""
    return {
        name: _chosen(record[name], feature) if isinstance(feature, Mapping) else record[name]
        for name, feature in features.items()
    }


# ----------------------------------------------------------------------------------------------------------------------
# Original files


def _from_files(parts: list[Part], data: DataSet, shuffle, seed, shards: int, index: int) -> tf.data.Dataset:
    """The records of files, those of different formats by turns."""
    shares = _shares(parts, shards, index)
    formats = list(dict.fromkeys(part.format for part, _, _ in shares))
    datasets = []
    for form in formats:
        mine = [share for share in shares if share[0].format is form]
        paths = tf.constant(["\n".join(part.paths) for part, _, _ in mine])
        dataset = tf.data.Dataset.from_tensor_slices((paths, [s for _, s, _ in mine], [o for _, _, o in mine]))
        if shuffle:
            dataset = dataset.shuffle(len(mine), seed=seed)
        datasets.append(
            dataset.interleave(
                functools.partial(_read, form, data.features),
                cycle_length=_FILES_AT_ONCE,
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        )
    if len(datasets) > 1:
        turns = tf.data.Dataset.range(len(datasets)).repeat()
        dataset = tf.data.Dataset.choose_from_datasets(datasets, turns, stop_on_empty_dataset=False)
    else:
        (dataset,) = datasets
    return dataset.shuffle(data.shuffled, seed=seed) if shuffle else dataset


def _places(parts: list[Part], features: Mapping[str, Feature]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, record) of every record that can be read."""
    for part in parts:
        names, form = "\n".join(part.paths), part.format
        for number, unit in numbered(form, part.paths):
            with contextlib.suppress(ValueError):
                for record in form.parse(unit, number):
                    yield f"{form.unit} {number + form.first} of {_shown(names)}", _chosen(record, features)


def _shares(parts: list[Part], shards: int, index: int) -> list[tuple[Part, int, int]]:
    """(part, stride, offset): of which files this shard reads which units."""
    whole = len(parts) // shards * shards
    shares = [(part, 1, 0) for part in parts[index:whole:shards]]
    return shares + [(part, shards, (index + k) % shards) for k, part in enumerate(parts[whole:])]


def _read(form: Format, features: Mapping[str, Feature], paths, stride, offset) -> tf.data.Dataset:
    """The records of one part that belong to this shard."""
    leaves = list(_leaves(features))
    types = [t for _, feature in leaves for t in _types(feature)]

    def columns(names, position, found, stride, offset):
        part = Part(tuple(names.decode().split("\n")), form)
        with blamed(_bad_file, names):
            units = _next_units(form, part.paths, int(position))
            # Another shard may have the records of a file that gives none to this one.
            if not units and not found and next(originals.records(part), None) is None:
                raise ValueError(_EMPTY)
        records = []
        for number, unit in units:
            if number % stride == offset:
                with blamed(functools.partial(_bad_unit, form.unit), names, number + form.first):
                    records += form.parse(unit, number)
        arrays = (array for path, feature in leaves for array in _column(records, path, feature))
        return [np.int64(len(units)), np.int64(len(records)), *arrays]

    def step(state, _):
        position, found = state
        count, more, *arrays = python_op(
            columns, [paths, position, found, stride, offset], [tf.int64, tf.int64, *types]
        )
        count, more = tf.ensure_shape(count, []), tf.ensure_shape(more, [])
        parts = iter(arrays)
        values = [_batch(feature, parts) for _, feature in leaves]
        return (position + count, found + more), (count, dict(enumerate(values)))

    def nested(flat):
        return _nested(features, iter([flat[k] for k in range(len(leaves))]))

    blocks = tf.data.Dataset.range(tf.int64.max).scan((tf.constant(0, tf.int64),) * 2, step)
    blocks = blocks.take_while(lambda count, _: count > 0).map(lambda _, block: block)
    return blocks.unbatch().map(nested)


def _leaves(features: Mapping[str, Feature], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Feature]]:
    """(names from the outermost to its own, type) of every feature that has no features in it."""
    for name, feature in features.items():
        if isinstance(feature, Mapping):
            yield from _leaves(feature, (*path, name))
        else:
            yield (*path, name), feature


def _types(feature: Feature) -> list[tf.DType]:
    """What a column is made of: values and, for lists, how many belong to each record."""
    if isinstance(feature, list):
        return [tf.as_dtype(feature[0]), tf.int64]
    return [tf.as_dtype(feature[0] if isinstance(feature, tuple) else feature)]


def _column(records: list[Mapping[str, Any]], path: tuple[str, ...], feature: Feature) -> list[np.ndarray]:
    values = [functools.reduce(lambda value, name: value[name], path, record) for record in records]
    dtype = _types(feature)[0]
    kind = object if dtype == tf.string else dtype.as_numpy_dtype
    if isinstance(feature, list):
        return [np.array([item for value in values for item in value], kind), np.array([*map(len, values)], np.int64)]
    shape = [-1, feature[1]] if isinstance(feature, tuple) else [-1]
    return [np.array(values, kind).reshape(shape)]


def _batch(feature: Feature, arrays: Iterator[tf.Tensor]):
    """A column as a tensor whose rows are the records."""
    if isinstance(feature, list):
        values, lengths = tf.ensure_shape(next(arrays), [None]), tf.ensure_shape(next(arrays), [None])
        return tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)
    return tf.ensure_shape(next(arrays), [None, feature[1]] if isinstance(feature, tuple) else [None])


def _nested(features: Mapping[str, Feature], values: Iterator[tf.Tensor]):
    return {
        name: _nested(feature, values) if isinstance(feature, Mapping) else next(values)
        for name, feature in features.items()
    }


# Files that are being read, by what they are and the position they are at. Without them every few units a file would
# be opened anew and read up to its position; what is read is the same.
_open: OrderedDict[tuple, Iterator[tuple[int, Any]]] = OrderedDict()
_OPEN_AT_ONCE = 256


def _next_units(form: Format, paths: tuple[str, ...], position: int) -> list[tuple[int, Any]]:
    """(number from 0, unit) of the few units from a position on; none at the end."""
    units = _open.pop((form, paths, position), None) or numbered(form, paths, position)
    found = [pair for _, pair in zip(range(_UNITS_AT_ONCE), units)]
    if found:
        _open[form, paths, position + len(found)] = units
        if len(_open) > _OPEN_AT_ONCE:
            _open.popitem(last=False)
    return found


def _bad_file(names: str, reason: str) -> tuple[str, str, str]:
    return f"{_shown(names)} cannot be read", reason, "Download it again, or repair it, in --gin.DATA_DIR"


def _bad_unit(unit: str, names: str, number: int, reason: str) -> tuple[str, str, str]:
    what = f"{unit[:1].upper()}{unit[1:]} {number} of {_shown(names)} cannot be read"
    return what, reason, "Download the file again, or repair it, in --gin.DATA_DIR"


def _shown(names: str) -> str:
    return names.replace("\n", " and ")


# ----------------------------------------------------------------------------------------------------------------------
# How many


def _count(tfds_name: str, split: str, parts: list[Part]) -> int:
    """The number of records, which is kept: to count is to read everything once.

    Raises:
      UserError: a file cannot be read.
    """
    known = json.dumps([tfds_name, split, *((path, *_size_and_time(path)) for part in parts for path in part.paths)])
    kept = cache.folder() / "records" / hashlib.sha256(known.encode()).hexdigest()[:32]
    if kept.exists():
        return int(kept.read_text())
    count = sum(map(_count_part, parts))
    kept.parent.mkdir(parents=True, exist_ok=True)
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    written.write_text(str(count))
    written.replace(kept)
    return count


def _count_part(part: Part) -> int:
    names, count = "\n".join(part.paths), 0
    units = numbered(part.format, part.paths)
    while True:
        try:
            number, unit = next(units)
        except StopIteration:
            if not count:
                raise UserError(*_bad_file(names, _EMPTY)) from None
            return count
        except (OSError, ValueError) as error:
            raise UserError(*_bad_file(names, str(error))) from None
        try:
            count += len(part.format.parse(unit, number))
        except (OSError, ValueError) as error:
            raise UserError(*_bad_unit(part.format.unit, names, number + part.format.first, str(error))) from None


def _size_and_time(path: str) -> tuple[int, int]:
    stat = tf.io.gfile.stat(path)
    return stat.length, stat.mtime_nsec
