"""From the names in a gin file to a seqio task or mixture that is ready to be read."""

import importlib
import os
import sys

import seqio

from t5x_lite.errors import UserError, nearest
from t5x_lite.tasks import sources
from t5x_lite.tasks.vocabulary import bind as bind_vocabulary

_SHIPPED = ("t5x_lite.tasks.pretraining",)


def prepare(
    name: str,
    module: str | None = None,
    vocabulary: str | None = None,
    data_glob: str | None = None,
    validation_glob: str | None = None,
    data_dir: str | None = None,
    use_cached: bool = False,
) -> seqio.Task | seqio.Mixture:
    """Registers the shipped tasks and those of `module`, and returns the one called `name`.

    Args:
      name: of a task or mixture (MIXTURE_OR_TASK_NAME).
      module: Python module that registers more of them, found from the working directory too (MIXTURE_OR_TASK_MODULE).
      vocabulary: see vocabulary.py (VOCABULARY).
      data_glob, validation_glob: files of the `text_*` tasks (DATA_GLOB, VALIDATION_GLOB).
      data_dir: TFDS folder (DATA_DIR).
      use_cached: a task that seqio has cached needs no TFDS data (USE_CACHED_TASKS).

    Raises:
      UserError: the module cannot be imported, the name is unknown, or TFDS data is not there.
    """
    bind_vocabulary(vocabulary)
    sources.bind(data_glob, validation_glob, data_dir)
    for shipped in _SHIPPED:
        importlib.import_module(shipped)
    if module:
        _import(module)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name} is unknown",
            f"neither the shipped tasks nor {module} register it" if module else "no shipped task is called so",
            f"{nearest(name, known)}. A task of your own needs --gin.MIXTURE_OR_TASK_MODULE",
        )
    provider = seqio.get_mixture_or_task(name)
    for task in seqio.get_subtasks(provider):
        if isinstance(task.source, seqio.TfdsDataSource) and not (use_cached and task.cache_dir):
            _check_tfds(task, data_dir)
    return provider


def _import(module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        # Whatever the user's module raises is about that module.
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE={module} cannot be imported",
            f"{type(error).__name__}: {error}",
            f"Correct --gin.MIXTURE_OR_TASK_MODULE or the module; it is looked for in {os.getcwd()} too",
        ) from error


def _check_tfds(task: seqio.Task, data_dir: str | None) -> None:
    """Refuses a task whose data is not on disk, without a download: most data sets of T5 cannot be had by one."""
    dataset = task.source.tfds_dataset
    if data_dir is not None:
        dataset.override_data_dir(data_dir)
    try:
        there = bool(dataset.builder.info.splits)
        reason = f"no data was found in {dataset.builder.data_dir}"
    except Exception as error:
        # TFDS has a dozen ways to say that it does not find a data set.
        there, reason = False, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if not there:
        raise UserError(
            f"The data of {task.name}, TFDS {dataset.name}, is not there",
            reason,
            "Set --gin.DATA_DIR to the TFDS folder that holds it, or read files of your own with "
            "--gin.MIXTURE_OR_TASK_NAME=text_span_corruption and --gin.DATA_GLOB",
        )
