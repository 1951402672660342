"""The inputs of a seqio task for infer, as eval sees them."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from t5x_lite.data import examples, token_files
from t5x_lite.data.requests import Request, Source
from t5x_lite.data.tokens import Tokens
from t5x_lite.job import Job
from t5x_lite.task import open_split

# Examples of each task that tell it from others: what its preprocessors make shows there.
_KNOWN_BY = 8


def source(job: Job, split: str, num_examples: int | None, where) -> Source:
    """Requests of each task of the job that has the split, one after the other; the records of a mixture name theirs.

    Args:
      job: names the task; inputs and targets are cut to its feature lengths.
      split: of the task.
      num_examples: most examples of each; None: all.
      where: the model directory, for errors.

    Returns:
      The requests, known by the sizes of the data's files and by the first examples. Their count, where it is bounded,
      is the most: a split may have fewer.

    Raises:
      UserError: there is no such task or split.
    """
    task, explain = open_split(job, split, where)
    if isinstance(task, Tokens):
        from t5x_lite.tasks.codec import load

        codec = load(job.vocabulary)
        inputs, targets, eos = codec.decode, codec.decode, codec.eos_id
    else:
        found = {name: task.output_features[name].vocabulary for name in ("inputs", "targets")}
        inputs, targets = (_decoder(found[name]) for name in ("inputs", "targets"))
        eos = found["targets"].eos_id
    members = examples.members(task, split)

    def requests(most: int | None) -> Iterator[Request]:
        return _requests(job, task, split, most, explain, len(members) > 1, inputs, targets)

    bound = "" if num_examples is None else f", {num_examples:,} examples"
    data = [_data(member, split, job.use_cached_tasks) for member in members]
    identity = f"{job.mixture_or_task_name}, {split}{bound}, data of {_digest(data, requests(_KNOWN_BY))}"
    count = None if num_examples is None else num_examples * len(members)
    return Source(requests(num_examples), count, identity, targets, eos, is_cut=True)


def _digest(data: list, requests: Iterator[Request]) -> str:
    found = hashlib.blake2b(repr(data).encode(), digest_size=16)
    with contextlib.closing(requests):
        for request in requests:
            found.update(repr((request.record, list(request.inputs), list(request.targets))).encode())
    return f"digest {found.hexdigest()}"


def _data(member, split: str, use_cached: bool) -> object:
    """What shows whether a split is still the same: names and sizes of its files, wherever they lie."""
    if isinstance(member, Tokens):
        return token_files.identity(member.folder, split)
    import seqio

    from t5x_lite.tasks import records, sources

    if use_cached and member.cache_dir:
        return sorted(member.get_cached_stats(split).items())
    read = member.source
    if isinstance(read, records.Records):
        read = read.tfds() or read
    shards = read.list_shards(split)
    sizes = []
    # Those of TFDS say of themselves how many they are; a function of the user's own has no files to know it by.
    if isinstance(read, (seqio.FileDataSource, sources.Documents, records.Records)):
        with ThreadPoolExecutor(16) as pool:  # a remote file system answers in tens of milliseconds
            sizes = list(pool.map(lambda shard: epath.Path(shard).stat().length, shards))
    return [os.path.basename(shard) for shard in shards], sizes


def _decoder(vocabulary) -> Callable[[Iterable[int]], str]:
    return lambda ids: vocabulary.decode([int(i) for i in ids])


def _requests(job, task, split, num_examples, explain, several: bool, inputs, targets) -> Iterator[Request]:
    for name, stream in examples.evaluation_streams(
        task, split, job.feature_lengths, False, job.seed, job.use_cached_tasks, explain, num_examples
    ):
        try:
            for example in stream.examples():
                record = {"task": name} if several else {}
                record |= {"inputs": inputs(example["inputs"]), "targets": targets(example["targets"])}
                request = Request(record, lambda text: ())
                request.inputs, request.targets = example["inputs"], example["targets"]
                yield request
        finally:
            stream.close()
