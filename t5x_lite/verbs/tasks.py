"""t5x_lite tasks: look at tasks and mixtures. What its actions have in common; each is a module of its own."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_lite import config
from t5x_lite.errors import UserError, nearest
from t5x_lite.job import NOT_TRAINING, Data

# A shipped task without any condition on its data.
_ALWAYS_THERE = "text_span_corruption"


def load(args) -> Data:
    """What the gin files and flags say of the data. A file may describe a whole job; the rest of it is not read."""
    make = config.load(
        ["runs/tasks.gin", *args.gin_file], args.gin, "t5x_lite.job.Data", optional=(*NOT_TRAINING, "MODEL")
    )
    return config.build(make)


def prepare(data: Data, name: str, module: str | None = None):
    """The seqio task or mixture of a name, as a job has it. Arguments and errors as `registry.prepare`."""
    from t5x_lite.tasks import quiet

    quiet.load_tensorflow()
    from t5x_lite.tasks import mixing, registry

    rates = mixing.Rates(
        data.mixture_maximum, data.mixture_temperature, data.mixture_unsupervised_rate, data.mixture_fixed_weights
    )
    return registry.prepare(
        name, module, data.vocabulary, data.data_glob, data.validation_glob, data.data_dir, data.use_cached_tasks,
        data.task_cache_dir, rates,
    )  # fmt: skip


def registered(data: Data) -> tuple[set[str], set[str]]:
    """The names of the shipped tasks and mixtures, and of those that the module of the job registers."""
    data = dataclasses.replace(data, use_cached_tasks=False)
    prepare(data, _ALWAYS_THERE)
    own = _names_of(data.mixture_or_task_module, data) if data.mixture_or_task_module else frozenset()
    return _known() - frozenset().union(*_registered.values()), set(own)


# By module: imported a second time it registers nothing.
_registered: dict[str, frozenset[str]] = {}


def _names_of(module: str, data: Data) -> frozenset[str]:
    before = _known()
    prepare(data, _ALWAYS_THERE, module)
    return _registered.setdefault(module, frozenset(_known() - before))


def _known() -> set[str]:
    import seqio

    return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def opened(data: Data, name: str):
    """The task or mixture of a name given on the command line.

    Raises:
      UserError: it is unknown, or its data or a cache is not there.
    """
    check_name(data, name)
    return prepare(data, name, data.mixture_or_task_module)


def check_name(data: Data, name: str) -> None:
    """Refuses a name that is no task or mixture; those of the job are registered then."""
    shipped, own = registered(data)
    if name not in shipped | own:
        raise UserError(
            f"{name} is no task or mixture",
            nearest(name, shipped | own),
            "correct the name, which `t5x_lite tasks list` knows; a task of your own needs --module",
        )


def register(data: Data) -> None:
    """Registers the tasks that the job knows and binds them to its vocabulary and files."""
    prepare(dataclasses.replace(data, use_cached_tasks=False), _ALWAYS_THERE, data.mixture_or_task_module)


def check_vocabulary(data: Data, members: Iterable) -> None:
    """Raises what is wrong with the vocabulary of the job, where one of these tasks uses it."""
    from t5x_lite.tasks import vocabulary

    if any(f.vocabulary is vocabulary.chosen() for task in members for f in task.output_features.values()):
        vocabulary.load(data.vocabulary)


def source_of(source, data_dir: str | None) -> tuple[str, str]:
    """What a seqio source reads, in a few words, and whether it is there: "yes", "no", why not, or "?".

    Reads no data and makes none. `data_dir` is DATA_DIR.
    """
    import seqio

    from t5x_lite.tasks import corpus, records, sources

    if isinstance(source, seqio.TfdsDataSource):
        loader = source.tfds_dataset
        return f"TFDS {loader.name}", _yes(_is_prepared(loader.name, data_dir or loader.data_dir))
    if isinstance(source, seqio.FunctionDataSource):
        return "a function", "?"
    if isinstance(source, records.Records):
        there = [split for split in source.splits if source.place(split)]
        return source.tfds_name, _yes(there) if len(there) in (0, len(source.splits)) else f"only {', '.join(there)}"
    files = getattr(source, "_files", None)
    if files is corpus.files:
        return "the demo corpus", "yes" if corpus.folder().exists() else "built on first use"
    name = "DATA_GLOB" if files is sources.bound_files else type(source).__name__
    try:
        return name, _yes(all(source.list_shards(split) for split in source.splits))
    except UserError as error:
        return name, str(error).partition(". ")[0]
    except Exception as error:
        # What a source of the user's own raises.
        return name, f"no: {type(error).__name__}"


def place_of(source, split: str, data_dir: str | None) -> str:
    """What a seqio source reads of a split and, of downstream records, where."""
    from t5x_lite.tasks import records

    name, _ = source_of(source, data_dir)
    return f"{name} from {source.place(split)}" if isinstance(source, records.Records) else name


def _yes(there) -> str:
    return "yes" if there else "no"


def _is_prepared(name: str | None, data_dir: str | None) -> bool:
    """Whether TFDS keeps a data set where it would look for it, without loading its builder."""
    import tensorflow_datasets as tfds
    from etils import epath

    if not name:  # a data set for each split
        return False
    name, _, version = name.partition(":")
    folder = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name
    exact = version and "*" not in version
    return (folder / version / "dataset_info.json").exists() if exact else folder.exists()


def over(task, records: list, spec, lengths: Mapping[str, int] | None, split: str, seed: int):
    """The examples that a task makes of given records, in their order, as a tf.data.Dataset.

    The list may be changed between two passes. Arguments and errors as `Task.get_dataset`, which trims to `lengths`.

    Args:
      task: seqio task.
      records: tensors, as its source gives them.
      spec: the element_spec of the source's dataset.
      lengths: tokens of each feature; None: do not trim.
    """
    import seqio
    import tensorflow as tf

    def given(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_generator(lambda: iter(records), output_signature=spec)

    source = seqio.FunctionDataSource(given, splits=[split])
    return uncached(task).replace(source=source).get_dataset(lengths, split=split, shuffle=False, seed=seed)


def uncached(task):
    """The task without a place for a cache: it is read from its source, whatever it requires."""
    import seqio

    kept = [f for f in task.preprocessors if not isinstance(f, seqio.CacheDatasetPlaceholder)]
    return task.replace(preprocessors=kept)


def reason(error: Exception) -> str:
    """What an exception says, in one line, without the places in TensorFlow that it passed."""
    from t5x_lite.tasks import documents

    text = documents.plain(str(getattr(error, "message", error)))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    # AutoGraph puts the user's code in front of the message; a Python function in a pipeline puts it behind.
    line = lines[-1] if lines[0].startswith("in user code") else lines[0]
    line = re.sub(r"^Error in user-defined function passed to .* iterator: \S+: ", "", line)
    return line if re.match(r"\w+(Error|Exception)\b", line) else f"{type(error).__name__}: {line}"


def plain(value) -> Any:
    """A record or a part of it as Python's own values, bytes as text."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if hasattr(value, "to_list"):  # ragged
        return plain(value.to_list())
    if hasattr(value, "numpy"):
        return plain(value.numpy())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def short(value, most: int = 200) -> str:
    """A record, or anything of it, in one line of at most so many characters and a sign that it was cut."""
    text = json.dumps(plain(value), ensure_ascii=False, default=str)
    return text if len(text) <= most else text[:most] + "…"
