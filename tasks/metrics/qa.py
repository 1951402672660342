"""Metrics of answers to questions: exact match and F1 of words after normalisation, the best over right answers.

The normalisations are those of the public evaluation scripts of SQuAD v1.1, TriviaQA v1.0 and CoQA.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_DELETED = str.maketrans("", "", string.punctuation)
_SPACED = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`_", " "))


def normalize_squad(answer: str) -> str:
    """Lower case, without ASCII punctuation and articles, with single spaces."""
    return _normalize(answer, _DELETED)


def normalize_trivia_qa(answer: str) -> str:
    """Lower case, with spaces for punctuation, without articles, with single spaces."""
    return _normalize(answer, _SPACED)


def _normalize(answer: str, punctuation: Mapping[int, str | None]) -> str:
    """The order matters: an article may stand between punctuation."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(punctuation)).split())


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match `em` and `f1` in percent.

    Args:
      targets: for each question its right answers.
      predictions: for each question an answer.

    Raises:
      ValueError: there are not as many predictions as targets, or a question has no right answer.
    """
    return _em_and_f1(targets, predictions, normalize_squad)


def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """TriviaQA's exact match `em` and `f1` in percent. Arguments and errors as `squad`."""
    return _em_and_f1(targets, predictions, normalize_trivia_qa)


def _em_and_f1(targets, predictions, normalize: Callable[[str], str]) -> dict[str, float]:
    em, f1 = [], []
    for answers, prediction in zip(targets, predictions, strict=True):
        answers, prediction = [normalize(answer) for answer in answers], normalize(prediction)
        if not answers:
            raise ValueError(f"a question has no right answer to compare {prediction!r} with")
        em.append(prediction in answers)
        f1.append(max(_f1(answer.split(), prediction.split()) for answer in answers))
    return {"em": _percent(em), "f1": _percent(f1)}


def _percent(values: list[float]) -> float:
    return float(np.mean(values)) * 100 if values else np.nan


def _f1(target: list[str], prediction: list[str]) -> float:
    """F1 of the words that both have in common, as often as both have them."""
    common = (Counter(target) & Counter(prediction)).total()
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(target)
    return 2 * precision * recall / (precision + recall)


def span_squad(targets: Sequence[Mapping], predictions: Sequence[str]) -> dict[str, float]:
    """`squad` of answers that name a span of words, as "start: 3 end: 6", the end included.

    Args:
      targets: for each question its "answers" and the "context" whose words are numbered from 0.
      predictions: spans; one that cannot be read is the empty answer.
    """
    spans = [_span(_words(t["context"]), _words(p)) for t, p in zip(targets, predictions, strict=True)]
    return squad([target["answers"] for target in targets], spans)


def _words(text: str) -> list[str]:
    return re.sub(r"\W", " ", text).split()


def _span(context: list[str], prediction: list[str]) -> str:
    """Only the second and the fourth word of a prediction count: early in training anything may stand there."""
    try:
        start, end = int(prediction[1]), int(prediction[3])
    except (IndexError, ValueError):
        return ""
    return " ".join(context[start : end + 1])


def coqa_f1(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """CoQA's `f1` in percent, where an empty prediction is right for an empty answer.

    Args:
      targets: for each question its right answers.
      predictions: for each question an answer.
    """
    scores = []
    for answers, prediction in zip(targets, predictions):
        words = normalize_squad(prediction).split()
        scores.append(max(_coqa(normalize_squad(answer).split(), words) for answer in answers))
    return {"f1": _percent(scores)}


def _coqa(target: list[str], prediction: list[str]) -> float:
    return _f1(target, prediction) if target or prediction else 1.0
