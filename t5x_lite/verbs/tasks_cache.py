"""t5x_lite tasks cache: a task's records, tokenised once, in the files that training reads.

seqio's own Beam pipeline makes them: what a task does with its records up to its CacheDatasetPlaceholder.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence

from etils import epath

from t5x_lite import output
from t5x_lite.errors import RunError, UserError
from t5x_lite.train.metrics import duration, say
from t5x_lite.verbs import tasks

# Last of all, and what seqio knows a whole cache by.
_COMPLETED = "COMPLETED"

# In this process. Beam's DirectRunner would download another program to run the pipeline.
_RUNNER = "--runner=FnApiRunner"

# Files of a split: as many as the source has, but enough for each data shard of a run to have some of its own.
_LEAST_FILES = 16

_SECONDS_BETWEEN_LINES = 10


def main(args) -> None:
    """The verb: writes OUTPUT/NAME, or the folder of each task of a mixture, as seqio reads it."""
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            "apache_beam is not installed", "it runs seqio's pipeline", "Install it: pip install 't5x_lite[cache]'"
        )
    data = dataclasses.replace(tasks.load(args), use_cached_tasks=False)
    output.check_folder(args.output, "--output")
    tasks.check_name(data, args.name)
    chosen = _with_splits(_missing(data, args.name, args.output), args.split)
    # What can be wrong with any of them is found before the first is read.
    for task, splits in chosen:
        _check(task, data, _place(args.output, task), splits)
    for task, splits in chosen:
        cache(task, data, _place(args.output, task), splits, args.shards, args.behind)


def _place(folder: str, task) -> epath.Path:
    import seqio

    return epath.Path(folder) / seqio.get_task_dir_from_name(task.name)


def _missing(data: tasks.Data, name: str, folder: str) -> list:
    """The task, or the tasks of the mixture that can be cached and are not.

    Raises:
      UserError: there is none, or a cache has another vocabulary.
    """
    import seqio

    from t5x_lite.tasks import tokenized

    members = seqio.get_subtasks(seqio.get_mixture_or_task(name))
    cachable = [task for task in members if task.supports_caching]
    if not cachable:
        raise UserError(
            f"{name} cannot be cached",
            "there is no place for a cache among its preprocessors",
            "put seqio.CacheDatasetPlaceholder() among them, behind the last that always does the same",
        )
    missing = []
    for task in members:
        place = _place(folder, task)
        if not task.supports_caching:
            say(f"{task.name}: left out, its source is read instead of a cache")
        elif not (place / _COMPLETED).exists():
            missing.append(task)
        else:
            say(f"{task.name}: is in {place} already")
            if (known := place / tokenized.VOCABULARY).exists():
                tokenized.check_same(str(place), _vocabulary(task, data), json.loads(known.read_text())["md5"])
    if not missing:
        raise UserError(
            f"{name} is cached already",
            f"its files are in {folder}",
            "remove them, or name another folder with --output",
        )
    return missing


def _with_splits(members: list, wanted: Sequence[str] | None) -> list[tuple]:
    """(task, those of the wanted splits that it has; None: all).

    Raises:
      UserError: none has one of the splits.
    """
    known = {split for task in members for split in task.splits}
    if unknown := sorted(set(wanted or ()) - known):
        raise UserError(
            f"--split={unknown[0]} is no split of {' or '.join(task.name for task in members[:3])}",
            f"there are {', '.join(sorted(known))}",
            "choose of them with --split, or leave it out to cache all",
        )
    chosen = [(task, [split for split in wanted or task.splits if split in task.splits]) for task in members]
    for task, splits in chosen:
        if not splits:
            say(f"{task.name}: left out, it has {', '.join(task.splits) or 'no split'}")
    return [(task, splits) for task, splits in chosen if splits]


def cache(
    task, data: tasks.Data, place: epath.Path, splits: Sequence[str], shards: int | None, options: Sequence[str]
) -> None:
    """Writes the cache of one task. The folder appears with all that belongs to it, or not at all; on gs:// it is
    written in place, and seqio passes over it until COMPLETED is there.

    Args:
      task: seqio task.
      data: what it reads.
      place: folder of its cache.
      splits: of the task.
      shards: files of each split; None: as many as the source has, at least 16.
      options: of Beam.

    Raises:
      UserError: a split is empty or cannot be read, or another process is writing there.
      RunError: the pipeline failed.
    """
    began = time.monotonic()
    scratch = place if output.is_remote(place) else place.with_name(f".{place.name}.new")
    scratch.mkdir(parents=True, exist_ok=True)
    with output.held(scratch, "--output"):
        try:
            for left_over in scratch.iterdir():
                left_over.rmtree() if left_over.is_dir() else left_over.unlink()
            _run(task, data, scratch, splits, shards, options)
            stats = {split: _stats(task, scratch, split) for split in splits}
            _describe(task, data, scratch)
            (scratch / _COMPLETED).touch()
            if scratch != place:
                scratch.rename(place)
        except BaseException:
            _remove(scratch)
            raise
    tokens = sum(n for by_name in stats.values() for name, n in by_name.items() if _is_total(name))
    files = sum(1 for path in place.iterdir() if ".tfrecord-" in path.name)
    say(
        f"{task.name}: {sum(s['examples'] for s in stats.values()):,} records of {tokens:,} tokens in {files} files, "
        f"after {duration(time.monotonic() - began)}: {place}"
    )


def _is_total(name: str) -> bool:
    return name.endswith("_tokens") and not name.endswith("_max_tokens")


def _remove(folder: epath.Path) -> None:
    if output.is_remote(folder):
        folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _check(task, data: tasks.Data, place: epath.Path, splits: Sequence[str]) -> None:
    from t5x_lite.tasks import registry

    if place.exists():
        raise UserError(
            f"{place} is in the way",
            f"it holds no complete cache: {_COMPLETED} is missing",
            "remove it, or name another folder with --output",
        )
    registry.check_source(task, data.data_dir)
    tasks.check_vocabulary(data, [task])
    for split in splits:
        try:
            there = task.source.list_shards(split)
        except UserError as error:
            raise UserError.from_text(f"{error} To cache other splits alone, give --split.") from error
        if not there:
            raise UserError(
                f"the split {split} of {task.name} has no files",
                "what its source names matches none",
                "correct the source of the task, or give the other splits with --split",
            )


def _run(task, data: tasks.Data, folder: epath.Path, splits: Sequence[str], shards: int | None, options: Sequence[str]):
    """Runs the pipeline of all splits.

    Raises:
      UserError: a record cannot be read or a preprocessor failed.
      RunError: Beam failed.
    """
    beam, beam_utils = _beam()
    import seqio

    from t5x_lite.tasks import sources

    if not any(option.startswith("--runner") for option in options):
        options = [_RUNNER, *options]
    # A worker that is another process knows no tasks yet; in this one it changes nothing.
    ready = functools.partial(tasks.register, dataclasses.replace(data, model=None))
    try:
        pipeline = beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(list(options)))
        for split in splits:
            read = beam_utils.PreprocessTask(task, split, setup_fn=ready)
            count = shards or max(len(read.shards), _LEAST_FILES)
            records = (
                pipeline
                | f"read {split}" >> read
                | f"count {split}" >> beam.Map(_counted)
                | f"shuffle {split}" >> beam.Reshuffle()
            )
            prefix = seqio.get_cached_tfrecord_prefix(str(folder), split)
            records | f"write {split}" >> beam_utils.WriteExampleTfRecord(prefix, num_shards=count)
            info, stats = beam_utils.GetInfo(count), beam_utils.GetStats(task.output_features)
            for name, made, path in (
                ("info", info, seqio.get_cached_info_path(str(folder), split)),
                ("stats", stats, seqio.get_cached_stats_path(str(folder), split)),
            ):
                records | f"{name} {split}" >> made | f"write {name} {split}" >> beam_utils.WriteJson(path)
        with _progress(task.name):
            pipeline.run().wait_until_finish()
    except UserError:
        raise
    except Exception as error:
        # Whatever Beam, TensorFlow or a user's preprocessor raises.
        raise (sources.explain(error) or _failed(task, error)) from error


def _failed(task, error: Exception) -> RunError:
    text = tasks.reason(error).partition(" [while running")[0]
    return RunError(f"{task.name} could not be cached", text, "nothing was written; --traceback shows where it failed")


def _beam():
    """Beam and seqio's transforms, which remark on what is not installed."""
    from t5x_lite.tasks import quiet

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    with quiet.held_back():
        import apache_beam
        from seqio import beam_utils
    return apache_beam, beam_utils


_counter = threading.Lock()
_count = 0


def _counted(record):
    """A record as it is, counted where the pipeline runs in this process."""
    global _count
    with _counter:
        _count += 1
    return record


@contextlib.contextmanager
def _progress(name: str) -> Iterator[None]:
    """Says from time to time how many records have been read."""
    began, before, ended = time.monotonic(), _count, threading.Event()

    def watch():
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            say(f"{name}: {_count - before:,} records read, {duration(time.monotonic() - began)}")

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _stats(task, folder: epath.Path, split: str) -> dict:
    """What seqio counted of a split.

    Raises:
      UserError: there are no records.
    """
    info = json.loads((folder / f"info.{split}.json").read_text())
    if not info:
        raise UserError(
            f"the split {split} of {task.name} has no records",
            "seqio reads no cache without any",
            "give the other splits with --split",
        )
    return json.loads((folder / f"stats.{split}.json").read_text())


def _describe(task, data: tasks.Data, folder: epath.Path) -> None:
    """Writes what training without TensorFlow needs: see tasks/tokenized.py."""
    from t5x_lite.tasks import codec, tokenized

    name = _vocabulary(task, data)
    known = {"task": task.name, "become": None if name is None else _becomes(task)}
    (folder / tokenized.RECORDS).write_text(json.dumps(known, indent=2) + "\n")
    if name is None:
        return
    (folder / tokenized.VOCABULARY).write_text(json.dumps(tokenized.describe_vocabulary(name), indent=2) + "\n")
    if (model := codec.model_file(name)) is not None:
        (folder / tokenized.MODEL).write_bytes(epath.Path(model).read_bytes())


def _vocabulary(task, data: tasks.Data) -> str | None:
    """The name, as of VOCABULARY, of the one vocabulary of a task; None where it has several or another kind."""
    import seqio

    from t5x_lite.tasks import vocabulary

    first, *others = (feature.vocabulary for feature in task.output_features.values())
    if first is vocabulary.chosen():
        name = data.vocabulary
    elif isinstance(first, seqio.ByteVocabulary):
        name = "bytes"
    elif isinstance(first, seqio.SentencePieceVocabulary):
        name = first.sentencepiece_model_file
    else:
        return None
    try:
        return name if all(other == vocabulary.load(name) for other in (first, *others)) else None
    except UserError:
        return None  # such as one with other special ids


def _becomes(task) -> str | None:
    """What a task makes of its cached records: the name of an objective, "examples", or None for anything else."""
    import seqio

    from t5x_lite.tasks import tokenized
    from t5x_lite.tasks.objectives.named import OBJECTIVES
    from t5x_lite.tasks.objectives.preprocess import preprocess

    kinds = [isinstance(step, seqio.CacheDatasetPlaceholder) for step in task.preprocessors]
    after = list(task.preprocessors)[kinds.index(True) + 1 :]
    if after == [seqio.preprocessors.append_eos_after_trim]:
        return tokenized.EXAMPLES if all(feature.add_eos for feature in task.output_features.values()) else None
    if len(after) == 1 and getattr(after[0], "func", None) is preprocess:
        objective = after[0].keywords.get("objective")
        return next((name for name, known in OBJECTIVES.items() if known is objective), None)
    return None
