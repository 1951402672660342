"""SuperGLUE's tasks with records of their own: MultiRC, ReCoRD and the broad diagnostic set.

The others are `glue.glue`, and WSC is in winograd.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite.tasks.formats.glue import glue

_WIC = ("sentence1", "sentence2", "word")


def multirc(record: Mapping[str, Any], *, label_names: Sequence[str]) -> dict[str, Any]:
    """MultiRC: is this an answer to the question? Markup in any of the three texts is taken out.

    Args:
      record: "question", "answer" and "paragraph" (str), "label" (int), and "idx" with the ints "paragraph",
        "question" and "answer".
      label_names: what each label is called.

    Returns:
      "inputs", "targets" (str), "idx/paragraph", "idx/question" and "idx/answer" (int).

    Raises:
      ValueError: a label has no name.
    """
    names = ("question", "answer", "paragraph")
    example = glue(record, benchmark_name="multirc", label_names=label_names, feature_names=names, id_key=None)
    example["inputs"] = re.sub("</?b>", "", example["inputs"].replace("<br>", " "))
    return example | {f"idx/{part}": record["idx"][part] for part in ("paragraph", "question", "answer")}


def wic(record: Mapping[str, Any], *, label_names: Sequence[str]) -> dict[str, Any]:
    """WiC: does the word mean the same in both sentences? Where it stands in them is not said.

    Args:
      record: "sentence1", "sentence2" and "word" (str), "label" and "idx" (int), and features that are left out.
      label_names: what each label is called.

    Returns:
      As `glue`: "inputs", "targets" (str) and "idx" (int).

    Raises:
      ValueError: a label has no name.
    """
    return glue(record, benchmark_name="wic", label_names=label_names, feature_names=_WIC)


def axb(record: Mapping[str, Any], *, label_names: Sequence[str]) -> dict[str, Any]:
    """The broad diagnostic set as RTE: its first sentence is the premise, its second the hypothesis.

    Args:
      record: "sentence1" and "sentence2" (str), "label" and "idx" (int).
      label_names: what each label is called.

    Returns:
      As `glue`: "inputs", "targets" (str) and "idx" (int).

    Raises:
      ValueError: a label has no name.
    """
    pair = {"premise": record["sentence1"], "hypothesis": record["sentence2"]}
    return glue(pair | {"label": record["label"], "idx": record["idx"]}, benchmark_name="rte", label_names=label_names)


def record(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """ReCoRD: which entity is the placeholder? An example for each answer, one with `<unk>` where none is known.

    The highlights under a passage become sentences of it.

    Args:
      record: "passage" and "query" (str), "entities" and "answers" (lists of str), and "idx" with the ints "passage"
        and "query".

    Returns:
      Examples of "inputs", "targets" (str), "answers" (list of str), "idx/passage" and "idx/query" (int).
    """
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", record["passage"]).replace("\n@highlight\n", ". ")
    example = {
        "inputs": f"record query: {record['query']} entities: {', '.join(record['entities'])} passage: {passage}",
        "answers": record["answers"],
        "idx/passage": record["idx"]["passage"],
        "idx/query": record["idx"]["query"],
    }
    return [example | {"targets": answer} for answer in record["answers"] or ["<unk>"]]
