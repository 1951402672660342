"""One stream of rows for each data shard, with a position that can be saved and restored.

A shard is one seeded seqio pipeline over its share of the source, independent of
how many hosts there are. Its position is the state of its tf.data iterator and
the examples that wait in the packer.
"""

import io
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from t5x_lite.data.packing import Packer

# Examples fetched from tf.data at once: a call costs more than copying many.
_BLOCK = 32


class Stream:
    """Rows of one data shard.

    Args:
      dataset: tf.data.Dataset of 1-D integer features, at most `lengths` long.
      lengths: tokens of each feature in a row.
      pack: put several examples into a row.
      explain: turns an error raised inside tf.data into a UserError, or returns None.
    """

    def __init__(
        self,
        dataset,
        lengths: Mapping[str, int],
        pack: bool,
        explain: Callable[[Exception], Exception | None] = lambda error: None,
    ):
        import tensorflow as tf

        features = list(lengths)
        dataset = dataset.map(lambda example: {f: example[f] for f in features})
        # A map fused with a batch reads on after an error until the batch is full: in the batches of batches of
        # an objective, one bad record would be met some 100,000 times before its error comes out.
        options = tf.data.Options()
        options.experimental_optimization.map_and_batch_fusion = False
        dataset = dataset.with_options(options)
        # Ragged blocks keep lengths exact, where padding could not be told from token 0.
        self._iterator = iter(dataset.ragged_batch(_BLOCK))
        self._lengths, self._explain = dict(lengths), explain
        self._packer = Packer(lengths, pack)
        self._ready: list[list[dict[str, np.ndarray]]] = []
        self._ended = False

    def take(self, rows: int) -> list[list[dict[str, np.ndarray]]]:
        """The next rows, each a list of examples; fewer when the dataset ends."""
        while len(self._ready) < rows and not self._ended:
            self._fetch()
        taken, self._ready = self._ready[:rows], self._ready[rows:]
        return taken

    def _fetch(self) -> None:
        try:
            block = next(self._iterator)
        except StopIteration:
            self._ended = True
            self._ready += self._packer.flush()
            return
        except Exception as error:
            raise (self._explain(error) or _outer(error)) from error
        columns = {
            f: np.split(column.values.numpy().astype(np.int32), column.row_splits.numpy()[1:-1])
            for f, column in block.items()
        }
        for values in zip(*columns.values()):
            self._ready += self._packer.add(dict(zip(columns, values)))

    def position(self) -> bytes:
        """Everything needed to go on after the rows taken so far."""
        import tensorflow as tf

        arrays: dict[str, np.ndarray] = {"ended": np.array(self._ended)}
        for kind, rows in (("ready", self._ready), ("open", self._packer.open_rows())):
            examples = [e for row in rows for e in row]
            arrays[f"{kind}/sizes"] = np.array([len(row) for row in rows], np.int32)
            for f in self._lengths:
                arrays[f"{kind}/{f}/lengths"] = np.array([len(e[f]) for e in examples], np.int32)
                arrays[f"{kind}/{f}"] = np.concatenate([e[f] for e in examples] or [np.zeros(0, np.int32)])
        with tempfile.TemporaryDirectory() as scratch:
            try:
                tf.train.Checkpoint(iterator=self._iterator).write(f"{scratch}/iterator")
            except tf.errors.OpError as error:
                raise _outer(error) from error
            for path in sorted(Path(scratch).iterdir()):
                arrays[f"file/{path.name}"] = np.frombuffer(path.read_bytes(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def close(self) -> None:
        """Lets go of the iterator, whose threads must not outlive the interpreter."""
        self._iterator = iter(())

    def restore(self, position: bytes) -> None:
        """Goes on from a `position` of a stream that was built alike."""
        import tensorflow as tf

        with np.load(io.BytesIO(position), allow_pickle=False) as arrays:
            self._ended = bool(arrays["ended"])
            self._ready = list(_rows(arrays, "ready", self._lengths))
            self._packer.reopen(list(_rows(arrays, "open", self._lengths)))
            with tempfile.TemporaryDirectory() as scratch:
                for name in arrays.files:
                    if name.startswith("file/"):
                        (Path(scratch) / name.removeprefix("file/")).write_bytes(arrays[name].tobytes())
                tf.train.Checkpoint(iterator=self._iterator).read(f"{scratch}/iterator").assert_consumed()


def _outer(error: Exception) -> Exception:
    """An OSError for what TensorFlow has to say of the machine or of a source: a file that went away, a full disk."""
    import tensorflow as tf

    if not isinstance(error, tf.errors.OpError):
        return error
    said = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", error.message)  # without the names of graph nodes
    return OSError(f"the data pipeline failed: {said}")


def _rows(arrays, kind: str, features: Mapping[str, int]) -> Iterator[list[dict[str, np.ndarray]]]:
    columns = {f: np.split(arrays[f"{kind}/{f}"], np.cumsum(arrays[f"{kind}/{f}/lengths"])[:-1]) for f in features}
    start = 0
    for size in arrays[f"{kind}/sizes"]:
        yield [{f: columns[f][i] for f in features} for i in range(start, start + size)]
        start += size
