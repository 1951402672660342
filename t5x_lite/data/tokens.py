"""A tokenised corpus, read without TensorFlow: the part of a seqio task that the trainer and the evaluation need."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from t5x_lite.data import token_files
from t5x_lite.data.blocks import TokenBlocks
from t5x_lite.data.packing import Example

# Tokens by feature.
Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One cached task.

    Args:
      name: of the task (MIXTURE_OR_TASK_NAME).
      folder: with its files (TOKENS_DIR).
      features: of a record that are read.
      vocabulary_size: ids lie below it.
      maker: row lengths -> function of records and a random generator that gives examples which fit them.
    """

    name: str
    folder: str
    features: tuple[str, ...]
    vocabulary_size: int
    maker: Callable[[Mapping[str, int]], Callable[[list[Record], np.random.Generator], list[Example]]]

    # It has no metric functions: those are a seqio task's.
    metric_objs = ()

    @property
    def splits(self) -> list[str]:
        return token_files.splits(self.folder)

    def train_blocks(self, shard: int, shards: int, lengths: Mapping[str, int], seed: int) -> TokenBlocks:
        """Endless and shuffled, of one data shard."""
        files = token_files.files(self.folder, "train")
        return TokenBlocks(files, self._read, self.maker(lengths), shard, shards, seed=seed)

    def evaluation_blocks(self, split: str, lengths: Mapping[str, int]) -> TokenBlocks:
        """One pass in order."""
        return TokenBlocks(token_files.files(self.folder, split), self._read, self.maker(lengths), epochs=1)

    def identity(self) -> str:
        """What shows whether the training data is still the same."""
        return token_files.identity(self.folder, "train")

    def _read(self, file: token_files.TokenFile, numbers: np.ndarray) -> list[Record]:
        return file.records(numbers, self.features, self.vocabulary_size)
