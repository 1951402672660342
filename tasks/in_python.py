"""seqio preprocessors made of Python functions of one record.

The text formats of downstream tasks are string handling: as Python they can be read,
tested without TensorFlow and stepped through. Their data sets are small beside a
pretraining corpus.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from t5x_lite.tasks.sources import MARK, python_op, told_by

Record = Mapping[str, Any]

_AT_ONCE = 64


def one_to_one(function: Callable[[Record], Record], outputs: Mapping[str, tf.TensorSpec]) -> Callable:
    """record -> example, as a preprocessor.

    Args:
      function: takes a record of str, int, float, bool, lists of them and nested mappings, as TFDS nests them, and
        returns a value for each of `outputs`, or None for a record that gives no example. It keeps no state. A
        ValueError says what is wrong with a record.
      outputs: type of each feature of an example; rank 0, 1 for lists, or more for lists of arrays of one shape.
    """

    def several(record: Record) -> list[Record]:
        example = function(record)
        return [] if example is None else [example]

    several.__name__ = _name(function)
    return one_to_many(several, outputs)


def one_to_many(function: Callable[[Record], list[Record]], outputs: Mapping[str, tf.TensorSpec]) -> Callable:
    """record -> any number of examples, as a preprocessor. Arguments as `one_to_one`."""
    name = _name(function)

    def preprocessor(dataset: tf.data.Dataset) -> tf.data.Dataset:
        structure = dataset.element_spec
        types = [t for s in outputs.values() for t in ((s.dtype,) if s.shape.rank == 0 else (s.dtype, tf.int64))]

        def examples(*columns) -> list[np.ndarray]:
            made = []
            for leaves in zip(*_rows(iter(columns), tf.nest.flatten(structure))):
                record = tf.nest.pack_sequence_as(structure, leaves)
                try:
                    made += function(record)
                except ValueError as error:
                    raise ValueError(MARK + json.dumps(_bad(record, name, error))) from None
            return [array for key, spec in outputs.items() for array in _column(_values(made, key, spec), spec)]

        def mapped(batch):
            flat = [part for leaf in tf.nest.flatten(batch) for part in _parts(leaf)]
            arrays = iter(python_op(examples, flat, types))
            columns = {}
            for key, spec in outputs.items():
                values = tf.ensure_shape(next(arrays), [None, *spec.shape[1:]])
                if spec.shape.rank:
                    values = tf.RaggedTensor.from_row_lengths(values, tf.ensure_shape(next(arrays), [None]))
                columns[key] = values
            return columns

        batches = dataset.ragged_batch(_AT_ONCE).map(mapped, num_parallel_calls=tf.data.AUTOTUNE)
        return batches.unbatch()

    preprocessor.__name__ = name
    return preprocessor


def _name(function: Callable) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _bad(record: Record, name: str, error: ValueError) -> tuple[str, str, str, str]:
    """The record, why, and how to put it right, with what `explain` finds it by in the files that it came from."""
    shown = json.dumps(record, ensure_ascii=False, default=str)
    return (
        f"{shown[:200]}{'…' * (len(shown) > 200)}",
        f"{error} ({name})",
        "Correct the record, or take it out of the data",
        told_by(record),
    )


def _parts(leaf) -> tuple:
    """A batch of scalars or lists as plain tensors."""
    return (leaf.values, leaf.row_splits) if isinstance(leaf, tf.RaggedTensor) else (leaf,)


def _rows(columns: Iterator[np.ndarray], specs: list) -> Iterator[list]:
    """For each leaf of a record, its Python value in each record of a batch."""
    for spec in specs:
        values = next(columns)
        if spec.shape.rank and None in spec.shape:
            splits = next(columns)
            yield [_python(values[start:end]) for start, end in zip(splits[:-1], splits[1:])]
        else:
            yield [_python(value) for value in values]


def _python(leaf: np.ndarray):
    """A numpy value as Python's own: bytes become text."""
    if isinstance(leaf, bytes):
        return leaf.decode("utf-8")
    if isinstance(leaf, np.ndarray) and leaf.dtype == object:
        return [_python(item) for item in leaf]
    return leaf.tolist() if isinstance(leaf, np.ndarray | np.generic) else leaf


def _values(examples: list[Record], key: str, spec: tf.TensorSpec) -> list:
    """One feature of all examples.

    Raises:
      TypeError: the function does not give it, or something else where a text is to be, which TensorFlow refuses
        without a name.
    """
    if any(key not in example for example in examples):
        raise TypeError(f"it gives no {key!r}, which its outputs name")
    values = [example[key] for example in examples]
    if spec.dtype == tf.string and spec.shape.rank == 0:
        for value in values:
            if not isinstance(value, str | bytes):
                raise TypeError(f"the {key!r} that it gives is {value!r}, no text")
    return values


def _column(values: list, spec: tf.TensorSpec) -> list[np.ndarray]:
    """The values of one feature as arrays: all in one and, for lists, how many belong to each example."""
    kind = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
    if spec.shape.rank == 0:
        return [np.array(values, kind)]
    items = np.array([item for value in values for item in value], kind).reshape(-1, *spec.shape[1:])
    return [items, np.array([*map(len, values)], np.int64)]
