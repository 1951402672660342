"""What a task reads, in a few words that show whether it is still the same."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks import records, sources


def of(task: seqio.Task | seqio.Mixture, use_cached: bool) -> dict[str, str]:
    """The training data of each task of a mixture: how much it is, and a digest that ignores where it lies.

    Tasks of a mixture without a split "train" are evaluated only, as seqio has it: they are left out.

    Args:
      task: from registry.prepare.
      use_cached: whether the tasks are read from seqio's offline cache.

    Returns:
      For each task "the data of NAME": files are known by name and size (those of TFDS and of a cache by what their
      makers say of them), so a copy in another folder is the same, and another file is not.

    Raises:
      UserError: no task has a split "train", or one has no files of it.
    """
    trained = [member for member in seqio.get_subtasks(task) if "train" in member.splits]
    if not trained:
        raise UserError(
            f"{task.name} has no split train",
            f"it has {', '.join(sorted(task.splits)) or 'none'}",
            "add one to its source, or train on another --gin.MIXTURE_OR_TASK_NAME",
        )
    found = {}
    for member in trained:
        known = _cached(member) if use_cached and member.cache_dir else _read(member)
        if isinstance(task, seqio.Mixture):
            known += f", at rate {task.get_rate(member):g}"
        found[f"the data of {member.name}"] = known
    return found


def _cached(member: seqio.Task) -> str:
    stats = member.get_cached_stats("train")
    return f"a cache of {stats.get('examples')} examples, {_digest(stats)}"


def _read(member: seqio.Task) -> str:
    source = member.source
    if isinstance(source, records.Records):
        source = source.tfds() or source
    shards = source.list_shards("train")
    if not shards:
        raise UserError(
            f"the split train of {member.name} has no files",
            "what its source names matches none",
            "correct the source of the task",
        )
    names = [os.path.basename(shard) for shard in shards]
    if isinstance(source, seqio.TfdsDataSource):
        return f"TFDS {source.tfds_dataset.name} in {len(names)} files, {_digest(names)}"
    if not isinstance(source, (seqio.FileDataSource, sources.Documents, records.Records)):
        # A function of the user's own has no files to know it by.
        return f"{type(source).__name__} in {len(names)} shards"
    with ThreadPoolExecutor(16) as pool:  # a remote file system answers in tens of milliseconds
        sizes = list(pool.map(lambda shard: tf.io.gfile.stat(shard).length, shards))
    return f"{len(names)} files of {sum(sizes)} bytes, {_digest([names, sizes])}"


def _digest(value) -> str:
    return hashlib.md5(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
