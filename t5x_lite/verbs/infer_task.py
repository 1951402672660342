"""The inputs of a seqio task for infer, as eval sees them."""

from collections.abc import Callable, Iterable, Iterator

from t5x_lite.data import examples
from t5x_lite.data.requests import Request, Source
from t5x_lite.data.tokens import Tokens
from t5x_lite.job import Job
from t5x_lite.task import open_split


def source(job: Job, split: str, num_examples: int | None, where) -> Source:
    """Requests of each task of the job that has the split, one after the other; the records of a mixture name theirs.

    Args:
      job: names the task; inputs and targets are cut to its feature lengths.
      split: of the task.
      num_examples: most examples of each; None: all.
      where: the model directory, for errors.

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
    several = len(examples.members(task, split)) > 1
    bound = "" if num_examples is None else f", {num_examples:,} examples"
    identity = f"{job.mixture_or_task_name}, {split}{bound}"
    requests = _requests(job, task, split, num_examples, explain, several, inputs, targets)
    return Source(requests, None, identity, targets, eos, is_cut=True)


def _decoder(vocabulary) -> Callable[[Iterable[int]], str]:
    return lambda ids: vocabulary.decode([int(i) for i in ids])


def _requests(job, task, split, num_examples, explain, several: bool, inputs, targets) -> Iterator[Request]:
    for name, stream in examples.evaluation_streams(
        task, split, job.feature_lengths, False, job.seed, job.use_cached_tasks, explain, num_examples
    ):
        try:
            while rows := stream.take(64):
                for [example] in rows:
                    record = {"task": name} if several else {}
                    record |= {"inputs": inputs(example["inputs"]), "targets": targets(example["targets"])}
                    request = Request(record, lambda text: ())
                    request.inputs, request.targets = example["inputs"], example["targets"]
                    yield request
        finally:
            stream.close()
