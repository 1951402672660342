"""A tokenised corpus, read without TensorFlow: the part of a seqio task that the trainer and the evaluation need."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from t5x_lite.data import token_files
from t5x_lite.data.blocks import TokenBlocks
from t5x_lite.data.packing import Example

Records = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One cached task.

    Args:
      name: of the task (MIXTURE_OR_TASK_NAME).
      folder: with its files (TOKENS_DIR).
      features: of a record that are read.
      vocabulary_size: ids lie below it.
      examples_of: records, a random generator and the row lengths -> examples that fit.
    """

    name: str
    folder: str
    features: tuple[str, ...]
    vocabulary_size: int
    examples_of: Callable[[Records, np.random.Generator, Mapping[str, int]], list[Example]]

    # It has no metric functions: those are a seqio task's.
    metric_objs = ()

    @property
    def splits(self) -> list[str]:
        return token_files.splits(self.folder)

    def train_blocks(self, shard: int, shards: int, lengths: Mapping[str, int], seed: int) -> TokenBlocks:
        """Endless and shuffled, of one data shard."""
        return TokenBlocks(
            token_files.files(self.folder, "train"), self._read, self._made(lengths), shard, shards, seed=seed
        )

    def evaluation_blocks(self, split: str, lengths: Mapping[str, int]) -> TokenBlocks:
        """One pass in order."""
        return TokenBlocks(token_files.files(self.folder, split), self._read, self._made(lengths), epochs=1)

    def identity(self) -> str:
        """What shows whether the training data is still the same."""
        files = token_files.files(self.folder, "train")
        stats = sorted(token_files.stats(self.folder, "train").items())
        return f"{len(files)} tokenised files, {', '.join(f'{name} {value}' for name, value in stats)}"

    def _read(self, file: token_files.TokenFile, number: int) -> dict[str, np.ndarray]:
        return file.record(number, self.features, self.vocabulary_size)

    def _made(self, lengths: Mapping[str, int]) -> Callable[[Records, np.random.Generator], list[Example]]:
        return lambda records, rng: self.examples_of(records, rng, lengths)
