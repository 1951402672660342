"""Trivia: questions with documents that hold the answer (TriviaQA), and questions alone, answered from memory.

The formats without documents are those of T5's notebook on closed-book question answering.
"""

import random
import re
from collections.abc import Mapping
from typing import Any

from t5x_lite.tasks.formats import re2

# How an answer is put together again from the tokens of Natural Questions, in this order.
_SPACING = (
    (" ,", ","), (" .", "."), (" %", "%"), (" - ", "-"), (" : ", ":"), (" / ", "/"), ("( ", "("), (" )", ")"),
    ("`` ", '"'), (" ''", '"'), (" 's", "'s"), ("s ' ", "s' "),
)  # fmt: skip


def trivia_qa(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """An example for each document and each alias of the answer that occurs in it, whatever the case of letters.

    Args:
      record: "question" (str), "answer" with the list "normalized_aliases", and one or both of "entity_pages" with
        the list "wiki_context" and "search_results" with the list "search_context".

    Returns:
      Examples of "inputs" and "targets" (str), with spaces around punctuation.

    Raises:
      ValueError: an alias is no regular expression, as which T5 looks for it.
    """
    documents = [
        text
        for source, texts in (("entity_pages", "wiki_context"), ("search_results", "search_context"))
        if source in record
        for text in record[source][texts]
    ]
    question = re2.pad_punctuation(record["question"])
    aliases = [re2.pad_punctuation(alias) for alias in record["answer"]["normalized_aliases"]]
    examples = []
    for document in map(re2.pad_punctuation, documents):
        lowered = re2.lower(document)
        inputs = re2.squeeze(f"question: {question} context: {document}")
        examples += [{"inputs": inputs, "targets": alias} for alias in aliases if _occurs(re2.lower(alias), lowered)]
    return examples


def _occurs(alias: str, document: str) -> bool:
    # Padded text has no line breaks. The aliases of TriviaQA have no punctuation, so they are looked for as plain text.
    if re.fullmatch(r"[\w ]*", alias):
        return alias in document
    return re2.full_match(f".*{alias}.*", document)


def trivia_question(record: Mapping[str, Any]) -> dict[str, str]:
    """A question to be answered without any context; both texts in small letters, without single quotes around them.

    Args:
      record: "question" (str) and "answer": a str, or TriviaQA's mapping, of which the str "value" counts.

    Returns:
      "inputs" (str, `trivia question: ...`) and "targets" (str).
    """
    answer = record["answer"]
    answer = answer if isinstance(answer, str) else answer["value"]
    return {"inputs": f"trivia question: {_normal(record['question'])}", "targets": _normal(answer)}


def open_question(record: Mapping[str, Any]) -> dict[str, Any]:
    """A question of the open-domain version of Natural Questions, which has no question marks.

    Args:
      record: "question" (str) and "answer" (list of str).

    Returns:
      "inputs" and "targets" (str) as `trivia_question`, of the first answer, and "answers" (list of str), all of them.

    Raises:
      ValueError: it has no answer.
    """
    if not record["answer"]:
        raise ValueError("it has no answer")
    example = trivia_question({"question": f"{record['question']}?", "answer": record["answer"][0]})
    return example | {"answers": [_normal(answer) for answer in record["answer"]]}


def truncate_inputs(record: Mapping[str, Any], *, length: int) -> dict[str, list[int]] | None:
    """Inputs of at most `length` tokens, with the answer in them: of longer ones a window, drawn from all that show it.

    Args:
      record: tokens "inputs" and "targets" (lists of int) and "seed" (two ints).
      length: of the window.

    Returns:
      "inputs" and "targets"; None where the answer's tokens are not among too long inputs, or do not fit.
    """
    inputs, answer = record["inputs"], record["targets"]
    if len(inputs) > length:
        at = next((k for k in range(len(inputs)) if inputs[k : k + len(answer)] == answer), None)
        if at is None or len(answer) > length:
            return None
        # The bounds of t5's trivia_qa_truncate_inputs: the window holds the answer and does not reach past the end.
        least, most = max(0, at + len(answer) - length), min(at, len(inputs) - length)
        start = random.Random(str(record["seed"])).randint(least, most)
        inputs = inputs[start : start + length]
    return {"inputs": inputs, "targets": answer}


def _normal(text: str) -> str:
    return re.sub("'(.*)'", r"\1", re2.lower(text))


def natural_question(record: Mapping[str, Any]) -> dict[str, str] | None:
    """A line of Natural Questions, as published, as a record for `trivia_question`.

    Args:
      record: "question_text" (str), "annotations", of which the first has "short_answers" with "start_token" and
        "end_token", and "document_tokens" (mappings with "token") or "document_text" (str).

    Returns:
      "question" and "answer" (str); None where the annotation has not exactly one short answer.
    """
    answers = record["annotations"][0]["short_answers"]
    if len(answers) != 1:
        return None
    if "document_tokens" in record:
        tokens = [token["token"] for token in record["document_tokens"]]
    else:
        tokens = record["document_text"].split(" ")
    answer = " ".join(tokens[answers[0]["start_token"] : answers[0]["end_token"]])
    for spaced, plain in _SPACING:
        answer = answer.replace(spaced, plain)
    return {"question": record["question_text"] + "?", "answer": answer}
