"""The seqio task or mixture of a job, opened and checked against its model."""

from collections.abc import Callable

from t5x_lite.data import examples, token_files
from t5x_lite.data.tokens import Tokens
from t5x_lite.errors import UserError
from t5x_lite.job import Job


def open_task(job: Job) -> tuple[object, Callable[[Exception], Exception | None]]:
    """The job's seqio task or mixture, and what explains the errors of its pipeline. Loads TensorFlow, unless the job
    reads tokens (TOKENS_DIR): then it is a `Tokens`.

    Raises:
      UserError: what can be wrong with the vocabulary or the data, before anything is compiled.
    """
    if job.tokens_dir is not None:
        return _open_tokens(job), lambda error: None
    from t5x_lite.tasks import quiet, vocabulary

    check_vocabulary(job, vocabulary.size(job.vocabulary))
    quiet.load_tensorflow()
    from t5x_lite.tasks import mixing, registry, sources

    task = registry.prepare(
        job.mixture_or_task_name, job.mixture_or_task_module, job.vocabulary, job.data_glob, job.validation_glob,
        job.data_dir, job.use_cached_tasks, job.task_cache_dir,
        mixing.Rates(
            job.mixture_maximum, job.mixture_temperature, job.mixture_unsupervised_rate, job.mixture_fixed_weights
        ),
    )  # fmt: skip
    for member in examples.members(task, None):
        if absent := {"inputs", "targets"} - set(member.output_features):
            raise UserError(
                f"{member.name} has no {' and no '.join(sorted(absent))}",
                f"a model reads inputs and targets, and its features are {', '.join(member.output_features)}",
                "choose another --gin.MIXTURE_OR_TASK_NAME, or give the task both as output_features",
            )
    return task, sources.explain


def open_split(job: Job, split: str, where: str):
    """`open_task`, of which at least one task has the split.

    Args:
      job: what to open.
      split: of `--split`.
      where: the model directory, for the error where it names no task.

    Raises:
      UserError: as `open_task`, or there is no task or no such split.
    """
    if job.mixture_or_task_name is None:
        raise UserError(
            "no --mixture_or_task is given",
            f"the model in {where} was converted: it was trained on no task that is known here",
            "give --mixture_or_task=NAME, and where it is your own --module",
        )
    task, explain = open_task(job)
    if not examples.members(task, split):
        known = sorted({s for member in examples.members(task, None) for s in member.splits})
        raise UserError(
            f"--split={split} is in no task of {job.mixture_or_task_name}",
            f"it has {', '.join(known)}",
            "choose one with --split",
        )
    return task, explain


def _open_tokens(job: Job) -> Tokens:
    from t5x_lite.tasks import tokenized

    ids = tokenized.ids(job.tokens_dir, job.vocabulary)
    check_vocabulary(job, ids.size)
    found = token_files.features(job.tokens_dir)
    features, maker = tokenized.maker(job.tokens_dir, job.mixture_or_task_name, found, ids)
    maker(job.feature_lengths)  # says what is wrong with the lengths
    return Tokens(job.mixture_or_task_name, job.tokens_dir, features, ids.size, maker)


def check_vocabulary(job: Job, size: int) -> None:
    """Refuses a vocabulary with ids that the embedding table does not have."""
    if size > job.model.vocab_size:
        raise UserError(
            f"the vocabulary {job.vocabulary} has {size} ids, but the model's table has {job.model.vocab_size} rows",
            "ids past the table would be read as its last row",
            f"set --gin.architecture.Architecture.vocab_size={-(-size // 128) * 128} or use the model's own vocabulary",
        )
