"""SQuAD: the answer to a question in its context, as text or as the positions of its words.

All texts have spaces around punctuation.
"""

import re
from collections.abc import Mapping
from typing import Any

from t5x_lite.tasks.formats.re2 import pad_punctuation, squeeze


def squad(record: Mapping[str, Any], *, include_context: bool = True) -> dict[str, Any]:
    """The first of the answers to a question.

    Args:
      record: "id", "question" and "context" (str), "answers" with the list "text".
      include_context: without, the question is one of trivia.

    Returns:
      "inputs", "targets", "id", "context", "question" (str) and "answers" (list of str), all but "id" padded.

    Raises:
      ValueError: there is no answer.
    """
    answers = [pad_punctuation(answer) for answer in record["answers"]["text"]]
    if not answers:
        raise ValueError("the list of its answers is empty: what has none, as in SQuAD 2.0, cannot be asked")
    question, context = pad_punctuation(record["question"]), pad_punctuation(record["context"])
    inputs = f"question: {question} context: {context}" if include_context else f"squad trivia question: {question}"
    return {
        "inputs": squeeze(inputs),
        "targets": answers[0],
        "id": record["id"],
        "context": context,
        "question": question,
        "answers": answers,
    }


def squad_span_space_tokenized(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """As `squad`, with `start: 3 end: 4` for targets: the first and last word of the answer in the context.

    Words are separated by single spaces and by all that is no ASCII letter, digit or underscore, so that some are
    empty. T5 does not look at the last place where the answer would fit.

    Returns:
      The features of `squad`; None where the words of the answer are not found.

    Raises:
      ValueError: there is no answer.
    """
    example = squad(record)
    answer, context = _words(example["targets"]), _words(example["context"])
    for start in range(len(context) - len(answer)):
        end = start + len(answer)
        if context[start:end] == answer:
            return example | {"targets": f"start: {start} end: {end - 1}"}
    return None


def _words(text: str) -> list[str]:
    return re.sub("[^0-9A-Za-z_]", " ", text).split(" ")
