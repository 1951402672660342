"""From the names in a gin file to a seqio task or mixture that is ready to be read."""

import importlib
import os

import seqio

from t5x_lite.errors import UserError, nearest
from t5x_lite.tasks import mixing, records, sources
from t5x_lite.tasks.mixing import Rates
from t5x_lite.tasks.vocabulary import bind as bind_vocabulary

_SHIPPED = tuple(f"t5x_lite.tasks.{module}" for module in ("pretraining", "multilingual", "downstream", "mixtures"))


def prepare(
    name: str,
    module: str | None = None,
    vocabulary: str | None = None,
    data_glob: str | None = None,
    validation_glob: str | None = None,
    data_dir: str | None = None,
    use_cached: bool = False,
    cache_dir: str | None = None,
    rates: Rates | None = None,
) -> seqio.Task | seqio.Mixture:
    """Registers the shipped tasks and those of `module`, and returns the one called `name`.

    Args:
      name: of a task or mixture (MIXTURE_OR_TASK_NAME).
      module: Python module that registers more of them, on Python's path (MIXTURE_OR_TASK_MODULE).
      vocabulary: see vocabulary.py (VOCABULARY).
      data_glob, validation_glob: files of the `text_*` tasks (DATA_GLOB, VALIDATION_GLOB).
      data_dir: folder of TFDS data and of original files (DATA_DIR).
      use_cached: read what seqio has cached; a task without a place for a cache among its preprocessors is read
        from its source all the same (USE_CACHED_TASKS).
      cache_dir: folder of such caches, beside those that `module` gives to seqio itself (TASK_CACHE_DIR).
      rates: how often the shipped mixtures draw from their tasks; None: as `Rates` has it.

    Raises:
      UserError: the module cannot be imported, the name is unknown, or a cache or TFDS data is not there.
    """
    bind_vocabulary(vocabulary)
    sources.bind(data_glob, validation_glob, data_dir)
    records.bind(data_dir)
    mixing.bind(rates or Rates())
    for shipped in _SHIPPED:
        importlib.import_module(shipped)
    if module:
        _import(module)
    if cache_dir is not None:
        seqio.add_global_cache_dirs([cache_dir])
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name} is unknown",
            f"neither the shipped tasks nor {module} register it" if module else "no shipped task is called so",
            f"{nearest(name, known)}. A task of your own needs --gin.MIXTURE_OR_TASK_MODULE",
        )
    provider = seqio.get_mixture_or_task(name)
    missing: dict[str, UserError] = {}
    for task in seqio.get_subtasks(provider):
        # Where a mixture is meant, what has neither training nor validation data is not read.
        if task is not provider and not {"train", "validation"} & set(task.splits):
            continue
        _check_cache(task, use_cached)
        try:
            if not (use_cached and task.cache_dir):
                check_source(task, data_dir)
        except UserError as error:
            missing[task.name] = error
    if len(missing) > 1:
        raise UserError(
            f"{len(missing)} tasks of {name} have no data: {', '.join(missing)}",
            "a mixture needs the data of all its tasks. For each of them `t5x_lite tasks show NAME` says what to get",
            f"Of the first: {next(iter(missing.values()))}",
        )
    for error in missing.values():
        raise error
    return provider


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        # Whatever the user's module raises is about that module, also where it is a program that ends itself.
        fix = f"Correct --gin.MIXTURE_OR_TASK_MODULE or the module; it is looked for in {os.getcwd()} too"
        if (name := _as_module(module)) != module:
            fix = f"A module is named as in Python's import, not as a file: write {name}"
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE={module} cannot be imported", f"{type(error).__name__}: {error}", fix
        ) from error


def _as_module(path: str) -> str:
    """What a file is imported as: ./tasks/mine.py -> tasks.mine. A module's name stays as it is."""
    return ".".join(part for part in path.removesuffix(".py").split("/") if part not in ("", "."))


def _check_cache(task: seqio.Task, use_cached: bool) -> None:
    """Refuses a task whose cache is asked for and not there, or the other way round."""
    if use_cached and task.supports_caching and not task.cache_dir:
        searched = ", ".join(seqio.get_global_cache_dirs())
        raise UserError(
            f"USE_CACHED_TASKS=True, but {task.name} is not cached",
            f"no complete cache of it is in {searched}" if searched else "seqio knows no folder of caches",
            "Set --gin.TASK_CACHE_DIR to the folder that holds it, or --gin.USE_CACHED_TASKS=False to read its source",
        )
    if task.requires_caching and not use_cached:
        raise UserError(
            f"USE_CACHED_TASKS=False, but {task.name} is read from a cache only",
            "its source is not meant to be read while training",
            "Set --gin.USE_CACHED_TASKS=True",
        )


def check_source(task: seqio.Task, data_dir: str | None) -> None:
    """Refuses a task whose data is not on disk, without a download: most data sets of T5 cannot be had by one."""
    if isinstance(task.source, records.Records):
        task.source.check()
    if not isinstance(task.source, seqio.TfdsDataSource):
        return
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
