"""Where the examples of a data shard come from: a tf.data pipeline, or tokenised files without TensorFlow.

Either gives lists of examples, one block after the other, and can save and restore its place.
"""

import json
import re
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from t5x_lite.data.packing import Example
from t5x_lite.data.token_files import TokenFile


class Blocks(Protocol):
    """Examples in order, some at a time."""

    def next(self) -> list[Example] | None:
        """The next examples; None at the end."""

    def position(self) -> dict[str, np.ndarray]:
        """What is needed to go on after the blocks taken so far."""

    def restore(self, position: Mapping[str, np.ndarray]) -> None:
        """Goes on from a `position` of blocks that were made alike."""

    def close(self) -> None:
        """Lets go of files and threads."""


class DatasetBlocks:
    """The examples of a tf.data pipeline.

    Args:
      dataset: tf.data.Dataset of 1-D integer features.
      lengths: tokens of each feature in a row; examples are cut to them.
      explain: turns an error raised inside tf.data into a UserError, or returns None.
    """

    # Examples fetched at once: a call costs more than copying many.
    _SIZE = 128

    def __init__(
        self,
        dataset,
        lengths: Mapping[str, int],
        explain: Callable[[Exception], Exception | None] = lambda error: None,
    ):
        import tensorflow as tf

        # AutoGraph would rewrite the source of what is mapped, in vain.
        as_written = tf.autograph.experimental.do_not_convert
        dataset = dataset.map(as_written(lambda example: {f: example[f] for f in lengths})).with_options(options())
        # Ragged blocks keep lengths exact, where padding could not be told from token 0. They leave tf.data as plain
        # tensors: made outside it, a RaggedTensor takes as long as the objective of its examples.
        self._iterator = iter(dataset.ragged_batch(self._SIZE).map(as_written(_plain)))
        self._lengths, self._explain = dict(lengths), explain

    def next(self) -> list[Example] | None:
        try:
            block = next(self._iterator)
        except StopIteration:
            return None
        except Exception as error:
            raise (self._explain(error) or _outer(error)) from error
        columns = {}
        for name, (values, splits) in block.items():
            tokens, splits = values.numpy().astype(np.int32, copy=False), splits.numpy().tolist()
            length = self._lengths[name]
            columns[name] = [tokens[a : min(b, a + length)] for a, b in zip(splits, splits[1:])]
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def position(self) -> dict[str, np.ndarray]:
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as scratch:
            try:
                tf.train.Checkpoint(iterator=self._iterator).write(f"{scratch}/iterator")
            except tf.errors.OpError as error:
                raise _outer(error) from error
            return {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in sorted(Path(scratch).iterdir())}

    def restore(self, position: Mapping[str, np.ndarray]) -> None:
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as scratch:
            for name, data in position.items():
                (Path(scratch) / name).write_bytes(data.tobytes())
            tf.train.Checkpoint(iterator=self._iterator).read(f"{scratch}/iterator").assert_consumed()

    def close(self) -> None:
        # Its threads must not outlive the interpreter.
        self._iterator = iter(())


def options():
    """The tf.data.Options that a pipeline is read with."""
    import tensorflow as tf

    options = tf.data.Options()
    # A map fused with a batch reads on after an error until the batch is full: in the batches of batches of
    # an objective, one bad record would be met some 100,000 times before its error comes out.
    options.experimental_optimization.map_and_batch_fusion = False
    # What a map does for one example is little: handing it to another thread costs more, and two maps in a row
    # cost as much as one.
    options.experimental_optimization.map_parallelization = False
    options.experimental_optimization.map_fusion = True
    # Several shards fill their shuffles beside each other, not each when its turn comes in the first batch.
    options.experimental_warm_start = True
    # The thread that tunes sleeps ever longer, up to a minute, and can miss that its iterator is let go of, which then
    # waits for it: the end of a training took that minute. Without it a parallel map has a thread for each CPU.
    options.autotune.enabled = False
    return options


def _plain(block):
    """(values, row splits) of each feature of a batch."""
    import tensorflow as tf

    def parts(rows):
        # Examples that are all known to have one length were not made ragged.
        rows = rows if isinstance(rows, tf.RaggedTensor) else tf.RaggedTensor.from_tensor(rows)
        return rows.values, rows.row_splits

    return {name: parts(rows) for name, rows in block.items()}


def _outer(error: Exception) -> Exception:
    """An OSError for what TensorFlow has to say of the machine or of a source: a file that went away, a full disk."""
    import tensorflow as tf

    if not isinstance(error, tf.errors.OpError):
        return error
    said = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", error.message)  # without the names of graph nodes
    return OSError(f"the data pipeline failed: {said}")


class TokenBlocks:
    """The examples of tokenised files, without TensorFlow.

    In training an epoch goes through the files in a random order and through each file in a random order of its
    records, some 1,000 at a time; what they become is shuffled among each other.

    Args:
      files: paths of the split, in order.
      read: (file, record numbers) -> the records.
      make: records and a random generator -> examples that fit their rows.
      shard, shards: this stream has whole files as long as there is one for every shard, and every so many-th record of
        the rest.
      seed: of the order and of `make`; None: in order, with a fixed seed for `make`.
      epochs: None: without end.
    """

    # Records together: as many as the shuffle of the tf.data sources, but of long ones fewer, for what is made of them
    # waits in memory and is part of a position.
    _MOST, _BYTES = 1024, 2 << 20
    _MOST_IN_ORDER = 128

    def __init__(
        self,
        files: Sequence[str],
        read: Callable[[TokenFile, np.ndarray], list[dict[str, np.ndarray]]],
        make: Callable[[list[dict[str, np.ndarray]], np.random.Generator], list[Example]],
        shard: int = 0,
        shards: int = 1,
        seed: int | None = None,
        epochs: int | None = None,
    ):
        whole = len(files) // shards * shards
        # (path, stride, offset)
        self._parts = [(path, 1, 0) for path in files[shard:whole:shards]]
        self._parts += [(path, shards, (shard + k) % shards) for k, path in enumerate(files[whole:])]
        self._read, self._make = read, make
        self._shard, self._seed, self._epochs = shard, seed, epochs
        # `found`: whether this epoch has had any record so far.
        self._at = {"epoch": 0, "file": 0, "record": 0, "block": 0, "found": False}
        self._current = None  # (epoch and number of the file, the file, the order of its records)

    def next(self) -> list[Example] | None:
        records = self._records()
        if not records:
            return None
        rng = self._generator(1, self._at["block"])
        self._at["block"] += 1
        made = self._make(records, rng)
        return made if self._seed is None else [made[k] for k in rng.permutation(len(made))]

    def _records(self) -> list[dict[str, np.ndarray]]:
        """The next ones, all of one epoch; none at the end of the last."""
        at, records = self._at, []
        most, room = self._MOST_IN_ORDER if self._seed is None else self._MOST, self._BYTES
        while len(records) < most and at["epoch"] != self._epochs:
            if at["file"] == len(self._parts):
                if not at["found"]:
                    break  # no file of this shard holds a record
                at |= {"epoch": at["epoch"] + 1, "file": 0, "record": 0, "found": False}
                if records:
                    break
                continue
            file, order = self._opened()
            next_ones = order[at["record"] : at["record"] + most - len(records)]
            held = np.cumsum(file.sizes[next_ones])
            fitting = int(np.searchsorted(held, room, side="right"))
            taken = next_ones[: fitting if records else max(fitting, 1)]
            if len(taken):
                records += self._read(file, taken)
                room -= held[len(taken) - 1]
                at |= {"record": at["record"] + len(taken), "found": True}
            if at["record"] == len(order):
                at |= {"file": at["file"] + 1, "record": 0}
            elif len(taken) < len(next_ones):
                break
        return records

    def _opened(self) -> tuple[TokenFile, np.ndarray]:
        """The file that is being read, and the numbers of this shard's records in their order."""
        key = self._at["epoch"], self._at["file"]
        if self._current is None or self._current[0] != key:
            number = self._order(len(self._parts), 2, key[0])[key[1]]
            path, stride, offset = self._parts[number]
            file = _shared(path)
            numbers = np.arange(offset, len(file), stride)
            self._current = key, file, numbers[self._order(len(numbers), 3 + number, key[0])]
        return self._current[1:]

    def _order(self, count: int, purpose: int, epoch: int) -> np.ndarray:
        return np.arange(count) if self._seed is None else self._generator(purpose, epoch).permutation(count)

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed or 0, self._shard, purpose, number])

    def position(self) -> dict[str, np.ndarray]:
        return {"place": np.frombuffer(json.dumps(self._at).encode(), np.uint8)}

    def restore(self, position: Mapping[str, np.ndarray]) -> None:
        self._at, self._current = json.loads(position["place"].tobytes()), None

    def close(self) -> None:
        self._current = None


# Shards that read parts of one file hold it once.
_open: weakref.WeakValueDictionary[str, TokenFile] = weakref.WeakValueDictionary()


def _shared(path: str) -> TokenFile:
    file = _open.get(path)
    if file is None:
        file = _open[path] = TokenFile(path)
    return file


class First:
    """The first so many examples of other blocks.

    Args:
      blocks: of one pass.
      count: of examples.
    """

    def __init__(self, blocks: Blocks, count: int):
        self._blocks, self._left = blocks, count

    def next(self) -> list[Example] | None:
        block = self._blocks.next() if self._left else None
        if block is None:
            return None
        block = block[: self._left]
        self._left -= len(block)
        return block

    def close(self) -> None:
        self._blocks.close()
