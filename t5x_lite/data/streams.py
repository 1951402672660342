"""One stream of rows for each data shard, with a position that can be saved and restored.

A shard is one seeded pipeline over its share of the source, independent of how many hosts there are. Its position is
that of its blocks and the examples that wait in the packer.
"""

import io
from collections.abc import Iterator, Mapping

import numpy as np

from t5x_lite.data.blocks import Blocks
from t5x_lite.data.packing import Packer


class Stream:
    """Rows of one data shard.

    Args:
      blocks: of examples, 1-D integer features at most `lengths` long.
      lengths: tokens of each feature in a row.
      pack: put several examples into a row.
    """

    def __init__(self, blocks: Blocks, lengths: Mapping[str, int], pack: bool):
        self._blocks, self._lengths = blocks, dict(lengths)
        self._packer = Packer(lengths, pack)
        self._ready: list[list[dict[str, np.ndarray]]] = []
        self._ended = False

    def take(self, rows: int) -> list[list[dict[str, np.ndarray]]]:
        """The next rows, each a list of examples; fewer when the examples end."""
        while len(self._ready) < rows and not self._ended:
            block = self._blocks.next()
            if block is None:
                self._ended = True
                self._ready += self._packer.flush()
            else:
                for example in block:
                    self._ready += self._packer.add(example)
        taken, self._ready = self._ready[:rows], self._ready[rows:]
        return taken

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """All examples of the next rows, one after the other."""
        while rows := self.take(64):
            for row in rows:
                yield from row

    def position(self) -> bytes:
        """Everything needed to go on after the rows taken so far."""
        arrays: dict[str, np.ndarray] = {"ended": np.array(self._ended)}
        for kind, rows in (("ready", self._ready), ("open", self._packer.open_rows())):
            examples = [e for row in rows for e in row]
            arrays[f"{kind}/sizes"] = np.array([len(row) for row in rows], np.int32)
            for f in self._lengths:
                arrays[f"{kind}/{f}/lengths"] = np.array([len(e[f]) for e in examples], np.int32)
                arrays[f"{kind}/{f}"] = np.concatenate([e[f] for e in examples] or [np.zeros(0, np.int32)])
        arrays |= {f"blocks/{name}": data for name, data in self._blocks.position().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def restore(self, position: bytes) -> None:
        """Goes on from a `position` of a stream that was built alike."""
        with np.load(io.BytesIO(position), allow_pickle=False) as arrays:
            self._ended = bool(arrays["ended"])
            self._ready = list(_rows(arrays, "ready", self._lengths))
            self._packer.reopen(list(_rows(arrays, "open", self._lengths)))
            saved = [name for name in arrays.files if name.startswith("blocks/")]
            self._blocks.restore({name.removeprefix("blocks/"): arrays[name] for name in saved})

    def close(self) -> None:
        """Lets go of the blocks, whose threads must not outlive the interpreter."""
        self._blocks.close()


def _rows(arrays, kind: str, features: Mapping[str, int]) -> Iterator[list[dict[str, np.ndarray]]]:
    columns = {f: np.split(arrays[f"{kind}/{f}"], np.cumsum(arrays[f"{kind}/{f}/lengths"])[:-1]) for f in features}
    start = 0
    for size in arrays[f"{kind}/sizes"]:
        yield [{f: columns[f][i] for f in features} for i in range(start, start + size)]
        start += size
