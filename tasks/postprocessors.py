"""From what a model says, or from the target of an example, to what a metric compares.

seqio calls a postprocessor with a decoded output, the whole example and whether the output is
the target. The values of an example are numpy's, its text is bytes. The rules are those of t5
0.9.4 (t5/data/postprocessors.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

Example = Mapping[str, Any]

# Words that make no difference between two mentions of a referent.
_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()
)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def string_to_float(string: str, default: float = -1.0, **_) -> float:
    """The number that a string spells, `default` where it spells none. "nan" and "inf" are numbers."""
    try:
        return float(string)
    except ValueError:
        return default


def lower_text(string: str, **_) -> str:
    """The string in lower case."""
    return string.lower()


def string_label_to_class_id(string_label: str, label_classes: Sequence[str], default: int = -1, **_) -> int:
    """The place of a label among `label_classes`, `default` where it is not exactly one of them."""
    return label_classes.index(string_label) if string_label in label_classes else default


def multirc(string_label: str, example: Example | None = None, is_target: bool = False) -> dict[str, Any]:
    """Whether an answer is right, as 0 or 1 (-1: neither word), with its question for a target.

    Returns:
      {"value": ...}, for a target also "group", which metrics of t5x_lite.tasks.metrics.grouped group by.
    """
    value = {"value": string_label_to_class_id(string_label, ("False", "True"))}
    return value | {"group": example["idx/question"]} if is_target else value


def record(answer: str, example: Example | None = None, is_target: bool = False) -> dict[str, Any]:
    """{"value": answer}; for a target all answers, and as "group" the passage and query that they belong to."""
    if not is_target:
        return {"value": answer}
    return {"value": qa(answer, example, True), "group": (example["idx/passage"], example["idx/query"])}


def qa(answer: str, example: Example | None = None, is_target: bool = False) -> str | list[str]:
    """The answer; for a target all answers of the example."""
    return [_text(a) for a in example["answers"]] if is_target else answer


def span_qa(answer: str, example: Example | None = None, is_target: bool = False) -> str | dict[str, Any]:
    """The answer, which names a span; for a target all "answers" and the "context" that spans are cut from."""
    if not is_target:
        return answer
    return {"answers": qa(answer, example, True), "context": _text(example["context"])}


def wsc_simple(prediction: str | bytes, example: Example | None = None, is_target: bool = False) -> int:
    """Whether a predicted noun phrase names the referent of the example; for a target its label.

    Case and determiners do not count. The words of one phrase must all be in the other ("fuzzy bunny" names
    "bunny"), but with an apostrophe in both or in neither ("Bob" does not name "Bob's hat").

    Returns:
      1 or 0, and -1 where nothing is left of the prediction, which equals no label.
    """
    if is_target:
        return example["label"]
    predicted = _without_determiners(prediction)
    if not predicted:
        return -1
    # Not the label of the example: it says whether the span in the record is the referent, which is the target here.
    referent = _without_determiners(example["targets_pretokenized"])
    if ("'" in predicted) != ("'" in referent):
        return 0
    predicted, referent = set(predicted.split(" ")), set(referent.split(" "))
    return int(predicted <= referent or referent <= predicted)


def _without_determiners(phrase: str | bytes) -> str:
    """In lower case; every single space separates words, also empty ones."""
    return " ".join(word for word in _text(phrase).strip().lower().split(" ") if word not in _DETERMINERS)


def rank_classification(
    score: float,
    example: Example | None = None,
    is_target: bool = False,
    passthrough_feature_keys: Sequence[str] | None = None,
) -> float | tuple:
    """The score of one possible label; for a target what the metric rank_classification needs to know of it.

    Args:
      passthrough_feature_keys: further features of the example to hand on, for metrics of one's own.

    Returns:
      For a target (idx, is_correct, weight, length of the tokenized target, *passed through).
    """
    if not is_target:
        return score
    further = [example[key] for key in passthrough_feature_keys or ()]
    return (tuple(example["idx"]), example["is_correct"], example.get("weight", 1.0), len(example["targets"]), *further)
