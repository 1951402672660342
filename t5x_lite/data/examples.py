"""A seqio task or mixture as streams of rows: the only place of the trainer that meets seqio."""

from collections.abc import Callable, Iterator, Mapping

from t5x_lite.data.streams import Stream
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
      task: seqio task or mixture.
      shards: the data shards wanted, of `num_shards` in all.
      num_shards: shards that the data is cut into.
      lengths: tokens of each feature in a row.
      pack: put several examples into a row.
      seed: of shuffling and of the objective; each shard has one of its own, and each epoch draws anew.
      use_cached: read the task's offline cache.
      explain: turns an error raised inside tf.data into a UserError.
    """
    import seqio

    def stream(shard: int) -> Stream:
        dataset = task.get_dataset(
            sequence_length=dict(lengths),
            split="train",
            use_cached=use_cached,
            shuffle=True,
            # Shards differ in seed, or equal draws would meet unequal documents all through the batch.
            seed=seed * num_shards + shard,
            shard_info=seqio.ShardInfo(index=shard, num_shards=num_shards) if num_shards > 1 else None,
            num_epochs=None,
        )
        return Stream(dataset, lengths, pack, explain)

    return {shard: stream(shard) for shard in shards}


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
        dataset = member.get_dataset(
            sequence_length=dict(lengths), split=split, use_cached=use_cached, shuffle=False, seed=seed, num_epochs=1
        )
        if num_examples is not None:
            dataset = dataset.take(num_examples)
        yield member.name, Stream(dataset, lengths, pack, explain)


def check_split(task, split: str, use_cached: bool) -> None:
    """Raises what a source has to say against a split of its own, such as a glob that matches nothing.

    Raises:
      UserError: that, or there are no files of the split.
    """
    for member in members(task, split):
        if not (use_cached and member.cache_dir) and not member.source.list_shards(split):
            raise UserError(
                f"the split {split} of {member.name} has no files",
                "what its source names matches none",
                "correct the source of the task, or set --gin.EVAL_PERIOD=0",
            )


def members(task, split: str | None) -> list:
    """The tasks of a mixture (or the task itself) that have this split; None: all."""
    import seqio

    return [t for t in seqio.get_subtasks(task) if split is None or split in t.splits]
