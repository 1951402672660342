"""A cached task read without TensorFlow: what its records become.

Beside what seqio writes, the folder of a cached task holds what is needed to train on it where neither seqio nor
SentencePiece is installed. `t5x_lite tasks cache` writes it; a cache of seqio's own tool has none of it, and the
vocabulary itself is asked then.

  vocabulary.json    the numbers of the vocabulary that an objective needs
  vocabulary.model   a copy of the SentencePiece model
  records.json       the name of the task, and what it makes of its records
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.tasks import codec, vocabulary
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.named import MODES, OBJECTIVES
from t5x_lite.tasks.objectives.ragged import ragged, split

VOCABULARY = "vocabulary.json"
MODEL = "vocabulary.model"
RECORDS = "records.json"

# What records.json says of a task whose records are its examples, but for their length and their end.
EXAMPLES = "examples"

Examples = list[dict[str, np.ndarray]]
Maker = Callable[[Mapping[str, int]], Callable[[Examples, np.random.Generator], Examples]]


def describe_vocabulary(name: str | None) -> dict:
    """What vocabulary.json holds.

    Args:
      name: see vocabulary.py.

    Returns:
      The size, the number of sentinels, the end of sequence, the ids of the modes of UL2, and the md5 of the model
      file (None for bytes).
    """
    known = codec.load(name)
    return {
        "size": vocabulary.size(name),
        "sentinels": vocabulary.SENTINELS,
        "eos": known.eos_id,
        "modes": {mode: known.encode(mode) for mode in MODES},
        "md5": _md5(name),
    }


def _md5(name: str) -> str | None:
    file = codec.model_file(name)
    return None if file is None else hashlib.md5(epath.Path(file).read_bytes()).hexdigest()


def vocabulary_of(folder: str) -> str:
    """The vocabulary that a folder was tokenised with: its copy of the model file, or "bytes".

    Raises:
      UserError: the folder does not say.
    """
    copy = epath.Path(folder) / MODEL
    if copy.exists():
        return str(copy)
    if (described := _read(folder, VOCABULARY)) and described["md5"] is None:
        return "bytes"
    raise UserError(
        "VOCABULARY is not set",
        f"TOKENS_DIR={folder} has no copy of it, as `t5x_lite tasks cache` writes one",
        "Set --gin.VOCABULARY to the vocabulary of the tokens",
    )


def ids(folder: str, name: str | None) -> Ids:
    """The ids of the vocabulary that a folder was tokenised with.

    Args:
      folder: of the cached task.
      name: the vocabulary of the job (VOCABULARY).

    Raises:
      UserError: it is another one, or there is none.
    """
    known = _read(folder, VOCABULARY)
    if known:
        check_same(folder, name, known["md5"])
    elif _read(folder, RECORDS):
        raise _insufficient(folder, "its vocabulary is none that VOCABULARY can name")
    else:
        known = describe_vocabulary(name)
    modes = known["modes"] | {"": []}
    return Ids(known["size"], known["sentinels"], known["eos"], modes.__getitem__)


def _insufficient(folder: str, why: str) -> UserError:
    return UserError(
        f"TOKENS_DIR={folder} cannot be read without seqio",
        why,
        "Read the cache with it: --gin.USE_CACHED_TASKS=True and --gin.TASK_CACHE_DIR, without --gin.TOKENS_DIR",
    )


def _read(folder: str, file: str) -> dict | None:
    """One of the files that lie beside seqio's, None where it is not there."""
    path = epath.Path(folder) / file
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} is no JSON", str(error), "Make the cache anew with `t5x_lite tasks cache`") from None


def check_same(folder: str, name: str | None, md5: str | None) -> None:
    """Refuses a vocabulary other than the one of the tokens, whose model file has this md5."""
    try:
        given = _md5(name or vocabulary_of(folder))
    except OSError as error:
        raise UserError(
            f"VOCABULARY={name} cannot be read", str(error), f"Set --gin.VOCABULARY={vocabulary_of(folder)}"
        ) from error
    if given != md5:
        raise UserError(
            f"VOCABULARY={name} is not what the tokens in {folder} were made with",
            f"its md5 is {given}, and that of the tokens {md5}" if given and md5 else "one of them is bytes",
            "Set --gin.VOCABULARY to the vocabulary of the tokens, or make them anew with `t5x_lite tasks cache`",
        )


def maker(folder: str, name: str, found: set[str], ids: Ids) -> tuple[tuple[str, ...], Maker]:
    """What makes examples of the records of a cached task.

    A pretraining task is cached before its objective, so its records are documents. They serve every objective: the
    end of the task's name tells which. Of other tasks the records are the examples.

    Args:
      folder: of the cached task.
      name: of the task (MIXTURE_OR_TASK_NAME).
      found: the features of its records that are tokens.
      ids: of the vocabulary.

    Returns:
      The features that are needed of a record, and a function of the row lengths that gives the function of records
      and a random generator.

    Raises:
      UserError: the records are of another task, or not known to become examples.
    """
    objective = _objective(folder, name, found)
    if objective is None:
        return ("inputs", "targets"), functools.partial(_cut, eos=ids.eos)
    return ("targets",), functools.partial(_denoised, objective=objective, ids=ids)


def _objective(folder: str, name: str, found: set[str]) -> Callable | None:
    """The objective of a task, None where the records are its examples."""
    known = _read(folder, RECORDS)
    if known is None:
        # seqio does not say. What has inputs is taken for examples, for its objectives come after the cache.
        known = {"task": name, "become": EXAMPLES if {"inputs", "targets"} <= found else objective_of(name)}
    elif name == known["task"] and known["become"] is None:
        raise _insufficient(folder, f"{name} does more with its records than one of the objectives")
    if known["become"] == EXAMPLES:
        if name != known["task"]:
            raise UserError(
                f"MIXTURE_OR_TASK_NAME={name} is not in TOKENS_DIR={folder}",
                f"it holds the examples of {known['task']}",
                f"Set --gin.MIXTURE_OR_TASK_NAME={known['task']}, or --gin.TOKENS_DIR to the folder of {name}",
            )
        return None
    objective = known["become"] if name == known["task"] else objective_of(name)
    if objective is None or found & {"inputs", "targets"} != {"targets"}:
        raise UserError(
            f"TOKENS_DIR={folder} cannot be read as MIXTURE_OR_TASK_NAME={name}",
            f"its records hold the tokens {', '.join(sorted(found)) or 'of nothing'}, and an objective takes those of "
            "targets alone",
            f"Set --gin.MIXTURE_OR_TASK_NAME to one that ends in {', '.join(OBJECTIVES)}",
        )
    return OBJECTIVES[objective]


def objective_of(name: str) -> str | None:
    """The objective that a pretraining task is named after: the longest that its name ends in."""
    return max((suffix for suffix in OBJECTIVES if name.endswith(f"_{suffix}")), key=len, default=None)


def _denoised(lengths: Mapping[str, int], *, objective: Callable, ids: Ids):
    of_documents = objective(lengths, ids)

    def make(records: Examples, rng: np.random.Generator) -> Examples:
        made = of_documents(ragged([record["targets"] for record in records]), rng)
        columns = [split(made[name]) for name in ("inputs", "targets")]
        return [{"inputs": inputs, "targets": targets} for inputs, targets in zip(*columns)]

    return make


def _cut(lengths: Mapping[str, int], *, eos: int):
    """As seqio's append_eos_after_trim; a record that was cached with its end keeps it."""

    def closed(tokens: np.ndarray, length: int) -> np.ndarray:
        if len(tokens) and tokens[-1] == eos:
            tokens = tokens[:-1]
        return np.append(tokens[: length - 1], np.int32(eos))

    def make(records: Examples, rng: np.random.Generator) -> Examples:
        return [{name: closed(record[name], length) for name, length in lengths.items()} for record in records]

    return make
