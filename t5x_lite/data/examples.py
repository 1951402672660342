"""A seqio task, mixture or tokenised corpus as streams of rows: the only place of the trainer that meets seqio."""

from collections.abc import Callable, Iterator, Mapping

from etils import epath

from t5x_lite.data import token_files
from t5x_lite.data.blocks import DatasetBlocks, First
from t5x_lite.data.streams import Stream
from t5x_lite.data.tokens import Tokens
from t5x_lite.errors import UserError

Explain = Callable[[Exception], Exception | None]


def train_streams(
    task,
    shards: list[int],
    num_shards: int,
    lengths: Mapping[str, int],
    pack: bool,
    seed: int,
    use_cached: bool,
    explain: Explain,
) -> dict[int, Stream]:
    """Endless shuffled streams of the training split.

    Args:
      task: seqio task or mixture, or Tokens.
      shards: the data shards wanted, of `num_shards` in all.
      num_shards: shards that the data is cut into.
      lengths: tokens of each feature in a row.
      pack: put several examples into a row.
      seed: of shuffling and of the objective; each shard has one of its own, and each epoch draws anew.
      use_cached: read the task's offline cache.
      explain: turns an error raised inside tf.data into a UserError.
    """

    def blocks(shard: int):
        # Shards differ in seed, or equal draws would meet unequal documents all through the batch.
        own_seed = seed * num_shards + shard
        if isinstance(task, Tokens):
            return task.train_blocks(shard, num_shards, lengths, own_seed)
        import seqio

        dataset = task.get_dataset(
            sequence_length=dict(lengths),
            split="train",
            use_cached=use_cached,
            shuffle=True,
            seed=own_seed,
            shard_info=seqio.ShardInfo(index=shard, num_shards=num_shards) if num_shards > 1 else None,
            num_epochs=None,
            trim_output_features=False,  # the blocks cut, without a call for each example
        )
        return DatasetBlocks(dataset, lengths, explain)

    return {shard: Stream(blocks(shard), lengths, pack) for shard in shards}


def evaluation_streams(
    task,
    split: str,
    lengths: Mapping[str, int],
    pack: bool,
    seed: int,
    use_cached: bool,
    explain: Explain,
    num_examples: int | None = None,
) -> Iterator[tuple[str, Stream]]:
    """One pass over `split` of each task of a mixture that has it, in order: (task name, stream).

    `num_examples` bounds the pass; None: all.
    """
    for member in members(task, split):
        if isinstance(member, Tokens):
            blocks = member.evaluation_blocks(split, lengths)
            yield member.name, Stream(blocks if num_examples is None else First(blocks, num_examples), lengths, pack)
            continue
        dataset = member.get_dataset(
            sequence_length=dict(lengths),
            split=split,
            use_cached=use_cached,
            shuffle=False,
            seed=seed,
            num_epochs=1,
            trim_output_features=False,
        )
        if num_examples is not None:
            dataset = dataset.take(num_examples)
        yield member.name, Stream(DatasetBlocks(dataset, lengths, explain), lengths, pack)


def check_split(task, split: str, use_cached: bool) -> None:
    """Raises what a source has to say against a split of its own, such as a glob that matches nothing.

    Raises:
      UserError: that, or there are no files of the split.
    """
    if isinstance(task, Tokens):
        token_files.files(task.folder, split)
        return
    for member in members(task, split):
        if use_cached and member.cache_dir:
            if not (epath.Path(member.cache_dir) / f"info.{split}.json").exists():
                raise UserError(
                    f"the cache of {member.name} has no split {split}",
                    f"{member.cache_dir} was made without it",
                    "make it anew with `t5x_lite tasks cache`, or set --gin.EVAL_PERIOD=0",
                )
        elif not member.source.list_shards(split):
            raise UserError(
                f"the split {split} of {member.name} has no files",
                "what its source names matches none",
                "correct the source of the task, or set --gin.EVAL_PERIOD=0",
            )


def members(task, split: str | None) -> list:
    """The tasks of a mixture (or the task itself) that have this split; None: all."""
    if isinstance(task, Tokens):
        return [task] if split is None or split in task.splits else []
    import seqio

    return [t for t in seqio.get_subtasks(task) if split is None or split in t.splits]
