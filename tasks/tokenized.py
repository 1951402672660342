"""A cached task read without TensorFlow: what its records become.

The folder of a cached task holds, beside what seqio writes, vocabulary.json: the numbers of the vocabulary that an
objective needs, so that neither seqio nor SentencePiece is needed to train on the tokens. `t5x_lite tasks cache` writes
it; a cache of seqio's own tool has none, and the vocabulary itself is asked then.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.tasks import codec, vocabulary
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.named import OBJECTIVES
from t5x_lite.tasks.objectives.ragged import ragged, split

VOCABULARY = "vocabulary.json"


def describe_vocabulary(name: str | None) -> dict:
    """What vocabulary.json holds: the size, the sentinels, the end of sequence, and the md5 of the model file."""
    file = codec.model_file(name)
    return {
        "size": vocabulary.size(name),
        "sentinels": vocabulary.SENTINELS,
        "eos": codec.load(name).eos_id,
        "md5": None if file is None else hashlib.md5(Path(file).read_bytes()).hexdigest(),
    }


def ids(folder: str, name: str | None) -> Ids:
    """The ids of the vocabulary that a folder was tokenised with.

    Args:
      folder: of the cached task.
      name: the vocabulary of the job (VOCABULARY).

    Raises:
      UserError: it is another one.
    """
    path = epath.Path(folder) / VOCABULARY
    known = json.loads(path.read_text()) if path.exists() else describe_vocabulary(name)
    if path.exists():
        _check_same(folder, name, known["md5"])
    return Ids(
        known["size"], known["sentinels"], known["eos"], lambda text: codec.load(name).encode(text) if text else []
    )


def _check_same(folder: str, name: str | None, md5: str | None) -> None:
    file = codec.model_file(name)
    if file is None:
        given = None
    elif epath.Path(file).exists():
        given = hashlib.md5(epath.Path(file).read_bytes()).hexdigest()
    else:
        raise UserError(
            f"VOCABULARY={name} is not there",
            "a model directory keeps a copy of its vocabulary",
            "Set --gin.VOCABULARY",
        )
    if given != md5:
        raise UserError(
            f"VOCABULARY={name} is not what TOKENS_DIR={folder} was tokenised with",
            f"its md5 is {given}, and that of the tokens {md5}" if given and md5 else "one of them is bytes",
            "Set --gin.VOCABULARY to the vocabulary of the tokens, or make them anew with `t5x_lite tasks cache`",
        )


def features(folder: str, name: str) -> tuple[tuple[str, ...], Callable]:
    """The features to read of a cached task, and the function that makes examples of its records.

    A pretraining task is cached before its objective: its records are documents. The task's name tells the objective.
    Of other tasks the records are the examples.

    Args:
      folder: of the cached task.
      name: of the task.

    Returns:
      (names of features, function of Ids that gives `Tokens.examples_of`).

    Raises:
      UserError: the records are neither.
    """
    found = _cached_features(folder)
    objective = objective_of(name)
    if {"inputs", "targets"} <= found:
        return (
            ("inputs", "targets"),
            lambda ids: (
                lambda records, rng, lengths: [
                    {f: np.append(record[f][: n - 1], np.int32(ids.eos)) for f, n in lengths.items()}
                    for record in records
                ]
            ),
        )
    if "targets" in found and objective is not None:
        return ("targets",), lambda ids: lambda records, rng, lengths: _denoised(objective, records, rng, lengths, ids)
    raise UserError(
        f"TOKENS_DIR={folder} cannot be read as MIXTURE_OR_TASK_NAME={name}",
        f"its records have the features {', '.join(sorted(found))}: documents need a task named after an objective",
        f"Set --gin.MIXTURE_OR_TASK_NAME to one that ends in {', '.join(OBJECTIVES)}",
    )


def objective_of(name: str) -> Callable | None:
    """The objective that a pretraining task is named after: the longest that its name ends in."""
    fitting = [suffix for suffix in OBJECTIVES if name.endswith(f"_{suffix}")]
    return OBJECTIVES[max(fitting, key=len)] if fitting else None


def _denoised(objective: Callable, records: list[dict], rng, lengths: Mapping[str, int], ids: Ids) -> list[dict]:
    made = objective(lengths, ids)(ragged([record["targets"] for record in records]), rng)
    columns = {name: split(made[name]) for name in ("inputs", "targets")}
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _cached_features(folder: str) -> set[str]:
    infos = sorted(epath.Path(folder).glob("info.*.json"))
    if not infos:
        raise UserError(
            f"TOKENS_DIR={folder} holds no tokenised task",
            "there is no info.train.json in it",
            "Set --gin.TOKENS_DIR to the folder of one task that `t5x_lite tasks cache` or seqio_cache_tasks finished",
        )
    return {name for path in infos for name in json.loads(path.read_text()).get("features", {})}
